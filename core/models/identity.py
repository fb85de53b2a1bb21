"""Which network a network is, whatever its name and file format."""

import hashlib

import torch
from torch import nn


def weights_hash(network: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of the state dict; the same for every file format."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
