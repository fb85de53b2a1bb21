"""The server never imports torch, which takes 500 MB: every page, every update and the report, with a run of an own network."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from app_pages import ROOT
from safetensors.torch import load_file, save_file

from core import layout
from core.models.registry import MODELS
from core.runs.store import RUNS_VARIABLE
from dashboard import session

# run in a process of its own, because the tests import torch
OPEN_EVERYTHING = """
import importlib, sys
from streamlit.testing.v1 import AppTest
from dashboard import session
from dashboard.downloads import report
from dashboard.pages import PAGES
from dashboard.updates import live_view, pace

run_id, class_name = sys.argv[1:]
shown = ""
for page in PAGES:
    for address in ({"run": run_id, "runs": run_id}, {"run": run_id, "view": "heatmaps", "method": "adam", "image": "3"}):
        app = AppTest.from_file(page.path, default_timeout=120)
        for form in ("new run", "all settings", "quantize", "quantize own", "diversity own"):
            app.session_state[f"{form}/{run_id}"] = True
        for name, value in address.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception, app.exception
        shown += "".join(element.proto.json for element in app.get("bidi_component"))
        assert "torch" not in sys.modules, page.name
    for view in page.views:
        module, _, name = view.partition(":")
        with pace.asked_by(pace.Watcher("a session", False)):
            assert live_view.collect_updates(getattr(importlib.import_module(module), name), run_id, "?view=layer")["values"] is not None
assert class_name in shown, "the pages must show the names of the classes"
assert class_name in report.report_now(session.store(), run_id, session.class_names)
assert "torch" not in sys.modules
print("torch was not imported")
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["this", "earlier"])
def test_pages_of_an_own_network_do_not_import_torch(with_finished_run, runs_folder, tmp_path, version):
    weights, spec = MODELS["resnet20_cifar10"]
    own = runs_folder / layout.UPLOADS / layout.NETWORKS / "0a.safetensors"
    own.parent.mkdir(parents=True)
    classes = tuple(f"kind-{index}" for index in range(10))
    save_file(load_file(weights), own, metadata={"spec": json.dumps(asdict(replace(spec, name="mine", classes=classes)))})
    store = session.store()
    with store.database.write() as connection:
        config = replace(store.config(with_finished_run), model=str(own))
        connection.execute("UPDATE run SET model = ?, config = ?", (str(own), json.dumps(config.to_dict())))
        if version == "earlier":  # it did not store the names
            connection.execute("DELETE FROM result WHERE name = 'layers'")
    if version == "this":
        store.set_result(with_finished_run, "classes", list(classes))
        own.unlink()
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EVERYTHING, with_finished_run, "kind-1"],
        cwd=ROOT,
        env={**os.environ, RUNS_VARIABLE: str(runs_folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.endswith("torch was not imported\n"), done.stderr[-3000:]
