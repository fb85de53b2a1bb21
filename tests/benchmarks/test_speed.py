"""Every engine benchmark runs to its end and measures something, with a small batch and few repetitions."""

from dataclasses import replace

import pytest

from benchmarks import generation, gpu, qat
from core.data.labeled import embedded_images

SMALL = 16


@pytest.mark.slow
def test_generation(monkeypatch):
    config = replace(generation.CONFIG, images=4 * SMALL, batch_size=SMALL)
    monkeypatch.setattr(generation, "CONFIG", config)
    measured = generation.measure(threads=1, rounds=1)
    assert measured["iteration"].keys() == {"network", "mi-fgsm", "adam", "by torch"}
    assert measured["beside_others"].keys() > measured["iteration"].keys()
    assert measured["iteration"]["network"]["ratio"] == 1
    assert all(row["milliseconds"] > 0 for row in measured["beside_others"].values())


@pytest.mark.slow
def test_training(monkeypatch):
    images, labels = embedded_images()
    monkeypatch.setattr(qat, "embedded_images", lambda: (images[:SMALL], labels[:SMALL]))
    monkeypatch.setattr(qat, "BATCH", SMALL)
    monkeypatch.setattr(qat, "LEAST", 1)
    measured = qat.measure(threads=1, seconds=0.0)
    assert all(measured[name]["ratio"] > 0 for name in ("quick", "paper", "evaluation"))
    assert measured["evaluation"]["images"] == SMALL * measured["evaluation"]["turns"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["generation", "training"])
def test_gpu_benchmark_on_a_cpu(embedded, monkeypatch, part):
    if part == "generation":
        measured = gpu.generation(embedded, SMALL, rounds=1)
        assert all(measured[name]["milliseconds"] > 0 for name in ("network", "mi-fgsm", "adam", "mi-fgsm, compiled"))
    else:
        monkeypatch.setattr(gpu, "SMALL", replace(gpu.SMALL, images=SMALL, batch_size=SMALL, iterations=1, snapshots=1))
        measured = gpu.training(embedded, gpu.generated(embedded, "adam"), rounds=1)
        assert len(measured) == 2
        assert all(milliseconds > 0 for milliseconds in measured.values())
