"""Names of classes and layers, found in another process."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

from safetensors.torch import load_file, save_file

import core.models.network_names
from core.models.network_names import SECONDS_BETWEEN_TRIES, NetworkNames, names_of
from core.models.registry import MODELS


def test_names_of_an_own_network_without_torch_in_this_process(tmp_path):
    embedded, spec = MODELS["resnet20_cifar10"]
    path = tmp_path / "mine.safetensors"
    classes = [f"kind {index}" for index in range(10)]
    save_file(load_file(embedded), path, metadata={"spec": json.dumps(asdict(replace(spec, classes=classes)))})
    code = (
        "import sys; from core.models.network_names import names_of; names = names_of(sys.argv[1]);"
        "assert 'torch' not in sys.modules; print(len(names.layers), *names.classes, sep=',')"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, encoding="utf-8", check=True).stdout
    assert answer.strip() == ",".join(["21", *classes])


def test_network_that_cannot_be_found_has_no_names(tmp_path):
    assert names_of(str(tmp_path / "gone.safetensors")) == NetworkNames((), ())


def test_a_network_that_could_not_be_named_is_tried_again_after_a_while(tmp_path, monkeypatch):
    embedded, spec = MODELS["resnet20_cifar10"]
    path, now, asked = tmp_path / "mine.safetensors", [1000.0], []
    run = subprocess.run
    monkeypatch.setattr(core.models.network_names.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(core.models.network_names.subprocess, "run", lambda *values, **named: asked.append(1) or run(*values, **named))
    assert names_of(str(path)) == NetworkNames()
    save_file(load_file(embedded), path, metadata={"spec": json.dumps(asdict(spec))})
    now[0] += SECONDS_BETWEEN_TRIES - 1
    assert names_of(str(path)) == NetworkNames()  # not for every page that is drawn
    now[0] += 2
    assert names_of(str(path)).classes == spec.classes
    now[0] += 10 * SECONDS_BETWEEN_TRIES
    assert names_of(str(path)).classes == spec.classes
    assert len(asked) == 2
