import pytest

from core.errors import UnknownNameError, first_line

COLORED = "\x1b[96m\x1b[1mThis is step 1/3\x1b[0m of \x1b]8;;https://example.org\x1b\\exporting\x1b]8;;\x07"


@pytest.mark.parametrize("text", [f"{COLORED}\nmore", f"\n \n  {COLORED}  ", f"\x1b[0m\n\x1bM\n{COLORED}"])
def test_quoted_libraries_have_no_colors(text):
    assert first_line(ValueError(text)) == "This is step 1/3 of exporting"


def test_an_error_without_text_is_its_type():
    assert first_line(KeyboardInterrupt()) == first_line(KeyboardInterrupt("\x1b[0m")) == "KeyboardInterrupt"


def test_brackets_stay():
    assert first_line(ValueError("got [0m] at [1;31m")) == "got [0m] at [1;31m"


def test_of_many_names_the_most_similar_are_listed():
    few, many = [f"layer{number}" for number in range(40)], [f"layer{number}" for number in range(1000)]
    assert str(UnknownNameError("layer", "layr7", few)).endswith("must be one of " + ", ".join(few))
    message = str(UnknownNameError("layer", "layr7" + "7" * 5000, many))
    assert "must be one of 1000, such as layer" in message
    assert len(message) < 400
    assert "such as layer7, " in str(UnknownNameError("layer", "layr7", many))
    assert "such as layer" in str(UnknownNameError("layer", 10**5000, many))  # more digits than Python prints
    assert str(UnknownNameError("layer", "x", ["only"])) == "unknown layer 'x': must be only"
