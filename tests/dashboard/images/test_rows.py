import base64
import io
import re

import numpy as np
from PIL import Image

from dashboard.images.rows import LARGEST, row_html, strip


def pictures(count, size=4):
    return np.stack([np.full((3, size, size), 10 + i, dtype=np.uint8) for i in range(count)])


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
