"""What quantization does to each layer: how far its output lies from full precision, and where its values lie on their grid.

Everything is computed in one pass over some images, layer by layer as the networks run, and is small enough to be kept with a run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel
from core.quantization.placement import QuantizedNetwork
from core.quantization.quantizer import Quantizer

ANALYSED_IMAGES = 64
BINS_ON_GRID = 64  # of a histogram, over the whole grid whatever its number of levels
BINS_BEYOND = 8  # at each end; what lies even further out counts in the last
_PIXELS = 64 * 32 * 32  # of the images that run at once: the outputs of all layers are kept for so many


def sqnr(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum y^2 / sum (y' - y)^2), from both sums; y exact, y' quantized.

    20 dB: the error is a tenth of the signal in size. None where either sum is zero, as there is no error or nothing to err about.
    """
    return round(10 * math.log10(signal / noise), 3) if signal > 0 and noise > 0 else None


@torch.no_grad()
def analyse(model: FullPrecisionModel, quantized: QuantizedNetwork, images: Tensor) -> dict[str, Any]:
    """Figures of every quantized layer in the order of a forward pass, fit for JSON; both networks are left as they are.

    images: uint8 `(N, 3, H, W)`, of which the first ANALYSED_IMAGES are looked at; those of the calibration, so that nothing is learned of
    the evaluation images. Returns {"images", "weight_size" (bits), "layers": [...]}, a layer being

    - "name", "bits" (of the weights), "weights" (how many)
    - "sqnr": of its output against that of the same layer in the full-precision network, so with all that the layers before have lost
    - "weight_sqnr": of its output with rounded weights against that with its own unrounded ones, both from the same quantized input
    - "weight": its grid and where the weights lie on it (see `_grid`)
    - "input": the same of the activation that it reads, with "bits" and "sqnr" of that activation against itself before it was rounded;
      None where the layer reads the image, which is not quantized
    """
    images = images[:ANALYSED_IMAGES]
    batch_size = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
    layers = dict(zip(quantized.names, quantized.layers))
    errors = {name: _Error() for name in layers}
    weight_errors = {name: _Error() for name in layers}
    inputs = {quantizer: _Input(quantizer.quantizer) for quantizer in quantized.inputs.values()}
    for pixels in images.split(batch_size):
        batch = model.normalise(pixels).contiguous(memory_format=torch.channels_last)
        exact = {name: _module(model.network, name) for name in layers}
        with _outputs(exact) as expected:
            model.network(batch)

        def compare(name: str, layer: nn.Module, args: Any, output: Tensor, expected: dict[str, list[Tensor]] = expected) -> None:
            if expected[name]:  # a layer that is called again comes by its next output
                errors[name].add(expected[name].pop(0), output)
            weight_errors[name].add(_unrounded(layer, args[0]), output)

        handles = [layer.register_forward_hook(partial(compare, name)) for name, layer in layers.items()]
        handles += [
            quantizer.register_forward_hook(lambda module, args, output: inputs[module].add(args[0], output)) for quantizer in inputs
        ]
        try:
            quantized.network(batch)
        finally:
            for handle in handles:
                handle.remove()
    figures = []
    for name, layer in layers.items():
        read = quantized.inputs.get(name)
        figures.append(
            {
                "name": name,
                "bits": layer.weight_quantizer.bits,
                "weights": layer.weight.numel(),
                "sqnr": errors[name].sqnr,
                "weight_sqnr": weight_errors[name].sqnr,
                "weight": _grid(layer.weight_quantizer, _histogram(layer.weight_quantizer, layer.weight)),
                "input": None if read is None else inputs[read].figures(),
            }
        )
    return {"images": len(images), "weight_size": quantized.weight_size, "layers": figures}


def _module(network: nn.Module, name: str) -> nn.Module:
    """The layer of the full-precision network that became the quantized one of this name."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return network.get_submodule(name.rpartition(".")[0])  # behind a padding that was taken out of it, see placement.py


@contextmanager
def _outputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Collects what each of these modules puts out while the block runs, copied, as whatever follows may work in place."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = []
    for name, layer in layers.items():

        def keep(_module: nn.Module, _args: Any, output: Tensor, name: str = name) -> None:
            outputs[name].append(output.clone())

        handles.append(layer.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _unrounded(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of a quantized layer for `x` with its weights as they are before they are rounded."""
    x = layer.input_quantizer.forward(x)  # type: ignore[operator, union-attr]  # not through its hook, which counts what it sees
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, layer.weight, layer.bias)
    return nn.functional.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]


class _Error:
    """The two sums of `sqnr`, over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, exact: Tensor, quantized: Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.noise += float((quantized - exact).double().square().sum())

    @property
    def sqnr(self) -> float | None:
        return sqnr(self.signal, self.noise)


class _Input:
    """An activation before and after its quantizer, over batches."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer, self.error = quantizer, _Error()
        self.counts = torch.zeros(BINS_ON_GRID + 2 * BINS_BEYOND, dtype=torch.long)

    def add(self, x: Tensor, output: Tensor) -> None:
        self.error.add(x, output)
        self.counts += _histogram(self.quantizer, x)

    def figures(self) -> dict[str, Any]:
        return {"bits": self.quantizer.bits, "sqnr": self.error.sqnr, **_grid(self.quantizer, self.counts)}


def _positions(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Where values lie on the grid before they are rounded: theta / scale + zero point, the levels being whole numbers."""
    scale, zero_point = quantizer.scale.detach(), quantizer.zero_point
    if quantizer.channels is not None:
        scale, zero_point = (value.view(-1, *[1] * (values.ndim - 1)) for value in (scale, zero_point))
    return values.detach() / scale + zero_point


def _histogram(quantizer: Quantizer, values: Tensor) -> Tensor:
    """How many values lie in each bin of the positions on the grid, int64 `(bins,)` on the CPU.

    Each level takes one unit, half below and half above it, and the grid has BINS_ON_GRID bins; BINS_BEYOND more follow at each end.
    """
    start, width = _bins(quantizer)
    bins = BINS_ON_GRID + 2 * BINS_BEYOND
    index = ((_positions(quantizer, values) - start) / width).floor_().clamp_(0, bins - 1)
    return torch.bincount(index.flatten().long(), minlength=bins).cpu()


def _bins(quantizer: Quantizer) -> tuple[float, float]:
    """Where the first bin begins and how wide each is, in steps of the grid."""
    width = (quantizer.highest - quantizer.lowest + 1) / BINS_ON_GRID
    return quantizer.lowest - 0.5 - BINS_BEYOND * width, width


def _grid(quantizer: Quantizer, counts: Tensor) -> dict[str, Any]:
    """The grid and the histogram on it.

    "lowest", "highest": the levels' ends. "scale", "zero_point": [smallest, largest] of all channels, twice the same where there is only
    one. "histogram": {"start", "width", "counts"}, in steps. "clipped": percentage of values beyond the last level's half step.
    """
    start, width = _bins(quantizer)
    total = max(1, int(counts.sum()))
    beyond = int(counts[:BINS_BEYOND].sum()) + int(counts[-BINS_BEYOND:].sum())
    return {
        "lowest": quantizer.lowest,
        "highest": quantizer.highest,
        "scale": _ends(quantizer.scale.detach(), lambda value: float(f"{value:.6g}")),
        "zero_point": _ends(quantizer.zero_point, int),
        "clipped": round(100 * beyond / total, 3),
        "histogram": {"start": start, "width": width, "counts": counts.tolist()},
    }


def _ends(values: Tensor, plain: Any) -> Sequence[Any]:
    return [plain(float(values.min())), plain(float(values.max()))]
