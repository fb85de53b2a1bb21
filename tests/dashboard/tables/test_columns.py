"""How tables show numbers, times and long text."""

import pytest

from dashboard.tables.columns import Column, shown
from dashboard.text import shortened


def cells(values, column, best=()):
    return [line[0] for line in shown([{"a": value} for value in values], {"a": column}, best)]


def texts(values, column=None):
    return [cell["shown"] if isinstance(cell, dict) else cell for cell in cells(values, column or Column())]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([89, 89.05, None], ["89.00", "89.05", None]),
        ([1.5, -2.584, 118.032], ["1.500", "-2.584", "118.032"]),
        ([1, 20000], ["1", "20,000"]),
        ([0.1 + 0.2, 1 / 3], ["0.3000", "0.3333"]),
    ],
)
def test_numbers_of_a_column_have_the_same_digits(values, expected):
    assert texts(values) == expected


def test_digits_can_be_chosen():
    assert texts([92.1, 3], Column(digits=2)) == ["92.10", "3.00"]
    assert texts([58.7, 0.000123456], Column(significant=4)) == ["58.70", "0.0001235"]


def test_values_are_kept_beside_what_is_shown():
    assert cells([1 / 3], Column(digits=2)) == [{"value": 1 / 3, "shown": "0.33"}]
    assert cells([1.7e9], Column(kind="time")) == [1.7e9]
    assert cells([["a", "b"]], Column(kind="tags")) == [["a", "b"]]


def test_best_of_each_row():
    rows = [{"one": 1.0, "other": 2.0, "third": 3.0}, {"one": 5.0, "other": 4.0, "third": None}, {"one": 1.0, "other": None, "third": 2.0}]
    lines = shown(rows, dict.fromkeys(rows[0], Column()), ["one", "other"])
    assert [[bool(cell and cell.get("best")) for cell in line] for line in lines] == [
        [False, True, False],
        [True, False, False],
        [False, False, False],  # nothing to compare with
    ]


def test_long_text_is_shortened_in_the_middle():
    name = "resnet20_cifar10, mi-fgsm + adam, W3A3 W4A4 W5A5, seed 17"
    short = shortened(name, 40)
    assert len(short) <= 40
    assert short.startswith("resnet20_cifar10, mi-fg")
    assert short.endswith("W5A5, seed 17")
    assert shortened("short", 40) == "short"
    (cell,) = cells([name * 2], Column())
    assert cell["value"] == name * 2
    assert "…" in cell["shown"]


def test_hashes_are_shortened_everywhere():
    digest = "0123456789abcdef" * 4
    assert shortened(f"uploads/{digest}.pt2", 200) == "uploads/012345…cdef.pt2"
    assert shortened("deadbeef", 200) == "deadbeef"
