"""Autocast is used where the processor computes in bfloat16."""

import pytest
import torch

from core.recipes.mixed_precision import bfloat16_autocast


@pytest.mark.parametrize(("capability", "kind"), [("AVX2", torch.float32), ("DEFAULT", torch.float32), ("AVX512", torch.bfloat16)])
def test_bfloat16_on_processors_that_have_it(monkeypatch, capability, kind):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with bfloat16_autocast(torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == kind
