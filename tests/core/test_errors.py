import pytest

from core.errors import first_line

COLORED = "\x1b[96m\x1b[1mThis is step 1/3\x1b[0m of \x1b]8;;https://example.org\x1b\\exporting\x1b]8;;\x07"


@pytest.mark.parametrize("text", [f"{COLORED}\nmore", f"\n \n  {COLORED}  ", f"\x1b[0m\n\x1bM\n{COLORED}"])
def test_quoted_libraries_have_no_colors(text):
    assert first_line(ValueError(text)) == "This is step 1/3 of exporting"


def test_an_error_without_text_is_its_type():
    assert first_line(KeyboardInterrupt()) == first_line(KeyboardInterrupt("\x1b[0m")) == "KeyboardInterrupt"


def test_brackets_stay():
    assert first_line(ValueError("got [0m] at [1;31m")) == "got [0m] at [1;31m"
