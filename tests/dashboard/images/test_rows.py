import base64
import io
import re

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from dashboard.images.rows import LARGEST, read_images, row_html, strip


def pictures(count, size=4):
    return np.stack([np.full((3, size, size), 10 + i, dtype=np.uint8) for i in range(count)])


def test_requested_images_are_read_in_order(tmp_path):
    path = tmp_path / "images.safetensors"
    save_file({"images": pictures(9), "labels": np.arange(9)[::-1].copy()}, path)
    images, labels = read_images(path, [7, 0, 7])
    assert [int(image[0, 0, 0]) for image in images] == [17, 10, 17]
    assert labels.tolist() == [1, 8, 1]


def test_missing_images_give_none(tmp_path):
    path = tmp_path / "images.safetensors"
    assert read_images(path, [0]) is None
    save_file({"images": pictures(2), "labels": np.arange(2)}, path)
    assert read_images(path, [2]) is None
    path.write_bytes(b"no tensors")
    assert read_images(path, [0]) is None


def test_strip_has_wide_gaps_between_groups_and_narrow_ones_within():
    images = pictures(3)
    row = strip([images[:2], images[2:]], between=5)
    assert row.shape == (4, 4 + 1 + 4 + 5 + 4, 4)
    assert row[0, :, 3].tolist() == [255] * 4 + [0] + [255] * 4 + [0] * 5 + [255] * 4
    assert row[0, [0, 5, 14], 0].tolist() == [10, 11, 12]


def test_row_escapes_captions_and_shrinks_large_images():
    html = row_html([pictures(2, 224), pictures(1, 224)], ["<script>", 'a"b'], 'x" onerror="y')
    assert "<script>" not in html
    assert 'onerror="y' not in html
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))
    assert picture.height == LARGEST
    assert picture.getpixel((0, 0))[:3] == (10, 10, 10)
