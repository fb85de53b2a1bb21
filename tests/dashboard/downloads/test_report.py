"""The HTML report: its content, that it loads nothing, and that names stay text. (In a browser: tests/browser/test_downloads.py.)"""

import base64
import hashlib
import html as html_text
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from core.config import PRESETS
from core.generation.methods import METHODS, Method
from core.runs.store import RunStore
from dashboard.downloads import report

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"' $body $x"


class Elements(HTMLParser):
    """Every element with its attributes, the text outside scripts, and the scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.scripts = [], [], []
        self._script = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self._script = (dict(attributes).get("type"), [])
            self.scripts.append(self._script)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        (self._script[1] if self._script else self.text).append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def store(finished_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(finished_runs, folder, dirs_exist_ok=True)
    store = RunStore(folder)
    yield store
    store.close()


@pytest.fixture(scope="module")
def run(store):
    store.add_change(store.runs()[0].id, "mi-fgsm", 2, "epsilon", 0.0625)
    return store.runs()[0]


@pytest.fixture(scope="module")
def html(store, run):
    return report.report(store, run, CLASSES)


@pytest.mark.slow
def test_report_has_every_part_of_a_run(html, store, run):
    found = Elements(html)
    text = " ".join(" ".join(found.text).split())
    known = store.results(run.id)
    for needed in (
        "a finished run", "complete", "Settings", "Settings that differ from the preset quick:", "Live changes", "epsilon", "0.0625",
        "Images",
        "Generation", "Training of the quantized networks", "Accuracy", "Diversity", "Provenance", "How to reproduce it",
        "600 CIFAR-10 test images", f"± {known['full_precision']['standard_error']:.2f}", "python -m core run", "torch ", "Python ",
        f"{known['accuracy/adam/W4A4']['quantized']:.2f} %", "seed of the training", run.id, "BMVC 2023",
    ):  # fmt: skip
        assert needed in text, needed
    assert re.search(r"resnet20_cifar10 in 4 bits: \d+ kB instead of 1\.1 MB \(.* measured top-1 drop \d", text)
    for image in found.of("img"):
        kind, _, encoded = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            picture.load()
            assert picture.size == (10 * 33 - 1, 4 * 33 - 1)  # ten classes, four images each, 32 pixels and a gap
    charts = [json.loads("".join(parts)) for kind, parts in found.scripts if kind == "application/json"]
    assert len(charts) == len([1 for one in found.of("div") if one.get("class") == "chart"]) >= 8
    titles = [chart["layout"]["title"]["text"] for chart in charts if "title" in chart["layout"]]
    assert "Accuracy at each bit width" in titles
    assert "Pairwise CLIP similarity" in titles
    heatmaps = [trace for chart in charts for trace in chart["data"] if trace["type"] == "heatmap"]
    assert len(heatmaps) == 4  # layers and similarities of two methods


def test_settings_that_differ_from_the_preset_come_first(html, run):
    first = html[: html.index("All settings")]
    knobs = re.findall(r"<tr><td>(\w+)</td><td>([^<]+)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", first)
    assert ("generation", "images", "40", "2048") in knobs
    assert ("run", "bits", "4", "3, 4, 5") in knobs
    start = PRESETS["quick"].generation
    same = {name for name in ("noise", "epsilon", "mu", "beta") if getattr(run.config.generation, name) == getattr(start, name)}
    assert same
    assert not same & {knob.split(" ")[0] for _, knob, _, _ in knobs}


def test_report_loads_nothing_and_runs_only_its_own_scripts(html):
    found = Elements(html)
    assert not [1 for tag, attributes in found.elements if tag in ("link", "iframe", "object", "embed") or attributes.get("href")]
    assert all("src" not in script for script in found.of("script"))
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    (policy,) = (meta["content"] for meta in found.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    scripts = ["".join(parts) for kind, parts in found.scripts if kind is None]
    assert [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts] == allowed
    assert len(scripts) == 3


def test_hostile_names_stay_text(store, run):
    model = "/home/hidden-folder/" + HOSTILE.replace("/", "|")
    config = run.config.with_knobs({"model": model})
    hostile = replace(run, name=HOSTILE, config=config, user=HOSTILE, error=HOSTILE)
    html = report.report(store, hostile, [f"{index} {HOSTILE}" for index in range(10)])
    plain = report.report(store, run, CLASSES)
    tags = [tag for tag, _ in Elements(html).elements]
    ordinary = [tag for tag, _ in Elements(plain).elements]
    assert set(tags) == set(ordinary)
    assert tags.count("script") == ordinary.count("script")
    assert tags.count("img") == ordinary.count("img")
    text = "".join(Elements(html).text)
    assert text.count(HOSTILE) == 4  # title, heading, user, error
    assert f"3 {HOSTILE}"[:50] in text  # a class
    assert "hidden-folder" not in html


@pytest.mark.parametrize("classes", [(), [f"class {index}" for index in range(1000)]])
def test_many_or_unknown_classes(store, run, classes):
    html = report.report(store, run, classes)
    assert html.count("<img ") == 2
    assert "40 of 40 images" in html
    assert 'class="classes"' not in html


def test_a_long_command_is_not_truncated(tmp_path):
    store = RunStore(tmp_path / "runs")
    layers = {f"features.{index}.convolution": 4 for index in range(200)}
    quick = PRESETS["quick"]
    config = replace(quick, training=replace(quick.training, layer_bits=layers))
    text = html_text.unescape(report.report(store, store.run(store.create(config, "long")), CLASSES))
    store.close()
    assert all(f"{name}=4" in text for name in layers)


def test_report_of_a_run_that_has_just_started(tmp_path):
    store = RunStore(tmp_path)
    run = store.run(store.create(PRESETS["quick"], "just begun"))
    text = " ".join(Elements(report.report(store, run, CLASSES)).text)
    assert "just begun" in text
    assert "The settings of the preset quick, without a difference." in text
    assert "python -m core run" in text
    for missing in ("Accuracy", "Diversity", "Live changes"):
        assert missing not in text
    store.close()


def test_report_shows_the_run_as_it_is_now(store, run):
    store.rename(run.id, "renamed later")
    try:
        asked = []
        html = report.report_now(store, run.id, lambda of, labels: asked.append(of.id) or CLASSES)
    finally:
        store.rename(run.id, run.name)
    assert "<h1>renamed later</h1>" in html
    assert asked == [run.id]
    assert report.file_name(run) == "a-finished-run-report.html"


@pytest.mark.parametrize("count", [1, 5, 8])
def test_report_of_one_to_eight_methods(tmp_path, monkeypatch, count):
    names = ["mi-fgsm", "adam", *(f"method-{number}" for number in range(2, 8))][:count]
    for name in names[2:]:
        monkeypatch.setitem(METHODS, name, Method(name, f"<{name}>", "nowhere:Nothing", paper=f"Paper of {name}"))
    store = RunStore(tmp_path)
    run_id = store.create(replace(PRESETS["quick"], methods=tuple(names), bits=(4,)), "many")
    for method in names:
        row = {"bits": 4, "weight_bits": 4, "activation_bits": 4, "calibrated": 80.0, "quantized": 90.0, "standard_error": 0.5}
        store.set_result(run_id, f"accuracy/{method}/W4A4", row)
    html = report.report(store, store.run(run_id), CLASSES)
    text = " ".join(Elements(html).text)
    for method in names[2:]:
        assert f"W4A4, <{method}>" in text
        assert f"Paper of {method}" in text
    assert html.count("<b>90.00 %</b>") == count
    store.close()
