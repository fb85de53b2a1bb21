"""`branch`: a run goes on from one of its iterations with other values."""

import pytest
from command_line import TINY, call, last_json, listed

from core.runs.store import RunStore


def test_branch_is_computed_and_belongs_to_its_run(capsys, runs):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    assert call("branch", run_id, "--at", 1, "--set", "epsilon=0.3", "mu=1", "--json") == 0
    found = last_json(capsys)
    assert (found["name"], found["branch_at"]) == ("ε 0.3, μ 1 from iteration 1", 1)
    assert [run["id"] for run in listed(capsys)] == [run_id]
    store = RunStore(runs)
    last = [one.data["bns"] for one in store.records(found["run"], "generation") if one.step == 3]
    assert last == [pytest.approx(found["bns_loss"]["mi-fgsm"], rel=1e-6)]
    assert store.run(found["run"]).parent == run_id
    store.close()
    assert call("delete", found["run"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--at", "3"], "and not the last of a batch of 3, got 3"),
        (["--at", "x"], "must be a whole number"),
        (["--at", "1", "--set", "epsilon"], "must be NAME=VALUE, such as epsilon=0.2, got 'epsilon'"),
        (["--at", "1", "--set", "epsilon=9"], "epsilon must be"),
        (["--at", "1", "--set", "lr=0.1"], "live knob"),
    ],
)
def test_refusals_are_one_line(capsys, runs, options, said):
    assert call("generate", *TINY, "--json") == 0
    run_id = last_json(capsys)["run"]
    capsys.readouterr()
    assert call("branch", run_id, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
