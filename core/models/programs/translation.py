"""A `torch.export` program (.pt2) as a network of layers.

A program has no layers: it is a list of calls of `torch.ops.aten` with parameters among their arguments. Here each convolution, linear
layer and BatchNorm becomes a module again, under the name that its parameters had, and what is between them becomes the functions that
core.generation.fusion and core.quantization.placement know, so that both see what they see in the network that was exported.

A program can come from anybody. It is read by core.models.program_archive, never by `torch.export.load`; of its operations only those
listed here are taken, all of which compute tensors from tensors and reach nothing else; of its texts none becomes a piece of code but
names of attributes, which are letters, digits and underscores; and no tensor between its operations may be larger than ELEMENTS.
"""

import itertools
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from core.errors import ModelError, first_line, quoted
from core.files import atomic_write
from core.models.programs.archive import HOW_TO_EXPORT, SPEC_FILE, ProgramArchive, read_archive, refuse
from core.models.registry import ModelSpec

ARCHITECTURE = "program"  # of a ModelSpec whose network is a program: it can be built from its file only
NODES = 20_000  # operations; a DenseNet-201 has 700
ELEMENTS = 1 << 28  # of one tensor for two images: a gigabyte in float32
_SIDE = 224  # of images where a program takes any
_EXAMPLES = 2
# what torch keeps of where an operation comes from: longer than all else in a small file, and with the paths of this machine
_ORIGIN = ("from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")

# operations that become a function of torch under which the rest of the engine knows them, with the same arguments in the same order
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "silu": F.silu, "sigmoid": torch.sigmoid,
    "mul": operator.mul, "cat": torch.cat, "mean": torch.mean, "flatten": torch.flatten, "view": torch.reshape, "reshape": torch.reshape,
    "_unsafe_view": torch.reshape, "permute": torch.permute, "transpose": torch.transpose, "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze, "chunk": torch.chunk, "split": torch.split, "split_with_sizes": torch.split,
    "max_pool2d": torch.max_pool2d, "max_pool2d_with_indices": torch.max_pool2d, "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d, "_adaptive_avg_pool2d": F.adaptive_avg_pool2d,
}  # fmt: skip
# operations that stay what they are: they compute tensors from tensors, and neither write nor draw random numbers
_KEPT = frozenset({
    "abs", "add", "adaptive_max_pool2d", "addmm", "amax", "amin", "argmax", "avg_pool1d", "bmm", "celu", "ceil", "channel_shuffle",
    "clamp", "clamp_max", "clamp_min", "constant_pad_nd", "conv1d", "conv2d", "conv_transpose2d", "convolution", "div", "elu", "eq",
    "erf", "exp", "expand", "expand_as", "flip", "floor", "floor_divide", "gather", "ge", "gelu", "glu", "group_norm", "gt", "hardtanh",
    "index_select", "instance_norm", "layer_norm", "le", "leaky_relu", "linalg_vector_norm", "linear", "log", "log_sigmoid",
    "log_softmax", "_log_softmax", "logical_and", "logical_not", "logical_or", "logsumexp", "lt", "masked_fill", "matmul", "maximum",
    "minimum", "mish", "mm", "mul", "narrow", "native_channel_shuffle", "ne", "neg", "norm", "pad", "pixel_shuffle", "pixel_unshuffle",
    "pow", "prelu", "reciprocal", "reflection_pad2d", "remainder", "repeat", "replication_pad2d", "rms_norm", "roll", "round", "rsqrt",
    "rsub", "scaled_dot_product_attention", "select", "selu", "sign", "slice", "softmax", "_softmax", "softplus", "softsign", "sqrt",
    "square", "std", "sub", "sum", "swapaxes", "t", "tanh", "threshold", "to", "_to_copy", "topk", "unbind", "unflatten",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "var", "var_mean", "where", "zeros_like", "ones_like", "movedim",
    "T", "numpy_T", "batch_norm", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
})  # fmt: skip
# the value of the input, passed on: nothing is trained here by dropout, and `view` becomes `reshape`, which needs no order in memory
_IDENTITIES = frozenset({
    "dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh",
})  # fmt: skip
# what the program checks of itself, for the sizes that it was exported with
_CHECKS = frozenset({"_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"})
_VIEWS = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "expand_as", "slice",
    "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "detach", "alias", "contiguous", "dropout", "to", "unflatten",
    "swapaxes", "movedim", "T", "numpy_T",
})  # fmt: skip
# numbers computed from sizes
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    "_operator.add": operator.add, "_operator.sub": operator.sub, "_operator.mul": operator.mul, "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod, "_operator.neg": operator.neg, "_operator.eq": operator.eq, "_operator.ne": operator.ne,
    "_operator.lt": operator.lt, "_operator.le": operator.le, "_operator.gt": operator.gt, "_operator.ge": operator.ge,
}  # fmt: skip
_OPERATION = re.compile(r"torch\.ops\.aten\.(\w{1,60})\.(\w{1,60})", re.ASCII)
_WORD = re.compile(r"[a-z_]{1,30}")  # a text among arguments, such as how a border is padded
_DTYPES = {4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}


@dataclass(frozen=True)
class Program:
    """A program's network, in evaluation mode with frozen parameters, and height and width of its images; None: any."""

    network: fx.GraphModule
    image_size: tuple[int | None, int | None]


def load_program(path: Path) -> fx.GraphModule:
    """The network in a .pt2 file: float images `(N, 3, H, W)` in the program's own normalised space -> logits `(N, classes)`.

    Its Conv2d, Linear and BatchNorm2d modules have the names that they had in the module that was exported; it is in evaluation mode,
    with frozen parameters, on the CPU. Raises ModelError, naming what it hit on, for a file that is damaged, takes a fixed number
    of images, was exported in training mode, or has an operation that is not allowed.
    """
    return read_program(path).network


def read_program(path: Path) -> Program:
    """As `load_program`, with the size of images that the program takes."""
    archive = read_archive(path)
    try:
        translation = _Translation(archive, path)
        network, sides = translation.result()
        height, width = sides
        _check_sizes(network, (_EXAMPLES, 3, height or _SIDE, width or _SIDE), path)
        network.load_state_dict(translation.state, assign=True)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, RecursionError, OverflowError, SyntaxError) as error:
        refuse(path, f"has a graph that cannot be read ({quoted(first_line(error))})", "what torch.export.save writes")
    return Program(network.eval().requires_grad_(False), sides)


def trace(network: nn.Module, spec: ModelSpec) -> ExportedProgram:
    """A network in evaluation mode as a program for normalised float32 images `(N, 3, size, size)`, any N -> logits.

    Raises ModelError when its way depends on the values of the images, or it does something that torch.export does not know.
    """
    device = next(itertools.chain(network.parameters(), network.buffers())).device
    images = torch.zeros(_EXAMPLES, 3, spec.image_size, spec.image_size, device=device).to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception as error:  # torch.export raises whatever the network's own code raises, and errors of its own of many kinds
        raise ModelError(
            f"{spec.name} cannot be translated by torch.export ({quoted(first_line(error))}): "
            "allowed is a network whose way does not depend on the images, or the format packed"
        ) from error
    program.example_inputs = None
    for node in program.graph.nodes:
        for key in _ORIGIN:
            node.meta.pop(key, None)
    return program


def save_program(network: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Writes a network as a program with its spec; the whole file or none. Raises ModelError as `trace` does."""
    program = trace(network, spec)
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.export.save(program, file, extra_files={SPEC_FILE: json.dumps(asdict(spec))})


@dataclass(frozen=True)
class _Held:
    """A tensor of the module by its name, or its transpose."""

    name: str
    transposed: bool = False


class _Translation:
    """One program on its way to a network."""

    def __init__(self, archive: ProgramArchive, path: Path) -> None:
        self.archive, self.path = archive, path
        module = archive.graph["graph_module"]
        self.given, self.signature = module["graph"], module["signature"]
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}  # name in the program -> node, _Held or None
        self.layers: dict[tuple, str] = {}  # what makes a layer -> its name
        self.modules: dict[str, nn.Module] = {}  # the layers
        self.places: dict[str, str] = {}  # name of a tensor -> the layer that has it
        self.loose: set[str] = set()  # names of tensors that are read outside of layers
        self.state: dict[str, Tensor] = {}  # of the network
        self.parameters: dict[str, nn.Parameter] = {}  # by their names in the program: one that two layers have stays one
        self.sharing: dict[str, set[str]] = {}  # names in the program that look at the same memory
        self.last_reader = {name: i for i, node in enumerate(self.given["nodes"]) for name in _names_in([x["arg"] for x in node["inputs"]])}
        self.last_reader |= dict.fromkeys(_names_in(self.given["outputs"]), len(self.given["nodes"]))

    def result(self) -> tuple[fx.GraphModule, tuple[int | None, int | None]]:
        sides = self._inputs()
        if len(self.given["nodes"]) > NODES:
            refuse(self.path, f"has {len(self.given['nodes']):,} operations", f"at most {NODES:,}")
        for position, node in enumerate(self.given["nodes"]):
            self._translate(node, position)
        outputs = self.given["outputs"]
        kinds = [next(iter(one)) for one in self.signature["output_specs"]]
        if kinds != ["user_output"] or len(outputs) != 1 or "as_tensor" not in outputs[0]:
            refuse(
                self.path,
                f"gives {len(outputs)} results or changes its own tensors ({quoted(', '.join(kinds[:3]))})",
                "one tensor of logits, from a network in evaluation mode",
            )
        self.graph.output(self._tensor(outputs[0]["as_tensor"]["name"]))
        return self._assembled(), sides

    # the two ends

    def _inputs(self) -> tuple[int | None, int | None]:
        images = None
        for spec in self.signature["input_specs"]:
            ((kind, what),) = spec.items()
            if kind == "user_input":
                if images is not None or "as_tensor" not in what["arg"]:
                    refuse(self.path, "takes more than one tensor", "images only")
                images = what["arg"]["as_tensor"]["name"]
                continue
            keys = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            if kind not in keys:
                refuse(self.path, f"takes {quoted(kind)}", "parameters, buffers, constants and images")
            name = what[keys[kind]]
            if name not in self.archive.tensors:
                refuse(self.path, f"has no tensor {quoted(name)}", "all that its graph names")
            self.values[what["arg"]["name"]] = _Held(name)
        if images is None:
            refuse(self.path, "takes no images", "images only")
        self.values[images] = self.graph.placeholder("images")
        meta = self.given["tensor_values"][images]
        sizes = [one.get("as_int") for one in meta["sizes"]]
        if meta["dtype"] != 7 or len(sizes) != 4 or sizes[1] not in (3, None):
            refuse(self.path, f"takes a tensor of {quoted(sizes)}", "float32 images of N x 3 x height x width")
        if sizes[0] is not None:
            refuse(self.path, f"takes {quoted(sizes[0])} images and no other number", f"any number, as by {HOW_TO_EXPORT}")
        return sizes[2], sizes[3]

    def _assembled(self) -> fx.GraphModule:
        """Layers and loose tensors, without memory, below one module, in the order that they had in the module that was exported."""
        network = fx.GraphModule(nn.Module(), fx.Graph(), "Program")
        added: set[str] = set()
        for name, tensor in self.archive.tensors.items():
            parent, _, leaf = name.rpartition(".")
            layer = self.places.get(name, parent if parent in self.modules else None)
            if layer is not None and layer not in added:
                added.add(layer)
                if not network.add_submodule(layer, self.modules[layer]):
                    refuse(self.path, f"has a layer {quoted(layer)}", "names that a module can have")
            if name in self.loose:
                if parent and not _has_module(network, parent) and not network.add_submodule(parent, nn.Module()):
                    refuse(self.path, f"has a tensor {quoted(name)}", "names that a module can have")
                holder = network.get_submodule(parent)
                if leaf in holder._parameters or leaf in holder._buffers:
                    continue  # a layer has it, too
                if name in self.archive.parameters:
                    self.state[name] = self._parameter(name)
                    holder.register_parameter(leaf, nn.Parameter(tensor.to("meta"), requires_grad=False))
                else:
                    self.state[name] = tensor
                    holder.register_buffer(leaf, tensor.to("meta"))
        network.graph = self.graph
        network.graph.eliminate_dead_code()
        network.recompile()
        return network

    # one operation

    def _translate(self, node: Mapping[str, Any], position: int) -> None:
        target, outputs = node["target"], node["outputs"]
        arguments = [(one["name"], one["arg"], one.get("kind")) for one in node["inputs"]]
        if target in _NUMBERS:
            self._bind(outputs[0], self.graph.call_function(_NUMBERS[target], tuple(self._value(arg) for _, arg, _ in arguments)))
            return
        found = _OPERATION.fullmatch(target) if isinstance(target, str) else None
        if found is None:
            raise self._other_operation(target)
        name, overload = found.groups()
        if name in _CHECKS:
            return
        written = None
        if name.endswith("_") and not name.startswith("__"):
            name, written = name[:-1], arguments[0][1]["as_tensor"]["name"]
        if name in _IDENTITIES:
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
        if isinstance(special, _Held):
            self.values[outputs[0]["as_tensor"]["name"]] = special
            return
        self._bind_all(outputs, special, first_only=name in ("max_pool2d_with_indices", "_native_batch_norm_legit_no_training"))
        if written is None:
            self._share(name, next(iter(_names_in([arg for _, arg, _ in arguments])), ""), outputs)
        else:
            self._check_written(written, position, target)
            self.values[written] = special

    def _special(self, name: str, overload: str, a: dict[str, Any], outputs: Sequence[Mapping[str, Any]]) -> Any:
        """The layer or function for an operation that needs one of its own; None for the others."""
        if name in ("conv2d", "convolution") and isinstance(a["weight"], _Held):
            return self._convolution(a, overload)
        if name == "linear" and isinstance(a["weight"], _Held):
            return self._linear(a["input"], a["weight"].name, a.get("bias"))
        if name == "addmm" and _is_transposed(a["mat2"]) and a.get("beta", 1) == 1 and a.get("alpha", 1) == 1:
            return self._linear(a["mat1"], a["mat2"].name, a["self"])
        if name == "mm" and _is_transposed(a["mat2"]):
            return self._linear(a["self"], a["mat2"].name, None)
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            return self._batch_norm(a, self._rank(outputs[0]))
        if name in ("t", "permute", "transpose", "numpy_T", "T") and isinstance(a["self"], _Held) and self._is_transpose(name, a):
            return _Held(a["self"].name, not a["self"].transposed)
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

    def _plain(self, target: str, name: str, overload: str, arguments: Sequence[tuple[str, Any, Any]]) -> fx.Node:
        """The call as it stands in the program."""
        if name not in _FUNCTIONS and name not in _KEPT:
            raise self._other_operation(target)
        function = _FUNCTIONS.get(name) or getattr(getattr(torch.ops.aten, name), overload)
        if name not in _FUNCTIONS and (not isinstance(function, OpOverload) or function._schema.is_mutable):
            raise self._other_operation(target)
        keywords = {key: self._value(arg) for key, arg, kind in arguments if kind == 2}
        if "out" in keywords or "generator" in keywords:
            raise self._other_operation(target)
        return self.graph.call_function(function, tuple(self._value(arg) for _, arg, kind in arguments if kind != 2), keywords)

    # layers

    def _convolution(self, a: dict[str, Any], overload: str) -> fx.Node | None:
        weight, bias = a["weight"].name, a.get("bias")
        tensor = self._float(weight)
        if a.get("transposed") or tensor.ndim != 4 or not (bias is None or isinstance(bias, _Held)):
            return None
        padding = a.get("padding", [0, 0])
        groups = a.get("groups", 1)
        geometry = [tuple(_pair(a.get(key, 1))) for key in ("stride", "dilation")]
        padding = padding if overload == "padding" else tuple(_pair(padding))

        def build() -> nn.Module:
            channels = tensor.shape[1] * groups, tensor.shape[0]
            stride, dilation = geometry
            kernel = tuple(tensor.shape[2:])
            return nn.Conv2d(*channels, kernel, stride, padding, dilation, groups, bias is not None, device="meta")  # type: ignore[arg-type]

        names = {"weight": weight, "bias": None if bias is None else bias.name}
        return self._layer(("conv2d", *geometry, padding, groups), names, build, a["input"])

    def _linear(self, images: Any, weight: str, bias: Any) -> fx.Node | None:
        tensor = self._float(weight)
        if tensor.ndim != 2 or not (bias is None or isinstance(bias, _Held)):
            return None
        names = {"weight": weight, "bias": None if bias is None else bias.name}
        return self._layer(("linear",), names, lambda: nn.Linear(tensor.shape[1], tensor.shape[0], bias is not None, device="meta"), images)

    def _batch_norm(self, a: dict[str, Any], rank: int) -> fx.Node | None:
        if a.get("running_mean") is None or a.get("running_var") is None:
            return None  # nothing of it is learned from data; the function does it
        if a.get("training"):
            self._refuse_training()
        names = {key: None if a.get(key) is None else a[key].name for key in ("weight", "bias", "running_mean", "running_var")}
        if (names["weight"] is None) != (names["bias"] is None) or rank not in (2, 3, 4):
            return None
        kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
        channels = len(self._float(names["running_mean"] or ""))

        def build() -> nn.Module:
            return kind(channels, a["eps"], a.get("momentum", 0.1), names["weight"] is not None, device="meta")

        return self._layer(("batch_norm", kind, a["eps"]), names, build, a["input"])

    def _layer(self, kind: tuple, names: Mapping[str, str | None], build: Callable[[], nn.Module], images: Any) -> fx.Node:
        """A call of the layer that has these tensors; the same tensors in the same kind of layer are one layer."""
        key = (*kind, *names.values())
        if key not in self.layers:
            layer = build()
            for attribute, name in names.items():
                if name is not None and self._float(name).shape != getattr(layer, attribute).shape:
                    shapes = tuple(self._float(name).shape), tuple(getattr(layer, attribute).shape)
                    refuse(self.path, f"has {name} of {quoted(shapes[0])}", f"{shapes[1]}")
            first = next(name for name in names.values() if name is not None)
            place = first.rpartition(".")[0]
            if place in self.modules or any(name not in (None, f"{place}.{attribute}") for attribute, name in names.items()) or not place:
                place = f"layer_{len(self.layers)}"  # the module had these tensors under other names
            self.layers[key] = place
            self.modules[place] = layer
            for attribute, name in names.items():
                if name is not None:
                    self.places.setdefault(name, place)
                    self.state[f"{place}.{attribute}"] = self._parameter(name) if attribute in layer._parameters else self._float(name)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                count = f"{place}.num_batches_tracked"
                self.state[count] = self.archive.tensors.get(count, torch.tensor(0))
        return self.graph.call_module(self.layers[key], (self._node(images),))

    # values

    def _value(self, argument: Mapping[str, Any], keep: bool = False) -> Any:
        """An argument of the program. keep: a tensor of the module stays a _Held, so that it can become part of a layer."""
        ((kind, value),) = argument.items()
        if kind == "as_none":
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
            return _DTYPES[value]
        if kind == "as_memory_format":
            return _FORMATS[value]
        if kind == "as_string" and _WORD.fullmatch(value):
            return value
        raise ValueError(f"an argument {quoted(kind)}: {quoted(value)}")

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
        """A value as the graph can take it: a tensor of the module becomes a node that reads it."""
        if not isinstance(value, _Held):
            return value
        self.loose.add(value.name)
        node = self.graph.get_attr(value.name)
        return self.graph.call_function(torch.transpose, (node, 0, 1)) if value.transposed else node

    def _float(self, name: str) -> Tensor:
        tensor = self.archive.tensors[name]
        if tensor.dtype != torch.float32:
            refuse(self.path, f"has {name} as {tensor.dtype}", "float32")
        return tensor

    def _parameter(self, name: str) -> nn.Parameter:
        if name not in self.parameters:
            self.parameters[name] = nn.Parameter(self._float(name), requires_grad=False)
        return self.parameters[name]

    def _is_transpose(self, name: str, a: dict[str, Any]) -> bool:
        if self.archive.tensors[a["self"].name].ndim != 2:
            return False
        if name == "permute":
            return list(a["dims"]) in ([1, 0], [-1, -2], [1, -2], [-1, 0])
        return name != "transpose" or a["dim0"] % 2 != a["dim1"] % 2

    def _rank(self, output: Mapping[str, Any]) -> int:
        return len(self.given["tensor_values"][output["as_tensor"]["name"]]["sizes"])

    def _bind(self, output: Mapping[str, Any], value: fx.Node) -> None:
        ((_, name),) = output.items()
        name = name.get("name", name.get("as_name"))
        if not isinstance(name, str) or name in self.values:
            raise ValueError(f"the result {quoted(name)} has no name of its own")
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

    # operations in place

    def _share(self, name: str, source: str, outputs: Sequence[Mapping[str, Any]]) -> None:
        if name in _VIEWS:
            together = self.sharing.setdefault(source, {source})
            for result in _names_in(outputs):
                together.add(result)
                self.sharing[result] = together

    def _check_written(self, name: str, position: int, target: str) -> None:
        """Refuses an operation in place that something else would see: here its result is a tensor of its own."""
        others = self.sharing.get(name, {name}) - {name}
        if isinstance(self._lookup(name), _Held):
            self._refuse_training()
        if any(self.last_reader.get(other, -1) > position for other in others):
            refuse(
                self.path,
                f"changes a tensor in place by {target} that is read through another one later",
                "a program without, as `.run_decompositions({})` of it gives",
            )

    def _other_operation(self, target: object) -> ModelError:
        return ModelError(f"{self.path} has the operation {quoted(target)}: allowed are those of classifiers that compute tensors only")

    def _refuse_training(self) -> NoReturn:
        refuse(self.path, "was exported in training mode", "a network in evaluation mode, as `network.eval()` gives")


class _Measuring(fx.Interpreter):
    """Runs a graph with tensors that have a size and no numbers, and stops at one that is too large."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() > ELEMENTS:
                raise ValueError(f"a tensor of {tensor.numel():,} numbers at {n.name}")
        return result


def _check_sizes(network: fx.GraphModule, shape: tuple[int, ...], path: Path) -> None:
    """Raises ModelError unless the network gives logits for images of this shape, with no tensor between that is too large.

    network: on the device `meta`; it is set to evaluation mode.
    """
    network.eval()
    try:
        with torch.no_grad():
            logits = _Measuring(network).run(torch.empty(shape, device="meta"))
    except Exception as error:  # torch raises whatever it hits on in what the file asks for
        refuse(path, f"cannot be run on {shape[0]} images of {shape[2]} x {shape[3]} pixels ({quoted(first_line(error))})", "a classifier")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != shape[0]:
        refuse(path, f"gives {quoted(tuple(getattr(logits, 'shape', ())))} for {shape[0]} images", "logits, one row an image")


def _names_in(arguments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the tensors among arguments or results."""
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
    return isinstance(value, _Held) and value.transposed


def _has_module(network: nn.Module, name: str) -> bool:
    return any(name == other for other, _ in network.named_modules())


def _pair(value: Any) -> Sequence[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values


def _plain_number(value: Any) -> int | float | bool:
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if type(value) not in (int, float, bool) or abs(value) >= 1 << 63:
        raise ValueError(f"a number {quoted(value)}")
    return value
