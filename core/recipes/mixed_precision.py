"""Mixed precision of the recipes that train networks."""

import torch


def bfloat16_autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that saves time; on other processors, a context that changes nothing.

    Without AVX-512, convolutions in bfloat16 are emulated: ResNet-20 took 13 times as long as in float32.
    """
    faster = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=faster)
