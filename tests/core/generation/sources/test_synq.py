"""SynQ: its loss is that of HAST with other weights; its settings, and that the network recognizes its images."""

from dataclasses import replace

import torch

from core.config import PRESETS, GenerationConfig
from core.generation.loop import synthesize
from core.reporting import NullReporter

CONFIG = GenerationConfig(images=8, iterations=80, batch_size=8, snapshots=1)


class Totals(NullReporter):
    def __init__(self):
        self.values = []

    def record(self, stage, method, step, values):
        self.values.append(values["total"])


def test_images_are_those_of_hast_with_other_weights(small):
    few = replace(CONFIG, iterations=5, hast_beta=0.1, hast_gamma=0.5)
    own, theirs = (synthesize(small, few, method)[0].images for method in ("synq", "hast"))
    assert torch.equal(own, theirs)


def test_settings_of_the_authors():
    generation, training = PRESETS["synq"].generation, PRESETS["synq"].training
    assert (generation.synq_beta, generation.synq_gamma, generation.synq_lr, generation.images) == (0.1, 0.5, 0.5, 5120)
    assert (training.steps, training.training_lr, training.alpha_attention, training.alpha_cam) == (97 * 200, 1e-6, 4000.0, 50.0)
    assert (training.synq_easy, training.perturbation, training.protocol) == (0.5, 0.01, "authors")


def test_network_recognizes_the_images(embedded):
    totals = Totals()
    _, summary = synthesize(embedded, CONFIG, "synq", reporter=totals)
    assert summary["teacher_agreement"] >= 50
    assert totals.values[-1] < 0.2 * totals.values[0]
