"""The recipe on a few images: its checkpoint can be loaded, the same seed gives the same bits, nothing global is changed."""

import os

import pytest
import torch
from PIL import Image

from core.channels import MODES
from core.config import PretrainConfig
from core.errors import ConfigError, CoreError, DataError, ModelError, UnknownNameError
from core.models.full_precision import build_architecture, load_model
from core.recipes.pretrain import fit, new_checkpoint, pretrain

CLASSES = [f"class {i}" for i in range(10)]


class Pictures:
    """Noise images, 16 by default."""

    def __init__(self, count=16, size=36, mode="RGB"):
        pixels = torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        self.pictures = [Image.fromarray(image.numpy()).convert(mode) for image in pixels]

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index], index % 10


def config(**changes) -> PretrainConfig:
    return PretrainConfig(**{"data": "noise", "epochs": 1, "batch_size": 4, "device": "cpu", **changes})


def test_checkpoint_can_be_loaded_with_its_spec(tmp_path):
    out = tmp_path / "deeper" / "mine.safetensors"
    steps = []
    spec = pretrain(Pictures(), CLASSES, config(), out, lambda *step: steps.append(step))
    model = load_model(str(out), "cpu")
    assert model.spec == spec
    assert (spec.name, spec.architecture, spec.classes, spec.image_size) == ("mine", "resnet20_cifar10", tuple(CLASSES), 32)
    assert "16 images of noise" in spec.trained_on
    assert [step[:2] for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(loss > 0 for *_, loss in steps)
    assert torch.isfinite(model.network(torch.zeros(1, 3, 32, 32))).all()
    assert os.listdir(out.parent) == ["mine.safetensors"]


def test_short_training_changes_the_checkpoint(tmp_path):
    """Four steps change the weights and, above all, the BatchNorm statistics that images are generated from."""
    out = tmp_path / "a.safetensors"
    pretrain(Pictures(), CLASSES, config(), out)
    state = load_model(str(out), "cpu").network.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = build_architecture("resnet20_cifar10", 10).state_dict()
    for name in ("output.weight", "features.init_block.bn.running_mean"):
        assert not torch.equal(state[name], start[name]), name


def test_loss_falls_on_separable_images(tmp_path):
    class Colours(Pictures):
        def __init__(self):
            self.pictures = [Image.new("RGB", (32, 32), (255 * (i % 2),) * 3) for i in range(16)]

        def __getitem__(self, index):
            return self.pictures[index], index % 2

    losses = []
    pretrain(Colours(), CLASSES, config(epochs=6, lr=0.05), tmp_path / "a.safetensors", lambda _step, _steps, loss: losses.append(loss))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


@pytest.mark.slow
def test_same_seed_same_bits(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(paths, (3, 3, 4)):
        torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
        pretrain(Pictures(), CLASSES, config(seed=seed, epochs=2), path)
    tensors = [load_model(str(path), "cpu").network.state_dict() for path in paths]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert not all(torch.equal(tensors[0][key], tensors[2][key]) for key in tensors[0])


def test_nothing_global_is_changed(tmp_path):
    torch.manual_seed(11)
    seed, threads, before = torch.initial_seed(), torch.get_num_threads(), torch.get_rng_state()
    pretrain(Pictures(), CLASSES, config(threads=threads + 1), tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == seed
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_threads_are_those_of_the_config(tmp_path):
    seen = []
    count = torch.get_num_threads() + 1
    pretrain(Pictures(), CLASSES, config(threads=count), tmp_path / "a.safetensors", lambda *_: seen.append(torch.get_num_threads()))
    assert set(seen) == {count}


def test_existing_file_is_refused_and_kept(tmp_path):
    out = tmp_path / "a.safetensors"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="must be a new file, .*a.safetensors' already exists"):
        pretrain(Pictures(), CLASSES, config(), out)
    assert out.read_text(encoding="utf-8") == "mine"


def test_name_must_end_in_safetensors(tmp_path):
    with pytest.raises(ConfigError, match=r"out must end in .safetensors, got .*a\.pt"):
        pretrain(Pictures(), CLASSES, config(), tmp_path / "a.pt")
    assert new_checkpoint(tmp_path / "a") == tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "squeezenet_v1_0"}, ModelError, "at least one BatchNorm layer.*squeezenet_v1_0"),
        ({"architecture": "nonsense"}, UnknownNameError, "unknown architecture 'nonsense'"),
        ({"batch_size": 17}, DataError, "at least one batch of 17 images, got 16"),
    ],
)
def test_invalid_config_is_refused_before_anything_is_written(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        pretrain(Pictures(), CLASSES, config(**changes), tmp_path / "deeper" / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_padding_as_large_as_the_image_is_refused(tmp_path):
    """Reflection padding needs an image larger than the padding."""
    with pytest.raises(CoreError, match="crop_padding"):
        pretrain(Pictures(), CLASSES, config(crop_padding=32), tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [8, 64])
def test_image_size_that_the_architecture_does_not_support_is_refused(tmp_path, size):
    with pytest.raises(CoreError, match="image_size|resnet20_cifar10"):
        pretrain(Pictures(), CLASSES, config(image_size=size), tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_failure_leaves_no_file(tmp_path):
    class Broken(Pictures):
        def __getitem__(self, index):
            raise RuntimeError("unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        pretrain(Broken(), CLASSES, config(), tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_any_number_of_classes(tmp_path):
    class Three(Pictures):
        def __getitem__(self, index):
            return self.pictures[index], index % 3

    out = tmp_path / "a.safetensors"
    pretrain(Three(), ["a", "b", "c"], config(), out)
    assert load_model(str(out), "cpu").network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_path_below_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("1", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be created in .*file"):
        pretrain(Pictures(), CLASSES, config(), tmp_path / "file" / "a.safetensors", lambda *_: pytest.fail("computed for nothing"))


@pytest.mark.parametrize(
    ("channels", "image_size", "mean", "std"),
    [
        (1, (32, 48), (0.4734,), (0.2507,)),
        (2, 32, (0.4734,) * 2, (0.2507,) * 2),
        (3, (48, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        (4, [64, 64], (0.4734,) * 4, (0.2507,) * 4),
    ],
)
def test_channels_height_and_width(tmp_path, channels, image_size, mean, std):
    out = tmp_path / "a.safetensors"
    images = Pictures(mode=MODES[channels])
    given = config(architecture="timm:test_byobnet", channels=channels, image_size=image_size)
    spec = pretrain(images, CLASSES, given, out)
    model = load_model(str(out), "cpu")
    assert model.spec == spec
    sides = (64, 64) if image_size == [64, 64] else (32, 32) if image_size == 32 else image_size
    assert spec.shape == (channels, *sides)
    assert (spec.mean, spec.std) == (pytest.approx(mean, abs=1e-4), pytest.approx(std, abs=1e-4))
    assert model.network(torch.zeros(2, *spec.shape)).shape == (2, 10)


def test_images_of_other_modes_are_converted(tmp_path):
    """Grey pictures train a network for RGB images as their RGB versions do, and the reverse."""
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    colors = Pictures()
    grey = Pictures(mode="L")
    widened = Pictures(mode="L")
    widened.pictures = [picture.convert("RGB") for picture in grey.pictures]
    pretrain(colors, CLASSES, config(channels=1), paths[0])
    pretrain(grey, CLASSES, config(channels=1), paths[1])
    pretrain(widened, CLASSES, config(channels=1), paths[2])
    first, *others = (load_model(str(path), "cpu").network.state_dict() for path in paths)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)


def test_architecture_for_one_proportion_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="image_size must be one at which resnet20_cifar10.* got 32 x 48"):
        pretrain(Pictures(), CLASSES, config(image_size=(32, 48)), tmp_path / "a.safetensors")


def test_images_are_covered_and_cropped_in_proportion():
    """A wide picture keeps its proportions: its height becomes that of the images, and its sides are cut off."""
    seen = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 2)

        def forward(self, images):
            seen.append(images)
            return self.layer(images.mean((1, 2, 3))[:, None])

    class Wide(Pictures):
        def __init__(self):
            picture = Image.new("L", (160, 20))
            picture.paste(255, (65, 0, 95, 20))  # 30 of 160 columns, in the middle
            self.pictures = [picture] * 4

        def __getitem__(self, index):
            return self.pictures[index], 0

    given = config(channels=1, image_size=(16, 24), crop_padding=0)
    fit(Network(), Wide(), given, torch.device("cpu"), None)
    (images,) = seen
    assert images.shape == (4, 1, 16, 24)
    white = (1 - 0.4734) / 0.2507
    torch.testing.assert_close(images[:, :, :, 1:-1], torch.full((4, 1, 16, 22), white), atol=0.01, rtol=0)
