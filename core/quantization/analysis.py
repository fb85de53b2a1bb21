"""The effect of quantization on each layer: the error of its output, and the distribution of its values on the quantization grid.

Everything is computed in one pass over some images, layer by layer as the networks run, and is small enough to store with a run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.models.full_precision import FullPrecisionModel
from core.models.hooks import hooked
from core.quantization.layers import ActivationQuantizer
from core.quantization.placement import QuantizedNetwork
from core.quantization.quantizer import Quantizer

ANALYZED_IMAGES = 64
BINS_ON_GRID = 64  # of a histogram, over the whole grid, whatever its number of levels
BINS_BEYOND = 8  # at each end; the last one also counts values further out
_PIXELS = 64 * 32 * 32  # of the images that run at once: the outputs of all layers are kept for that many


def sqnr(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum y^2 / sum (y' - y)^2), given both sums; y exact, y' quantized.

    At 20 dB the error is a tenth of the signal. None if either sum is zero or not finite.
    """
    return round(10 * math.log10(signal / noise), 3) if 0 < signal < math.inf and 0 < noise < math.inf else None


@torch.no_grad()
def analyze(model: FullPrecisionModel, quantized: QuantizedNetwork, images: Tensor) -> dict[str, Any]:
    """Figures of every quantized layer, in the order of a forward pass, as JSON values; both networks stay unchanged.

    images: uint8 `(N, C, H, W)`, of which the first ANALYZED_IMAGES are used. Returns {"images", "weight_size" (bits), "layers": [...]},
    where a layer has

    - "name", "bits" (of the weights), "weights" (their number)
    - "sqnr": of its output compared with the same layer of the full-precision network, including the errors of all earlier layers
    - "weight_sqnr": of its output with rounded weights compared with unrounded ones, both with the same quantized input
    - "weight": its grid and the distribution of the weights on it (see `_grid`)
    - "input": the same for the activation that it reads, with "bits" and "sqnr" of the quantized activation compared with the float one;
      None if the layer reads the image, which is not quantized
    """
    images = images[:ANALYZED_IMAGES]
    batch_size = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
    layers = {name: _LayerErrors(layer) for name, layer in zip(quantized.names, quantized.layers)}
    inputs = {quantizer: _InputErrors(quantizer.quantizer) for quantizer in quantized.inputs.values()}
    for pixels in images.split(batch_size):
        batch = model.normalize(pixels).contiguous(memory_format=torch.channels_last)
        with _outputs({name: _full_precision_layer(model.network, name) for name in layers}) as expected:
            model.network(batch)
        with _compared(layers, inputs, expected):
            quantized.network(batch)
    figures = []
    for name, errors in layers.items():
        read = quantized.inputs.get(name)
        figures.append({"name": name, **errors.figures(), "input": None if read is None else inputs[read].figures()})
    return {"images": len(images), "weight_size": quantized.weight_size, "layers": figures}


def weight_steps(quantized: QuantizedNetwork) -> list[Tensor]:
    """The number of steps from zero that each weight is rounded to, int16 on the CPU, for each layer in order. Of the ranges as they are:
    a network whose ranges follow its weights must have run since these changed.
    """
    found = []
    for layer in quantized.layers:
        quantizer = layer.weight_quantizer
        levels = _positions(quantizer, layer.weight).round().clamp(quantizer.lowest, quantizer.highest)
        zero_point = quantizer.zero_point.view(-1, *[1] * (levels.ndim - 1))
        found.append((levels - zero_point).short().cpu())
    return found


def beside_calibrated(
    layers: Sequence[Mapping[str, Any]], steps: Sequence[Tensor], calibrated: Sequence[Mapping[str, Any]], before: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """The layers of a trained network, each with "calibrated": "weight" and "input" of the same layer before the training, and "moved": the
    percentage of its weights that are rounded to another number of steps than before.

    layers, calibrated: "layers" of `analyze`, of the same images. steps, before: of `weight_steps`.
    """
    return [
        {
            **layer,
            "calibrated": {"weight": earlier["weight"], "input": earlier["input"]},
            "moved": round(100 * float((own != at_first).float().mean()), 3),
        }
        for layer, own, earlier, at_first in zip(layers, steps, calibrated, before)
    ]


def _full_precision_layer(network: nn.Module, name: str) -> nn.Module:
    """The layer of the full-precision network that became the quantized layer `name`."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return network.get_submodule(name.rpartition(".")[0])  # its padding is a separate module now, see placement.py


@contextmanager
def _outputs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the outputs of these modules within the block, copied, because later operations may work in place."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    with hooked(layers, lambda name, _inputs, output: outputs[name].append(output.clone())):
        yield outputs


@contextmanager
def _compared(
    layers: Mapping[str, "_LayerErrors"], inputs: Mapping[ActivationQuantizer, "_InputErrors"], expected: Mapping[str, list[Tensor]]
) -> Iterator[None]:
    """Within the block, a forward pass of the quantized network adds to `layers` and `inputs`. expected: as `_outputs` collects them."""

    def add(name: str, args: Any, output: Tensor) -> None:
        # a layer that runs several times is compared with the full-precision layer's outputs in order
        layers[name].add(args[0], expected[name].pop(0) if expected[name] else None, output)

    modules = {name: errors.layer for name, errors in layers.items()}
    quantizers = {quantizer: quantizer for quantizer in inputs}
    with hooked(modules, add), hooked(quantizers, lambda quantizer, args, output: inputs[quantizer].add(args[0], output)):
        yield


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


class _LayerErrors:
    """Errors of the output of one quantized layer, over batches."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.error, self.weight_error = _Error(), _Error()

    def add(self, x: Tensor, expected: Tensor | None, output: Tensor) -> None:
        """x, output: of the quantized layer. expected: output of the full-precision layer."""
        if expected is not None:
            self.error.add(expected, output)
        self.weight_error.add(self._unrounded(x), output)

    def _unrounded(self, x: Tensor) -> Tensor:
        """The output for `x` with the float weights."""
        layer = self.layer
        x = layer.input_quantizer.forward(x)  # not by calling the module, whose hook would count the input twice
        if isinstance(layer, nn.Conv2d):
            return layer._conv_forward(x, layer.weight, layer.bias)
        return nn.functional.linear(x, layer.weight, layer.bias)

    def figures(self) -> dict[str, Any]:
        quantizer, weight = self.layer.weight_quantizer, self.layer.weight
        return {
            "bits": quantizer.bits,
            "weights": weight.numel(),
            "sqnr": self.error.sqnr,
            "weight_sqnr": self.weight_error.sqnr,
            "weight": _grid(quantizer, _histogram(quantizer, weight)),
        }


class _InputErrors:
    """Errors and histogram of one quantized activation, over batches."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer, self.error = quantizer, _Error()
        self.counts = torch.zeros(BINS_ON_GRID + 2 * BINS_BEYOND, dtype=torch.long)

    def add(self, x: Tensor, output: Tensor) -> None:
        self.error.add(x, output)
        self.counts += _histogram(self.quantizer, x)

    def figures(self) -> dict[str, Any]:
        return {"bits": self.quantizer.bits, "sqnr": self.error.sqnr, **_grid(self.quantizer, self.counts)}


def _positions(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Positions of values on the grid before rounding, theta / scale + zero point; levels are integers."""
    scale, zero_point = quantizer.scale.detach(), quantizer.zero_point
    if quantizer.channels is not None:
        scale, zero_point = (value.view(-1, *[1] * (values.ndim - 1)) for value in (scale, zero_point))
    return values.detach() / scale + zero_point


def _histogram(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Number of values in each bin of grid positions, int64 `(bins,)` on the CPU.

    Each level covers one unit, half below and half above it. The grid has BINS_ON_GRID bins, with BINS_BEYOND more at each end.
    """
    start, width = _bins(quantizer)
    bins = BINS_ON_GRID + 2 * BINS_BEYOND
    index = ((_positions(quantizer, values) - start) / width).floor_().clamp_(0, bins - 1)
    return torch.bincount(index.flatten().long(), minlength=bins).cpu()


def _bins(quantizer: Quantizer) -> tuple[float, float]:
    """Start of the first bin and width of each bin, in steps of the grid."""
    width = (quantizer.highest - quantizer.lowest + 1) / BINS_ON_GRID
    return quantizer.lowest - 0.5 - BINS_BEYOND * width, width


def _grid(quantizer: Quantizer, counts: Tensor) -> dict[str, Any]:
    """The grid and the histogram on it.

    "lowest", "highest": the first and the last level. "scale", "zero_point": [smallest, largest] of all channels; of a single channel,
    the same value twice. "histogram": {"start", "width", "counts"}, in steps. "clipped": percentage of values more than half a step
    beyond the first or last level.
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
    """[smallest, largest], converted by `plain`."""
    return [plain(float(values.min())), plain(float(values.max()))]
