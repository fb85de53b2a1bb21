"""Fewer embedded evaluation images for tests whose runs evaluate on them: all 2,000 take most of a small run."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from core.data import labeled

FEW = 600  # more than are taken for the references and the analysis of layers


@contextmanager
def few_evaluation_images() -> Iterator[None]:
    """The embedded evaluation set has the first 600 of its images in this process; descriptions say so."""
    images, labels = labeled.embedded_images()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeled, "embedded_images", lambda: (images[:FEW], labels[:FEW]))
        yield
