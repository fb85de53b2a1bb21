"""Times the data generation of Sony's Model Compression Toolkit on the embedded network: `python benchmarks/peers/mct.py --batch 128`.

Needs a separate environment, because the toolkit requires older versions of some packages than this project:

    python3.11 -m venv mct-venv
    mct-venv/bin/pip install torch==2.15.0 torchvision==0.29.2 model-compression-toolkit==2.6.1 safetensors pytorchcv==0.0.74

torch and torchvision must match: another torch next to this torchvision fails on import. Imports nothing from this project.

An iteration of the toolkit with its defaults, `get_pytorch_data_generation_config()`: mirrors the batch at random, smooths it with a
3 x 3 Gaussian kernel, takes one random crop of the output size for the whole batch, clips; forward pass, with hooks that keep the input
of each BatchNorm2d; mean and second moment of each and of the images, squared distance of mean and standard deviation to the running
ones (0 and 1 for images), divided by the number of channels, mean over layers; minus 1e-5 times the difference of the largest and the
smallest logit; backward pass, also through the weights of the network; one step of RAdam (lr 16), a plateau scheduler that resets; then
a second forward pass over the smoothed, centrally cropped images, with gradients on, to refresh the statistics. 500 iterations. The
images being optimized are larger than the result: `extra_pixels` is 32, and the toolkit's noise adds 32 more, so that for 32 x 32 they
are 96 x 96; the network always sees 32 x 32.

Only the number of images, the batch and the number of iterations differ from the defaults. Prints one JSON object. Time is taken between
the steps of the optimizer, so that setup does not count: median over the iterations after `--warm-up`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import model_compression_toolkit as mct
import torch
from pytorchcv.model_provider import get_model
from safetensors.torch import load_file

WEIGHTS = Path(__file__).parents[2] / "assets" / "models" / "resnet20_cifar10.safetensors"
SIZE = 32


class TimedRAdam(torch.optim.RAdam):
    """The toolkit's default optimizer, which also records the time of each step."""

    moments: list[float] = []

    def step(self, *arguments, **named):
        self.moments.append(time.perf_counter())
        return super().step(*arguments, **named)


def measure(batch: int, iterations: int, warm_up: int, freeze: bool) -> dict[str, object]:
    """Generates one batch; returns the JSON object."""
    network = get_model("resnet20_cifar10", pretrained=False)
    network.load_state_dict(load_file(WEIGHTS))
    network.eval().requires_grad_(not freeze)
    TimedRAdam.moments = []
    config = mct.data_generation.get_pytorch_data_generation_config(
        n_iter=iterations,
        data_gen_batch_size=batch,
        optimizer=TimedRAdam,  # type: ignore[arg-type]
    )
    images = mct.data_generation.pytorch_data_generation_experimental(
        model=network, n_images=batch, output_image_size=SIZE, data_generation_config=config
    )
    seconds = [later - earlier for earlier, later in zip(TimedRAdam.moments, TimedRAdam.moments[1:])][warm_up:]
    median = statistics.median(seconds)
    settings = {name: str(value) for name, value in vars(config).items() if isinstance(value, (bool, int, float, str, tuple)) or value}
    return {
        "seconds_per_image_and_iteration": median / batch,
        "seconds_per_iteration": median,
        "fastest_iteration": min(seconds),
        "slowest_iteration": max(seconds),
        "iterations_measured": len(seconds),
        "batch": batch,
        "images": len(images),
        "image_shape": list(images[0].shape),
        "network_frozen": freeze,
        "threads": torch.get_num_threads(),
        "settings": {**settings, "optimizer": "RAdam"},
        "versions": {name: version(name) for name in ("model-compression-toolkit", "torch", "torchvision", "pytorchcv")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="images optimized together")
    parser.add_argument("--iterations", type=int, default=20, help="steps of the optimizer, including the warm-up")
    parser.add_argument("--warm-up", type=int, default=3, help="first iterations, which do not count")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 lets torch choose")
    parser.add_argument("--freeze", action="store_true", help="skip the weight gradients that the toolkit computes")
    options = parser.parse_args()
    if options.iterations < options.warm_up + 2:
        parser.error(f"--iterations must be at least {options.warm_up + 2} (warm-up plus two), got {options.iterations}")
    if options.threads:
        torch.set_num_threads(options.threads)
    with contextlib.redirect_stdout(sys.stderr):  # the toolkit's messages; stdout is for the result
        result = measure(options.batch, options.iterations, options.warm_up, options.freeze)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
