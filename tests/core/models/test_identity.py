"""The identity of a network is that of its weights."""

import hashlib

import torch
from safetensors.torch import load_file

from core.models.identity import weights_hash
from core.models.registry import MODELS


def test_weights_hash_depends_on_every_bit(small, embedded):
    """Hash of the small network by hand. Changing a value changes the hash, changing the memory format does not."""
    digest = hashlib.sha256()
    for name in sorted(small.network.state_dict()):
        array = small.network.state_dict()[name].numpy()
        digest.update(f"{name} torch.{array.dtype} {array.shape}\n".encode() + array.tobytes())
    assert weights_hash(small.network) == digest.hexdigest()
    assert weights_hash(embedded.network) == weights_hash(embedded.network.to(memory_format=torch.channels_last))
    small.network.bn1.running_var[0] += 1e-6
    assert weights_hash(small.network) != digest.hexdigest()


def test_weights_hash_of_the_embedded_network_matches_its_file(embedded):
    weights = load_file(MODELS["resnet20_cifar10"][0])
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
    assert weights_hash(embedded.network) == digest.hexdigest()
