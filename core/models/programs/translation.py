"""A `torch.export` program (.pt2) as a network of modules.

A program has no modules: it is a list of calls of `torch.ops.aten` operations with parameters among their arguments. This module turns
each convolution, linear layer and BatchNorm back into a module with the name that its parameters had, and the operations between them
into the functions that core.generation.fusion and core.quantization.placement recognize, so that both treat it like the exported network.

Programs may come from untrusted sources. They are read by core.models.programs.archive, never by `torch.export.load`. Only operations
in core.models.programs.operations are accepted, all of which compute tensors from tensors and have no other effect. Strings from the
file enter generated code only as attribute names of letters, digits and underscores. Intermediate tensors are limited to ELEMENTS.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._ops import OpOverload

from core.channels import MODES
from core.errors import ModelError, first_line, quoted
from core.models.programs import operations
from core.models.programs.archive import HOW_TO_EXPORT, ProgramArchive, read_archive, refuse
from core.models.programs.folding import Folding, erase_unread
from core.models.programs.layers import HeldTensor, Layers
from core.models.programs.outputs import scores_of_program
from core.models.programs.precision import FLOAT32, in_float32
from core.models.programs.sizes import ELEMENTS, check_sizes

NODES = 20_000  # operations; a DenseNet-201 has 700


@dataclass(frozen=True)
class Program:
    """A program's network, in evaluation mode with frozen parameters; channels, height and width (None: any) of its images; and sentences
    about what was chosen in the file.
    """

    network: fx.GraphModule
    channels: int
    image_size: tuple[int | None, int | None]
    notes: tuple[str, ...] = ()


def load_program(path: Path) -> fx.GraphModule:
    """The network in a .pt2 file: float images `(N, C, H, W)`, normalized as the program expects -> logits `(N, classes)`.

    Its Conv2d, Linear and BatchNorm2d modules have the names that they had in the exported module. It is in evaluation mode, with
    frozen parameters, on the CPU. Raises ModelError if the file is damaged, has a fixed batch size, was exported in training mode, or
    contains an operation that is not allowed.
    """
    return read_program(path).network


def read_program(path: Path) -> Program:
    """As `load_program`, together with the images that the program accepts."""
    archive = read_archive(path)
    if any(tensor.dtype in (torch.int8, torch.uint8) for tensor in archive.tensors.values()):
        refuse(path, "network must be in full precision, got a quantized one, such as this program exports")
    try:
        archive, notes = in_float32(archive, path)
        translation = _Translation(archive, path)
        network, (channels, height, width) = translation.result()
        check_sizes(network, (channels, height, width), path)
        network.load_state_dict(translation.layers.state, assign=True)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, RecursionError, OverflowError, SyntaxError) as error:
        refuse(path, f"graph cannot be read ({quoted(first_line(error))}); it must be as written by torch.export.save")
    return Program(network.eval().requires_grad_(False), channels, (height, width), (*translation.notes, *notes))


class _Translation:
    """Translates one program. Tensors of the file are untrusted; every error becomes a ModelError in `read_program`."""

    def __init__(self, archive: ProgramArchive, path: Path) -> None:
        self.archive, self.path = archive, path
        module = archive.graph["graph_module"]
        self.given, self.signature = module["graph"], module["signature"]
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}  # name in the program -> node, HeldTensor or None
        self.layers = Layers(archive, path)
        self.folding = Folding(archive.tensors, ELEMENTS)
        self.sharing: dict[str, set[str]] = {}  # name in the program -> names that may share its memory
        self.last_reader = {name: i for i, node in enumerate(self.given["nodes"]) for name in _names_in([x["arg"] for x in node["inputs"]])}
        self.last_reader |= dict.fromkeys(_names_in(self.given["outputs"]), len(self.given["nodes"]))

    def result(self) -> tuple[fx.GraphModule, tuple[int, int | None, int | None]]:
        shape = self._inputs()
        if len(self.given["nodes"]) > NODES:
            refuse(self.path, f"number of operations must be at most {NODES:,}, got {len(self.given['nodes']):,}")
        for position, node in enumerate(self.given["nodes"]):
            self._translate(node, position)
        name, is_deeper, self.notes = scores_of_program(self.archive.graph["graph_module"], self.path)
        scores = self._tensor(name)
        self.graph.output(self.graph.call_function(torch.flatten, (scores, 1)) if is_deeper else scores)
        return self._assembled(), shape

    def _inputs(self) -> tuple[int, int | None, int | None]:
        """Channels, height and width of the images."""
        images = None
        for spec in self.signature["input_specs"]:
            ((kind, what),) = spec.items()
            if kind == "user_input":
                if images is not None or "as_tensor" not in what["arg"]:
                    refuse(self.path, "input must be one tensor of images, got more inputs")
                images = what["arg"]["as_tensor"]["name"]
                continue
            keys = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            if kind not in keys:
                refuse(self.path, f"inputs must be parameters, buffers, constants and images, got {quoted(kind)}")
            name = what[keys[kind]]
            if name not in self.archive.tensors:
                refuse(self.path, f"tensors must include all that the graph uses, {quoted(name)} is missing")
            self.values[what["arg"]["name"]] = HeldTensor(name)
        if images is None:
            refuse(self.path, "input must be one tensor of images, got none")
        self.values[images] = self.images = self.graph.placeholder("images")
        meta = self.given["tensor_values"][images]
        sizes = [one.get("as_int") for one in meta["sizes"]]
        if meta["dtype"] != FLOAT32 or len(sizes) != 4 or sizes[1] not in (*MODES, None):
            refuse(self.path, f"input must be float32 images (N, 1 to 4 channels, H, W), got a tensor of shape {quoted(sizes)}")
        if sizes[0] is not None:
            refuse(self.path, f"batch size must be dynamic, got {quoted(sizes[0])}; export with {HOW_TO_EXPORT}")
        return sizes[1] or 3, sizes[2], sizes[3]

    def _assembled(self) -> fx.GraphModule:
        """A module with all layers and loose tensors, on the meta device, in the order of the exported module."""
        network = fx.GraphModule(nn.Module(), fx.Graph(), "Program")
        erase_unread(self.graph)  # what has been folded
        loose = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        added: set[str] = set()
        for name, tensor in self.archive.tensors.items():
            parent, _, leaf = name.rpartition(".")
            for layer in self.layers.layers_of.get(name, [parent] if parent in self.layers.modules else []):
                if layer not in added and not network.add_submodule(layer, self.layers.modules[layer]):
                    refuse(self.path, f"layer names must be names of modules, got {quoted(layer)}")
                added.add(layer)
            if name in loose:
                if parent and not _has_module(network, parent) and not network.add_submodule(parent, nn.Module()):
                    refuse(self.path, f"tensor names must be names of attributes, got {quoted(name)}")
                holder = network.get_submodule(parent)
                if leaf in holder._parameters or leaf in holder._buffers:
                    continue  # a layer has it, too
                if name in self.archive.parameters:
                    self.layers.state[name] = self.layers.parameter(name)
                    holder.register_parameter(leaf, nn.Parameter(tensor.to("meta"), requires_grad=False))
                else:
                    self.layers.state[name] = tensor
                    holder.register_buffer(leaf, tensor.to("meta"))
        network.graph = self.graph
        network.recompile()
        return network

    def _translate(self, node: Mapping[str, Any], position: int) -> None:
        target, outputs = node["target"], node["outputs"]
        arguments = [(one["name"], one["arg"], one.get("kind")) for one in node["inputs"]]
        if target in operations.NUMBERS:
            self._bind(outputs[0], self.graph.call_function(operations.NUMBERS[target], tuple(self._value(arg) for _, arg, _ in arguments)))
            return
        found = operations.OPERATION.fullmatch(target) if isinstance(target, str) else None
        if found is None:
            raise self._other_operation(target)
        name, overload = found.groups()
        if name in operations.CHECKS:
            return
        if name in operations.CREATED:
            arguments = [one for one in arguments if one[0] not in operations.STORAGE]
        written = None
        if name.endswith("_") and not name.startswith("__"):
            name, written = name[:-1], arguments[0][1]["as_tensor"]["name"]
        if name in operations.IDENTITIES or (name in operations.CASTS and self._is_float(arguments[0][1]) and self._is_float(outputs[0])):
            source = arguments[0][1]["as_tensor"]["name"]
            if {key: arg for key, arg, _ in arguments}.get("train", {}).get("as_bool") is True:
                self._refuse_training()
            self.values[outputs[0]["as_tensor"]["name"]] = self._lookup(source)
            self._share(name, source, outputs)
            return
        named = {key: self._value(arg, keep=True) for key, arg, _ in arguments}
        special = self._special(name, overload, named, outputs)
        if special is None:
            special = self._plain(target, name, overload, arguments)
        if isinstance(special, HeldTensor):
            self.values[outputs[0]["as_tensor"]["name"]] = special
            return
        self._bind_all(outputs, special, first_only=name in ("max_pool2d_with_indices", "_native_batch_norm_legit_no_training"))
        if written is None:
            self._share(name, next(iter(_names_in([arg for _, arg, _ in arguments])), ""), outputs)
        else:
            self._check_written(written, position, target)
            self.values[written] = special

    def _special(self, name: str, overload: str, a: dict[str, Any], outputs: Sequence[Mapping[str, Any]]) -> Any:
        """A call of the layer or function for operations that need special treatment; None for all others."""
        if name in operations.LAYERS:
            a |= {key: self.folding.held(a[key], attribute) for key, attribute in operations.LAYERS[name].items() if key in a}
        if name in ("conv2d", "convolution") and isinstance(a["weight"], HeldTensor):
            return self._call(self.layers.convolution(a, overload), a["input"])
        if name == "linear" and isinstance(a["weight"], HeldTensor) and not a["weight"].transposed:
            return self._call(self.layers.linear(a["weight"].name, a.get("bias")), a["input"])
        if name == "addmm" and _is_transposed(a["mat2"]) and a.get("beta", 1) == 1 and a.get("alpha", 1) == 1:
            return self._call(self.layers.linear(a["mat2"].name, a["self"]), a["mat1"])
        if name == "mm" and _is_transposed(a["mat2"]):
            return self._call(self.layers.linear(a["mat2"].name, None), a["self"])
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            if a.get("training") and a.get("running_mean") is not None and a.get("running_var") is not None:
                self._refuse_training()
            return self._call(self.layers.batch_norm(a, self._rank(outputs[0])), a["input"])
        if name in ("t", "permute", "transpose", "numpy_T", "T") and isinstance(a["self"], HeldTensor) and self._is_transpose(name, a):
            return HeldTensor(a["self"].name, not a["self"].transposed)
        if name in ("hardtanh", "clamp") and a.get("min_val", a.get("min")) == 0 and a.get("max_val", a.get("max")) == 6:
            return self.graph.call_function(F.relu6, (self._node(a["self"]),))
        if name == "add" and a.get("alpha", 1) == 1:
            return self.graph.call_function(operator.add, (self._node(a["self"]), self._node(a["other"])))
        if name == "sym_size":
            return self.graph.call_method("size", (self._node(a["self"]), a["dim"]))
        if name == "expand":
            return self.graph.call_method("expand", (self._node(a["self"]), *a["size"]))
        if name in ("slice", "select") and a.get("dim", 0) >= 0:
            chosen = a["index"] if name == "select" else slice(a.get("start"), a.get("end"), a.get("step", 1))
            return self.graph.call_function(operator.getitem, (self._node(a["self"]), (*[slice(None)] * a.get("dim", 0), chosen)))
        return None

    def _call(self, layer: str | None, images: Any) -> fx.Node | None:
        return None if layer is None else self.graph.call_module(layer, (self._node(images),))

    def _plain(self, target: str, name: str, overload: str, arguments: Sequence[tuple[str, Any, Any]]) -> fx.Node:
        """The same call as in the program."""
        if name not in operations.FUNCTIONS and name not in operations.KEPT:
            raise self._other_operation(target)
        function = operations.FUNCTIONS.get(name) or getattr(getattr(torch.ops.aten, name), overload)
        if name not in operations.FUNCTIONS and (not isinstance(function, OpOverload) or function._schema.is_mutable):
            raise self._other_operation(target)
        keywords = {key: self._value(arg) for key, arg, kind in arguments if kind == 2}
        if "out" in keywords or "generator" in keywords:
            raise self._other_operation(target)
        if name in operations.CREATED:
            keywords["device"] = self.graph.call_function(getattr, (self.images, "device"))
        return self.graph.call_function(function, tuple(self._value(arg) for _, arg, kind in arguments if kind != 2), keywords)

    # values

    def _value(self, argument: Mapping[str, Any], keep: bool = False) -> Any:
        """Value of an argument. keep: a tensor of the module stays a HeldTensor, so that it can become part of a layer."""
        ((kind, value),) = argument.items()
        if kind in ("as_none", "as_device"):  # only operations that are refused by name have a device
            return None
        if kind == "as_tensor":
            return self._lookup(value["name"]) if keep else self._tensor(value["name"])
        if kind in ("as_tensors", "as_optional_tensors"):
            return [self._tensor(one["name"]) if "name" in one else self._value(one) for one in value]
        if kind == "as_optional_tensor":
            return self._value(value, keep)
        if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._number(value)
        if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self._number(one) for one in value]
        if kind in ("as_int", "as_float", "as_bool"):
            return _plain_number(value)
        if kind in ("as_ints", "as_floats", "as_bools"):
            return [_plain_number(one) for one in value]
        if kind == "as_scalar_type":
            if value not in operations.DTYPES:
                allowed = ", ".join(str(one).removeprefix("torch.") for one in operations.DTYPES.values())
                refuse(self.path, f"casts must be to {allowed}, or a precision converted to float32, got torch's type {quoted(value)}")
            return operations.DTYPES[value]
        if kind == "as_memory_format":
            return operations.FORMATS[value]
        if kind == "as_string" and operations.WORD.fullmatch(value):
            return value
        raise ValueError(f"argument {quoted(kind)}: {quoted(value)}")

    def _number(self, value: Mapping[str, Any]) -> Any:
        ((kind, number),) = value.items()
        return self._lookup(number) if kind == "as_name" else _plain_number(number)

    def _lookup(self, name: str) -> Any:
        if name not in self.values:
            raise KeyError(f"{quoted(name)} is read before it is computed")
        return self.values[name]

    def _tensor(self, name: str) -> fx.Node:
        return self._node(self._lookup(name))

    def _node(self, value: Any) -> Any:
        """A value for the graph: a tensor of the module becomes a node that reads it."""
        if not isinstance(value, HeldTensor):
            return value
        node = self.graph.get_attr(value.name)
        return self.graph.call_function(torch.transpose, (node, 0, 1)) if value.transposed else node

    def _is_transpose(self, name: str, a: dict[str, Any]) -> bool:
        if self.archive.tensors[a["self"].name].ndim != 2:
            return False
        if name == "permute":
            return list(a["dims"]) in ([1, 0], [-1, -2], [1, -2], [-1, 0])
        return name != "transpose" or a["dim0"] % 2 != a["dim1"] % 2

    def _is_float(self, tensor: Mapping[str, Any]) -> bool:
        return self.given["tensor_values"][tensor["as_tensor"]["name"]]["dtype"] == FLOAT32

    def _rank(self, output: Mapping[str, Any]) -> int:
        return len(self.given["tensor_values"][output["as_tensor"]["name"]]["sizes"])

    def _bind(self, output: Mapping[str, Any], value: fx.Node) -> None:
        ((_, name),) = output.items()
        name = name.get("name", name.get("as_name"))
        if not isinstance(name, str) or name in self.values:
            raise ValueError(f"the name of the result {quoted(name)} is not unique")
        self.values[name] = value

    def _bind_all(self, outputs: Sequence[Mapping[str, Any]], value: fx.Node, first_only: bool) -> None:
        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            outputs = [{"as_tensor": one} for one in outputs[0]["as_tensors"]]
        elif len(outputs) == 1 or first_only:
            self._bind(outputs[0], value)
            return
        for index, output in enumerate(outputs):
            if "as_none" not in output:
                self._bind(output, self.graph.call_function(operator.getitem, (value, index)))

    # in-place operations

    def _share(self, name: str, source: str, outputs: Sequence[Mapping[str, Any]]) -> None:
        if name in operations.VIEWS:
            together = self.sharing.setdefault(source, {source})
            for result in _names_in(outputs):
                together.add(result)
                self.sharing[result] = together

    def _check_written(self, name: str, position: int, target: str) -> None:
        """Refuses an in-place operation whose effect is visible through another tensor: the translated operation returns a new one."""
        others = self.sharing.get(name, {name}) - {name}
        if isinstance(self._lookup(name), HeldTensor):
            self._refuse_training()
        if any(self.last_reader.get(other, -1) > position for other in others):
            refuse(
                self.path,
                f"in-place operation {target} must not change a tensor that is read later through another one; "
                "export with `.run_decompositions({})`, which removes in-place operations",
            )

    def _other_operation(self, target: object) -> ModelError:
        return ModelError(f"{self.path}: operations must be those of a classifier that computes tensors only, got {quoted(target)}")

    def _refuse_training(self) -> NoReturn:
        refuse(self.path, "network must be exported in evaluation mode, got training mode; call `network.eval()` first")


def _names_in(arguments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the tensors among the arguments or results of an operation."""
    names = []
    for argument in arguments:
        ((kind, value),) = argument.items()
        if kind == "as_tensor":
            names.append(value["name"])
        elif kind == "as_tensors":
            names += [one["name"] for one in value]
        elif kind == "as_optional_tensors":
            names += _names_in(value)
        elif kind == "as_optional_tensor":
            names += _names_in([value])
    return names


def _is_transposed(value: Any) -> bool:
    return isinstance(value, HeldTensor) and value.transposed


def _has_module(network: nn.Module, name: str) -> bool:
    return any(name == other for other, _ in network.named_modules())


def _plain_number(value: Any) -> int | float | bool:
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if type(value) not in (int, float, bool) or abs(value) >= 1 << 63:
        raise ValueError(f"number {quoted(value)}")
    return value
