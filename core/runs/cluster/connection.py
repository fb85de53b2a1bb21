"""The connection of this process to a Ray cluster: versions that must agree, and what a run needs of a node.

Nothing imports Ray before a run is to be computed on a cluster. Whoever may use a cluster controls its nodes and the processes that connect
to it, and Ray's processes listen on all interfaces. A cluster that this module starts has no dashboard, and a token: Ray makes one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.errors import ConfigError, RunError

ADDRESS_VARIABLE = "RAY_ADDRESS"
_ROOT = Path(__file__).parents[3]
_SHIPPED = ("core", "assets")  # folders that the nodes get
_LOOPBACK = "127.0.0.1"
_lock = threading.Lock()
_starter = ThreadPoolExecutor(1, "ray")
_connected: list[str] = []  # the address of this process's cluster, once it is connected


def connect(address: str = "") -> None:
    """Connects this process to a cluster and sends it this program. Does nothing when it is connected to the same address already.

    address: ray://HOST:PORT or HOST:PORT; empty: that in RAY_ADDRESS or, without it, processes on this machine that end with this one.
    Raises RunError where Ray is not installed, the cluster cannot be reached or has other versions, and for a second address.
    """
    address = address or os.environ.get(ADDRESS_VARIABLE, "")
    if find_spec("ray") is None:
        raise RunError("executor 'ray' needs Ray, which is not installed: install it with `make cluster`")
    with _lock:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if _connected and not ray.is_initialized():
            _connected.clear()  # a client whose cluster has ended
        if _connected:
            if _connected != [address]:
                raise RunError(f"a process uses one cluster, {_connected[0] or 'that of this machine'}, got also {address!r}")
            return

        here: dict[str, Any] = {} if address else {"include_dashboard": False, "_node_ip_address": _LOOPBACK}
        others = [f"/{path.name}" for path in _ROOT.iterdir() if path.name not in _SHIPPED]
        environment = {"working_dir": str(_ROOT), "excludes": [*others, "__pycache__", "*.webp"]}
        start = partial(ray.init, address or "local", runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **here)
        try:
            # in a thread that does not end: on Linux, the processes that Ray starts end with the thread that started them
            _starter.submit(start).result()
        except Exception as error:  # Ray has no class of its own for a start that fails
            where = f"the Ray cluster at {address!r}" if address else "Ray on this machine"
            raise RunError(f"{where} cannot be used: {' '.join(str(error).split())}") from error
        _connected.append(address)


def disconnect() -> None:
    """Ends the connection, and the cluster if `connect` started it. Does nothing when there is none."""
    with _lock:
        if _connected:
            import ray

            ray.shutdown()
            _connected.clear()


def free() -> str:
    """What is free on the cluster in RAY_ADDRESS, for people: "2 nodes; 3 of 8 CPUs and 1 of 2 GPUs free". Raises RunError as `connect`."""
    connect()
    import ray

    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        found, whole = ray.available_resources(), ray.cluster_resources()
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise RunError(f"the Ray cluster does not answer: {' '.join(str(error).split())}") from error
    parts = [f"{found.get(name, 0.0):g} of {whole[name]:g} {name}s" for name in ("CPU", "GPU") if whole.get(name)]
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}; {' and '.join(parts) or 'nothing'} free"


def versions() -> dict[str, str]:
    """What must be the same here and on a node: name -> version. That of this program is a hash of its sources."""
    return {
        "Python": platform.python_version(),
        "torch": version("torch").partition("+")[0],  # without the kind of GPU
        "this program": _sources_hash(),
    }


@cache
def _sources_hash() -> str:
    digest = hashlib.sha256()
    folder = _ROOT / "core"
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".c")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_versions(of_node: Mapping[str, str], node: str) -> None:
    """Raises RunError for the first version that differs from the one here. node: its IP address."""
    for name, here in versions().items():
        if of_node.get(name) != here:
            raise RunError(f"{name} on node {node} must be {here}, as here, got {of_node.get(name)}")


def needed_resources(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Options of a Ray actor that computes the run: num_cpus and num_gpus.

    nodes: the resources of each node that is alive. A run on a GPU takes `gpu_share` of one. Without a number of threads, it takes as many
    CPUs as there are here, if a node has them, so that it computes with the threads that it would have here.
    A cluster without CPUs is one that has yet to start its nodes. Raises ConfigError for more than any node has.
    """
    machine = config.machine
    gpus = 0.0 if machine.device in ("cpu", "mps") else machine.gpu_share
    able = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if gpus and not able:
        if machine.device == "cuda":
            raise ConfigError("device must be auto or cpu on a cluster without a GPU, got 'cuda'")
        gpus, able = 0.0, list(nodes)
    most = int(max((node.get("CPU", 0.0) for node in able), default=0.0))
    if 0 < most < machine.threads:
        raise ConfigError(f"threads must be at most {most}, the CPUs of the largest node of the cluster, got {machine.threads}")
    return {"num_cpus": machine.threads or max(1, min(most, _cpus_here())), "num_gpus": gpus}


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
