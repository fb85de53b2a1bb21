"""Time of the server for every page of a store with many runs: `python benchmarks/many_runs.py --runs 10000`.

A real server, asked over the WebSocket of the pages by a session without a browser (sessions.py): from the request of a page to the end of
its script, with everything that the server sends. That is all of its work; the browser's own is not in it. Prints one JSON object and
writes benchmarks/results/many_runs.json. For each number of runs (100, 1,000, and `--runs`) and each page, in milliseconds:

- `cold`: the first request after the start of the server, which imports what the page needs
- `load`: by a new session later
- `rerun`: by the same session again, as after a click
- `oldest`: by a new session, with the address of the oldest run
- `processor`: time of the processor that one of these three takes on average, which other programs on the machine do not lengthen

Also the resident memory of the server at the end, and whether it loaded torch. The runs are copies, with other settings, states, names,
tags and notes, of three real ones: a complete run, one of a network of its own, and one on given images. Takes five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import websockets
from safetensors.numpy import load_file, save_file
from sessions import free_port, processor_seconds, resident
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from core import layout
from core.config import GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.models.registry import MODELS
from core.runs.manager import RunManager
from core.runs.state import RunState
from core.runs.store import RUNS_VARIABLE, RunStore
from dashboard.pages import PAGES

ROOT = Path(__file__).parents[1]
SMALL = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=40, iterations=8, batch_size=20, snapshots=2),
    training=TrainingConfig(steps=4, training_batch_size=20),
    bits=(3, 4),
)
ROUNDS = 5
# of ten runs each
STATES = [RunState.COMPLETE] * 7 + [RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED]
TEMPLATES = [0] * 6 + [1] * 2 + [2] * 2
# results that are small; the others would need gigabytes, and no list shows them
COPIED = ("full_precision", "terms", "methods", "accuracy/%", "generation/%")


def make_templates(folder: Path) -> list[str]:
    """Ids of three complete runs: of the embedded network, of an own one, and on the images of the first."""
    weights, spec = MODELS["resnet20_cifar10"]
    own = folder / layout.UPLOADS / layout.NETWORKS / f"{'a' * 64}.safetensors"
    own.parent.mkdir(parents=True)
    save_file(load_file(weights), own, metadata={"spec": json.dumps(asdict(replace(spec, name="mine")))})
    store = RunStore(folder)
    manager = RunManager(store)
    ids = [manager.start(SMALL, "quick check"), manager.start(replace(SMALL, model=str(own)), "a network of my own")]
    given = replace(SMALL, images_from=str(folder / ids[0] / layout.IMAGES)).with_knobs({"encoder": ""})
    manager.wait(ids[0])
    ids.append(manager.start(given, "again on the same images"))
    for run_id in ids:
        manager.wait(run_id)
        if store.run(run_id).state is not RunState.COMPLETE:
            raise SystemExit(store.run(run_id).traceback)
    manager.close()
    store.close()
    return ids


def add_runs(folder: Path, templates: list[str], count: int) -> None:
    """Copies the templates until there are `count` runs, in one transaction, older ones with earlier times."""
    store = RunStore(folder)
    with store.database.write() as connection:
        rows = [dict(connection.execute("SELECT * FROM run WHERE id = ?", (run_id,)).fetchone()) for run_id in templates]
        columns = list(rows[0])
        newest = min(row["created"] for row in rows)
        for number in range(count - len(templates)):
            template = rows[TEMPLATES[number % 10]]
            begun = newest - 600 * (number + 1)
            run_id = time.strftime("%Y%m%d-%H%M%S-", time.localtime(begun)) + f"{number:06x}"
            config = json.loads(template["config"])
            config["machine"]["seed"] = number % 50
            config["generation"]["epsilon"] = 0.01 + number / 1e6  # so that hardly any two have the same settings
            state = STATES[(7 * number) % 10]
            values = {
                **template,
                "id": run_id,
                "name": f"{template['name']}, trial {number}",
                "config": json.dumps(config),
                "state": state,
                "created": begun,
                "started": begun + 1,
                "ended": begun + 400,
                "error": "its process ended before the run did" if state is RunState.INTERRUPTED else "",
                "note": f"Looks good up to iteration {number % 300}." if number % 3 == 0 else "",
                "tags": "\n".join(sorted({f"series {number % 12}", "kept"} if number % 4 == 0 else ())),
            }
            connection.execute(
                f"INSERT INTO run ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", [values[name] for name in columns]
            )
            connection.execute(
                "INSERT INTO result (run, name, data) SELECT ?, name, data FROM result WHERE run = ? AND"
                f" ({' OR '.join(['name LIKE ?'] * len(COPIED))})",
                (run_id, template["id"], *COPIED),
            )
            own = store.run_folder(run_id)
            own.mkdir()
            images = store.run_folder(template["id"]) / layout.IMAGES
            if images.exists():
                (own / layout.IMAGES).symlink_to(images)
    store.close()


class Tab:
    """A session that asks for pages and waits until their scripts have ended."""

    def __init__(self, port: int) -> None:
        self._connection = websockets.connect(
            f"ws://127.0.0.1:{port}/_stcore/stream", origin=f"http://127.0.0.1:{port}", subprotocols=["streamlit"], max_size=None  # type: ignore
        )  # fmt: skip
        self._socket: Any = None
        self.bytes = 0

    async def __aenter__(self) -> Tab:
        self._socket = await self._connection.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._connection.__aexit__(*error)

    async def ask(self, page: str, query: str = "") -> float:
        """Milliseconds from the request to the end of the script. Exits if the page shows an exception."""
        message = BackMsg()
        message.rerun_script.page_name = page
        message.rerun_script.query_string = query
        self.bytes, began = 0, time.perf_counter()
        await self._socket.send(message.SerializeToString())
        async for data in self._socket:
            self.bytes += len(data)
            answer = ForwardMsg.FromString(data)
            if answer.WhichOneof("type") == "script_finished" and answer.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                break
            if answer.WhichOneof("type") == "delta" and answer.delta.new_element.WhichOneof("type") == "exception":
                raise SystemExit(f"{page}: {answer.delta.new_element.exception.message}")
        return 1000 * (time.perf_counter() - began)


async def times_of(port: int, server: int, names: list[str], oldest: str) -> dict[str, dict[str, Any]]:
    """Page -> kind of request -> median milliseconds; `kilobytes` is what a load sends."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        async with Tab(port) as tab:
            found[name]["cold"] = round(await tab.ask(name))
    for name in names:
        taken: dict[str, list[float]] = {"load": [], "rerun": [], "oldest": []}
        before = processor_seconds(server)
        for _ in range(ROUNDS):
            async with Tab(port) as tab:
                taken["load"].append(await tab.ask(name))
                found[name]["kilobytes"] = round(tab.bytes / 1000)
                taken["rerun"].append(await tab.ask(name))
            async with Tab(port) as tab:
                taken["oldest"].append(await tab.ask(name, f"{'runs' if name == 'compare' else 'run'}={oldest}"))
        found[name]["processor"] = round(1000 * (processor_seconds(server) - before) / (3 * ROUNDS))
        found[name] |= {kind: round(statistics.median(values)) for kind, values in taken.items()}
    return found


def measure_store(folder: Path) -> dict[str, Any]:
    """Starts a server on this store and asks for every page."""
    store = RunStore(folder)
    count, oldest = len(store.runs()), store.runs()[-1].id
    store.close()
    port, environment = free_port(), {**os.environ, RUNS_VARIABLE: str(folder)}
    environment.pop("DASHBOARD_TOKEN", None)
    command = [sys.executable, "-m", "streamlit", "run", "--server.port", str(port), "--server.headless", "true"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            while True:
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
                    break
                time.sleep(0.05)
            pages = asyncio.run(times_of(port, server.pid, [page.name for page in PAGES], oldest))
            maps = Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8")
            return {
                "runs": count,
                "milliseconds": pages,
                "resident_megabytes": round(resident(server.pid)),
                "loaded_torch": "libtorch" in maps,
            }
        finally:
            server.terminate()
            server.wait()


def measure(counts: list[int], folder: Path) -> dict[str, Any]:
    """One entry for each number of runs."""
    (folder / "templates").mkdir()
    templates = make_templates(folder / "templates")
    stores = []
    for count in counts:
        copy = folder / "runs"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "templates", copy)
        add_runs(copy, templates, count)
        stores.append(measure_store(copy))
        print(json.dumps(stores[-1]), file=sys.stderr, flush=True)
    return {"stores": stores, "slowest_milliseconds": slowest(stores[-1]["milliseconds"])}


def slowest(pages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The slowest request of each kind that is not the first of a server."""
    return {kind: max(figures[kind] for figures in pages.values()) for kind in ("load", "rerun", "oldest", "processor")}


if __name__ == "__main__":
    from benchmarks.machine import write  # imports torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(sorted({100, 1000, options.runs}), Path(temporary))
    print(json.dumps(figures, indent=1))
    write("many_runs", figures)
