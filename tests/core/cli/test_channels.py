"""Networks for one to four channels and for images that are not square: from a file of weights or a program to every export."""

import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from command_line import call, last_json
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

from core.channels import MODES
from core.data.image_sets import load_image_set
from core.export.packed import load_packed
from core.export.verify import open_program
from core.models.full_precision import load_model
from core.runs.store import RunStore

CLASSES = ("a", "b", "c", "d")
FILES = {"onnx-exact": "network.onnx", "pt2": "network.pt2", "packed": "network.safetensors", "onnx": "fast.onnx"}
RUN = ["--images", "16", "--iterations", "4", "--snapshots", "2", "--batch-size", "8", "--threads", "1", "--device", "cpu"]
RUN += ["--half-resolution-fraction", "0.25", "--methods", "mi-fgsm", "adam", "--bits", "4"]
RUN += ["--steps", "2", "--training-batch-size", "4", "--calibration-images", "8", "--range", "minmax"]


def plain(channels: int) -> nn.Module:
    layers = [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(CLASSES)))


def trained(network: nn.Module, channels: int, size: tuple[int, int]) -> nn.Module:
    """The network with statistics of noise."""
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.randn(16, channels, *size) * 0.5 + 0.4)
    return network.eval()


def brought(folder, kind: str, channels: int, size: tuple[int, int]) -> tuple[list[object], nn.Module]:
    """The flags for a network in a file of its user, and the network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = plain(channels) if kind == "program" else timm.create_model("test_resnet", in_chans=channels, num_classes=len(CLASSES))
        network = trained(network, channels, size)
    (folder / "names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    flags: list[object] = ["--class-names", folder / "names.txt", "--mean", *[0.5] * channels, "--std", *[0.25] * channels]
    if kind == "program":
        images = torch.zeros(2, channels, *size)
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, folder / "network.pt2")
        return ["--weights", folder / "network.pt2", *flags], network
    torch.save(network.state_dict(), folder / "network.pth")
    sides = size[:1] if size[0] == size[1] else size
    return ["--weights", folder / "network.pth", "--model", "timm:test_resnet", "--image-size", *sides, *flags], network


def pictures(folder, channels: int, size: tuple[int, int]) -> list[torch.Tensor]:
    """Two images of each class as PNG files, in the order of an evaluation."""
    generator = torch.Generator().manual_seed(6)
    images = list(torch.randint(0, 256, (2 * len(CLASSES), channels, *size), generator=generator, dtype=torch.uint8))
    for number, image in enumerate(images):
        (folder / CLASSES[number // 2]).mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / CLASSES[number // 2] / f"{number}.png")
    return images


def scores_of_files(folder, channels: int, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores of the exported networks for normalized images."""
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    found = {"onnx": torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])}
    if (folder / "network.pt2").exists():
        with torch.no_grad():
            found["pt2"] = open_program(folder / "network.pt2")(images)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "channels", "size", "formats"),
    [  # each translation of the larger network takes seconds, so one file of weights has those that the other has not
        ("weights", 1, (32, 32), ("onnx-exact", "packed", "onnx")),
        ("program", 2, (16, 24), tuple(FILES)),
        ("weights", 4, (48, 32), ("onnx-exact", "packed", "pt2")),
        ("program", 3, (32, 48), tuple(FILES)),
    ],
)
def test_from_a_file_to_every_export(tmp_path, runs, capsys, kind, channels, size, formats):
    flags, network = brought(tmp_path, kind, channels, size)
    images = pictures(tmp_path / "pictures", channels, size)
    assert call("run", "--preset", "quick", *RUN, *flags, "--data", tmp_path / "pictures", "--json") == 0
    result = last_json(capsys)
    (run,) = RunStore(runs).runs()
    model = load_model(run.config.model, "cpu")
    assert model.spec.shape == (channels, *size)

    pixels = torch.stack(images)
    with torch.no_grad():
        hits = network((pixels / 255 - 0.5) / 0.25).argmax(dim=1) == torch.arange(8) // 2
    assert result["full_precision"] == pytest.approx(100 * hits.float().mean().item())
    assert -1 <= result["methods"]["mi-fgsm"]["diversity"]["mean_similarity"] <= 1

    out = tmp_path / "out"
    for format, name in FILES.items():
        if format not in formats:
            continue
        assert call("export", run.id, "--format", format, "--method", "adam", "--out", out / name, "--json") == 0
        figures = last_json(capsys)
        assert figures["within_last_scale"] == 100 or format == "onnx"
    normalized = model.normalize(pixels)
    found = scores_of_files(out, channels, normalized)
    packed = load_packed(out / "network.safetensors", model.network)(normalized)
    for scores in found.values():
        torch.testing.assert_close(scores, packed, atol=1e-5, rtol=1e-4)
    if "onnx" in formats:
        fast = onnxruntime.InferenceSession(out / "fast.onnx").run(None, {"images": normalized.numpy()})[0]
        assert (torch.from_numpy(fast) - packed).abs().mean() < packed.std()  # other values between the layers

    generated = load_image_set(RunStore(runs).images_folder(run) / "adam")
    assert generated.images.shape == (16, channels, *size)
    for format, name in (("png", "png"), ("npz", "set.npz"), ("safetensors", "set")):
        assert call("export", run.id, "--format", format, "--method", "adam", "--out", out / name) == 0
        read = load_image_set(out / name, model.spec)
        assert torch.equal(read.images, generated.images)
        assert torch.equal(read.labels, generated.labels)
        assert read.manifest["image_size"] == (size[0] if size[0] == size[1] else list(size))
    assert {Image.open(file).mode for file in (out / "png").glob("*/*.png")} == {MODES[channels]}
    with np.load(out / "set.npz") as archive:
        assert archive["images"].shape == (16, channels, *size)
    assert call("export", run.id, "--format", "card", "--out", out / "card") == 0
    card = (out / "card" / "README.md").read_text(encoding="utf-8")
    assert f"{size[0]} x {size[1]}" in card
    assert {1: "grey", 2: "2 channels", 3: "RGB", 4: "4 channels"}[channels] in card

    # the images are good for another quantization, with the network from where it was kept
    assert call("quantize", "--model", run.config.model, "--images", out / "png", "--data", tmp_path / "pictures", "--steps", "1",
                "--calibration-images", "8", "--batch-size", "4", "--threads", "1", "--device", "cpu", "--json") == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["full_precision"] == result["full_precision"]
