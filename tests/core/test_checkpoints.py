"""The contract in the docstring of checkpoints.py."""

import json
import random
import time

import pytest
import torch

from core import checkpoints as module
from core.checkpoints import DONE, STATE, Checkpoints
from core.errors import RunError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoint"


STATE_VALUES = {"step": 3, "tensor": torch.arange(6.0).view(2, 3), "nested": {"list": [1, 2.5, "x", None]}, "order": [torch.ones(2)]}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_new_run_has_no_state_and_no_folder(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.outcome("a") is None
    assert checkpoints.state("a") is None
    assert not folder.exists()


def test_state_is_returned_once_for_its_stage(folder):
    Checkpoints(folder).save("quantize/a", STATE_VALUES)
    again = Checkpoints(folder)
    assert again.state("quantize/b") is None
    assert same(again.state("quantize/a"), STATE_VALUES)
    assert again.state("quantize/a") is None


def test_only_the_latest_state_is_kept(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save("a", {"step": 1})
    checkpoints.save("b", {"step": 2})
    again = Checkpoints(folder)
    assert again.state("a") is None
    assert again.state("b") == {"step": 2}
    assert [path.name for path in folder.iterdir()] == [STATE]


def test_outcomes_accumulate_and_remove_the_state(folder):
    first = Checkpoints(folder)
    first.save("a", {"step": 1})
    first.finish("a", {"top1": 0.1 + 0.2})
    assert [path.name for path in folder.iterdir()] == [DONE]
    second = Checkpoints(folder)
    assert second.outcome("a") == {"top1": 0.1 + 0.2}  # bit for bit
    second.finish("b", [1, 2])
    third = Checkpoints(folder)
    assert (third.outcome("a"), third.outcome("b"), third.outcome("c")) == ({"top1": 0.1 + 0.2}, [1, 2], None)


def test_kill_between_outcome_and_state_is_harmless(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    checkpoints.save("a", {"step": 1})
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
    checkpoints.finish("a", 7)
    monkeypatch.undo()
    again = Checkpoints(folder)
    assert again.outcome("a") == 7
    assert again.state("b") is None


def test_before_is_called_ahead_of_each_write(folder):
    seen = []

    def before():
        seen.append(sorted(path.name for path in folder.iterdir()) if folder.exists() else [])

    checkpoints = Checkpoints(folder, before)
    checkpoints.save("a", {"step": 1})
    checkpoints.save("a", {"step": 2})
    checkpoints.finish("a", 1)
    assert seen == [[], [STATE], [STATE]]


def test_nothing_is_saved_when_before_fails(folder):
    def before():
        raise OSError("the disk is gone")

    checkpoints = Checkpoints(folder, before)
    for write in (lambda: checkpoints.save("a", {}), lambda: checkpoints.finish("a", 1)):
        with pytest.raises(OSError, match="gone"):
            write()
    assert not folder.exists()
    assert checkpoints.outcome("a") is None


def test_failed_save_keeps_the_earlier_state(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    checkpoints.save("a", {"step": 1})

    def half(_values, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(RuntimeError, match="unexpected"):
        checkpoints.save("a", {"step": 2})
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == [STATE]
    assert Checkpoints(folder).state("a") == {"step": 1}


def test_disk_errors_are_not_hidden(folder, monkeypatch):
    """torch replaces a disk error with its own, which does not name the cause."""

    def hides(_values, _file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 576 vs 534")  # noqa: B904, as torch does

    monkeypatch.setattr(torch, "save", hides)
    with pytest.raises(OSError, match="No space left"):
        Checkpoints(folder).save("a", {})


def test_partial_files_are_removed(folder):
    Checkpoints(folder).save("a", {"step": 1})
    (folder / f".{STATE}.partial").write_bytes(b"half")
    assert Checkpoints(folder).state("a") == {"step": 1}
    assert [path.name for path in folder.iterdir()] == [STATE]


def test_due(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(folder, every=15.0)
    assert not checkpoints.due()
    now[0] += 14.9
    assert not checkpoints.due()
    now[0] += 0.2
    assert checkpoints.due()
    checkpoints.save("a", {})
    assert not checkpoints.due()
    now[0] += 15.0
    assert checkpoints.due()


def test_slow_saves_are_less_frequent(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def before():
        now[0] += 3.0  # 2 % of 150 seconds

    checkpoints = Checkpoints(folder, before, every=15.0)
    checkpoints.save("a", {})
    now[0] += 149.0
    assert not checkpoints.due()
    now[0] += 2.0
    assert checkpoints.due()


def test_interval_of_zero_saves_at_every_opportunity(folder):
    checkpoints = Checkpoints(folder, before=lambda: time.sleep(0.05), every=0.0)
    checkpoints.save("a", {})
    assert checkpoints.due()


def test_seconds_of_all_attempts_add_up(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    first = Checkpoints(folder)
    now[0] += 10
    first.finish("a", 1)
    now[0] += 5
    first.save("b", {})
    now[0] += 1000  # lost, because nothing was saved
    second = Checkpoints(folder)
    now[0] += 2
    assert second.seconds == pytest.approx(17)


def is_refused(folder, name) -> str:
    with pytest.raises(RunError) as caught:
        Checkpoints(folder)
    message = str(caught.value)
    assert str(folder / name) in message
    assert "cannot be read" in message
    assert "must be a file written by a run" in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(folder))
    return message


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", "{}", '{"seconds": "x", "parts": {}}', '{"seconds": 1}', '{"seconds": 1, "parts": 3}', "\xff\xfe"]
)
def test_unreadable_outcomes_are_refused(folder, text):
    folder.mkdir()
    (folder / DONE).write_bytes(text.encode("latin-1"))
    is_refused(folder, DONE)


@pytest.mark.filterwarnings("ignore::UserWarning")  # from torch, about files that are no checkpoints
@pytest.mark.parametrize("value", [{}, {"part": "a"}, [], 3, torch.ones(2), {"part": "a", "state": {}}, {"part": "a", "seconds": "x"}, "a"])
def test_state_of_another_kind_is_refused(folder, value):
    folder.mkdir()
    torch.save(value, folder / STATE)
    is_refused(folder, STATE)


def test_damaged_state_is_refused(folder):
    """Truncated anywhere, or with changed bytes: refused in one sentence, or read if the change does not matter."""
    Checkpoints(folder).save("a", STATE_VALUES)
    good = (folder / STATE).read_bytes()
    chance = random.Random(1)
    for length in {0, 1, 4, 30, *(chance.randrange(len(good)) for _ in range(20))}:
        (folder / STATE).write_bytes(good[:length])
        is_refused(folder, STATE)
    for _ in range(40):
        damaged = bytearray(good)
        for place in chance.sample(range(len(good)), 20):
            damaged[place] = chance.randrange(256)
        (folder / STATE).write_bytes(damaged)
        try:
            Checkpoints(folder)
        except RunError:
            is_refused(folder, STATE)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_pickles_are_not_executed(folder, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written by the pickle"), "w"))

    folder.mkdir()
    (folder / STATE).write_bytes(pickle.dumps(Evil()))
    is_refused(folder, STATE)
    torch.save(Evil(), folder / STATE)
    is_refused(folder, STATE)
    assert not (tmp_path / "written by the pickle").exists()


def test_outcomes_are_plain_json(folder):
    Checkpoints(folder).finish("a", {"x": 1})
    assert json.loads((folder / DONE).read_text(encoding="utf-8"))["parts"] == {"a": {"x": 1}}
