import base64
import io

import numpy as np
from PIL import Image

from dashboard.images import by_class, contact_sheet, data_uri, sheet_html


def pictures(count, size=4):
    return np.stack([np.full((3, size, size), 10 + i, dtype=np.uint8) for i in range(count)])


def test_contact_sheet_puts_images_in_rows_with_gaps():
    sheet = contact_sheet(pictures(5), columns=3)
    assert sheet.shape == (2 * 5 - 1, 3 * 5 - 1, 4)
    for index in range(5):
        top, left = index // 3 * 5, index % 3 * 5
        assert (sheet[top : top + 4, left : left + 4] == [10 + index] * 3 + [255]).all()
    assert (sheet[4, :, 3] == 0).all()  # the gap between rows
    assert (sheet[5:, 10:, 3] == 0).all()  # the place of the missing image


def test_contact_sheet_keeps_channels_apart():
    image = np.zeros((1, 3, 2, 2), dtype=np.uint8)
    image[0, 0] = 255
    assert (contact_sheet(image, 1)[..., :3] == [255, 0, 0]).all()


def test_by_class_makes_a_column_of_each_class():
    labels = np.array([1, 0, 1, 2, 0])
    arranged = by_class(pictures(5), labels, classes=3, rows=2)
    assert [int(image[0, 0, 0]) for image in arranged] == [11, 10, 13, 14, 12, 0]


def test_data_uri_is_the_picture_without_loss():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    uri = data_uri(pixels)
    assert uri.startswith("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(decoded, pixels)


def test_sheet_escapes_names_from_outside():
    html = sheet_html(pictures(4), np.array([0, 1, 0, 1]), ["<script>alert(1)</script>", "b"], 'x" onerror="y')
    assert "<script>" not in html
    assert 'onerror="y' not in html


def test_sheet_of_many_classes_has_no_names():
    html = sheet_html(pictures(16), np.arange(16), [f"class {i}" for i in range(100)], "images")
    assert "class 3" not in html
    assert "<img" in html
