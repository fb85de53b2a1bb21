"""Runs whose images are in shards: the same images, networks and figures as with one file, and bounded memory in the training."""

from dataclasses import replace

import pytest
import torch

from core import pipeline
from core.config import EvaluationConfig, GenerationConfig, RunConfig, TrainingConfig
from core.data.image_sets import load_image_set
from core.data.shards import Shards
from core.errors import RunStopped
from core.reporting import NoControl, NullReporter
from tests.core.recorded_runs import Recorder, StopsAt

CONFIG = RunConfig(
    generation=GenerationConfig(images=8, iterations=3, snapshots=2, batch_size=2),
    training=TrainingConfig(range="minmax", steps=4, training_batch_size=2, calibration_images=3),
    evaluation=EvaluationConfig(data="none"),
    bits=(3,),
)
SHARDED = CONFIG.with_knobs({"shard_size": 3})
NETWORK = "quantized/adam/W3A3/quantized.safetensors"


def tars(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run in one file and that in shards: folders and results."""
    folders = [tmp_path_factory.mktemp(name) for name in ("file", "shards")]
    return [(folder, pipeline.execute(config, folder, Recorder(), NoControl())) for folder, config in zip(folders, (CONFIG, SHARDED))]


def test_a_run_in_shards_gives_the_same_images_networks_and_figures(runs):
    (plain, expected), (folder, result) = runs
    for method in ("adam", "mi-fgsm"):
        names = [path.name for path in sorted((folder / "images" / method).iterdir())]
        assert names == ["images-000000.tar", "images-000001.tar", "images-000002.tar", "manifest.json"]
        ours, theirs = (load_image_set(one / "images" / method) for one in (folder, plain))
        assert torch.equal(ours.pixels(), theirs.pixels())
        assert torch.equal(ours.labels, theirs.labels)
        assert result["methods"][method]["diversity"] == expected["methods"][method]["diversity"]
        assert result["methods"][method]["accuracy"]["3"]["held_out"] == expected["methods"][method]["accuracy"]["3"]["held_out"]
    assert (folder / NETWORK).read_bytes() == (plain / NETWORK).read_bytes()
    assert not (folder / "checkpoint" / "snapshots").exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_run_in_shards_that_was_stopped_resumes_to_the_same_files(tmp_path, runs, steps):
    with pytest.raises(RunStopped):
        pipeline.execute(replace(SHARDED, bits=()), tmp_path, Recorder(), StopsAt(steps), every=0)
    assert not list(tmp_path.glob("images/*/manifest.json"))
    pipeline.execute(replace(SHARDED, bits=()), tmp_path, Recorder(), NoControl())
    assert tars(tmp_path) == tars(runs[1][0])


class StopsInTraining(NullReporter, NoControl):
    """Stops before the third step."""

    left = 3

    def stage(self, name, total, done=0):
        self.current = name

    def pause_point(self):
        self.left -= self.current == "training adam W3A3"
        if not self.left:
            raise RunStopped("enough")


def test_given_shards_are_trained_on_without_a_copy_in_memory(tmp_path, runs, monkeypatch):
    """No more images are read at once than a batch or the calibration has; also when the training was interrupted."""
    sizes = []
    usual = Shards.read

    def counted(shards, indices):
        sizes.append(len(indices))
        return usual(shards, indices)

    monkeypatch.setattr(Shards, "read", counted)
    weights = []
    for (source, _), stops in ((runs[0], False), (runs[1], False), (runs[1], True)):
        folder = tmp_path / str(len(weights))
        folder.mkdir()
        given = replace(CONFIG, images_from=str(source / "images"), methods=("adam",)).with_knobs({"encoder": ""})
        if stops:
            watch = StopsInTraining()
            with pytest.raises(RunStopped):
                pipeline.execute(given, folder, watch, watch, every=0)
        pipeline.execute(given, folder, NullReporter(), NoControl())
        weights.append((folder / NETWORK).read_bytes())
        assert bool(sizes) == (source == runs[1][0])
    assert weights[0] == weights[1] == weights[2]
    assert set(sizes) == {2, 3}
