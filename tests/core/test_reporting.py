"""Forwarding and ignoring reporters have every method of the protocol."""

import inspect

import pytest

from core.reporting import NoControl, NullReporter, Reporter, TeeReporter

CALLS = {
    "stage": ("generation", 4),
    "record": ("generation", "adam", 1, {"total": 1.0}),
    "images": ("adam", object(), True),
    "unwanted_images": ("adam", object()),
    "pausing": (),
    "running_statistics": (object(),),
    "change": ("adam", 1, "lr", 0.5),
    "result": ("full_precision", 92.5),
    "rewind": ("generation", "adam", 1),
    "flush": (),
}


class Notes:
    """Records every call."""

    def __init__(self, wants=False):
        self.calls, self.wants = [], wants

    def __getattr__(self, name):
        return lambda *arguments, **keywords: self.calls.append((name, arguments, keywords))

    def wants_images(self, method):
        return self.wants


def methods(kind) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_every_method_of_the_protocol_is_forwarded():
    assert methods(Reporter) == CALLS.keys() | {"wants_images"} == methods(TeeReporter) == methods(NullReporter)


@pytest.mark.parametrize("name", CALLS)
def test_tee_calls_each_reporter(name):
    first, second = Notes(), Notes()
    getattr(TeeReporter(first, second), name)(*CALLS[name])
    assert first.calls == second.calls == [(name, CALLS[name], {})]


def test_tee_passes_keywords():
    notes = Notes()
    TeeReporter(notes).stage("training", 9, done=3)
    assert notes.calls == [("stage", ("training", 9), {"done": 3})]


@pytest.mark.parametrize(("wants", "expected"), [((), False), ((False, False), False), ((False, True), True), ((True, False), True)])
def test_tee_wants_images_if_any_reporter_does(wants, expected):
    assert TeeReporter(*(Notes(one) for one in wants)).wants_images("adam") is expected


@pytest.mark.parametrize("name", CALLS)
def test_null_reporter_ignores_everything(name):
    assert getattr(NullReporter(), name)(*CALLS[name]) is None
    assert NullReporter().wants_images("adam") is False


def test_no_control_changes_nothing():
    assert NoControl().pause_point() is None
    assert NoControl().values("adam", 1) == {}
