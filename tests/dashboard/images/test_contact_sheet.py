import base64
import io

import numpy as np
import pytest
from PIL import Image

from core.reporting import Frame
from dashboard.images.contact_sheet import data_uri, large_html, sheet, sheet_html, single_image, strip_html
from dashboard.images.rows import row_html


def pictures(count, size=4):
    return np.stack([np.full((3, size, size), 10 + i, dtype=np.uint8) for i in range(count)])


def test_data_uri_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    uri = data_uri(pixels)
    assert uri.startswith("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(decoded, pixels)


def test_sheet_escapes_names():
    html = sheet_html(pictures(4), np.array([0, 1, 0, 1]), ["<script>alert(1)</script>", "b"], 'x" onerror="y')
    assert "<script>" not in html
    assert 'onerror="y' not in html


def test_sheet_of_many_classes_has_no_names():
    html = sheet_html(pictures(16), np.arange(16), [f"class {i}" for i in range(100)], "images")
    assert "class 3" not in html
    assert "<img" in html


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def seen(count, step=1, **known):
    return Frame(step, pictures(count), np.arange(count) % 3, **known)


def test_data_uri_keeps_transparency():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)
    assert np.array_equal(decoded(data_uri(pixels)), pixels)


def test_sheet_has_all_images_by_class_with_their_descriptions():
    predicted = np.array([0, 1, 1, 0, 2])
    made = sheet(seen(5, predicted=predicted, confidence=np.float32([0.5, 0.996, 0.25, 1, 0.1])), ["cat", "dog", "frog"])
    assert (made.columns, made.header) == (3, ["cat", "dog", "frog"])
    assert made.cells == [
        [0, "cat\nteacher: cat, 50 %", False],
        [1, "dog\nteacher: dog, 100 %", False],
        [2, "frog\nteacher: dog, 25 %", True],
        [3, "cat\nteacher: cat, 100 %", False],
        [4, "dog\nteacher: frog, 10 %", True],
        None,
    ]
    pixels = decoded(made.picture)
    assert pixels.shape == (made.height, made.width, 4) == (9, 14, 4)
    assert [int(pixels[top, left, 0]) for top in (0, 5) for left in (0, 5, 10)] == [10, 11, 12, 13, 14, 0]
    assert pixels[5, 10, 3] == 0  # the cell without an image is transparent


def test_sheet_without_predictions_names_the_classes():
    assert sheet(seen(2), ["cat", "dog", "frog"]).cells == [[0, "cat", False], [1, "dog", False], None]


def test_sheet_of_many_classes_keeps_the_order_of_the_images():
    made = sheet(seen(9), [f"class {index}" for index in range(11)])
    assert (made.columns, made.header) == (8, [])
    assert [cell and cell[0] for cell in made.cells] == list(range(9))


def test_strip_shows_its_iterations_and_escapes_names():
    html = strip_html([seen(1, 3), single_image(seen(5, 7), 3)], ["3", "7"], ["<b>", "b", "c"], 7)
    assert 'data-step="3"' in html
    assert 'data-step="7"' in html
    assert "<b>," not in html
    assert data_uri(pictures(4)[3].transpose(1, 2, 0)) in html
    assert html.count("border:2px solid currentColor") == 1


@pytest.mark.parametrize(("channels", "shown"), [(1, [7, 7, 7]), (2, [7, 8, 8]), (3, [7, 8, 9]), (4, [7, 8, 9])])
def test_images_of_any_channels_and_proportions_are_shown(channels, shown):
    images = np.arange(7, 7 + channels, dtype=np.uint8)[None, :, None, None].repeat(4, axis=2).repeat(6, axis=3)
    frame = Frame(1, images, np.zeros(1, dtype=np.int64))
    made = sheet(frame, ["a"])
    assert (made.width, made.height) == (6, 4)
    large, small = large_html(frame, 0, "an image"), strip_html([frame], ["1"], ["a"], 1)
    assert "max-width:256px;aspect-ratio:6/4" in large
    for picture in (made.picture, *(html.split('src="')[1].split('"')[0] for html in (large, small))):
        pixels = decoded(picture)
        assert pixels.shape[:2] == (4, 6)
        assert (pixels[..., :3] == shown).all()
    pixels = decoded(row_html([images], ["a"], "an image").split('src="')[1].split('"')[0])
    assert (pixels[..., :3] == shown).all()


def test_a_high_image_is_at_most_256_pixels_high():
    frame = Frame(1, np.zeros((1, 1, 64, 16), dtype=np.uint8), np.zeros(1, dtype=np.int64))
    assert "max-width:64px;aspect-ratio:16/64" in large_html(frame, 0, "an image")


def test_sheet_of_images_that_are_almost_all_of_one_class_is_not_a_column():
    labels = np.array([2, 1, 2, 2, 2, 2, 0, 2])
    made = sheet(Frame(1, pictures(8), labels), ["cat", "dog", "frog"])
    assert (made.columns, made.header) == (3, [])
    assert [cell[0] for cell in made.cells] == [6, 1, 0, 2, 3, 4, 5, 7]
    assert (made.width, made.height) == (14, 14)
