"""A Ray cluster of several nodes on this machine, for one test after the other."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.local_cluster import LocalCluster
from core.runs.cluster import connection


@contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """A cluster that RAY_ADDRESS names during the block. Skips the test if Ray is not installed."""
    if find_spec("ray") is None:  # without importing it: it reads its environment when it is
        pytest.skip("Ray is not installed: make cluster")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short path, because sockets are in it
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = LocalCluster(folder)
        patch.setenv(connection.ADDRESS_VARIABLE, cluster.address)
        yield cluster
        connection.disconnect()
        cluster.close()
    shutil.rmtree(folder, ignore_errors=True)
