"""What pages are streamed: to whom, and that it is what they would draw."""

import base64
import json
import time
from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlparse

import numpy as np
import pytest
import streamlit
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from streamlit.testing.v1 import AppTest
from waiting import wait_until

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from core.reporting import TEST, Frame
from core.runs.state import RunState
from dashboard import session
from dashboard.server import access
from dashboard.updates import live_view
from dashboard.updates import socket as stream
from dashboard.views import diversity, generation, training

ME = session.Watcher("a session", False)
LONG = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=20, iterations=5000, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


@pytest.fixture
def client(monkeypatch):
    """Of a server whose news is what it was asked, and a piece that never changes."""
    monkeypatch.setattr(session, "watcher", lambda: ME)
    news = lambda *asked: {"phase": "", "again": 1, "pieces": {"asked": json.dumps(asked), "still": "1"}}  # noqa: E731
    return TestClient(Starlette(routes=stream.routes(news)))


def test_a_page_that_was_let_in_is_answered_as_often_as_it_asks(client):
    with client.websocket_connect(stream.address("of a run", "status")) as socket:
        for query in ("", "?at=3", "?at=4&view=layer"):
            socket.send_text("all" + query)
            answer = socket.receive_json()
            assert json.loads(answer["pieces"]["asked"]) == ["status", "of a run", list(ME), query]
            assert (answer["phase"], answer["again"], answer["pieces"]["still"]) == ("", 1, "1")


def test_what_a_page_has_is_not_sent_again_unless_it_asks_for_all(client):
    with client.websocket_connect(stream.address("of a run", "status")) as socket:
        for question, keys in (
            ("new?at=1", ["asked", "still"]),
            ("new?at=1", []),
            ("new?at=2", ["asked"]),
            ("all?at=2", ["asked", "still"]),
        ):
            socket.send_text(question)
            assert list(socket.receive_json()["pieces"]) == keys
    with client.websocket_connect(stream.address("of a run", "status")) as socket:
        socket.send_text("new?at=2")
        assert list(socket.receive_json()["pieces"]) == ["asked", "still"]  # another page, or the same without what it had


def test_a_question_as_long_as_no_address_is_cut(client):
    with client.websocket_connect(stream.address("of a run", "status")) as socket:
        socket.send_text("all?" + "x" * 100_000)
        assert len(json.loads(socket.receive_json()["pieces"]["asked"])[3]) < 4000


def changed(address, change):
    """The address with another text for who watches."""
    (watcher,) = parse_qs(urlparse(address).query)["watcher"]
    return urlparse(address)._replace(query=urlencode({"watcher": change(watcher)})).geturl()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "nonsense",
        lambda text: text[:-1],
        lambda text: "00" + text,
        lambda text: text.partition(".")[0],
        lambda text: access.sign(json.dumps(["status", "of a run", *ME]), "another secret"),
    ],
)
def test_an_address_that_this_server_did_not_make_is_refused(client, change):
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(changed(stream.address("of a run", "status"), change)):
        pass
    assert refused.value.code == 1008


def test_an_address_does_not_hold_for_ever(client, monkeypatch):
    address = stream.address("of a run", "status")
    later = time.time() + access.LOGIN_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(address):
        pass


def test_below_a_path_of_its_host(monkeypatch):
    monkeypatch.setattr(session, "watcher", lambda: ME)
    monkeypatch.setattr(streamlit, "get_option", lambda name: "/studio/" if name == "server.baseUrlPath" else None)
    (route,) = stream.routes(lambda *asked: {})
    assert route.path == "/studio/follow"
    assert stream.address("of a run", "status").startswith("/studio/follow?")


@pytest.mark.parametrize(
    ("page", "part", "address", "least"),
    [
        ("studio", generation.GENERATION, {}, 7),
        ("studio", generation.GENERATION, {"at": 2}, 7),
        ("studio", generation.GENERATION, {"at": 2, "view": "layers"}, 7),
        ("studio", generation.GENERATION, {"view": "heatmaps"}, 7),
        ("studio", generation.GENERATION, {"view": "layer", "layer": 3, "at": 3}, 7),
        ("quantize", training.TRAINING, {}, 2),
        ("quantize", training.TRAINING, {"training": "agreement"}, 2),
        ("quantize", training.TRAINING, {"training": "nonsense"}, 2),
    ],
)
def test_what_is_streamed_is_what_the_page_draws(with_finished_run, page, part, address, least):
    app = AppTest.from_file(f"../../dashboard/pages/{page}.py", default_timeout=60)
    for name, value in {"run": with_finished_run, **address}.items():
        app.query_params[name] = str(value)
    app.run()
    assert not app.exception, app.exception
    drawn = {element.proto.id: json.loads(element.proto.json) for element in app.get("bidi_component")}
    run = session.store().run(with_finished_run)
    pieces = part.pieces(run, {name: str(value) for name, value in address.items()}, ME)
    pieces.pop(f"progress/{with_finished_run}", None)  # a finished run has none on its page
    assert len(pieces) >= least
    for key, piece in pieces.items():
        (element,) = [data for own, data in drawn.items() if own.endswith(f"-{key}")]
        assert {name: element[name] for name in piece} == json.loads(json.dumps(piece)), key


def test_a_run_that_goes_on_is_streamed_until_its_page_has_to_be_drawn_anew(runs_folder, monkeypatch):
    monkeypatch.setattr(session, "_watching", {})  # pages of other tests
    manager, store = session.manager(), session.store()
    run_id = manager.start(LONG)

    def news():
        return live_view.news(generation.GENERATION, run_id, ME, f"?run={run_id}")

    wait_until(lambda: f"player/{run_id}" in news()["pieces"])
    before = news()
    assert before["again"] in (200, 1000)
    player = f"player/{run_id}"
    wait_until(lambda: json.loads(news()["pieces"][player])["latest"] > json.loads(before["pieces"][player])["latest"])
    after = news()
    assert after["phase"] == before["phase"]
    assert after["pieces"][f"sheet/{run_id}/adam"] != before["pieces"][f"sheet/{run_id}/adam"]
    assert "of 10,000 steps" in after["pieces"][f"progress/{run_id}"]

    app = AppTest.from_file("../../dashboard/pages/studio.py", default_timeout=60)
    app.query_params["run"] = run_id
    app.run()
    assert not app.exception, app.exception
    (drawn,) = [json.loads(one.proto.json) for one in app.get("bidi_component") if one.proto.component_name == "dashboard.live"]
    assert (drawn["phase"], drawn["redraw"]) == (after["phase"], False)
    app.query_params.update({"method": "adam", "image": "3"})
    app.run()
    (drawn,) = [json.loads(one.proto.json) for one in app.get("bidi_component") if one.proto.component_name == "dashboard.live"]
    assert drawn["redraw"]  # the large view has more elements than are streamed to

    manager.control(run_id).set("epsilon", 0.3, ["mi-fgsm"])
    wait_until(lambda: news()["phase"] != after["phase"])
    turned = news()["phase"]
    manager.control(run_id).pause()
    wait_until(lambda: store.run(run_id).state is RunState.PAUSED)
    assert news()["phase"] != turned
    manager.control(run_id).stop()
    manager.wait(run_id)
    store.delete(run_id)
    assert news() == {"phase": "deleted", "again": 1000, "pieces": {}}


def test_a_page_that_comes_between_two_methods_comes_again_soon(runs_folder, monkeypatch):
    """Or it would show older images for as long as its pace and that of the iterations go together."""
    monkeypatch.setattr(session, "_watching", {})
    store = session.store()
    run_id = store.create(LONG, "by hand")
    store.set_state(run_id, RunState.RUNNING)
    images, labels = np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64)

    def again_after(method, step):
        store.append(
            run_id,
            "generation",
            method,
            step,
            {"bns": 1.0, "agreement": 50.0, "layers": [1.0], **dict.fromkeys(("total", "tv", "l2", "ce"), 1.0)},
        )
        store.frames.save(run_id, method, Frame(step, images, labels), keep=True)
        return live_view.news(generation.GENERATION, run_id, ME, "")["again"]

    assert again_after("mi-fgsm", 1) == 1000
    assert again_after("adam", 1) == 1000
    assert again_after("mi-fgsm", 2) == 200
    assert again_after("adam", 2) == 1000
    again_after("mi-fgsm", 3)
    store.set_state(run_id, RunState.PAUSED)
    assert live_view.news(generation.GENERATION, run_id, ME, "")["again"] == 1000  # nothing comes


def unpacked(figure):
    """Heights of the first curve of a figure as it is sent."""
    y = figure["data"][0]["y"]
    return np.frombuffer(base64.b64decode(y["bdata"]), np.dtype(y["dtype"])).tolist()


def test_a_page_of_a_training_is_drawn_again_for_each_accuracy_and_streamed_to_between_them(runs_folder, monkeypatch):
    monkeypatch.setattr(session, "_watching", {})
    store = session.store()
    run_id, other = (store.create(replace(LONG, bits=(4,)), name) for name in ("shown", "beside it"))
    store.set_state(run_id, RunState.RUNNING)
    store.set_stage(run_id, "training mi-fgsm W4A4", 100)

    def news(query=f"?run={run_id}"):
        monkeypatch.setattr(live_view, "chart_seconds", lambda watcher: 1e-6)  # or curves wait for their time
        return live_view.news(training.TRAINING, run_id, ME, query)

    def record(step, loss):
        store.append(run_id, "training", "mi-fgsm W4A4", step, {"total": loss, "agreement": 10.0 * step})

    assert list(news()["pieces"]) == [f"progress/{run_id}"]
    phases = [news()["phase"]]
    for change in (
        lambda: store.set_result(run_id, "accuracy/mi-fgsm/W4A4", {"calibrated": 85.0, "bits": 4}),
        lambda: record(1, 0.5),
        lambda: store.append(run_id, TEST, "mi-fgsm W4A4", 0, {"top1": 85.0, "standard_error": 0.5, "images": 100}, counted=False),
        lambda: store.set_result(run_id, "accuracy/mi-fgsm/W4A4", {"calibrated": 85.0, "quantized": 90.0, "bits": 4}),
        lambda: store.set_result(run_id, "layers/mi-fgsm/W4A4", {"layers": []}),
        lambda: store.set_state(run_id, RunState.PAUSED),
    ):
        change()
        phases.append(news()["phase"])
    assert len(set(phases)) == len(phases)
    store.set_state(run_id, RunState.RUNNING)

    before = news()
    record(2, 0.25)
    store.append(run_id, TEST, "mi-fgsm W4A4", 2, {"top1": 88.0, "standard_error": 0.5, "images": 100}, counted=False)
    after = news()
    assert before["phase"] == after["phase"]
    curve, tested = (json.loads(json.loads(after["pieces"][f"figure/{name}"])["figure"]) for name in ("training", "tested"))
    # the average of two steps with weights 0.9 * 0.1 and 0.1, corrected for its start
    assert unpacked(curve) == pytest.approx([0.5, (0.09 * 0.5 + 0.1 * 0.25) / 0.19], abs=1e-6)
    assert unpacked(tested) == [85.0, 88.0]
    assert "2 of 100 steps" in after["pieces"][f"progress/{run_id}"]
    of_agreement = json.loads(json.loads(news(f"?run={run_id}&training=agreement")["pieces"]["figure/training"])["figure"])
    assert unpacked(of_agreement) == pytest.approx([10.0, (0.09 * 10 + 0.1 * 20) / 0.19], abs=1e-5)

    # another run that is shown beside it, and only then
    beside, alone = (f"?run={run_id}&with={other}", f"?run={run_id}")
    phases = news(beside)["phase"], news(alone)["phase"]
    store.set_result(other, "accuracy/adam/W4A4", {"calibrated": 80.0, "bits": 4})
    assert news(beside)["phase"] != phases[0]
    assert news(alone)["phase"] == phases[1]


@pytest.mark.parametrize("part", [live_view.STATUS, diversity.DIVERSITY])
def test_a_page_with_nothing_that_moves_is_told_of_its_progress(runs_folder, monkeypatch, part):
    monkeypatch.setattr(session, "_watching", {})
    store = session.store()
    run_id = store.create(LONG.with_knobs({"encoder": "embedded"}), "by hand")
    store.set_state(run_id, RunState.RUNNING)
    assert live_view.news(part, run_id, ME, "")["pieces"] == {}
    store.set_stage(run_id, "diversity of adam", 10)
    before = live_view.news(part, run_id, ME, "")
    assert list(before["pieces"]) == [f"progress/{run_id}"]
    store.set_result(run_id, "diversity/adam", {"mean_similarity": 0.4})
    assert (live_view.news(part, run_id, ME, "")["phase"] != before["phase"]) == (part is diversity.DIVERSITY)
    store.set_state(run_id, RunState.COMPLETE)
    assert live_view.news(part, run_id, ME, "")["phase"] != before["phase"]
