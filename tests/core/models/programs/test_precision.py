"""Programs of float16, bfloat16 and float64 become float32; what float32 cannot represent is refused."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.errors import ModelError
from core.models.programs.translation import load_program, read_program

KINDS = [torch.float16, torch.bfloat16, torch.float64]


def exported(network: nn.Module, path: Path, kind=torch.float32, decomposed=False) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=kind)
    program = torch.export.export(network.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program.run_decompositions() if decomposed else program, path)


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_program(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Casts(nn.Module):
    """A network with casts and a constant, whose inner part may compute in a precision of its own."""

    def __init__(self, small: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.inner, self.kind = copy.deepcopy(small).to(kind), kind
        self.register_buffer("shift", torch.full((3, 1, 1), 0.25, dtype=kind))

    def forward(self, images):
        inside = images.to(self.kind) + self.shift
        scores = self.inner(inside) + torch.zeros_like(inside, dtype=self.kind).mean()
        return F.softmax(scores, -1, dtype=self.kind).float() * scores.type_as(images)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_casts_inside_a_program_are_converted(small, tmp_path, kind, decomposed):
    network = Casts(small.network, kind)
    exported(network, tmp_path / "a.pt2", decomposed=decomposed)
    program = read_program(tmp_path / "a.pt2")
    assert program.notes == (f"converted {str(kind).removeprefix('torch.')} to float32",)
    assert {value.dtype for value in program.network.state_dict().values()} <= {torch.float32, torch.int64}
    # nothing between the images and the layers that hides what they read
    assert not [node for node in program.network.graph.nodes if "to" in str(node.target).split(".")]
    expected = copy.deepcopy(network).float()
    expected.kind = torch.float32
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.network(images), expected(images))


def test_casts_to_integers_stay(small, tmp_path):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(small.network).half()

        def forward(self, images):
            return self.network(images) + (images.mean((1, 2, 3)) * 100).to(torch.int32).half()[:, None]

    network = Counted()
    exported(network, tmp_path / "a.pt2", torch.float16)
    images = torch.randn(3, 3, 8, 8)
    whole = (images.mean((1, 2, 3)) * 100).trunc()[:, None]
    torch.testing.assert_close(load_program(tmp_path / "a.pt2")(images), network.network.float()(images) + whole)


def test_softmax_that_returns_float32_for_float16(small, tmp_path):
    """As decomposed programs that were exported on a GPU have it; its flag is only allowed for float16."""

    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(small.network).half()

        def forward(self, images):
            return self.network(images).softmax(-1)

    network = Softmax().eval()
    program = torch.export.export(network, (torch.zeros(2, 3, 8, 8).half(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    program = program.run_decompositions()
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten._softmax.default)
    node.args = (node.args[0], -1, True)
    torch.export.save(program, tmp_path / "a.pt2")
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(load_program(tmp_path / "a.pt2")(images), network.float()(images))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_bits_that_are_read_as_another_type_are_refused(small, tmp_path, kind):
    class Bits(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(small.network).to(kind)

        def forward(self, images):
            return self.network(images.view(torch.int16).view(kind))

    exported(Bits(), tmp_path / "a.pt2", kind)
    assert "casts must convert numbers, got 'torch.ops.aten.view.dtype'" in refused(tmp_path / "a.pt2")


def test_values_beyond_float32_are_refused(small, tmp_path):
    network = copy.deepcopy(small.network).double()
    network.output.bias.data[1] = 1e39
    exported(network, tmp_path / "a.pt2", torch.float64)
    assert "values of output.bias must be in the range of float32" in refused(tmp_path / "a.pt2")
    network.output.bias.data[1] = 3e38
    exported(network, tmp_path / "a.pt2", torch.float64)
    assert load_program(tmp_path / "a.pt2").output.bias[1] == 3e38


def test_numbers_beyond_float32_are_refused(small, tmp_path):
    class Masked(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.network, self.number = copy.deepcopy(small.network).double(), number

        def forward(self, images):
            scores = self.network(images)
            return scores.masked_fill(scores < 0, self.number)

    exported(Masked(torch.finfo(torch.float64).min), tmp_path / "a.pt2", torch.float64)
    assert "numbers must be in the range of float32, got -1.79769e+308 in 'torch.ops.aten.masked_fill.Scalar'" in refused(
        tmp_path / "a.pt2"
    )
    exported(Masked(float("-inf")), tmp_path / "a.pt2", torch.float64)
    assert load_program(tmp_path / "a.pt2")(torch.randn(8, 3, 8, 8)).isinf().any()


def test_cast_to_a_type_that_no_classifier_needs_is_named(small, tmp_path):
    class Bytes(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(small.network)

        def forward(self, images):
            return self.network(images) + images.to(torch.uint8).float().mean()

    exported(Bytes(), tmp_path / "a.pt2")
    assert "casts must be to int32, int64, float32, bool" in refused(tmp_path / "a.pt2")
