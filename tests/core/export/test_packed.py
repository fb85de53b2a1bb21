import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.config import BIT_WIDTHS, TrainingConfig
from core.errors import CoreError, ModelError
from core.export import packed
from core.export.network import save_network
from core.export.packed import load_packed, pack, save_packed, unpack
from core.models.full_precision import load_model, save_checkpoint
from core.models.programs.export import save_program
from core.models.programs.importing import ARCHITECTURE
from core.quantization.integer.inference import integer_inference_network
from core.quantization.integer.weights import integer_network, packed_bytes
from core.quantization.saved_network import save_quantized


def outputs(network, images):
    with torch.no_grad():
        return network(images)


def header_of(path) -> dict:
    with safe_open(path, framework="pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def by_numpy(stream: np.ndarray, bits: int, shape: list[int]) -> np.ndarray:
    """Reads a stream without the code of this package."""
    digits = np.unpackbits(stream, bitorder="little")[: bits * int(np.prod(shape))].reshape(-1, bits)
    unsigned = sum(digits[:, bit].astype(int) << bit for bit in range(bits))
    return np.where(unsigned >= 2 ** (bits - 1), unsigned - 2**bits, unsigned).reshape(shape)


@pytest.mark.parametrize("count", [1, 7, 8, 1001])
@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_pack_and_unpack(bits, count):
    generator = torch.Generator().manual_seed(bits)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,), generator=generator).to(torch.int8)
    stream = pack(integers, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == -(-count * bits // 8)
    assert torch.equal(unpack(stream, bits, integers.shape), integers)
    assert by_numpy(stream.numpy(), bits, [count]).tolist() == integers.tolist()
    # the stream read as one number
    number = int.from_bytes(stream.numpy().tobytes(), "little")
    assert [(number >> (i * bits)) % 2**bits for i in range(count)] == [value % 2**bits for value in integers.tolist()]


def test_pack_by_hand():
    assert pack(torch.tensor([1, -1, 7, -8], dtype=torch.int8), 4).tolist() == [0xF1, 0x87]
    assert pack(torch.tensor([[-4], [3], [1]], dtype=torch.int8), 3).tolist() == [0b01_011_100, 0b0]


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_round_trip(small, calibrated, images, tmp_path, bits):
    quantized, config = calibrated(small, bits)
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), small.spec, config, path)
    network = load_packed(path, small.network)
    assert torch.equal(outputs(network, images), outputs(integer_inference_network(quantized, small.spec), images))
    assert not network.training


@pytest.mark.parametrize("name", ["Mobile", "Undecided"])
def test_round_trip_of_other_networks(model, calibrated, images, tmp_path, name):
    made = model(name)
    quantized, config = calibrated(made, 5, first_last_8bit=True, range="lsq")
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), made.spec, config, path)
    layout = header_of(path)["layout"]
    assert sorted(entry["bits"] for entry in layout.values()) == [5, 5, 5, 8, 8]
    assert torch.equal(outputs(load_packed(path, made.network), images), outputs(integer_inference_network(quantized, made.spec), images))


def test_round_trip_of_mixed_widths(small, calibrated, images, tmp_path):
    quantized, config = calibrated(small, 4, layer_bits={"conv2": 3, "output": 8})
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), small.spec, config, path)
    assert [entry["bits"] for entry in header_of(path)["layout"].values()] == [4, 3, 8]
    assert torch.equal(outputs(load_packed(path, small.network), images), outputs(integer_inference_network(quantized, small.spec), images))
    # the streams are as long as the quantized network reports
    tensors = load_file(path)
    assert sum(8 * len(tensors[key]) for key in header_of(path)["layout"]) == quantized.weight_size
    assert sum(value.nbytes for value in tensors.values()) == packed_bytes(quantized)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_weights_can_be_read_without_this_package(small, calibrated, tmp_path, bits):
    quantized, config = calibrated(small, bits)
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), small.spec, config, path)
    header, tensors = header_of(path), load_file(path)
    assert header["spec"]["classes"] == ["a", "b", "c", "d"]
    assert TrainingConfig.from_dict(header["quantization"]) == config
    assert list(header["layout"]) == [f"{name}.integer_weight.integers" for name in ("conv1", "conv2", "output")]
    for (key, entry), layer in zip(header["layout"].items(), quantized.layers):
        assert entry == {"bits": bits, "shape": list(layer.weight.shape)}
        integers = torch.from_numpy(by_numpy(tensors[key].numpy(), bits, entry["shape"])).float()
        scale, zero_point = (
            tensors[key.replace("integers", part)].float().view(-1, *[1] * (integers.ndim - 1)) for part in ("scale", "zero_point")
        )
        assert torch.equal((integers - zero_point) * scale, layer.quantized_weight().detach())


def test_embedded_network_by_its_name(embedded, calibrated, images, tmp_path):
    quantized, config = calibrated(embedded, 3)
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), embedded.spec, config, path)
    state = torch.random.get_rng_state()
    network = load_packed(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    inputs = torch.nn.functional.interpolate(images, size=32)
    assert torch.equal(outputs(network, inputs), outputs(integer_inference_network(quantized, embedded.spec), inputs))
    # 268,336 weights of 3 bits plus the other tensors
    assert path.stat().st_size < 268_336 * 3 // 8 + 50_000


def refusal(path, network=None) -> str:
    with pytest.raises(ModelError) as caught:
        load_packed(path, network)
    assert str(path) in str(caught.value)
    assert "must be" in str(caught.value)
    return str(caught.value)


def test_other_files_are_refused(small, calibrated, tmp_path):
    quantized, config = calibrated(small, 4)
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), small.spec, config, path)
    content, tensors = path.read_bytes(), load_file(path)
    header = {key: json.dumps(value) for key, value in header_of(path).items()}

    def changed(**changes):
        kept = {**tensors, **changes}
        save_file({key: value for key, value in kept.items() if value is not None}, path, metadata=header)
        return refusal(path, small.network)

    stream = "conv1.integer_weight.integers"
    assert "missing or unexpected" in changed(**{"output.bias": None})
    assert "missing or unexpected" in changed(another=torch.zeros(1))
    assert "216 integers of 4 bits must be 108 bytes uint8, got (107,) torch.uint8" in changed(**{stream: tensors[stream][:-1].clone()})
    assert "another shape or type" in changed(**{"output.bias": torch.zeros(5)})
    path.write_bytes(content[:-10])
    refusal(path, small.network)
    save_checkpoint(small.network, small.spec, path)
    assert "quantization" in refusal(path, small.network)
    refusal(save_quantized(quantized, config, tmp_path), small.network)
    refusal(tmp_path / "nothing.safetensors")


def test_network_that_cannot_be_built_by_name_is_refused(small, calibrated, tmp_path):
    quantized, config = calibrated(small, 4)
    path = tmp_path / "packed.safetensors"
    save_packed(integer_network(quantized), small.spec, config, path)
    with pytest.raises(CoreError, match="'small'"):
        load_packed(path)


@pytest.fixture
def program(small, tmp_path):
    """The small network as the network of a .pt2 file."""
    spec = replace(small.spec, architecture=ARCHITECTURE)
    save_program(small.network, spec, tmp_path / "small.pt2")
    return load_model(str(tmp_path / "small.pt2"), "cpu")


def test_a_network_of_a_program_is_loaded_from_the_packed_file_alone(program, calibrated, images, tmp_path):
    quantized, config = calibrated(program, 4)
    path = tmp_path / "packed.safetensors"
    save_network("packed", quantized, program, config, path)
    (tmp_path / "small.pt2").unlink()
    expected = outputs(integer_inference_network(quantized, program.spec), images)
    assert torch.equal(outputs(load_packed(path), images), expected)
    assert torch.equal(outputs(load_packed(path, program.network), images), expected)
    # a few kilobytes in addition, not the weights once more
    tensors = load_file(path)
    assert len(tensors[".program"]) < 20_000


def test_a_damaged_program_in_a_packed_file_is_refused(program, calibrated, tmp_path, monkeypatch):
    quantized, config = calibrated(program, 4)
    path = tmp_path / "packed.safetensors"
    save_network("packed", quantized, program, config, path)
    monkeypatch.setattr(packed, "NETWORK_BYTES", 1 << 20)
    header = {key: json.dumps(value) for key, value in header_of(path).items()}
    tensors = load_file(path)
    for content in (b"not compressed", zlib.compress(b"no program"), zlib.compress(bytes(2 << 20))):
        save_file({**tensors, ".program": torch.frombuffer(bytearray(content), dtype=torch.uint8)}, path, metadata=header)
        refusal(path)
