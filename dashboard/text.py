"""Text from outside (names of runs, files and classes, messages of errors) made harmless for what shows it. Pure: no streamlit here.

Streamlit reads Markdown almost everywhere, plotly a few HTML tags; both turn what looks like an address into a link.
"""

from __future__ import annotations

import re
import unicodedata

_MARKDOWN = frozenset("\\`*_{}[]()#+-.!|<>$:~&")
# invisible, and no line may break there: keeps apart what would be replaced even though each character of it is escaped
_JOINER = "\u2060"
_REPLACED = re.compile(
    r"(?<=:)(?=[\w+\-/]+:)"  # :material/x: and :smile:
    r"|(?<=http)(?=s?://)|(?<=www)(?=\.)"  # addresses
    r"|(?<=\w)(?=@\w)"  # and those of mail
    r"|(?<=[<~>-])(?=[->=]+(?:\s|$))",  # arrows and signs
    re.IGNORECASE,
)
# spreadsheets compute what begins so; some skip blanks before it
_FORMULA = re.compile(r"[\s\0]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_ENTITIES = {character: f"&#{ord(character)};" for character in "&<>$\"'"}
REPLACEMENT = "\ufffd"
_JOINERS_OF_SCRIPTS = "\u200c\u200d"  # of Persian, Hindi and emoji


def one_line_text(text: object, length: int = 2000) -> str:
    """Text in one line that only shows itself: no control characters, such as those that turn the direction of writing.

    length: of what is longer, only so many characters are kept.
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= length else line[: length - 4] + " ..."
    return "".join(REPLACEMENT if unicodedata.category(c).startswith("C") and c not in _JOINERS_OF_SCRIPTS else c for c in line)


def plain(text: object) -> str:
    """`one_line_text`, with what Markdown and Streamlit's additions to it would read as markup, links or symbols made harmless."""
    parted = _REPLACED.sub(_JOINER, one_line_text(text))
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in parted)


def plotly(text: object) -> str:
    """`one_line_text`, with what plotly would read as a tag or as LaTeX made harmless."""
    return "".join(_ENTITIES.get(c, c) for c in one_line_text(text))


def cell(value: object) -> object:
    """A value in a table: numbers as they are; of a text that a spreadsheet would compute, an invisible character comes first.

    So the table shows what was typed, and its CSV is no formula wherever it is opened.
    """
    return _JOINER + value if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value


def error(error: BaseException) -> str:
    """What an error says, for st.error."""
    return plain(error)
