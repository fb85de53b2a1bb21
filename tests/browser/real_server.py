"""A real server in its own process, for browser tests."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "streamlit", "run", "--server.port"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    # the server contacts a test's login provider on this machine, which no proxy can reach
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DASHBOARD_")}
    return {**clean, "RUNS_DIR": str(folder / "runs"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **variables}


@contextmanager
def serving(folder: Path, port: int, *options: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of a server with its runs in `folder` and these options and environment variables; terminated on exit."""
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*COMMAND, str(port), *options], cwd=ROOT, env=environment(folder, **variables), stdout=log, stderr=subprocess.STDOUT
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(120):
                assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
                try:
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
                    break
                except OSError:
                    time.sleep(0.5)
            yield address, process
        finally:
            process.terminate()
            process.wait(60)
