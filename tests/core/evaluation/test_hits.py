import json

import numpy as np
import pytest

from core.evaluation.hits import packed, unpacked


@pytest.mark.parametrize("count", [1, 7, 8, 2001])
def test_every_image_survives_json(count):
    hits = np.random.default_rng(0).random(count) < 0.9
    values = json.loads(json.dumps(packed(hits)))
    np.testing.assert_array_equal(unpacked(values), hits)
    assert len(values["bits"]) < count / 5 + 5  # a bit each, and base64
