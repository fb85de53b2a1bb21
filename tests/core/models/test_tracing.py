"""Tracing: a network that another thread computes with is not disturbed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from core.models.tracing import LayerTracer


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.scale = nn.Parameter(torch.full((), 0.5))

    def forward(self, x):
        x = self.first(x)
        return self.second(x) + self.scale * x


def test_networks_are_traced_while_others_compute():
    traced, computed = Residual(), Residual()
    images = torch.ones(1, 3, 2, 2)
    with torch.no_grad():
        expected = computed(images)
    done = threading.Event()

    def compute() -> int:
        count = 0
        with torch.no_grad():
            while not done.is_set():
                assert torch.equal(computed(images), expected)
                count += 1
        return count

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(compute) for _ in range(2)]
        graphs = [pool.submit(lambda: LayerTracer().trace(traced)) for _ in range(100)]
        try:
            targets = [[node.target for node in graph.result().nodes if node.op != "output"] for graph in graphs]
        finally:
            done.set()
        assert min(future.result() for future in running) > 0
    assert all(own == targets[0] for own in targets)
    assert targets[0][:4] == ["x", "first", "second.0", "second.1"]
