"""Contrast of both themes and of chart colors by WCAG 2.2, and chart colors as seen with each kind of color blindness."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest

from dashboard.charts import style as chart_style

THEME = tomllib.loads((Path(__file__).parents[2] / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["theme"]
METHODS = {f"method {number}": color for number, color in enumerate(chart_style.METHOD_COLORS)}
DATA = {**METHODS, **chart_style.COLORS, "full precision": chart_style.FULL_PRECISION, "paper": chart_style.PAPER}

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Contrast ratio of two colors, sRGB in [0, 1]: 1 to 21."""
    darker, lighter = sorted(float(linear(color) @ TO_XYZ[1]) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def lab(linear_rgb: np.ndarray) -> np.ndarray:
    t = TO_XYZ @ np.clip(linear_rgb, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_contrast_matches_wcag():
    assert contrast(rgb("#FFFFFF"), rgb("#000000")) == pytest.approx(21)
    assert contrast(rgb("#767676"), rgb("#FFFFFF")) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_is_readable(name):
    theme = {key: rgb(value) for key, value in THEME[name].items()}
    page, box, text = theme["backgroundColor"], theme["secondaryBackgroundColor"], theme["textColor"]
    for background in (page, box):
        assert contrast(text, background) >= 7
        assert contrast(theme["linkColor"], background) >= 4.5
        assert contrast(theme["primaryColor"], background) >= 4.5
    caption = 0.6 * text + 0.4 * page  # color of Streamlit's captions
    assert contrast(caption, page) >= 4.5
    # dashboard/page.css makes text on the primary color black where the surrounding text is light, white elsewhere
    on_primary = np.zeros(3) if linear(text) @ TO_XYZ[1] > 0.18 else np.ones(3)
    assert contrast(on_primary, theme["primaryColor"]) >= 4.5


@pytest.mark.parametrize("background", ["light", "dark"])
@pytest.mark.parametrize("color", [*DATA.values(), chart_style.NEUTRAL])
def test_chart_colors_stand_out_from_both_backgrounds(color, background):
    assert contrast(rgb(color), rgb(THEME[background]["backgroundColor"])) >= 3


@pytest.mark.parametrize("sight", SIGHT)
def test_chart_colors_differ_with_every_kind_of_color_vision(sight):
    # 2.3 is a just noticeable difference
    seen = {name: lab(SIGHT[sight] @ linear(rgb(color))) for name, color in DATA.items()}
    distances = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in itertools.combinations(seen, 2)}
    assert min(distances.values()) > 13, min(distances.items(), key=lambda item: item[1])
