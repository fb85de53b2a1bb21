"""Answers of networks as results, and of what a comparison keeps them."""

import json

import numpy as np
import torch
import torch.nn.functional as F

from core.evaluation.agreement import Comparison
from core.evaluation.answers import Answers, packed_numbers, unpacked_numbers


def test_json_values_are_unpacked_to_the_same():
    known = Answers(np.array([0, 999, 3], np.int32), np.array([0.5, 0.25, 0.99], np.float16))
    found = Answers.unpacked(json.loads(json.dumps(known.packed())))
    assert found.classes.tolist() == [0, 999, 3]
    assert found.confidence.tolist() == known.confidence.tolist()
    assert unpacked_numbers(packed_numbers(np.array([-1, 70_000], np.int32))).tolist() == [-1, 70_000]
    assert len(packed_numbers(np.zeros(2000, np.int32))) < 100


def test_a_comparison_keeps_the_answers_of_both_networks():
    comparison, random = Comparison(), torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(30, 7, generator=random) for _ in range(2))
    for start in (0, 20):
        comparison.add(ours[start : start + 20], theirs[start : start + 20])
    for scores, answers in zip((ours, theirs), comparison.answers()):
        confidence, classes = F.softmax(scores, dim=1).max(dim=1)
        assert answers.classes.tolist() == classes.tolist()
        np.testing.assert_allclose(answers.confidence, confidence.numpy(), atol=5e-4)
    same = [own == other for own, other in zip(*(answers.classes for answers in comparison.answers()))]
    assert comparison.figures().agreement == round(100 * sum(same) / 30, 3)
