"""Runs for browser tests to look at, computed in the test's own process: a worker process would import torch again for each."""

from pathlib import Path

from torchvision.utils import save_image

from core.config import RunConfig
from core.data.labeled import embedded_images
from core.reporting import NoControl
from core.runs.events import StoreReporter
from core.runs.execution import perform
from core.runs.store import RunStore


def computed(store: RunStore, config: RunConfig, name: str) -> str:
    """The id of a new complete run. Raises what ended the run, as `perform` does."""
    run_id = store.create(config, name)
    perform(store, run_id, StoreReporter(store, run_id), NoControl())
    return run_id


def few_images(folder: Path) -> str:
    """The path of a new folder with two evaluation images of each CIFAR-10 class: the embedded 2,000 take most of a small run."""
    images, labels = embedded_images()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index in [i for i, other in enumerate(labels) if other == label][:2]:
            save_image(images[index] / 255, folder / str(label) / f"{index}.png")
    return str(folder)
