"""Over two hundred classifiers of the three zoos, each with another head, are found among the candidates of their own weights."""

import argparse
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.errors import ModelError
from core.models.architecture_index import load_index
from core.models.candidates import of_content
from core.models.full_precision import layout_of
from core.models.zoos.lookup import known_spec
from core.models.zoos.zoo import numbered_classes

CLASSES = 7
MOST_TENSORS = 320  # of a network whose layouts are built within a fraction of a second
SIZES = load_index().sizes()
MANY = [name for name, size in SIZES.items() if size <= MOST_TENSORS][::3]
LARGE = [name for name, size in SIZES.items() if size > MOST_TENSORS][::12]
FEW = ("torchvision:resnet18", "timm:efficientnet_lite0", "pytorchcv:resnet20_cifar10", "timm:regnetx_002", "torchvision:densenet121")


def state_of(architecture: str, classes: int = CLASSES) -> dict[str, Tensor]:
    """Tensors with the names and shapes of a network, all of one number and so of no size."""
    known = known_spec(architecture)
    layout = layout_of(replace(known, classes=numbered_classes(classes)))
    return {name: torch.zeros((), dtype=torch.long if not shape else torch.float32).expand(shape) for name, shape in layout.items()}


def best(content, source="best.pth"):
    found = of_content(content, source)
    return found[0].candidate


def check_found(architecture, content, source="best.pth") -> None:
    """The first candidate is the architecture, or one of the same tensors, and is complete."""
    candidate = best(content, source)
    assert candidate.whole
    assert (candidate.fit, candidate.parameters) == (1, 1)
    assert candidate.classes == CLASSES
    known = known_spec(architecture)
    assert layout_of(replace(known_spec(candidate.architecture), classes=numbered_classes(CLASSES))) == layout_of(
        replace(known, classes=numbered_classes(CLASSES))
    )


def test_there_are_two_hundred_of_all_zoos():
    assert len(MANY) >= 200
    assert {name.partition(":")[0] for name in MANY} == {"timm", "torchvision", "pytorchcv"}


@pytest.mark.parametrize("architecture", [*MANY, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_architecture_with_another_head_is_found(architecture):
    check_found(architecture, state_of(architecture))


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def renamed(state):
    return {f"t{place}": value for place, value in enumerate(state.values())}


WRAPPED = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "ema": lambda state: {"model": prefixed("a.b.", state), "ema": state},
    "model_ema of torchvision": lambda state: {"model": state, "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", state)}},
    "Lightning": lambda state: {"state_dict": {**prefixed("net.", state), "loss.weight": torch.zeros(CLASSES)}, "hyper_parameters": {}},
    "backbone.": lambda state: {"state_dict": prefixed("backbone.", state)},
    "student. and teacher.": lambda state: {**prefixed("student.", state), **prefixed("teacher.", state)},
    "DataParallel of torch.compile": lambda state: prefixed("module._orig_mod.", state),
    "torch.compile of a part": lambda state: {key.replace(".", "._orig_mod.", 1): value for key, value in state.items()},
    "fp16": lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    "bf16": lambda state: {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()},
    "counters of one dimension": lambda state: {
        key: torch.zeros(1, dtype=torch.long) if key.endswith("num_batches_tracked") else value for key, value in state.items()
    },
    "without counters": lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    "with an optimizer": lambda state: {
        "model": state, "optimizer": {"state": {0: {"momentum_buffer": state[next(iter(state))]}}, "param_groups": [{"lr": 0.1}]}
    },
    "other names": renamed,
    "other names in a wrapper": lambda state: {"state_dict": prefixed("model.", renamed(state))},
    "other names without counters": lambda state: renamed({key: value for key, value in state.items() if "num_batches" not in key}),
}  # fmt: skip


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("architecture", FEW[:3])
def test_wrapped_and_renamed_weights_are_found(architecture, form):
    content = WRAPPED[form](state_of(architecture))
    candidate = best(content)
    assert candidate.by_order == ("other names" in form)
    check_found(architecture, content)


@pytest.mark.slow
@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("architecture", FEW[3:])
def test_more_wrapped_and_renamed_weights_are_found(architecture, form):
    check_found(architecture, WRAPPED[form](state_of(architecture)))


def test_the_name_of_the_file_and_of_the_program_choose_among_equals():
    state = state_of("timm:tf_efficientnet_b0")
    assert best(state, "tf_efficientnet_b0_best.pth").architecture == "timm:tf_efficientnet_b0"
    assert best(state, "efficientnet_b0_best.pth").architecture == "timm:efficientnet_b0"
    assert best({"state_dict": state, "arch": "tf_efficientnet_b0"}).architecture == "timm:tf_efficientnet_b0"
    assert best({"state_dict": state, "args": argparse.Namespace(model="tf_efficientnet_b0")}).architecture == "timm:tf_efficientnet_b0"


def test_equal_architectures_are_all_candidates_torchvision_first():
    found = [one.candidate for one in of_content(state_of("timm:resnet50"), "best.pth")]
    assert found[0].architecture == "torchvision:resnet50"
    assert "timm:resnet50" in [one.architecture for one in found if one.whole]


def test_names_that_fit_come_before_an_order_that_fits():
    """ResNets of pytorchcv have the shapes of torchvision's in the same order under other names."""
    candidate = best(state_of("pytorchcv:resnet18"))
    assert candidate.architecture == "pytorchcv:resnet18"
    assert not candidate.by_order


def test_number_of_classes_chooses_among_equals():
    assert best(state_of("pytorchcv:resnet20_cifar100", 100)).architecture == "pytorchcv:resnet20_cifar100"
    assert best(state_of("pytorchcv:resnet20_cifar10", 10)).architecture == "pytorchcv:resnet20_cifar10"


def test_class_names_of_a_zoo_need_more_than_their_number():
    assert best(state_of("torchvision:resnet18", 1000)).named
    assert not best(state_of("pytorchcv:resnet20_cifar10", 10)).named
    assert best(state_of("pytorchcv:resnet20_cifar10", 10), "resnet20_cifar10-0597.pth").named
    assert not best(state_of("pytorchcv:resnet20_cifar10", 11), "resnet20_cifar10-0597.pth").named


def test_other_channels_are_found():
    state = state_of("torchvision:resnet18")
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    candidate = best(state)
    assert (candidate.architecture, candidate.channels, candidate.whole) == ("torchvision:resnet18", 1, True)
    assert candidate.mean == pytest.approx((0.449,), abs=1e-3)


def test_values_come_from_the_zoo():
    candidate = best(state_of("torchvision:resnet18"))
    assert candidate.image_size == 224
    assert candidate.mean == (0.485, 0.456, 0.406)
    assert candidate.std == (0.229, 0.224, 0.225)
    assert candidate.source == "weights of torchvision"


def test_part_of_a_network_is_no_whole_candidate():
    state = state_of("torchvision:resnet18")
    found = [one.candidate for one in of_content({key: value for key, value in state.items() if "layer4.1.bn2." not in key}, "best.pth")]
    assert not any(one.whole for one in found)
    assert found[0].architecture.partition(":")[2] == "resnet18"
    # 20 kernels, 20 BatchNorm layers of four tensors, and the classifier; one of these layers is gone
    assert found[0].fit == pytest.approx(98 / 102)
    fits = [one.fit for one in found]
    assert fits == sorted(fits, reverse=True)


def test_shapes_in_another_order_are_no_whole_candidate():
    state = state_of("torchvision:resnet18")
    shuffled = {f"t{place}": value for place, value in enumerate(reversed(state.values()))}
    assert not best(shuffled).whole


def test_architecture_that_the_installed_zoo_lacks_is_not_offered(monkeypatch):
    import timm

    known = timm.is_model
    monkeypatch.setattr(timm, "is_model", lambda name: name != "efficientnet_lite0" and known(name))
    found = [one.candidate.architecture for one in of_content(state_of("pytorchcv:efficientnet_b0"), "best.pth")]
    assert found
    layout = {name: torch.zeros(()).expand(shape) for name, shape in LITE0.items()}
    assert "timm:efficientnet_lite0" not in [one.candidate.architecture for one in of_content(layout, "best.pth")]


LITE0 = layout_of(known_spec("timm:efficientnet_lite0"))


def test_no_tensors_are_refused():
    with pytest.raises(ModelError, match=r"^best.pth must be a .safetensors file, or a state dict"):
        of_content({"epoch": 3}, "best.pth")


def test_tensors_of_nothing_known_have_no_candidates():
    assert of_content({"a": torch.zeros(3, 5, 7, 11, 13)}, "best.pth") == []
