"""Load test, many sessions on one server: `python benchmarks/sessions.py --sessions 20 --jobs 4 --minutes 10`.

A session speaks Streamlit's protocol over a WebSocket, as a page in a browser does: it requests the page, reruns each fragment when it is
due, and asks the page's other socket for updates of the run. It draws nothing, so that only the server is measured: the browsers of twenty
users are on other machines. Prints one JSON object: the speed of the job without a session, with one session before and after, and with
all; the server's resident memory; messages, refreshes, and errors sent to pages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from core.config import EvaluationConfig, GenerationConfig, RunConfig
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore

ROOT = Path(__file__).parents[1]
SECONDS_ALONE = 30


class Session:
    """A browser tab without the browser."""

    def __init__(self, port: int, query: str, pace: float = 1.0) -> None:
        """pace: how many times as often as a page the session refreshes."""
        self.url, self.query = f"ws://127.0.0.1:{port}/_stcore/stream", query
        self.origin = f"http://127.0.0.1:{port}"
        self.pace = pace
        self.count: Counter[str] = Counter()
        self.errors: list[str] = []
        self.refresh_seconds: list[float] = []
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._intervals: dict[str, float] = {}
        self._asked = 0.0
        self._follower: asyncio.Task[None] | None = None

    @property
    def is_following(self) -> bool:
        """Whether the page asks for updates of a run."""
        return self._follower is not None

    async def run(self) -> None:
        """Runs until cancelled."""
        async with websockets.connect(self.url, origin=self.origin, subprotocols=["streamlit"], max_size=None) as socket:  # type: ignore
            await self._ask(socket, "")
            try:
                async for message in socket:
                    self._heard(socket, ForwardMsg.FromString(message))  # type: ignore[arg-type]
            finally:
                for timer in (*self._timers.values(), *([self._follower] if self._follower else [])):
                    timer.cancel()

    async def _ask(self, socket: Any, fragment: str) -> None:
        message = BackMsg()
        message.rerun_script.query_string = self.query
        message.rerun_script.fragment_id = fragment
        message.rerun_script.is_auto_rerun = bool(fragment)
        self.count["asked"] += 1
        self._asked = time.monotonic()
        await socket.send(message.SerializeToString())

    def _heard(self, socket: Any, message: ForwardMsg) -> None:
        self.count["messages"] += 1
        kind = message.WhichOneof("type")
        if kind == "stop_auto_rerun":
            for fragment in message.stop_auto_rerun.fragment_ids:
                if fragment in self._timers:
                    self._timers.pop(fragment).cancel()
                    del self._intervals[fragment]
        elif kind == "auto_rerun":
            rerun = message.auto_rerun
            if self._intervals.get(rerun.fragment_id) != rerun.interval:
                self._intervals[rerun.fragment_id] = rerun.interval
                if rerun.fragment_id in self._timers:
                    self._timers[rerun.fragment_id].cancel()
                self._timers[rerun.fragment_id] = asyncio.create_task(self._every(socket, rerun.interval, rerun.fragment_id))
        elif kind == "script_finished":
            self.count["refreshes"] += 1
            self.refresh_seconds.append(time.monotonic() - self._asked)
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            element = message.delta.new_element
            if element.WhichOneof("type") == "exception":
                self.errors.append(f"{element.exception.type}: {element.exception.message}")
            elif element.WhichOneof("type") == "bidi_component" and element.bidi_component.component_name == "dashboard.update_socket":
                data = json.loads(element.bidi_component.json)
                if self._follower is None:
                    self._follower = asyncio.create_task(self._follow(data["address"], data["milliseconds"] / 1000))
                elif self._follower.done():
                    self._follower.result()

    async def _follow(self, address: str, seconds: float) -> None:
        """Asks for updates as dashboard/components/update_socket.js does."""
        async with websockets.connect(f"{self.url.partition('/_stcore')[0]}{address}", origin=self.origin, max_size=None) as socket:  # type: ignore
            while True:
                await asyncio.sleep(seconds / self.pace)
                began = time.monotonic()
                await socket.send("new?" + self.query)
                news = json.loads(await socket.recv())
                self.refresh_seconds.append(time.monotonic() - began)
                self.count["refreshes"] += 1
                seconds = news["again"] / 1000

    async def _every(self, socket: Any, seconds: float, fragment: str) -> None:
        while True:
            await asyncio.sleep(seconds / self.pace)
            await self._ask(socket, fragment)


def resident(process: int) -> float:
    """Resident memory of a process in megabytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def processor_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def watch(sessions: int, runs: list[str], port: int, seconds: float, store: RunStore, server: int) -> dict[str, Any]:
    """Runs `sessions` sessions for `seconds`; returns the speed of the job and the load on the server."""
    tabs = [Session(port, f"run={runs[index % len(runs)]}") for index in range(sessions)]
    tasks = [asyncio.create_task(tab.run()) for tab in tabs]
    await asyncio.sleep(5)  # until each page has been drawn
    steps, began, processor = taken(store), time.monotonic(), processor_seconds(server)
    memory = []
    while time.monotonic() - began < seconds:
        await asyncio.sleep(min(5, seconds / 10))
        memory.append(round(resident(server), 1))
        for task in tasks:
            if task.done():
                task.result()
    if not all(tab.is_following for tab in tabs):
        raise SystemExit("a session received no updates of its run")
    elapsed = time.monotonic() - began
    outcome = {
        "sessions": sessions,
        "seconds": round(elapsed, 1),
        "steps_per_second": round((taken(store) - steps) / elapsed, 3),
        "server_processor_share": round((processor_seconds(server) - processor) / elapsed, 3),
        "resident_megabytes": memory[:: max(1, len(memory) // 10)],
        "refreshes": sum(tab.count["refreshes"] for tab in tabs),
        "asked": sum(tab.count["asked"] for tab in tabs),
        "messages": sum(tab.count["messages"] for tab in tabs),
        "refresh_milliseconds_median_and_95th": percentiles([s for tab in tabs for s in tab.refresh_seconds]),
        "errors": dict(Counter(error for tab in tabs for error in tab.errors)),
    }
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    return outcome


def percentiles(seconds: list[float]) -> list[float]:
    ordered = sorted(seconds) or [0.0]
    return [round(1000 * ordered[int(share * (len(ordered) - 1))], 1) for share in (0.5, 0.95)]


def taken(store: RunStore, stage: str = "generation") -> int:
    """Steps taken by all runs so far."""
    return sum(len(store.records(run.id, stage)) for run in store.runs())


async def measure(sessions: int, jobs: int, minutes: float, folder: Path) -> dict[str, Any]:
    port = free_port()
    environment = {**os.environ, RUNS_VARIABLE: str(folder)}
    environment.pop("DASHBOARD_TOKEN", None)
    store = RunStore(folder)
    # interrupted runs, which the server resumes at its start without anyone pressing a button
    config = RunConfig(
        generation=GenerationConfig(images=100_000, iterations=1000, snapshots=4), bits=(), evaluation=EvaluationConfig(encoder="")
    )
    runs = [store.create(config, f"job {index + 1}") for index in range(jobs)]
    starter = (
        "import sys, core.runs.manager as m\n"
        "original = m.RunManager.__init__\n"
        "def begin(self, store, **more):\n"
        "    original(self, store, **more)\n"
        "    for run in reversed(store.runs()):\n"
        "        if run.state.can_resume(): self.resume(run.id)\n"
        "m.RunManager.__init__ = begin\n"
        "from streamlit.web.cli import main\n"
        "sys.argv = ['streamlit', 'run', 'streamlit_app.py', '--server.port', sys.argv[1]]\n"
        "main()\n"
    )
    for run_id in runs:
        store.set_state(run_id, RunState.INTERRUPTED)
    with subprocess.Popen([sys.executable, "-c", starter, str(port)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                await asyncio.sleep(0.1)
            first = Session(port, "")
            task = asyncio.create_task(first.run())
            while taken(store) < 20:
                await asyncio.sleep(0.5)
                if task.done():
                    task.result()
            task.cancel()
            none = await watch(0, runs, port, SECONDS_ALONE, store, server.pid)
            before = await watch(1, runs, port, SECONDS_ALONE, store, server.pid)
            all_of_them = await watch(sessions, runs, port, 60 * minutes, store, server.pid)
            await asyncio.sleep(35)  # until the server no longer counts the sessions that left
            after = await watch(1, runs, port, SECONDS_ALONE, store, server.pid)
        finally:
            server.kill()
    store.close()
    alone = (before["steps_per_second"] + after["steps_per_second"]) / 2
    return {
        "jobs": jobs,
        "nobody": none,
        "one_before": before,
        "all": all_of_them,
        "one_after": after,
        "speed_with_all_over_one": round(all_of_them["steps_per_second"] / alone, 3),
        "speed_with_one_over_nobody": round(alone / none["steps_per_second"], 3),
        "megabytes_grown": round(all_of_them["resident_megabytes"][-1] - all_of_them["resident_megabytes"][0], 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(asyncio.run(measure(options.sessions, options.jobs, options.minutes, Path(temporary))), indent=2))
