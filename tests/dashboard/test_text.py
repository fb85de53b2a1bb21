"""Text from outside made safe. (In a browser: tests/browser/test_hostile_text.py.)"""

import pytest

from dashboard.text import error, one_line_text, plain, plotly


def test_ordinary_names_are_unchanged():
    for kind in (one_line_text, plain, plotly):
        assert kind("ein Name für 12 Läufe, 50 %") == "ein Name für 12 Läufe, 50 %"
    assert one_line_text("a_b *c* <d> $e$") == "a_b *c* <d> $e$"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\r\n# c\t d", "a b # c d"),
        ("\x1b[2J", "\ufffd[2J"),
        ("gnp\u202eexe", "gnp\ufffdexe"),
        ("a\0b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("", ""),
        (3, "3"),
    ],
)
def test_one_line_without_control_characters(text, expected):
    assert one_line_text(text) == expected


def test_long_text_is_truncated():
    assert one_line_text("x" * 5000) == "x" * 1996 + " ..."
    assert len(one_line_text("ab", length=5)) == 2


@pytest.mark.parametrize("character", list("\\`*_{}[]()#+-.!|<>$:~"))
def test_every_markdown_character_is_escaped(character):
    assert plain(f"a {character} b") == f"a \\{character} b"


@pytest.mark.parametrize("text", [":smile:", ":material/home:", "https://e.example", "www.e.example", "a@e.example", "a -> b", "a -- b"])
def test_emoji_links_and_arrows_are_broken_up(text):
    parted = plain(text)
    assert "\u2060" in parted
    assert parted.replace("\u2060", "").replace("\\", "") == text


def test_tags_and_latex_are_escaped_for_plotly():
    assert plotly('<a href="x">$\\pi$</a> & more') == "&#60;a href=&#34;x&#34;&#62;&#36;\\pi&#36;&#60;/a&#62; &#38; more"


def test_error_message_is_one_escaped_line():
    assert error(ValueError("model is '<b>':\nallowed is x_y")) == "model is '\\<b\\>'\\: allowed is x\\_y"
