"""Untrusted text, made safe to print: metadata is data, but a terminal interprets control characters."""

import json


def printable(text: str) -> str:
    r"""The text in one line; control and other unprintable characters become `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """The same for text that may have several lines."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


def json_printable(text: str) -> str:
    """JSON with the same value; control and other unprintable characters in its strings are escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
