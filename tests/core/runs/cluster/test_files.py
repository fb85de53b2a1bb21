"""Files to a node and back: content, order, what is left after an interruption, and paths of the node."""

import json
import os
from dataclasses import replace

import pytest

from core.checkpoints import Checkpoints
from core.config import EvaluationConfig, GenerationConfig, RunConfig
from core.errors import RunError
from core.files import write_json
from core.runs.cluster import files
from core.runs.cluster.files import Arrivals, Changes, Sent, files_of, files_of_run, inputs, linked, moved, send


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(files, "PIECE", 4)


def test_files_arrive_as_they_are(tmp_path, small_pieces):
    base = tmp_path / "set"
    content = {"a/x.png": b"123456789", "b.json": b"", "c": b"1234"}
    for name, data in content.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data)
    store: dict[int, bytes] = {}

    def put(piece):
        store[len(store)] = piece
        return len(store) - 1

    sent = send(files_of(base), base, put)
    assert max(map(len, store.values())) == 4
    assert len(store) == 3 + 0 + 1
    sent.unpack(tmp_path / "there", store.__getitem__)
    assert {name: (tmp_path / "there" / name).read_bytes() for name in content} == content
    assert isinstance(sent, Sent)


def test_an_uploaded_network_comes_with_its_label(tmp_path):
    network = tmp_path / "abc.safetensors"
    network.write_bytes(b"x")
    (tmp_path / "other.safetensors").write_bytes(b"x")
    assert files_of(network) == [network]
    write_json(tmp_path / "abc.json", {"label": "mine"})
    assert files_of(network) == [network, tmp_path / "abc.json"]


def test_inputs_are_the_users_files(tmp_path):
    config = RunConfig(
        model=str(tmp_path / "net.safetensors"),
        methods=("adam", "real"),
        generation=GenerationConfig(real_images=str(tmp_path / "photos")),
        evaluation=EvaluationConfig(data=str(tmp_path / "val"), encoder=f"ViT-B-32:{tmp_path}/clip.pt"),
    )
    found = inputs(config)
    assert {option: str(path.relative_to(tmp_path)) for option, path in found.items()} == {
        "model": "net.safetensors", "data": "val", "encoder": "clip.pt", "real_images": "photos",
    }  # fmt: skip
    there = moved(config, {option: f"/node/{option}" for option in found})
    assert inputs(there) == {option: files.Path(f"/node/{option}") for option in found}
    assert moved(there, {option: str(path) for option, path in found.items()}) == config
    assert inputs(replace(config, bits=(), methods=("adam",))).keys() == {"model", "encoder"}
    assert inputs(RunConfig()) == {}


def state(folder, number):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_json(folder / "images" / f"{number}.json", {"number": number})
    checkpoints = Checkpoints(folder / "checkpoint")
    checkpoints.save("stage", {"number": number})
    return checkpoints


def ship(changes, there, arrivals, links) -> list[str]:
    names, resume_files = changes.take()
    for name, link in zip(names, linked(there, names, links)):
        content = link.read_bytes()
        for offset in range(0, max(len(content), 1), 100):
            arrivals.piece(name, content[offset : offset + 100], offset == 0)
    arrivals.complete(resume_files)
    return names


def test_new_files_come_back_and_the_resume_state_last(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    changes, arrivals = Changes(there), Arrivals(here, {})
    assert not changes.has_resume_state
    state(there, 1)
    (there / "images" / ".x.json.partial").write_text("half", encoding="utf-8")
    assert changes.has_resume_state
    assert ship(changes, there, arrivals, tmp_path / "links") == ["images/1.json", "checkpoint/state.pt"]
    assert not changes.has_resume_state
    checkpoints = state(there, 2)
    assert changes.has_resume_state
    assert ship(changes, there, arrivals, tmp_path / "links") == ["images/2.json", "checkpoint/state.pt"]
    assert Checkpoints(here / "checkpoint").state("stage") == {"number": 2}
    checkpoints.finish("stage", 3)  # removes the state
    assert changes.has_resume_state
    assert ship(changes, there, arrivals, tmp_path / "links") == ["checkpoint/done.json"]
    assert Checkpoints(here / "checkpoint").outcome("stage") == 3
    assert [path.name for path in files_of_run(here)] == ["done.json", "1.json", "2.json"]


def test_links_keep_the_content_of_their_time(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (link,) = linked(tmp_path, ["a.json"], tmp_path / "links")
    write_json(tmp_path / "a.json", 2)
    assert json.loads(link.read_text(encoding="utf-8")) == 1


def test_files_that_did_not_all_arrive_change_nothing(tmp_path):
    state(tmp_path, 1)
    before = {path: path.read_bytes() for path in files_of_run(tmp_path)}
    arrivals = Arrivals(tmp_path, {})
    arrivals.piece("checkpoint/state.pt", b"half of it", True)
    assert {path: path.read_bytes() for path in files_of_run(tmp_path)} == before
    assert Checkpoints(tmp_path / "checkpoint").state("stage") == {"number": 1}
    Arrivals(tmp_path, {})  # the next attempt
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)


def test_json_files_name_the_places_of_this_machine(tmp_path):
    arrivals = Arrivals(tmp_path, {"/node/tmp/data": '/home/"me"/pictures'})
    arrivals.piece("result.json", json.dumps({"evaluated_on": "all 20 images of /node/tmp/data"}).encode(), True)
    arrivals.piece("other.bin", b"/node/tmp/data", True)
    arrivals.complete([])
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == {"evaluated_on": 'all 20 images of /home/"me"/pictures'}
    assert (tmp_path / "other.bin").read_bytes() == b"/node/tmp/data"


@pytest.mark.parametrize("name", ["../other/result.json", "/etc/passwd", "images/../../x"])
def test_a_node_writes_only_into_the_folder_of_its_run(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RunError, match="a node must send files of the run's folder only"):
        Arrivals(folder, {}).piece(name, b"x", True)
    assert os.listdir(tmp_path) == ["run"]
