"""What a report and a model card say alike about where a run comes from. Imports no torch."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from core.config import RunConfig
from core.export.commands import bare_name
from core.generation.methods import METHODS


def papers(config: RunConfig) -> list[str]:
    """The papers of the run's methods, such as "Adam: Leng et al., ..."; none for given images."""
    found = [METHODS[method] for method in config.methods if method in METHODS and not config.images_from]
    return [f"{method.title}: {method.paper}" for method in found if method.paper]


def evaluated_on(config: RunConfig, description: str) -> str:
    """The description of the evaluation images, with a folder named without its location."""
    text = description.replace(config.evaluation.data, bare_name(config.evaluation.data))
    # the folder may have had another place when it was described
    before, of, folder = text.partition(" images of ")
    return before + of + bare_name(folder)


def versions(packages: Iterable[str]) -> str:
    """Installed versions, such as "torch 2.15.0, numpy 2.3.1"."""
    return ", ".join(map(_version, packages))


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"
