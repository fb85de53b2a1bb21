"""Checkpoints in the forms in which training programs write them: each is imported with the right weights, or refused with what to do.

timm's and torchvision's are written by their own code where it does the wrapping; the forms of programs that are not among the
dependencies (Lightning, mmpretrain, Ultralytics and others) are written by hand, as those programs lay them out.
"""

import argparse
import bz2
import collections
import copy
import datetime
import gzip
import lzma
import pathlib
import pickle
import sys
import tarfile
import types
import warnings
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.utils import CheckpointSaver, ModelEmaV2
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from core.errors import ModelError
from core.models.full_precision import layout_of
from core.models.importing import import_checkpoint, notes_of
from core.models.registry import GivenSpec
from core.models.state_dicts import find_state_dict
from core.models.weights import read_content
from core.models.zoos.lookup import known_spec

ARCHITECTURE = "torchvision:resnet18"
TOTAL = 122  # tensors of a ResNet-18
EXPECTED = dict.fromkeys(layout_of(known_spec(ARCHITECTURE)), ())


def network(seed=0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.resnet18(num_classes=5)


NETWORK, OTHER = network(), network(1)
STATE, OTHER_STATE = NETWORK.state_dict(), OTHER.state_dict()
OPTIMIZER = torch.optim.SGD(NETWORK.parameters(), lr=0.1, momentum=0.9)
for parameter in NETWORK.parameters():
    parameter.grad = torch.zeros_like(parameter)
OPTIMIZER.step()


def prefixed(prefix, state=None):
    return {prefix + key: value for key, value in (STATE if state is None else state).items()}


def without(*tops):
    return {key: value for key, value in STATE.items() if key.partition(".")[0] not in tops}


def named_like(module_name, class_name, **values):
    """An object of a class that pickle finds under another module, as that of a library that is not installed here."""
    module = types.ModuleType(module_name)
    kind = type(class_name, (values.pop("base", object),), {"__module__": module_name})
    setattr(module, class_name, kind)
    for end in range(1, module_name.count(".") + 1):
        parent = ".".join(module_name.split(".")[:end])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    sys.modules[module_name] = module
    made = kind()
    made.__dict__.update(values)
    return made


ARGS = argparse.Namespace(
    model="resnet18", output_dir=pathlib.Path("/data/out"), when=datetime.datetime(2024, 1, 1), took=datetime.timedelta(hours=1), lr=0.1
)
LIGHTNING = {
    "epoch": 3,
    "global_step": 900,
    "pytorch-lightning_version": "2.4.0",
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.7), "dirpath": "/x"}},
    "optimizer_states": [OPTIMIZER.state_dict()],
    "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
    "hparams_name": "kwargs",
    "hyper_parameters": {"data": pathlib.PurePosixPath("/data"), "lr": 0.1},
}

# name -> content of a file of torch.save whose weights are those of STATE
FORMS = {
    "plain": lambda: STATE,
    "OrderedDict": lambda: collections.OrderedDict(STATE),
    "torchvision references": lambda: {
        "model": STATE, "optimizer": OPTIMIZER.state_dict(), "lr_scheduler": {"last_epoch": 3}, "epoch": 3, "args": ARGS,
        "scaler": {"scale": 1.0},
    },
    "torchvision references with EMA": lambda: {"model": OTHER_STATE, "model_ema": ema_of_torchvision(), "epoch": 3, "args": ARGS},
    "DataParallel": lambda: nn.DataParallel(NETWORK).state_dict(),
    "torch.compile": lambda: prefixed("_orig_mod."),
    "torch.compile of DataParallel": lambda: prefixed("_orig_mod.module."),
    "DataParallel of torch.compile": lambda: prefixed("module._orig_mod."),
    "torch.compile of a part": lambda: {key.replace("layer1.", "layer1._orig_mod."): value for key, value in STATE.items()},
    "FSDP": lambda: {key.replace("layer1.", "layer1._fsdp_wrapped_module."): value for key, value in STATE.items()},
    # PyTorch's ImageNet example
    "state_dict": lambda: {"state_dict": STATE, "epoch": 3, "arch": "resnet18", "best_acc1": torch.tensor(70.0)},
    "model_state_dict": lambda: {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER.state_dict(), "loss": 0.5},
    "model_state": lambda: {"model_state": STATE, "cfg": "TRAIN: {}"},  # pycls
    "net": lambda: {"net": prefixed("module."), "acc": 93.0, "epoch": 3},  # kuangliu/pytorch-cifar
    "weights": lambda: {"weights": STATE},
    "network": lambda: {"network": STATE, "step": np.int64(7)},
    "nested": lambda: {"checkpoint": {"model": {"state_dict": STATE}}},
    "params of BasicSR": lambda: {"params": OTHER_STATE, "params_ema": STATE},
    "params_ema alone": lambda: {"params_ema": STATE},
    "ema alone": lambda: {"ema": STATE, "updates": 1000},
    "state_dict_ema of timm": lambda: {"state_dict": OTHER_STATE, "state_dict_ema": ema_of_timm(), "args": ARGS, "metric": 0.5},
    "ema of mean teachers": lambda: {"model": OTHER_STATE, "ema": STATE},
    "student and teacher": lambda: {**prefixed("student.", OTHER_STATE), **prefixed("teacher.")},
    "teacher inside a wrapper": lambda: {"state_dict": {**prefixed("model.student.", OTHER_STATE), **prefixed("model.teacher.")}},
    "AveragedModel": lambda: averaged().state_dict(),
    "Lightning": lambda: {**LIGHTNING, "state_dict": prefixed("model.")},
    "Lightning with net.": lambda: {**LIGHTNING, "state_dict": {**prefixed("net."), "criterion.weight": torch.ones(5)}},
    "Lightning with a metric": lambda: {**LIGHTNING, "state_dict": {**prefixed("backbone."), "train_acc.confmat": torch.zeros(5, 5)}},
    "Lightning's AttributeDict": lambda: {
        **LIGHTNING,
        "state_dict": prefixed("model."),
        "hyper_parameters": named_like("lightning.fabric.utilities.data", "AttributeDict", base=dict),
    },
    "Lightning with EMA weights": lambda: {**LIGHTNING, "state_dict": {**prefixed("model.", OTHER_STATE), **prefixed("ema_model.module.")}},
    "mmengine": lambda: {
        "meta": {"epoch": 3, "cfg": "model = dict()", "dataset_meta": {"CLASSES": ("a", "b")}, "time": "20240101"},
        "state_dict": prefixed("backbone."),
        "message_hub": {"log_scalars": {"loss": named_like("mmengine.logging.history_buffer", "HistoryBuffer", _log_history=np.zeros(3))}},
        "optimizer": OPTIMIZER.state_dict(),
    },
    "profiler's leftovers": lambda: {
        **STATE, "total_ops": torch.zeros(1), "total_params": torch.zeros(1), "layer1.0.total_ops": torch.zeros(1)
    },
    "head in a Sequential": lambda: {**without("fc"), "fc.1.weight": STATE["fc.weight"], "fc.1.bias": STATE["fc.bias"]},
    "head under another name": lambda: {**without("fc"), "head.weight": STATE["fc.weight"], "head.bias": STATE["fc.bias"]},
    "head in a Sequential of a wrapped network": lambda: {
        "state_dict": prefixed("module.", {**without("fc"), "fc.1.weight": STATE["fc.weight"], "fc.1.bias": STATE["fc.bias"]})
    },
    "without counters": lambda: {key: value for key, value in STATE.items() if not key.endswith("num_batches_tracked")},
    "float64": lambda: {key: value.double() if value.is_floating_point() else value for key, value in STATE.items()},
    "parameters": lambda: {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in STATE.items()},
    "settings of many kinds": lambda: {
        "model": STATE,
        "history": collections.defaultdict(list, {"loss": [0.5]}),
        "last": collections.deque([1.0]),
        "best": np.float32(0.5),
        "confusion": np.zeros((2, 2)),
        "classes": np.array(["cat", "dog"]),
        "date": datetime.date(2024, 1, 1),
        "ids": {1, 2},
        "frozen": frozenset(["conv1"]),
        "steps": range(3),
        "namespace": types.SimpleNamespace(lr=0.1),
        "device": torch.device("cpu"),
        "random": np.random.RandomState(0).get_state(),
        "generator": torch.random.get_rng_state(),
    },
    "pathlib of Windows": lambda: {"model": STATE, "args": argparse.Namespace(path=pathlib.PureWindowsPath("c:/data"))},
}  # fmt: skip


def ema_of_torchvision():
    """As ExponentialMovingAverage of torchvision's references: an AveragedModel that averages buffers, too."""
    return AveragedModel(copy.deepcopy(NETWORK), use_buffers=True).state_dict()


def ema_of_timm():
    return ModelEmaV2(NETWORK).module.state_dict()


def averaged():
    return AveragedModel(copy.deepcopy(NETWORK))


def weights_of(path):
    return find_state_dict(read_content(path), EXPECTED, path.name)


def assert_same(found):
    for key, value in STATE.items():
        if key in found or not key.endswith("num_batches_tracked"):
            assert torch.equal(found[key].to(value.dtype), value), key
    assert found.keys() <= STATE.keys()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_form_is_read(tmp_path, form, legacy):
    torch.save(FORMS[form](), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(weights_of(tmp_path / "a.pth").weights)


def test_forms_are_at_least_forty():
    assert len(FORMS) >= 40


def test_file_of_timms_own_saver(tmp_path):
    saver = CheckpointSaver(
        NETWORK, OPTIMIZER, args=ARGS, model_ema=ModelEmaV2(OTHER), checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(3, metric=0.7)
    found = weights_of(tmp_path / "last.pth.tar")
    for key, value in OTHER_STATE.items():  # the average is that of the other network
        assert torch.equal(found.weights[key], value)
    assert found.notes[0] == "took state_dict_ema; state_dict would fit as well"


def test_safetensors_with_a_prefix_and_more(tmp_path):
    save_file({**prefixed("model."), "loss.weight": torch.ones(3)}, tmp_path / "a.safetensors")
    found = weights_of(tmp_path / "a.safetensors")
    assert_same(found.weights)
    assert found.notes == ("left out loss.weight",)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said(tmp_path, kind):
    torch.save({key: value.to(kind) if value.is_floating_point() else value for key, value in STATE.items()}, tmp_path / "a.pth")
    found = weights_of(tmp_path / "a.pth")
    assert found.notes == (f"converted {str(kind).removeprefix('torch.')} to float32",)
    assert all(torch.allclose(found.weights[key].to(value.dtype), value, atol=1e-2) for key, value in STATE.items())


@pytest.mark.parametrize(
    ("form", "notes"),
    [
        ("plain", ()),
        ("ema of mean teachers", ("took ema; model would fit as well",)),
        ("student and teacher", ("took teacher; student would fit as well",)),
        ("AveragedModel", ()),  # beside it is a counter
        ("Lightning with net.", ("left out criterion.weight",)),
        ("Lightning with a metric", ("left out train_acc.confmat",)),
        ("head in a Sequential", ("took the layer fc.1 for fc",)),
        ("profiler's leftovers", ("left out total_ops, total_params, layer1.0.total_ops",)),
    ],
)
def test_what_was_chosen_is_said(form, notes):
    assert find_state_dict(FORMS[form](), EXPECTED, "a.pth").notes == notes


def test_notes_are_kept_with_the_imported_network(tmp_path):
    """Through the whole import: the stored network has the averaged weights, and what was chosen is remembered."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trained = timm.create_model("test_byobnet", num_classes=7).train()
        trained(torch.randn(4, 3, 64, 64))
    state = trained.state_dict()
    torch.save({"model": {key: 0 * value for key, value in state.items()}, "ema": prefixed("module.", state)}, tmp_path / "a.pth")
    folder = tmp_path / "networks"
    path = import_checkpoint(tmp_path / "a.pth", "timm:test_byobnet", given=GivenSpec(image_size=64), out_folder=folder)
    stored = load_file(path)
    assert all(torch.equal(stored[key], value) for key, value in state.items() if value.is_floating_point())
    assert notes_of(str(path)) == ["took ema.module; model would fit as well"]
    assert notes_of("resnet20_cifar10") == []
    assert notes_of(str(tmp_path / "networks" / "none.safetensors")) == []


class Weird:
    pass


def torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(NETWORK.eval(), torch.zeros(1, 3, 64, 64)), path)


def packed(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")


def keras(path):
    packed(path, "metadata.json", "config.json", "model.weights.h5")


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


REFUSED = {
    "whole module": (lambda path: torch.save(NETWORK, path), "it contains an object of torchvision.models.resnet.ResNet, which"),
    "module of Ultralytics": (lambda path: torch.save({"model": NETWORK, "ema": None}, path), "models.resnet.ResNet, which could"),
    "object of the trainer's": (lambda path: torch.save({"model": STATE, "config": Weird()}, path), "Weird, which could execute code"),
    "function": (lambda path: torch.save({"model": STATE, "loss": print}, path), "print, which could execute code"),
    "TorchScript": (torchscript, "it is a TorchScript program"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"abc")), "got a file packed with gzip: unpack it first"),
    "bzip2": (lambda path: path.write_bytes(bz2.compress(b"abc")), "got a file packed with bzip2: unpack it first"),
    "xz": (lambda path: path.write_bytes(lzma.compress(b"abc")), "got a file packed with xz: unpack it first"),
    "zip": (lambda path: packed(path, "best.pth"), "it is a zip archive of other files: unpack it first"),
    "tar": (tar, "got a file packed with tar: unpack it first"),
    "NumPy archive": (lambda path: np.savez(path.open("wb"), **{"conv1.weight": np.zeros(3)}), "it is an archive of NumPy arrays: save "),
    "Keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "got a Keras file"),
    "Keras 3": (keras, "it is a Keras file"),
    "TensorFlow Lite": (lambda path: path.write_bytes(b"\x1c\x00\x00\x00TFL3"), "got a TensorFlow Lite file"),
    "ONNX": (lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch"), "usually folded into the convolutions"),
    "shards": (lambda path: path.write_text('{"metadata": {}, "weight_map": {}}', encoding="utf-8"), "merge them into one"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_form_is_refused_with_what_to_do(tmp_path, form):
    write, words = REFUSED[form]
    write(tmp_path / "a.pth")
    with pytest.raises(ModelError) as caught:
        read_content(tmp_path / "a.pth", "mine.pth")
    message = str(caught.value)
    assert message.startswith("mine.pth ")
    assert words in message
    assert "torch.save(network.state_dict(), file)" in message
    for unsafe in ("weights_only", "safe_globals", "trust", "\n"):
        assert unsafe not in message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", ["TorchScript", "whole module", "dictionary with a module"])
def test_pasted_lines_save_weights_that_are_read(tmp_path, monkeypatch, form, legacy):
    """Run as the user would: the file that they write has the weights."""
    file = tmp_path / "mine.pt"
    if form == "TorchScript":
        torchscript(file)
    else:
        content = NETWORK if form == "whole module" else {"model": NETWORK, "epoch": 3}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError) as caught:
        read_content(file, "mine.pt")
    lines = "\n".join(caught.value.paste)
    assert len(caught.value.paste) == 3
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(lines, {})
    found = find_state_dict(read_content(tmp_path / "weights.pth"), EXPECTED, "weights.pth").weights
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("arrays", [False, True])
def test_pasted_lines_save_weights_of_a_pickle_that_are_read(tmp_path, monkeypatch, arrays, protocol):
    """torch says of such a file "Unsupported operand 149"."""
    content = {key: value.numpy() for key, value in STATE.items()} if arrays else dict(STATE)
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ModelError) as caught:
        read_content(tmp_path / "mine.pkl", "mine.pkl")
    assert "operand" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(caught.value.paste), {})
    found = find_state_dict(read_content(tmp_path / "weights.pth"), EXPECTED, "weights.pth").weights
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("protocol", [2, 4])
def test_object_in_a_pickle_that_torch_did_not_write_is_named(tmp_path, protocol):
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps({"a": collections.ChainMap()}, protocol))
    with pytest.raises(ModelError, match="mine.pkl cannot be read as weights"):
        read_content(tmp_path / "mine.pkl")


@pytest.mark.parametrize("content", [(STATE, {"epoch": 3}), [STATE], {"models": [{"epoch": 3}, STATE]}], ids=["tuple", "list", "inside"])
def test_state_dict_in_a_list(tmp_path, content):
    torch.save(content, tmp_path / "mine.pth")
    found = find_state_dict(read_content(tmp_path / "mine.pth"), EXPECTED, "mine.pth").weights
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_without_its_end_is_called_that(tmp_path, suffix):
    file = tmp_path / f"mine.{suffix}"
    torch.save(STATE, file) if suffix == "pth" else save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="its end is missing: copy or download it again"):
        read_content(file)


@pytest.mark.parametrize("form", ["ONNX", "TensorFlow Lite", "Keras", "Keras 3"])
def test_pasted_lines_export_a_program(tmp_path, monkeypatch, form):
    """With the image size of the network, as their comment says."""
    write, _ = REFUSED[form]
    write(tmp_path / "a.pth")
    with pytest.raises(ModelError) as caught:
        read_content(tmp_path / "a.pth", "mine.pth")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(caught.value.paste).replace("224", "32"), {"network": timm.create_model("test_byobnet")})
    assert (tmp_path / "network.pt2").stat().st_size > 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (dict(NETWORK.named_parameters()), "must have the running statistics.*got parameters alone: missing bn1.running_mean"),
        (without("fc"), "must have a classifier, got a network without its last layer: missing fc.bias, fc.weight$"),
        ({**without("fc"), "fc.0.weight": torch.zeros(9, 512), "fc.2.weight": torch.zeros(5, 9)}, "missing: fc.bias, fc.weight; unexp"),
        ({**STATE, "layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, "unexpected: layer1.2.conv1.weight"),  # another architecture
        ({"features.integer_weight.integers": torch.zeros(3, dtype=torch.uint8)}, "got a quantized network made by this program"),
        ({"a": [STATE["fc.weight"]]}, "must be a .safetensors file, or a state dict"),
    ],
)  # fmt: skip
def test_state_dict_that_does_not_fit_is_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message):
        import_checkpoint(tmp_path / "a.pth", ARCHITECTURE, given=GivenSpec(classes=5), out_folder=tmp_path / "kept")


@pytest.mark.parametrize("architecture", [ARCHITECTURE, ""], ids=["named", "found out"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        (dict(NETWORK.named_parameters()), "must have the running statistics of BatchNorm layers, .* got parameters alone"),
        (without("fc"), "must have a classifier, got a network without its last layer: missing fc.bias, fc.weight$"),
        ({"state_dict": prefixed("backbone.", without("fc"))}, "must have a classifier"),
    ],
    ids=["parameters", "backbone", "backbone in a wrapper"],
)
def test_what_a_file_lacks_is_said_with_lines_that_save_it(tmp_path, monkeypatch, architecture, state, message):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message) as caught:
        import_checkpoint(tmp_path / "a.pth", architecture, out_folder=tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(caught.value.paste), {"network": copy.deepcopy(NETWORK)})
    assert_same(weights_of(tmp_path / "weights.pth").weights)


def test_a_network_without_batch_norm_is_called_one(tmp_path):
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match="^mine.pth must have the running statistics of BatchNorm layers, .* got parameters alone$"):
        import_checkpoint(tmp_path / "a.pth", "", out_folder=tmp_path / "kept", name="mine.pth")


def test_many_names_take_no_time():
    """Every name has another prefix: a file with 200,000 of them is refused within the check's time."""
    hostile = {f"p{index}.conv1.weight": torch.zeros(()) for index in range(200_000)}
    assert find_state_dict(hostile, EXPECTED, "a").weights.keys() <= {"conv1.weight"}
