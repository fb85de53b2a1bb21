"""Samplers: what they propose, and that the same results give the same points."""

import pytest

from core.comparison import samplers, search_space
from core.comparison.samplers import ROUND, make_sampler
from core.comparison.search_space import GRID, HALVING, RANDOM, TPE, Range, check_sampler, halving_points, points, rungs, size
from core.errors import ConfigError, RunError, UnknownNameError

SPACE = {"epsilon": Range(0.01, 1.0), "mu": [0.1, 0.5, 0.9], "range": ["minmax", "mse"], "steps": Range(5, 9)}


def searched(space, count, seed, objective):
    """All points of a search, round by round."""
    sampler = make_sampler(TPE, space, count, seed)
    found = []
    while new := sampler.propose():
        assert len(new) <= ROUND
        found += new
        sampler.tell([(point, objective(point)) for point in new])
    return found


def test_a_grid_and_random_points_are_proposed_at_once():
    for sampler, count in ((GRID, 0), (RANDOM, 3)):
        space = {"mu": [0.1, 0.5], "steps": [1, 2, 3]}
        made = make_sampler(sampler, space, count, 7)
        assert made.propose() == points(space, count, 7)
        assert made.propose() == []


def test_tpe_finds_better_points_than_it_starts_with_and_repeats_itself():
    pytest.importorskip("optuna")

    def objective(point):
        return -abs(point["mu"] - 0.5) - abs(point["epsilon"] - 0.1) - (point["range"] == "mse")

    found = searched(SPACE, 40, 0, objective)
    assert found == searched(SPACE, 40, 0, objective)
    assert found != searched(SPACE, 40, 1, objective)
    assert len({tuple(point.values()) for point in found}) == len(found) == 40
    for point in found:
        assert 0.01 <= point["epsilon"] <= 1.0
        assert point["epsilon"] == float(f"{point['epsilon']:.3g}")
        assert point["steps"] in range(5, 10)
        assert point["mu"] in SPACE["mu"]
    values = [objective(point) for point in found]
    assert sum(values[-16:]) / 16 > sum(values[:8]) / 8 + 0.3


def test_tpe_learns_from_the_results_and_not_from_points_without_one():
    pytest.importorskip("optuna")
    high = searched(SPACE, 24, 0, lambda point: point["epsilon"])
    low = searched(SPACE, 24, 0, lambda point: -point["epsilon"])
    assert high[: 2 * ROUND] == low[: 2 * ROUND]  # at random
    assert sum(point["epsilon"] for point in high[8:]) > sum(point["epsilon"] for point in low[8:])
    assert len(searched(SPACE, 12, 0, lambda point: None)) == 12


def test_tpe_ends_when_all_points_are_proposed():
    pytest.importorskip("optuna")
    space = {"mu": [0.1, 0.5], "range": ["minmax", "mse"]}
    assert size(space) == 4
    found = searched(space, 100, 0, lambda point: point["mu"])
    assert sorted(map(str, found)) == sorted(map(str, points(space)))


@pytest.mark.parametrize(
    ("sampler", "count", "error", "message"),
    [
        ("bayes", 3, UnknownNameError, "sampler"),
        (GRID, 3, ConfigError, "points must be 0 with sampler 'grid', which has all of them, got 3"),
        (RANDOM, 0, ConfigError, "points must be 1 to 10,000 with sampler 'random', got 0"),
        (TPE, 0, ConfigError, "points must be 1 to 10,000 with sampler 'tpe', got 0"),
    ],
)
def test_a_sampler_that_cannot_be_used_is_refused(sampler, count, error, message):
    with pytest.raises(error, match=message):
        check_sampler(sampler, count)


def test_without_optuna_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(search_space, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="sampler 'tpe' needs Optuna, which is not installed: install it with `pip install optuna`"):
        check_sampler(TPE, 3)
    check_sampler(RANDOM, 3)


def test_every_sampler_is_made_by_its_name():
    pytest.importorskip("optuna")
    for name in search_space.SAMPLERS:
        assert make_sampler(name, {"mu": [0.1, 0.5]}, 0 if name == GRID else 1, 0).propose()
    assert [name for name in search_space.SAMPLERS if samplers.is_adaptive(name)] == [TPE, HALVING]


def test_halving_goes_on_with_the_best_third():
    sampler = make_sampler(HALVING, {"epsilon": Range(0.01, 1.0)}, 10, 3)
    drawn = points({"epsilon": Range(0.01, 1.0)}, 10, 3)

    def objective(point):
        return None if point["epsilon"] == worst else -abs(point["epsilon"] - 0.3)

    worst = min(drawn, key=lambda point: abs(point["epsilon"] - 0.3))["epsilon"]  # would be the best, but could not be measured
    seen = []
    while new := sampler.propose():
        seen.append(new)
        sampler.tell([(point, objective(point)) for point in new])
    assert [len(rung) for rung in seen] == [10, 3, 1]
    assert [[point["share"] for point in rung] for rung in seen] == [[pytest.approx(1 / 9)] * 10, [pytest.approx(1 / 3)] * 3, [1.0]]
    assert [{"epsilon": point["epsilon"]} for point in seen[0]] == drawn
    best = sorted((point["epsilon"] for point in drawn if point["epsilon"] != worst), key=lambda epsilon: abs(epsilon - 0.3))
    assert [point["epsilon"] for point in seen[1]] == best[:3]
    assert [point["epsilon"] for point in seen[2]] == best[:1]


@pytest.mark.parametrize(("count", "numbers"), [(1, [1]), (2, [2]), (3, [3, 1]), (8, [8, 2]), (9, [9, 3, 1]), (100, [100, 33, 11])])
def test_rungs_of_halving(count, numbers):
    assert [number for _, number in rungs(count)] == numbers
    assert rungs(count)[-1][0] == 1
    assert len(halving_points({"steps": Range(1, 1000)}, count, 0)) == sum(numbers)


def test_halving_ends_where_nothing_was_measured():
    sampler = make_sampler(HALVING, {"epsilon": [0.1, 0.2, 0.3]}, 3, 0)
    sampler.tell([(point, None) for point in sampler.propose()])
    assert len(sampler.propose()) == 1
    assert sampler.propose() == []
