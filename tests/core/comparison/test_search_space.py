"""Values, ranges and points of a search."""

import itertools
import math

import pytest

from core.comparison import search_space
from core.comparison.search_space import Range, points, space_of, sweepable, values_of
from core.config import RunConfig
from core.errors import ConfigError, UnknownNameError

GRID = {"epsilon": [0.05, 0.1], "mu": [0.5, 0.9], "steps": [10, 20, 30]}


def test_a_grid_has_every_combination_once():
    found = points(GRID)
    assert [tuple(point.values()) for point in found] == list(itertools.product(*GRID.values()))
    assert all(list(point) == list(GRID) for point in found)


def test_random_points_are_different_points_of_the_grid_and_depend_on_the_seed():
    drawn = [points(GRID, 5, seed) for seed in range(4)]
    for some in drawn:
        assert len({tuple(point.values()) for point in some}) == 5
        assert all(point in points(GRID) for point in some)
    assert drawn[0] == points(GRID, 5, 0)
    assert len({str(some) for some in drawn}) > 1
    assert points(GRID, 50) == points(GRID)


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"epsilom": [0.1]}, UnknownNameError, "unknown knob 'epsilom'"),
        ({"seed": [1, 2]}, ConfigError, "grid must not have seed"),
        ({"mu": [0.5, 0.5]}, ConfigError, "mu must have each value once in a grid, got 0.5, 0.5"),
    ],
)
def test_bad_grids_are_refused(grid, error, message):
    with pytest.raises(error, match=message):
        points(grid)


def test_ranges_are_drawn_from_within_their_ends_and_on_a_logarithmic_scale_if_wide():
    space = {"epsilon": Range(0.001, 1.0), "mu": Range(0.5, 0.9), "steps": Range(3, 5), "range": ["minmax", "mse"]}
    found = points(space, 400, 0)
    assert found == points(space, 400, 0)
    assert found != points(space, 400, 1)
    for name in ("epsilon", "mu", "steps"):
        values = [point[name] for point in found]
        assert space[name].low <= min(values) < max(values) <= space[name].high
    assert {point["steps"] for point in found} == {3, 4, 5}
    assert {point["range"] for point in found} == {"minmax", "mse"}
    # as many below the geometric mean of the ends as above
    below = sum(point["epsilon"] < math.sqrt(0.001) for point in found) / len(found)
    assert below == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / len(found)))
    assert all(point["epsilon"] == float(f"{point['epsilon']:.3g}") for point in found)


def test_a_small_range_has_fewer_points_than_asked_for():
    assert sorted(point["steps"] for point in points({"steps": Range(3, 5)}, 100)) == [3, 4, 5]


def test_a_range_is_no_grid_and_a_sweep_is_not_without_end(monkeypatch):
    with pytest.raises(ConfigError, match="epsilon must have values such as 0.1,0.2 in a grid, got the range 0.1..0.2"):
        points({"epsilon": Range(0.1, 0.2)})
    monkeypatch.setattr(search_space, "MOST_POINTS", 11)
    with pytest.raises(ConfigError, match="a sweep must have at most 11 points, got 12"):
        points(GRID)
    drawn = points(GRID, 5, 0)
    assert len({tuple(point.values()) for point in drawn}) == 5
    assert all(point[name] in GRID[name] for point in drawn for name in GRID)


def test_values_are_read_from_text():
    found = space_of([("epsilon", ["0.01..0.5"]), ("steps", ["10", "20"]), ("range", ["mse"])])
    assert found == {"epsilon": Range(0.01, 0.5), "steps": [10, 20], "range": ["mse"]}
    with pytest.raises(ConfigError, match="epsilon must have a range from a lower to a higher value, got '0.5..0.1'"):
        values_of("epsilon", ["0.5..0.1"])
    with pytest.raises(ConfigError, match="steps must be a whole number, got '1.5'"):
        values_of("steps", ["1.5..3"])


def test_a_form_offers_knobs_that_a_config_can_have_and_that_its_methods_have():
    offered = sweepable(["adam"])
    assert {"mu", "steps"} <= sweepable(["mi-fgsm"]).keys()
    assert "mu" not in offered
    assert not {"seed", "threads", "data", "model"} & offered.keys()
    for name, field in offered.items():
        points({name: [field.default]})
        RunConfig().with_knobs({name: field.default})
