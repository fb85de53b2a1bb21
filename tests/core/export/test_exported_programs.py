import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from core.errors import ModelError
from core.models.programs.archive import SPEC_FILE
from core.models.programs.export import save_program
from core.quantization.integer.inference import integer_inference_network

ROOT = Path(__file__).parents[3]

# what a user can run with torch alone
ELSEWHERE = """
import sys, torch
files = {"spec.json": ""}
network = torch.export.load("network.pt2", extra_files=files).module()
images = torch.load("images.pt", weights_only=True)
with torch.no_grad():
    outputs = [network(images), network(images[:1]), network(torch.cat([images, images]))]
torch.save(outputs, "outputs.pt")
print(files["spec.json"])
assert not [name for name in sys.modules if name.split(".")[0] in ("core", "dashboard")]
"""


@pytest.mark.parametrize(("name", "bits"), [("small", 4), ("Untraceable", 8)])
def test_program_gives_the_same_bits_with_torch_alone(model, calibrated, images, tmp_path, name, bits):
    made = model(name)
    quantized, _ = calibrated(made, bits)
    expected = integer_inference_network(quantized, made.spec)
    save_program(expected, made.spec, tmp_path / "network.pt2")
    torch.save(images, tmp_path / "images.pt")
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == ["a", "b", "c", "d"]
    whole, one, twice = torch.load(tmp_path / "outputs.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(whole, expected(images))
        assert torch.equal(one, expected(images[:1]))
    assert torch.equal(twice, torch.cat([whole, whole]))


def test_file_contains_no_paths_of_this_machine(small, calibrated, tmp_path):
    quantized, _ = calibrated(small, 4)
    save_program(integer_inference_network(quantized, small.spec), small.spec, tmp_path / "network.pt2")
    with zipfile.ZipFile(tmp_path / "network.pt2") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert any(name.endswith(SPEC_FILE) for name in content)
    assert not [name for name, text in content.items() if str(ROOT).encode() in text or b"site-packages" in text]


def test_data_dependent_control_flow_is_refused(model, calibrated, tmp_path):
    made = model("Undecided")
    quantized, _ = calibrated(made, 4)
    with pytest.raises(ModelError) as caught:
        save_program(integer_inference_network(quantized, made.spec), made.spec, tmp_path / "network.pt2")
    message = str(caught.value)
    assert message.startswith("torch.export cannot translate Undecided (")
    assert message.endswith("the network must not have data-dependent control flow, or use the format packed")
    assert not (tmp_path / "network.pt2").exists()
