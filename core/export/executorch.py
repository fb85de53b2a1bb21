"""Exported networks in ExecuTorch, whose XNNPACK backend computes quantized layers with int8 on ARM and x86 processors.

XNNPACK recognizes quantize and dequantize operations around a layer, see `core.export.decomposed`.

The package is not one of this program's requirements; only this file imports it.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime
from torch import Tensor, fx, nn

from core.errors import ModelError, first_line
from core.export.decomposed import HIGHEST, INTEGERS, LOWEST, Folded, decompose
from core.export.standard_onnx import IntegerFolded
from core.export.verify import Scorer
from core.files import atomic_write
from core.models.programs.export import trace
from core.models.registry import ModelSpec
from core.quantization.integer.weights import by_channel

SPEC = "spec"  # a method of the file that returns the ModelSpec as JSON
_SMALLEST_SCALE = 1e-6
_UINT8 = 0  # number of torch.uint8 in ExecuTorch


def save_executorch(network: nn.Module, spec: ModelSpec, path: Path, preprocessing: bool = False) -> None:
    """Writes a network in evaluation mode as a program for single images: one made by `standard_network`, or a full-precision one.

    Input: float32 `(1, C, H, W)`, normalized, or with preprocessing, uint8 that the program normalizes; output `(1, classes)`. `network` is
    modified. Raises ModelError if it cannot be translated.
    """
    program = lowered(network, spec, preprocessing).to_executorch()
    with atomic_write(path) as partial:
        partial.write_bytes(program.buffer)


def lowered(network: nn.Module, spec: ModelSpec, preprocessing: bool = False) -> EdgeProgramManager:
    """The program that `save_executorch` writes, with its parts that XNNPACK computes."""
    decompose(network, Folded, _FoldedAtEnd)
    # XNNPACK orders memory itself
    exported = trace(network.to(memory_format=torch.contiguous_format), spec, any_batch=False, preprocessing=preprocessing)
    _rewrite(exported.graph_module)
    try:
        constants = {SPEC: json.dumps(asdict(spec))}
        return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()], constant_methods=constants)
    except Exception as error:  # ExecuTorch raises many kinds
        raise ModelError(f"{spec.name} must have only operations that ExecuTorch can translate ({first_line(error)})") from error


def _rewrite(module: fx.GraphModule) -> None:
    """What XNNPACK's patterns need: each operation has a dequantize of its own, and means keep their dimensions."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.mean.dim and sorted(axis % 4 for axis in node.args[1]) == [2, 3] and len(node.args) == 2:
            with module.graph.inserting_before(node):
                kept = module.graph.call_function(node.target, (*node.args, True))
                flat = module.graph.call_function(torch.ops.aten.view.default, (kept, list(node.meta["val"].shape)))
            kept.meta, flat.meta = {"val": node.meta["val"][..., None, None]}, dict(node.meta)
            node.replace_all_uses_with(flat)
            module.graph.erase_node(node)
        if node.target is INTEGERS.dequantize_per_tensor.default:
            for user in list(node.users)[1:]:
                with module.graph.inserting_before(user):
                    user.replace_input_with(node, module.graph.node_copy(node))
    module.recompile()


def open_executorch(path: Path, threads: int) -> Scorer:
    """A .pte file in ExecuTorch, which has one pool of threads for the process: that of the file that was opened last."""
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda images: torch.cat([method.execute([image.contiguous()])[0].clone() for image in images.split(1)])


def stored_spec(path: Path) -> ModelSpec:
    """The description of the network in a file of `save_executorch`."""
    (text,) = Runtime.get().load_program(path).load_method(SPEC).execute([])
    return ModelSpec(**json.loads(text))


def takes_pixels(path: Path) -> bool:
    """Whether a file of `save_executorch` takes uint8 images."""
    method = Runtime.get().load_program(path).load_method("forward")
    return bool(method.metadata.input_tensor_meta(0).dtype() == _UINT8)


class _FoldedAtEnd(Folded):
    """An IntegerFolded whose output stays in floats. XNNPACK computes it with int8 if the range of its input is found while it runs."""

    def __init__(self, source: IntegerFolded) -> None:
        super().__init__(source)
        self.is_linear = source.convolution is None

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_linear:
            return self.applied(x, self.weight.float() * by_channel(self.weight_scale, self.weight), self.bias)
        scale, zero_point = INTEGERS.choose_qparams.tensor(x, LOWEST, HIGHEST, _SMALLEST_SCALE, torch.int8)
        levels = (scale, zero_point, LOWEST, HIGHEST, torch.int8)
        return super().forward(INTEGERS.dequantize_per_tensor.tensor(INTEGERS.quantize_per_tensor.tensor(x, *levels), *levels))
