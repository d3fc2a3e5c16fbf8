"""Text of others in messages and tables: short enough to be read, and without what would steer a terminal."""

from __future__ import annotations

import re
import textwrap
import unicodedata

#: Characters of a line, and lines, of a message that fits a terminal.
LINE, LINES = 300, 20

#: What libraries write to have a terminal print in bold or in colour (ECMA-48: control sequences).
_TERMINAL_CODE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def is_clean(text: str) -> bool:
    """Whether text has neither control characters nor lone surrogates, which bytes that are no UTF-8 become."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def printable(text: str) -> str:
    r"""Text with control characters, but for line ends and tabs, and lone surrogates written as escapes.

    A terminal obeys control characters, and lone surrogates, which file names may have, cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c
        for c in text
    )


def shortened(text: str, limit: int = 120) -> str:
    """Text of at most ``limit`` characters: of a longer one the beginning and the end."""
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end - 3]}...{text[-end:]}"


def shown(value: object) -> str:
    """A value from a file as a message shows it: its ``repr``, shortened."""
    try:
        return shortened(repr(value))
    except ValueError:  # a whole number, or a list with one in it, of more digits than Python writes
        return "a number of thousands of digits"


def reason(error: BaseException) -> str:
    """What an exception of somebody else's code says, on one line: its type and its whole message.

    Terminal codes, line breaks and indentation are taken out, nothing else. An exception without a message is named by
    its type alone.
    """
    said = " ".join(_TERMINAL_CODE.sub("", str(error)).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def on_one_screen(text: str) -> str:
    """A message of at most :data:`LINES` lines of :data:`LINE` characters, :func:`printable`.

    A longer line is wrapped, so that a message of several thousand characters is still whole; what is left out of a
    longer one is its end. A single word of nearly a line, such as the path of a file a hundred folders down,
    is shortened in its middle.
    """
    lines: list[str] = []
    longest = LINE - 50  # so that it stands on one line with what introduces it
    whole = re.sub(rf"\S{{{longest + 1},}}", lambda word: shortened(word[0], longest), printable(text))
    for line in whole.split("\n"):
        lines += [line] if len(line) <= LINE else textwrap.wrap(line, LINE, break_on_hyphens=False)
    if len(lines) <= LINES:
        return "\n".join(lines)
    return "\n".join([*lines[: LINES - 1], f"... and {len(lines) - LINES + 1} lines more"])
