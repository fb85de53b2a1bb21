"""PLF: its loss is that of HAST with the plain cross entropy; its settings, and that the network recognizes its images."""

from dataclasses import replace

import pytest
import torch

from core.config import PRESETS, GenerationConfig
from core.generation.loop import GenerationLoop, synthesize

CONFIG = GenerationConfig(images=8, iterations=40, batch_size=8, snapshots=1)


def test_images_are_those_of_hast_without_focus(small):
    sets = [
        synthesize(small, replace(CONFIG, hast_gamma=0.0, hast_beta=3.0, plf_beta=3.0), method)[0].images
        for method in ("hast", "plf", "plf")
    ]
    assert torch.equal(sets[0], sets[1])
    focused, _ = synthesize(small, replace(CONFIG, hast_beta=3.0), "hast")
    assert not torch.equal(sets[0], focused.images)


def test_terms_are_named_after_what_they_are(small):
    assert [term["title"] for term in GenerationLoop(small, CONFIG, "plf").terms()][1:] == ["statistics of the batch", "cross entropy"]
    assert GenerationLoop(small, CONFIG, "hast").terms()[2]["title"] == "focal cross entropy"


def test_settings_of_the_paper():
    generation = PRESETS["plf"].generation
    assert (generation.images, generation.iterations, generation.plf_lr, generation.plf_beta) == (5120, 1000, 0.5, 10.0)


def test_network_recognizes_the_images(embedded):
    assert synthesize(embedded, CONFIG, "plf")[1]["teacher_agreement"] >= 50


@pytest.mark.parametrize("iterations", [1])
def test_first_loss_is_that_of_l_stat_plus_ten_ce(small, iterations):
    loop = GenerationLoop(small, replace(CONFIG, iterations=iterations), "plf")
    total, terms, *_ = loop._forward(loop.source.images(0), loop.source.labels, loop._weights())
    assert total.item() == pytest.approx((terms["stat"] + 10 * terms["ce"]).item(), rel=1e-5)
    scores = small.network(loop.source.current())
    assert terms["ce"].item() == pytest.approx(torch.nn.functional.cross_entropy(scores, loop.source.labels).item(), rel=1e-4)
