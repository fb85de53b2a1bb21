"""The benchmark of calibrations on the small network."""

import torch

from benchmarks.calibration import WAYS, calibrated


def test_three_ways_at_one_size(small, small_images):
    pixels, labels = small_images.images, small_images.labels
    found = calibrated(small, small_images, 3, pixels, labels)
    assert set(found) == set(WAYS)
    assert found["ranges"]["bytes"] == found["corrected"]["bytes"] >= found["by_layer"]["bytes"]
    with torch.no_grad():
        same = small.network(small.normalize(pixels)).argmax(dim=1) == labels
    exact = calibrated(small, small_images, 8, pixels, labels)["corrected"]["top1"]
    assert abs(exact - 100 * float(same.double().mean())) < 10
