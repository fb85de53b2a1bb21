"""The figure of a comparison, read back as XML."""

import xml.etree.ElementTree as ElementTree

import pytest

from core.comparison.figure import as_svg
from core.comparison.table import Row

SVG = "{http://www.w3.org/2000/svg}"


def row(method, drop, seeds=1):
    """A row at W3A3 with the same drop for each seed."""
    return Row(method, "W3A3", tuple(range(seeds)), (), 92.0, (92.0 - drop,) * seeds, 0.5, 40.0, 60.0, None, None, "2,000 images")


def dots(text):
    return [float(dot.get("cx")) for dot in ElementTree.fromstring(text).iter(f"{SVG}circle")]


def test_places_are_proportional_to_drops():
    first, second, third = dots(as_svg([row("mi-fgsm", 1.0), row("adam", 2.0), row("zeroq", 4.0)]))
    assert third - first == pytest.approx(3 * (second - first), abs=0.3)


def test_a_reference_far_off_does_not_squeeze_the_methods():
    methods = [row("mi-fgsm", 1.0), row("adam", 2.0)]
    alone, beside = as_svg(methods), as_svg([*methods, row("noise", 48.0)])
    assert dots(alone) == dots(beside)
    assert "48.0 →" in [text.text for text in ElementTree.fromstring(beside).iter(f"{SVG}text")]
    assert len(dots(as_svg([row("noise", 48.0)]))) == 1  # nothing else to scale by
