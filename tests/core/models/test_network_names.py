"""Names of classes and layers, found in another process."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

from safetensors.torch import load_file, save_file

from core.models.network_names import NetworkNames, names_of
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
