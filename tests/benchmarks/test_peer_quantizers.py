import importlib.util
import sys

import pytest
import torch
from torch import nn

from benchmarks import peer_quantizers
from core.models.full_precision import FullPrecisionModel


@pytest.fixture
def small(small):
    """Without the addition of the usual small network: torchao refuses a tensor that a layer and an addition read."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(small.spec.classes)))
    return FullPrecisionModel(network.eval().requires_grad_(False), small.spec)


@pytest.mark.parametrize("name", peer_quantizers.QUANTIZERS)
def test_the_scores_of_every_quantizer_are_close_to_those_of_the_network(name, small, small_images, tmp_path):
    if name in ("NNCF", "torchao"):
        pytest.importorskip(name.lower())
    images = small_images.images
    with torch.no_grad():
        expected = small.network(small.normalize(images))
        path, scorer = peer_quantizers.QUANTIZERS[name](small, images, tmp_path)
        found = scorer(small.normalize(images).contiguous())
    assert path.stat().st_size > 0
    assert not torch.equal(found, expected)  # it is quantized
    assert float((found - expected).abs().max()) < 0.1 * float(expected.max() - expected.min())


def test_packages_that_are_missing_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peer_quantizers.py"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("nncf", "torchao") else name)
    with pytest.raises(SystemExit, match="1"):
        peer_quantizers.main()
    message = "peer_quantizers.py needs packages that are not installed: python -m pip install nncf torchao\n"
    assert capsys.readouterr().err == message
