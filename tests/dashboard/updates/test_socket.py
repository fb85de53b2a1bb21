"""The update socket: which pages it answers, and which values it sends them."""

import json
import time
from urllib.parse import parse_qs, urlencode, urlparse

import pytest
import streamlit
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dashboard.server import logins
from dashboard.updates import pace
from dashboard.updates import socket as updates

ME = pace.Watcher("a session", False)


@pytest.fixture
def client(monkeypatch):
    """A client of a server that answers with the question and the asking page, and with a constant."""
    monkeypatch.setattr(pace, "watcher", lambda: ME)

    def collect(*question):
        return {"layout": "", "again": 1, "values": {"question": json.dumps([*question, pace._asking.get()]), "constant": "1"}}

    return TestClient(Starlette(routes=updates.routes(collect)))


def test_every_question_is_answered(client):
    with client.websocket_connect(updates.address("a run", "status")) as socket:
        for query in ("", "?at=3", "?at=4&view=layer"):
            socket.send_text("all" + query)
            answer = socket.receive_json()
            assert json.loads(answer["values"]["question"]) == ["status", "a run", query, list(ME)]
            assert (answer["layout"], answer["again"], answer["values"]["constant"]) == ("", 1, "1")


def test_unchanged_values_are_sent_only_if_all_are_asked_for(client):
    with client.websocket_connect(updates.address("a run", "status")) as socket:
        for question, keys in (
            ("new?at=1", ["question", "constant"]),
            ("new?at=1", []),
            ("new?at=2", ["question"]),
            ("all?at=2", ["question", "constant"]),
        ):
            socket.send_text(question)
            assert list(socket.receive_json()["values"]) == keys
    with client.websocket_connect(updates.address("a run", "status")) as socket:
        socket.send_text("new?at=2")
        assert list(socket.receive_json()["values"]) == ["question", "constant"]  # a new connection has no values yet


def test_long_question_is_truncated(client):
    with client.websocket_connect(updates.address("a run", "status")) as socket:
        socket.send_text("all?" + "x" * 100_000)
        assert len(json.loads(socket.receive_json()["values"]["question"])[2]) < 4000


def changed(address, change):
    """The address with its signed watcher changed."""
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
        lambda text: logins.serializer("another secret", "socket").dumps(["status", "a run", *ME]),
    ],
)
def test_address_not_signed_by_this_server_is_refused(client, change):
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(changed(updates.address("a run", "status"), change)):
        pass
    assert refused.value.code == 1008


def refusing(*question):
    raise KeyError("no such\nview")


@pytest.mark.parametrize(
    ("collect", "send", "logged"),
    [
        (refusing, lambda socket: socket.send_text("all?at=3"), "question 'all?at=3': KeyError: 'no such\\nview'"),
        (dict, lambda socket: socket.send_bytes(b"all"), "question '': ValueError: questions are text, got bytes"),
    ],
)
def test_a_question_without_an_answer_closes_the_socket_with_a_sentence(collect, send, logged, monkeypatch, caplog):
    monkeypatch.setattr(pace, "watcher", lambda: ME)
    client = TestClient(Starlette(routes=updates.routes(collect)))
    with client.websocket_connect(updates.address("a run", "status")) as socket:
        send(socket)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.code == 1008
    assert caplog.messages == [f"Closed a socket to 'follow': {logged}"]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "query", ["", "watcher", "watcher=", "watcher=%00", "watcher=%FF", "watcher=a&watcher=b", "other=1", "watcher=.%2E."]
)
def test_odd_parameters_are_refused_with_a_sentence(query, client, caplog):
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(f"/follow?{query}"):
        pass
    assert refused.value.code == 1008
    assert caplog.messages == ["Refused a socket to 'follow': its address is not one of this server's, or it is too old"]


def test_address_expires(client, monkeypatch):
    address = updates.address("a run", "status")
    later = time.time() + logins.SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(address):
        pass


def test_socket_under_a_base_path(monkeypatch):
    monkeypatch.setattr(pace, "watcher", lambda: ME)
    monkeypatch.setattr(streamlit, "get_option", lambda name: "/studio/" if name == "server.baseUrlPath" else None)
    (route,) = updates.routes(lambda *question: {})
    assert route.path == "/studio/follow"
    assert updates.address("a run", "status").startswith("/studio/follow?")
