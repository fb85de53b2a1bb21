"""What a run needs of a node, versions, and sentences without a cluster."""

import os
from dataclasses import replace

import pytest

from core.config import MachineConfig, RunConfig
from core.errors import ConfigError, RunError
from core.runs.cluster import connection
from core.runs.cluster.connection import check_versions, needed_resources, versions
from core.runs.executors import make_executor

CPU_NODE, GPU_NODE = {"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}


def needed(nodes, **machine):
    return needed_resources(replace(RunConfig(), machine=MachineConfig(**machine)), nodes)


@pytest.mark.parametrize(
    ("nodes", "machine", "resources"),
    [
        ([CPU_NODE], {"threads": 3}, (3, 0)),
        ([CPU_NODE, GPU_NODE], {"threads": 2}, (2, 1)),
        ([CPU_NODE, GPU_NODE], {"threads": 2, "gpu_share": 0.25}, (2, 0.25)),
        ([CPU_NODE, GPU_NODE], {"threads": 2, "device": "cuda", "gpu_share": 0.5}, (2, 0.5)),
        ([CPU_NODE, GPU_NODE], {"threads": 4, "device": "cpu"}, (4, 0)),
        ([{}], {"threads": 8}, (8, 0)),
    ],
)
def test_resources_of_a_run(nodes, machine, resources):
    assert needed(nodes, **machine) == dict(zip(("num_cpus", "num_gpus"), resources))


def test_without_a_number_of_threads_a_run_takes_as_many_cpus_as_there_are_here():
    here = len(os.sched_getaffinity(0))
    assert needed([{"CPU": here + 3.0}])["num_cpus"] == here
    assert needed([{"CPU": 1.0}])["num_cpus"] == 1


def test_more_than_a_node_has_is_refused():
    with pytest.raises(ConfigError, match="threads must be at most 4, the CPUs of the largest node of the cluster, got 5"):
        needed([CPU_NODE, GPU_NODE], threads=5, device="cpu")
    with pytest.raises(ConfigError, match="threads must be at most 2, "):  # the node with the GPU
        needed([CPU_NODE, GPU_NODE], threads=3)
    with pytest.raises(ConfigError, match="device must be auto or cpu on a cluster without a GPU, got 'cuda'"):
        needed([CPU_NODE], device="cuda")


def test_versions_must_agree():
    own = versions()
    assert own.keys() == {"Python", "torch", "this program"}
    check_versions(own, "10.0.0.1")
    with pytest.raises(RunError, match=r"torch on node 10.0.0.1 must be .*, as here, got 0.4"):
        check_versions({**own, "torch": "0.4"}, "10.0.0.1")


def test_missing_ray_is_named(monkeypatch):
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    for name in ("ray", "ray://127.0.0.1:10001"):
        with pytest.raises(RunError, match="executor 'ray' needs Ray, which is not installed: install it with `make cluster`"):
            make_executor(name, None)
