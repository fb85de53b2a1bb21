"""Figures of classes that change."""

import numpy as np

from core.comparison.confusion import ClassChange
from dashboard.charts.confusion import MOST_BARS, changes_figure, matrix_figure


def test_lost_images_point_downward_and_only_the_first_classes_are_shown():
    changes = [ClassChange(label, 50, 30 - label, label % 3, 0.5) for label in range(MOST_BARS + 5)]
    names = [f"class <{label}>" for label in range(MOST_BARS + 5)]
    lost, gained = changes_figure(changes, names, "adam")["data"]
    assert lost["y"] == [label - 30 for label in range(MOST_BARS)]
    assert gained["y"][:4] == [0, 1, 2, 0]
    assert lost["x"][1] == "class &#60;1&#62;"


def test_the_colors_of_a_matrix_are_symmetric_around_no_change():
    (trace,) = matrix_figure(np.array([[-7, 7], [2, -2]]), [3, 5], ["", "", "", "cat", "", "dog"])["data"]
    assert (trace["zmin"], trace["zmax"], trace["x"]) == (-7, 7, ["cat", "dog"])
