"""A Ray cluster of several nodes on this machine, for the benchmark and the tests."""

import socket
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the address of the machine's network
_NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "node_ip_address": LOOPBACK}


class LocalCluster:
    """Ray's own cluster for tests. The head computes nothing. client: the address for processes that are not on a node.

    folder: for Ray's files, with a short path, because sockets are in it. Each node has a part of its own, as on its own machine:
    where nodes share one, a new node replaces the program while others load it.
    """

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._folder, self._count = folder, 0

        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = free.getsockname()[1]
        head = {**_NODE, "num_cpus": 0, "include_dashboard": False, "ray_client_server_port": port}
        self._cluster = Cluster()
        self._started(**head)
        self.address, self.client = self._cluster.address, f"ray://{LOOPBACK}:{port}"
        self._nodes = [self._started(**_NODE)]

    def _started(self, **settings: Any) -> Any:
        """A new node. Ray gives one half a minute to start, which is not enough on a busy machine."""
        for _ in range(3):
            self._count += 1
            own = self._folder / str(self._count)
            own.mkdir()
            try:
                return self._cluster.add_node(temp_dir=str(own), **settings)
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
        raise TimeoutError("a node of the cluster did not start in three attempts")

    def add_node(self, **resources: int) -> None:
        """resources: such as num_gpus, which Ray counts whether they exist or not."""
        self._nodes.append(self._started(**{**_NODE, **resources}))

    def remove_node(self) -> None:
        """The node that was added last vanishes, as with a power failure."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()
