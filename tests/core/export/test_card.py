import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig, TrainingConfig
from core.data.image_sets import ImageSet, load_image_set
from core.data.labeled import embedded_images
from core.errors import DataError, ModelError
from core.export.card import CARD, MethodImages, model_card, plain, sheet, write_card
from core.models.full_precision import FullPrecisionModel
from core.models.registry import CIFAR10_CLASSES
from core.pipeline import execute
from core.reporting import NullReporter
from core.runs.control import ReplayControl

HOSTILE = "<script>alert(1)</script> [a](http://b.c) ![i](x) `c` **d** | e\n# f\n--- &amp; www.g.h $x$ \u202eevil"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A small run, evaluated on two images per class."""
    data = tmp_path_factory.mktemp("data") / "photographs"
    data.mkdir()
    images, labels = embedded_images()
    for label, name in enumerate(CIFAR10_CLASSES):
        (data / name).mkdir()
        for index in [i for i, other in enumerate(labels) if other == label][:2]:
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(data / name / f"{index}.png")
    return RunConfig(
        machine=MachineConfig(device="cpu", threads=1),
        generation=GenerationConfig(images=40, iterations=4, batch_size=20, snapshots=2),
        training=TrainingConfig(range="minmax", steps=2, training_batch_size=8, calibration_images=8),
        bits=(4, 5),
        evaluation=EvaluationConfig(data=str(data)),
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of a real run of two methods, with a live change in one of them."""
    folder = tmp_path_factory.mktemp("finished")
    execute(config, folder, NullReporter(), ReplayControl([{"method": "adam", "step": 2, "name": "beta", "value": 0.25}]))
    return folder


@pytest.fixture(scope="module")
def written(finished, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("cards") / "card"
    write_card(finished, config, "a run", out)
    return out


class Page(HTMLParser):
    """The text, tags and links of the rendered card."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(MarkdownIt("commonmark", {"linkify": False}).enable("table").render(markdown))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def parts(text: str) -> tuple[dict, str]:
    """The front matter, parsed as YAML, and the rest."""
    _, front_matter, rest = text.split("---\n", 2)
    return yaml.safe_load(front_matter), rest


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose first column title is `first`."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_front_matter(written):
    front_matter, rest = parts((written / CARD).read_text(encoding="utf-8"))
    assert front_matter == {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "model_name": "resnet20_cifar10 W4A4 W5A5",
        "tags": ["image-classification", "quantization", "data-free-quantization", "resnet20_cifar10"],
    }
    assert rest.strip().startswith("# resnet20")


def test_figures_match_the_run(finished, written):
    text = (written / CARD).read_text(encoding="utf-8")
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    expected = []
    for method, title in (("mi-fgsm", "MI-FGSM"), ("adam", "Adam")):
        for bits in (4, 5):
            outcome = result["methods"][method]["accuracy"][str(bits)]
            before, after, error = (f"{outcome[name]:.2f}" for name in ("calibrated", "trained", "standard_error"))
            drop = f"{result['full_precision'] - outcome[outcome['kept']]:.2f}"
            expected.append([title, f"W{bits}A{bits}", before, after, outcome["kept"], error, drop])
    assert rows(text, "images by") == [[plain(cell).replace("\\.", ".") for cell in row] for row in expected]
    for (_, images, iterations, loss, agreement, _seconds), method in zip(rows(text, "method"), ("mi-fgsm", "adam")):
        made = result["methods"][method]["generation"]
        assert (images, iterations) == ("40", "4")
        assert loss == f"{made['bns_loss_first']:.1f} to {made['bns_loss_last']:.1f}"
        assert agreement == f"{made['teacher_agreement']:.1f} %"
    shown = Page(parts(text)[1]).text
    assert re.search(r"resnet20_cifar10 in [45] bits: \d+ kB instead of 1\.1 MB \(.* measured top-1 drop -?\d", shown)
    for words in (
        "272,474",
        "airplane",
        "20 images of photographs",
        "alpha_feature (α_F)",
        "License: of the original network, not stated here.",
    ):
        assert words in shown, words
    assert f"{result['methods']['adam']['diversity']['mean_similarity']:.3f}" in text
    assert "trained on the 50,000 CIFAR-10 training images, with captions" in shown


def test_a_card_without_accuracies_has_the_agreement_of_every_network(finished, config, tmp_path):
    """Of a run without evaluation images."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["full_precision"] = None
    expected = []
    for method in ("mi-fgsm", "adam"):
        for bits in ("4", "5"):
            outcome = result["methods"][method]["accuracy"][bits]
            outcome |= dict.fromkeys(("full_precision", "calibrated", "trained", "quantized", "standard_error", "evaluated_on"))
            for network, figures in outcome["held_out"].items():
                agreement = f"{figures['agreement']:.2f} ± {figures['standard_error']:.2f}"
                expected.append([network, "synthetic", agreement, f"{figures['kl']:.4f}", f"{figures['score_sqnr']:.2f}"])
            outcome["real"] = {}
    assert len(expected) == 8
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    text = write_card(folder, config.with_knobs({"data": "none"}), "a run", tmp_path / "card").read_text(encoding="utf-8")
    tables = text.split("How closely the networks follow the full-precision one")
    tables = tables[1].split("Signal-to-quantization-noise ratio of the output of each layer")
    assert [row[2:] for row in rows(tables[0], "images by")] == expected
    analyzed = [outcome["layers"] for method in result["methods"].values() for outcome in method["accuracy"].values()]
    for row, layers in zip(rows(tables[1], "images by"), analyzed, strict=True):
        ratios = sorted(layers["sqnr"].values())
        assert row[2:4] == ["16 held-out synthetic images", f"{(ratios[10] + ratios[11]) / 2:.1f}"]  # 22 layers
        assert row[4].count(",") == 2
        assert row[4].split(",")[0].replace("\\.", ".").endswith(f" {ratios[0]:.1f}")
    shown = Page(parts(text)[1]).text
    for words in (
        "The run had no labeled evaluation images: the accuracy is not known.",
        "not measured",
        "gives the same answer as the original on",
        "Accuracy was not measured, because the run had no labeled images",
        "synthetic: on 16 held-out synthetic images, which none of them was calibrated or trained on. Agreement",
    ):
        assert words in shown, words
    assert "None" not in shown
    assert "Top-1 in percent" not in shown


def test_a_card_tells_real_from_synthetic_images(finished, config, tmp_path):
    """The finished run has labeled images; a copy without labels has the same agreement, and a stored run of before none on real images."""
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    text = write_card(finished, config, "a run", tmp_path / "card").read_text(encoding="utf-8")
    found = rows(text.split("How closely the networks follow")[1].split("Signal-to")[0], "images by")
    assert [row[3] for row in found] == ["real"] * 8 + ["synthetic"] * 8
    first = result["methods"]["mi-fgsm"]["accuracy"]["4"]["real"]["calibrated"]
    assert found[0][4] == f"{first['agreement']:.2f} ± {first['standard_error']:.2f}"
    shown = Page(parts(text)[1]).text
    assert "real: on 20 images of photographs; synthetic: on 16 held-out" in " ".join(shown.split()).replace(" ;", ";")
    assert str(config.evaluation.data) not in text
    folder = tmp_path / "before"
    shutil.copytree(finished, folder)
    for method in result["methods"].values():
        for outcome in method["accuracy"].values():
            del outcome["real"], outcome["layers"]
            for figures in outcome["held_out"].values():
                del figures["measured_on"]
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    text = write_card(folder, config, "a run", tmp_path / "card of before").read_text(encoding="utf-8")
    assert "synthetic: on 16 held-out synthetic images" in " ".join(Page(parts(text)[1]).text.split())
    assert "ratio of the output of each layer" not in text


def test_live_change_is_listed_as_missing_from_the_commands(written):
    text = (written / CARD).read_text(encoding="utf-8")
    assert rows(text, "step") == [["2", "beta", "0.25"]]
    assert "changed by hand while Adam was running" in text
    assert "The commands do not include the settings changed by hand" in text
    assert "python -m core run --preset quick" in text
    assert "--images 40 --iterations 4" in text


def test_pictures_are_next_to_the_card(finished, written):
    assert sorted(path.name for path in written.iterdir()) == [CARD, "adam.png", "mi-fgsm.png"]
    assert Page((written / CARD).read_text(encoding="utf-8")).links == ["mi-fgsm.png", "adam.png"]
    with Image.open(written / "adam.png") as picture:
        # 10 columns and 6 rows of 32-pixel images at twice their size, with gaps of 2 pixels
        assert (picture.size, picture.format) == ((10 * 66 - 2, 6 * 66 - 2), "PNG")


def test_picture_has_one_class_per_column():
    labels = torch.tensor([3, 5, 3, 5, 3])
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 32, 32) + 10
    pixels = np.asarray(sheet(ImageSet(images, labels), [3, 5], rows=3))
    assert pixels.shape == (3 * 66 - 2, 2 * 66 - 2, 3)
    # the pixel in the middle of each cell: images 0, 2, 4 are of class 3, images 1 and 3 of class 5
    middles = [[int(pixels[33 + 66 * row, 33 + 66 * column, 0]) for column in range(2)] for row in range(3)]
    assert middles == [[10, 11], [12, 13], [14, 255]]


def test_large_images_are_not_enlarged():
    images = torch.zeros(2, 3, 100, 100, dtype=torch.uint8)
    assert sheet(ImageSet(images, torch.tensor([0, 1])), [0, 1], rows=1).size == (202, 100)


def test_text_from_outside_is_shown_verbatim(embedded, finished, config):
    """Names of networks, classes, runs, folders and encoders, and notes."""
    spec = replace(embedded.spec, name=HOSTILE, architecture=HOSTILE, trained_on=HOSTILE, classes=tuple(f"{HOSTILE}{i}" for i in range(10)))
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    figures = result["methods"]["adam"]
    figures["diversity"] |= {"encoder": HOSTILE, "encoder_trained_on": HOSTILE}
    for outcome in figures["accuracy"].values():
        outcome |= {"note": HOSTILE, "evaluated_on": f"9 images of {HOSTILE}"}
    manifest = load_image_set(finished / "images" / "adam").manifest
    model = {"model": "/x/`````.safetensors"}
    config = config.with_knobs(model)
    method = MethodImages(
        HOSTILE, {**manifest, "changes": [{"step": 1, "name": HOSTILE, "value": 1.0}]}, 40, figures, "images-1.png", (0, 1)
    )
    front_matter, rest = parts(model_card(FullPrecisionModel(embedded.network, spec), config, HOSTILE, 92.1, [method]))
    assert front_matter["model_name"].startswith("<script>alert(1)</script> [a](http://b.c)")
    assert front_matter["tags"][-1].isprintable()
    page = Page(rest)
    assert page.tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre", "code", "img"}
    assert page.links == ["images-1.png"]
    assert rest.count("<") == 0
    assert "\u202e" not in rest
    assert "<script>alert(1)</script> [a](http://b.c) ![i](x) `c` **d** | e # f --- &amp; www.g.h $x$" in page.text
    assert len([line for line in rest.splitlines() if line.startswith("#")]) == 8  # the title and seven sections


@pytest.mark.parametrize(
    "text", ["a_b*c", "1. x", "# x", "> x", "![a](b)", "<b>", "&lt;", "a|b", "`a`", "\\", "http://a.b", "~~a~~", "a\x00b"]
)
def test_plain_text_survives_rendering(text):
    page = Page(f"before {plain(text)}")
    assert page.tags == {"p"}
    assert page.text.strip() == f"before {text}".replace("\x00", "\\x00")


def test_card_contains_no_paths(written, config):
    text = (written / CARD).read_text(encoding="utf-8")
    assert config.evaluation.data not in text
    assert str(written) not in text
    assert "--data photographs" in text


def test_given_images_are_not_called_synthetic(finished, config, tmp_path):
    config = replace(config, images_from=str(finished / "images"), bits=(5,), methods=("adam",)).with_knobs({"encoder": ""})
    folder = tmp_path / "run"
    folder.mkdir()
    execute(config, folder, NullReporter(), ReplayControl([]))
    write_card(folder, config, "again", tmp_path / "card")
    text = (tmp_path / "card" / CARD).read_text(encoding="utf-8")
    assert "images that were given to the run, whose origin is unknown to it" in text
    assert "No real image was used to generate the images" not in text
    assert (tmp_path / "card" / "adam.png").is_file()
    assert "--images images/adam" in text


def test_card_of_given_images_that_are_gone(finished, config, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("images"))
    config = replace(config, images_from=str(tmp_path / "gone"), methods=("adam",))
    write_card(tmp_path / "run", config, "again", tmp_path / "card")
    text = (tmp_path / "card" / CARD).read_text(encoding="utf-8")
    assert "They are gone from where the run found them." in text
    assert "\n0 images" not in text
    assert "![" not in text
    assert [path.name for path in (tmp_path / "card").iterdir()] == [CARD]


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"summary": {}},
        {"summary": 3, "changes": 4, "config": 5},
        {"summary": {"images": "many", "seconds": None, "bns_loss_last": float("nan")}, "config": {"iterations": -1}, "changes": [{}]},
        {"summary": {"images": 10**400, "seconds": [[]]}, "changes": [{"step": 1, "name": "beta", "value": "high"}]},
    ],
)
def test_card_of_images_with_a_foreign_manifest(finished, config, tmp_path, manifest):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "images" / "adam" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_card(tmp_path / "run", config, "a run", tmp_path / "card")
    text = (tmp_path / "card" / CARD).read_text(encoding="utf-8")
    of_adam = [row[1:] for row in rows(text, "method") if row[0] == "Adam"]
    assert of_adam == ([["?", "?", "? to ?", "? %", "?"]] if isinstance(manifest.get("summary"), dict) else [])


def test_calibration_alone_is_not_called_trained(finished, config, embedded):
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    for outcome in result["methods"]["adam"]["accuracy"].values():
        outcome["steps"] = 0
    text = model_card(embedded, config, "a run", 92.1, [MethodImages("adam", {}, 40, result["methods"]["adam"])])
    assert [row[3] for row in rows(text, "images by")] == ["", ""]


def refused(error, words, folder, config, out):
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(error, match=words) as caught:
        write_card(folder, config, "a run", out)
    assert re.search("must|allowed", str(caught.value))
    assert sorted(out.parent.rglob("*")) == before


def test_incomplete_run_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    refused(DataError, "run has no result.json", tmp_path / "run", config, tmp_path / "card")


def test_unreadable_result_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{", encoding="utf-8")
    refused(DataError, "cannot be read", tmp_path / "run", config, tmp_path / "card")


def test_run_without_a_quantized_network_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"optimizers": {"adam": {}}, "seconds": 1.0}', encoding="utf-8")
    refused(DataError, "no quantized network", tmp_path / "run", replace(config, bits=()), tmp_path / "card")


def test_missing_network_is_refused(finished, config, tmp_path):
    model = {"model": str(tmp_path / "gone.safetensors")}
    config = config.with_knobs(model)
    refused(ModelError, "gone.safetensors", finished, config, tmp_path / "card")


def test_folder_with_files_is_refused(finished, config, tmp_path):
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "mine").write_text("1", encoding="utf-8")
    refused(DataError, "already exists", finished, config, tmp_path / "card")


def test_failed_card_leaves_no_files(finished, config, tmp_path, monkeypatch):
    """The first picture is written, then the second image set is missing."""

    def load(path, spec):
        return load_image_set(path if path.name == "mi-fgsm" else tmp_path / "gone", spec)

    monkeypatch.setattr("core.export.card.load_image_set", load)
    refused(DataError, "does not exist", finished, config, tmp_path / "card")


def test_card_says_that_real_images_were_used(embedded, config):
    """Of a run with the reference `real`; without it, that none were."""
    for methods, says in ((("adam", "real"), True), (("adam",), False)):
        made = [MethodImages(name, {"summary": {}}, 40, {}) for name in methods]
        own = replace(config, methods=methods, bits=()).with_knobs({"real_images": "/home/me/photographs"})
        text = " ".join(model_card(embedded, own, "a run", None, made).split())
        assert ("real images of a folder" in text) is says
        assert ("No real image was used" in text) is not says
        assert ("data-free-quantization" in text) is not says
        assert "/home/me" not in text
