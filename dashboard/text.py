"""Escapes text from outside (names of runs, files and classes, error messages) for Markdown, plotly and tables. Pure: no streamlit here.

Streamlit renders Markdown almost everywhere, plotly a few HTML tags; both turn text that looks like an address into a link.
"""

from __future__ import annotations

import re
import unicodedata

_MARKDOWN = frozenset("\\`*_{}[]()#+-.!|<>$:~&")
# invisible word joiner: splits what Streamlit would replace even though each of its characters is escaped
_JOINER = "\u2060"
_REPLACED = re.compile(
    r"(?<=:)(?=[\w+\-/]+:)"  # :material/x: and :smile:
    r"|(?<=http)(?=s?://)|(?<=www)(?=\.)"  # addresses
    r"|(?<=\w)(?=@\w)"  # e-mail addresses
    r"|(?<=[<~>-])(?=[->=]+(?:\s|$))",  # arrows and signs
    re.IGNORECASE,
)
# Spreadsheets evaluate text that starts with these; some skip blanks and invisible characters before it. download_buttons.js gets both
# patterns from here, so they name every character: \s and \d differ between Python and JavaScript.
FORMULA = r"[\t\r\n]|[\0\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]"
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,}(?![0-9a-f])")
_ENTITIES = {character: f"&#{ord(character)};" for character in "&<>$\"'"}
REPLACEMENT = "\ufffd"
_JOINERS_OF_SCRIPTS = "\u200c\u200d"  # of Persian, Hindi and emoji


def one_line_text(text: object, length: int = 2000) -> str:
    """Text in one line, with control characters replaced, including those that change the direction of writing.

    length: longer text is truncated to this many characters.
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= length else line[: length - 4] + " ..."
    return "".join(REPLACEMENT if unicodedata.category(c).startswith("C") and c not in _JOINERS_OF_SCRIPTS else c for c in line)


def shortened(text: object, length: int) -> str:
    """`one_line_text` of at most `length` characters, and with short hashes; what is left out is left out in the middle, because names
    often differ at their end.
    """
    line = _HASH.sub(lambda found: f"{found[0][:6]}…{found[0][-4:]}", one_line_text(text))
    if len(line) <= length:
        return line
    end = (length - 1) * 2 // 5
    return f"{line[: length - 1 - end].rstrip()}…{line[-end:].lstrip()}"


def plain(text: object) -> str:
    """`one_line_text`, escaped for Markdown and for Streamlit's additions to it: markup, links, icons and arrows."""
    parted = _REPLACED.sub(_JOINER, one_line_text(text))
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in parted)


def plotly(text: object) -> str:
    """`one_line_text`, escaped for plotly: tags and LaTeX."""
    return "".join(_ENTITIES.get(c, c) for c in one_line_text(text))


def cell(value: object) -> object:
    """A value in a table. Text that a spreadsheet would evaluate gets an invisible character in front, also within a list; anything else
    is unchanged.

    The table looks as typed, and its CSV contains no formula.
    """
    if isinstance(value, (list, tuple)):
        return [cell(one) for one in value]
    return _JOINER + value if isinstance(value, str) and re.match(FORMULA, value) and not re.fullmatch(NUMBER, value) else value


def error(error: BaseException) -> str:
    """The message of an error, escaped for st.error."""
    return plain(error)
