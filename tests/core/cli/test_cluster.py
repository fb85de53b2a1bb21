"""`--executor ray`: the commands give the same output as here, and refuse what cannot be computed."""

import json
import os
import subprocess
import sys

import pytest
from command_line import ROOT, TINY, call, last_json, refused
from safetensors.numpy import load_file

from core.runs.store import RunStore

slow = pytest.mark.slow
COMPARE = ("compare", "--preset", "quick", "--methods", "mi-fgsm", "adam", "--bits", "4", "--encoder", "", "--seeds", 0, "--json")


def without_seconds(values):
    if isinstance(values, dict):
        return {name: without_seconds(value) for name, value in values.items() if "seconds" not in name and name != "run"}
    return [without_seconds(value) for value in values] if isinstance(values, list) else values


@slow
def test_generate_writes_the_same_images(cluster, tmp_path, capsys):
    printed = {}
    for executor in ("local", "ray"):
        assert call("generate", *TINY, "--executor", executor, "--out", tmp_path / executor, "--json") == 0
        printed[executor] = without_seconds(last_json(capsys))
    assert printed["ray"] == printed["local"]
    local, ray = (load_file(tmp_path / executor / "images.safetensors") for executor in ("local", "ray"))
    assert all((local[name] == ray[name]).all() for name in local)


@slow
def test_several_workers_write_the_same_shards(cluster, runs, tmp_path, capsys):
    printed, shards = [], []
    sharded = ["generate", *TINY, "--shard-size", "3"]
    for place in ([], ["--executor", "ray", "--workers", "2"]):
        out = tmp_path / str(len(place))
        assert call(*sharded, *place, "--out", out, "--json") == 0
        printed.append(without_seconds(last_json(capsys)))
        shards.append({path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))})
    assert printed[0] == printed[1]
    assert len(shards[0]) == 3
    assert shards[0] == shards[1]
    store = RunStore(runs)
    assert [len(store.records(run.id, "generation")) for run in store.runs()] == [3, 3]
    store.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2"], "workers must be 1 without --executor ray, got 2"),
        (["--workers", "0", "--executor", "ray"], "workers must be 1 to 10,000, got 0"),
        (["--workers", "10001", "--executor", "ray"], "workers must be 1 to 10,000, got 10,001"),
    ],
)
def test_wrong_numbers_of_workers_are_refused(tmp_path, capsys, arguments, message):
    assert message in refused(capsys, tmp_path / "out", "generate", *TINY, *arguments)


@slow
def test_compare_measures_the_missing_runs_side_by_side(cluster, tiny_preset, runs, tmp_path, capsys):
    assert call(*COMPARE) == 0
    local = last_json(capsys)
    elsewhere = tmp_path / "elsewhere"
    assert call(*COMPARE, "--executor", "ray", "--runs", elsewhere) == 0
    captured = capsys.readouterr()
    assert "mi-fgsm, seed 0 (1 of 2) is complete" in captured.err
    found = json.loads(captured.out.splitlines()[-1])
    assert [without_seconds({**row, "runs": []}) for row in found["rows"]] == [
        without_seconds({**row, "runs": []}) for row in local["rows"]
    ]
    store = RunStore(elsewhere)
    assert [store.result(run.id, "cluster") for run in store.runs()] == [{"nodes": ["127.0.0.2"]}] * 2
    # repeated, it finds them
    assert call(*COMPARE, "--executor", "ray", "--runs", elsewhere) == 0
    assert len(store.runs()) == 2
    store.close()


@slow
def test_a_client_outside_of_the_cluster_and_a_cluster_of_its_own(cluster, runs, tmp_path):
    """In processes of their own, because a process uses one cluster."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    made = {}
    places = {"client": [cluster.client], "own": ["ray"], "local": ["local"], "workers": [cluster.client, "--workers", "2"]}
    for name, place in places.items():
        command = [sys.executable, "-m", "core", "generate", *TINY, "--out", str(tmp_path / name), "--json", "--executor", *place]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, done.stderr
        made[name] = (tmp_path / name / "images.safetensors").read_bytes()
    assert made["client"] == made["own"] == made["local"] == made["workers"]


def test_a_wrong_executor_is_refused(tmp_path, capsys):
    message = refused(capsys, tmp_path / "out", "generate", *TINY, "--executor", "slurm")
    assert "unknown executor 'slurm': must be one of local, ray, ray://HOST:PORT" in message


def test_bad_input_is_refused_before_a_node_sees_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("core.runs.cluster.connection.connect", lambda address: pytest.fail("connected"))
    message = refused(capsys, tmp_path / "out", "run", "--model", "resnet21", "--executor", "ray")
    assert "unknown model 'resnet21'" in message


def test_missing_ray_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("core.runs.cluster.connection.find_spec", lambda name: None)
    message = refused(capsys, tmp_path / "out", "generate", *TINY, "--executor", "ray")
    assert "executor 'ray' needs Ray, which is not installed: install it with `make cluster`" in message
