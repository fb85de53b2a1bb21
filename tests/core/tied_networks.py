"""Networks whose layers share parameters, for 8 x 8 images and four classes."""

import torch
import torch.nn.functional as F
from torch import nn

from core.models.full_precision import FullPrecisionModel
from core.models.registry import ModelSpec


class Base(nn.Module):
    """A stem, two convolutions with a BatchNorm layer each, and a classifier; subclasses tie some of their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.one_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.two, self.two_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.output = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.one_norm(self.one(x)))
        x = F.relu(self.two_norm(self.two(x)) + x)
        return self.output(x.mean(dim=(2, 3)))


class Biases(Base):
    def __init__(self) -> None:
        super().__init__()
        self.two.bias = self.one.bias


class Affine(Base):
    """Two BatchNorm layers with the same weight and bias and their own statistics, as in the heads of RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        self.two_norm.weight, self.two_norm.bias = self.one_norm.weight, self.one_norm.bias


class Weights(Base):
    """One weight with two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.two.weight = self.one.weight


class Dilations(Base):
    """One weight and one bias in two geometries, as in networks with branches of several dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.two.weight, self.two.bias = self.one.weight, self.one.bias


class Groups(Base):
    """One weight as that of a dense and of a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(2, 4, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.one_norm(self.one(x)))
        return self.output(F.relu(self.two_norm(self.two(x[:, :2]))).mean(dim=(2, 3)))


class Modules(Base):
    """Whole modules under two names, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.two_norm = self.one, self.one_norm


class Statistics(Base):
    """Two BatchNorm layers that share everything but their epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.two_norm = nn.BatchNorm2d(4, eps=1e-2)
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(self.two_norm, name, getattr(self.one_norm, name))


class Linears(Base):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(4, 4)
        self.middle.weight = self.output.weight

    def forward(self, x):
        x = F.relu(self.one_norm(self.one(F.relu(self.stem_norm(self.stem(x))))))
        x = F.relu(self.two_norm(self.two(x)))
        return self.output(F.relu(self.middle(x.mean(dim=(2, 3)))))


class LinearAndPointwise(Linears):
    """A linear layer whose weight is a view of that of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Conv2d(4, 4, 1)
        self.middle.weight = nn.Parameter(self.two.weight.view(4, 4))


class Views(Base):
    """Two parameters that are views of the same numbers, in the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.two.weight = nn.Parameter(self.one.weight.view_as(self.two.weight))
        self.two_norm.weight = nn.Parameter(self.one_norm.weight[:])


class TransposedView(Linears):
    """A linear layer whose weight is that of another one transposed, as in autoencoders."""

    def __init__(self) -> None:
        super().__init__()
        self.middle.weight = nn.Parameter(torch.empty(4, 4))
        self.middle.weight.data = self.output.weight.data.t()


class Flat(Base):
    """All parameters and running statistics are slices of one tensor, as programs for many machines make them; two of them overlap."""

    def __init__(self) -> None:
        super().__init__()
        tensors = [*self.parameters(), *(buffer for name, buffer in self.named_buffers() if "running" in name)]
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.data = part.view_as(tensor)
        self.two.bias.data = self.one.bias.data


class Transposed(Linears):
    """A linear layer whose weight is also read by a function, as in autoencoders."""

    def forward(self, x):
        x = F.relu(self.one_norm(self.one(F.relu(self.stem_norm(self.stem(x))))))
        x = F.relu(self.two_norm(self.two(x)))
        x = F.relu(self.middle(x.mean(dim=(2, 3))))
        return self.output(F.linear(x, self.middle.weight.t()))


class Untraceable(Dilations):
    """With control flow that torch.fx cannot trace; torch.export can."""

    def forward(self, x):
        return super().forward(x * 1.0 if x.shape[2] > 4 else x)


TIED = {
    kind.__name__: kind
    for kind in (
        Biases, Affine, Weights, Dilations, Groups, Modules, Statistics, Linears, LinearAndPointwise, Views, TransposedView, Flat,
        Transposed, Untraceable,
    )
}  # fmt: skip


def tied(name: str) -> FullPrecisionModel:
    """One of TIED, with BatchNorm statistics of noise."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = TIED[name]().train()
        for _ in range(10):
            network(torch.randn(32, 3, 8, 8))
    spec = ModelSpec(name, name, tuple("abcd"), 8, (0.5,) * 3, (0.25,) * 3, "noise")
    return FullPrecisionModel(network.eval().requires_grad_(False).to(memory_format=torch.channels_last), spec)
