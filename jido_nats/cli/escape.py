"""Text of others, made safe to show: metadata is data, and a terminal obeys what it is sent."""


def printable(text: str) -> str:
    r"""The text in one line; what a terminal would obey, or would not show as itself, as `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """The same for text that may have lines of its own."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))
