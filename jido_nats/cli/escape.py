"""Text of others, made safe to print, all of it here: a terminal interprets control characters, a reader lines.

What a worker, a client or a server says may contain anything: sequences that repaint a screen, characters that reverse
the direction of a line, line ends followed by what looks like a line of ours. Control characters and all others that
are not printable (`str.isprintable`) are shown as escapes; a text that has several lines by nature, such as a
traceback, keeps them, but each after the first begins with a margin, as no line of ours does.
"""

import json
from typing import Final

import msgspec

MARGIN: Final = "  | "


def printable(text: str) -> str:
    r"""The text in one line; control and other unprintable characters become `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """The same for a text that may have several lines: after the first, each begins with `MARGIN`."""
    return f"\n{MARGIN}".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


def json_printable(text: str) -> str:
    """JSON in one line, with the same value; unprintable characters in its strings are escaped."""
    if text.isprintable():
        return text
    line = msgspec.json.format(text, indent=-1)  # without line ends between the values
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)
