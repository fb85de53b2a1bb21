"""A quantized network in a file: float weights with scales and zero points, and the config from which it is built again."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.config import TrainingConfig, upgrade_training
from core.errors import ModelError, first_line
from core.files import atomic_write
from core.layout import NETWORK_FILE
from core.models.full_precision import FullPrecisionModel
from core.quantization.placement import QuantizedNetwork, quantize_network


def save_quantized(quantized: QuantizedNetwork, config: TrainingConfig, folder: Path) -> Path:
    """Writes NETWORK_FILE into `folder` and returns its path."""
    path = folder / NETWORK_FILE
    # copies, because safetensors refuses tensors that share memory, as those of a layer with two names do
    state = {name: value.detach().cpu().contiguous().clone() for name, value in quantized.network.state_dict().items()}
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={"quantization": json.dumps(config.to_dict())})
    return path


def load_quantized(path: Path, model: FullPrecisionModel) -> QuantizedNetwork:
    """The network written by `save_quantized`, built again from the full-precision one. Raises ModelError if the file does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            config = TrainingConfig.from_dict(upgrade_training(json.loads((file.metadata() or {})["quantization"])))
            state = {key: file.get_tensor(key) for key in list(file.keys())}
        quantized = quantize_network(model.network, config, torch.zeros(1, *model.spec.shape, device=model.device))
        expected = quantized.network.state_dict()
        for key in sorted({*expected, *state}):
            if key not in state or key not in expected or state[key].shape != expected[key].shape:
                earlier = "; an earlier version placed other quantizers, quantize the network again" if "quantizer" in key else ""
                raise KeyError(f"{key} is missing, unexpected or has another shape{earlier}")
        quantized.network.to(model.device).load_state_dict(state)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise ModelError(f"{path} must be a quantized {model.spec.name} written by `quantize`, and cannot be read ({reason})") from error
    return quantized
