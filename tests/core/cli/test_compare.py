"""`compare`: what is measured once, what is reused, and its files."""

import csv
import xml.etree.ElementTree as ElementTree

import pytest
from command_line import call, last_json, refused
from PIL import Image

from core.config import RunConfig
from core.evaluation.hits import unpacked
from core.runs.store import RunStore

COMPARE = ("compare", "--preset", "quick", "--methods", "mi-fgsm", "adam", "--bits", "3", "4", "--encoder", "")


@pytest.fixture
def computed(monkeypatch) -> list[RunConfig]:
    """The configs of the runs that were computed."""
    from core import pipeline

    execute, seen = pipeline.execute, []
    monkeypatch.setattr(pipeline, "execute", lambda config, *rest, **more: seen.append(config) or execute(config, *rest, **more))
    return seen


def test_every_method_and_seed_is_measured_once(tiny_preset, computed, runs, tmp_path, capsys):
    assert call(*COMPARE, "--seeds", 0, 1, "--json", "--out", tmp_path / "first") == 0
    result = last_json(capsys)
    assert [(config.methods, config.machine.seed) for config in computed] == [
        (("mi-fgsm",), 0), (("mi-fgsm",), 1), (("adam",), 0), (("adam",), 1),
    ]  # fmt: skip
    assert result["missing"] == []
    rows = result["rows"]
    assert sorted((row["width"], row["method"]) for row in rows) == [
        ("W3A3", "adam"), ("W3A3", "mi-fgsm"), ("W4A4", "adam"), ("W4A4", "mi-fgsm"),
    ]  # fmt: skip
    for row in rows:
        assert row["drop"] == pytest.approx(row["full_precision"] - sum(row["top1"]) / 2, abs=1e-3)
        assert row["paper_drop"] is None or row["method"] == "mi-fgsm"
    for best, other in (rows[:2], rows[2:]):
        assert best["behind"] is None
        gap = sum(best["top1"]) / 2 - sum(other["top1"]) / 2
        assert other["behind"]["points"] == pytest.approx(gap, abs=1e-3)
        assert other["behind"]["points"] >= 0

    # another seed: only its runs are computed, and the table has all three
    assert call(*COMPARE, "--seeds", 0, 1, 2, "--json") == 0
    assert len(computed) == 6
    assert [len(row["top1"]) for row in last_json(capsys)["rows"]] == [3] * 4

    with (tmp_path / "first" / "table.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [float(line["drop"]) for line in written] == [pytest.approx(row["drop"], abs=0.006) for row in rows]
    latex = (tmp_path / "first" / "table.tex").read_text(encoding="utf-8")
    assert latex.count(r"\textbf") >= 2
    assert r"MI-FGSM & " in latex
    drawing = ElementTree.parse(tmp_path / "first" / "drops.svg").getroot()
    assert len([one for one in drawing.iter() if one.tag.endswith("circle")]) == 4


def test_a_run_of_several_methods_counts_for_each_of_them(tiny_preset, computed, runs, capsys):
    # which network a run keeps makes no difference
    assert call("run", "--preset", "quick", "--bits", 3, 4, 5, "--seed", 7, "--encoder", "", "--keep", "trained") == 0
    assert call("run", "--preset", "quick", "--bits", 3, 4, "--seed", 7, "--encoder", "", "--beta", 0.2) == 0
    capsys.readouterr()
    assert call(*COMPARE, "--seeds", 7, "--json") == 0
    assert len(computed) == 2
    assert len({run for row in last_json(capsys)["rows"] for run in row["runs"]}) == 1


def test_hits_are_those_of_the_reported_accuracy(tiny_preset, runs, capsys):
    assert call(*COMPARE, "--seeds", 0, "--json") == 0
    store = RunStore(runs)
    for row in last_json(capsys)["rows"]:
        hits = unpacked(store.result(row["runs"][0], f"hits/{row['method']}/{row['width']}"))
        assert 100 * hits.mean() == pytest.approx(row["top1"][0], abs=1e-3)
    store.close()


def test_references_are_marked_and_never_the_best(tiny_preset, runs, tmp_path, capsys):
    for number in range(3):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (0, 80 * number, 0)).save(tmp_path / "real" / f"{number}.png")
    methods = ("--methods", "mi-fgsm", "noise", "real", "--real-images", tmp_path / "real")
    arguments = ("compare", "--preset", "quick", *methods, "--bits", "4", "--encoder", "", "--seeds", "0")
    assert call(*arguments, "--json", "--out", tmp_path / "out") == 0
    rows = {row["method"]: row for row in last_json(capsys)["rows"]}
    assert rows["mi-fgsm"]["behind"] is None
    for name in ("noise", "real"):  # positive or negative, whichever of the two is better
        assert rows[name]["behind"]["points"] == pytest.approx(rows["mi-fgsm"]["top1"][0] - rows[name]["top1"][0], abs=1e-3)
    with Image.open(tmp_path / "out" / "images.png") as drawn:
        assert drawn.size == (11 * 33 - 1, 3 * 33 - 1)  # 5 best, a gap, 5 worst of 32 pixels; three methods
    latex = (tmp_path / "out" / "table.tex").read_text(encoding="utf-8")
    assert r"MI-FGSM & \textbf{" in latex
    assert "Noise (reference) & " in latex
    assert r"Real images (reference) & \textbf{" not in latex
    store = RunStore(runs)
    made = store.result(rows["noise"]["runs"][0], "generation/noise")
    assert made["image_iterations"] == 0
    assert made["bns_loss_last"] > 0
    assert "has 3 images for 8: some are used more than once" in store.result(rows["real"]["runs"][0], "warning/data 1")
    store.close()


def test_an_interrupted_comparison_goes_on(tiny_preset, computed, monkeypatch, runs, capsys):
    from core.stages import quantization

    save = quantization.save_quantized

    def interrupt(*_):
        monkeypatch.setattr(quantization, "save_quantized", save)
        raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "save_quantized", interrupt)
    assert call(*COMPARE, "--seeds", 0, "--json") == 130
    assert "repeat the command to continue" in capsys.readouterr().err
    assert call(*COMPARE, "--seeds", 0, "--json") == 0
    store = RunStore(runs)
    assert sorted((run.config.methods, run.attempt) for run in store.runs()) == [(("adam",), 1), (("mi-fgsm",), 2)]
    store.close()


def test_found_starts_nothing(tiny_preset, computed, capsys):
    assert call(*COMPARE, "--seeds", 0, "--found") == 0
    assert computed == []
    assert "Not measured: mi-fgsm with seed 0, adam with seed 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seeds", "1", "1"], "seeds must have each value once, got 1, 1"),
        (["--seeds", "-1"], "seed must be"),
        (["--methods", "sgd"], "method"),
    ],
)
def test_what_cannot_be_compared_is_refused(tiny_preset, tmp_path, capsys, flags, sentence):
    assert sentence in refused(capsys, tmp_path / "out", *COMPARE, *flags)
