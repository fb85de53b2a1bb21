"""Classes that change, counted by hand."""

import math

import numpy as np
import pytest

from core.comparison.confusion import Confusion
from core.evaluation.answers import Answers, packed_numbers


def packed(classes):
    return Answers(np.array(classes, np.int32), np.full(len(classes), 0.9, np.float16)).packed()


LABELS = [0] * 20 + [1] * 30 + [2] * 10
BEFORE = [0] * 20 + [1] * 25 + [2] * 5 + [2] * 10
AFTER = [0] * 4 + [1] * 16 + [1] * 27 + [2] * 3 + [2] * 9 + [0]


@pytest.fixture
def found():
    real = {"full precision": packed(BEFORE), "trained": packed(AFTER), "labels": packed_numbers(np.array(LABELS, np.int32))}
    return Confusion.of({"real": real, "held_out": {}}, "trained")


def test_classes_by_net_loss(found):
    assert [(one.label, one.images, one.lost, one.gained) for one in found.changes()] == [(0, 20, 16, 0), (2, 10, 1, 0), (1, 30, 0, 2)]
    assert found.disagreements == 16 + 2 + 1


def test_p_is_mcnemars_with_the_correction_of_holm(found):
    first, second, third = found.changes()
    assert first.p == pytest.approx(3 * 2 / 2**16)  # the smallest of three
    assert third.p == pytest.approx(min(1, 2 * 2 / 2**2))
    assert second.p == 1
    assert [one.is_measurable for one in (first, second, third)] == [True, False, False]
    assert math.isclose(max(one.p for one in found.changes()), 1)


def test_matrix_is_the_difference_of_two_confusion_matrices(found):
    expected = [[-16, 16, 0], [0, 2, -2], [1, 0, -1]]
    assert found.matrix_change([0, 1, 2]).tolist() == expected


def test_without_labels_classes_are_those_of_full_precision():
    known = {"full precision": packed(BEFORE), "calibrated": packed(AFTER)}
    found = Confusion.of({"real": {}, "held_out": known}, "calibrated")
    assert not found.labeled
    assert sum(one.lost for one in found.changes()) == found.disagreements
    assert all(one.gained == 0 for one in found.changes())
    assert Confusion.of({"real": {}, "held_out": known}, "trained") is None
    assert Confusion.of({}, "trained") is None
