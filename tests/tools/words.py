"""Words that an English-speaking NATS or asyncio engineer stumbles over, and what to write instead.

    python -m tests.tools.words [FILE …]     # prints each occurrence; without a file, of every text that is checked

`tests/unit/test_words.py` fails on any of them. A spell checker cannot find them: each is a word, in the wrong sense.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
TEXTS: Final = (
    *("jido_nats/**/*.py", "jido_nats/**/*.js", "jido_nats/**/*.html", "nats.conf"),
    *("README.md", "deploy/**/*.md", ".github/*.md"),
)


class Word(NamedTuple):
    """A regular expression (a space matches any white space, a line break in a comment too), and its replacement."""

    pattern: str
    instead: str
    example: str


WORDS: Final = (
    Word(r"mend(s|ed|ing)?", "fix, repair", "400 `bad_request`: mend the request"),
    Word(r"anew", "again, start over", "the connection is deaf, making it anew"),
    Word(r"(tells?|telling|told) of", "publish, report", "it tells of every change"),
    Word(
        r"(is|are|was|were|be|been|being|not|better|then|and|last) told",
        "publish, report, log, return",
        "committed before it is told",
    ),
    Word(r"told (already|again|twice|once|where)", "publish, report, log", "version 3 was told already"),
    Word(r"tells? (all|every|who|the|what|systemd|on)", "notify, report, ask", "tell who waits for an answer"),
    Word(r"let(s|ting)? ((it|them|this) )?go( of)?", "relinquish, release, drop", "letting go of a session"),
    Word(r"whoever|whosoever", "callers that, a reader that", "whoever may read the environment"),
    Word(r"those who", "a subject: readers, callers", "for those who write a manager"),
    Word(r"(by|to|tells?) who", "a subject: the callers that", "missed, by who is slow"),
    Word(r"[.;] who(?![^.;]*\?)", "a subject: clients that, an operator who", "begin again; who follows takes one too"),
    Word(r"who lives", "that is alive", "the list of who lives"),
    Word(r"somebody", "another client, a caller, someone", "0 until somebody claims"),
    Word(r"deaf", "receives no messages", "the client would be deaf until its pings time out"),
    Word(r"say something", "must not be null, is required", "content is null: say something"),
    Word(
        r"behind (?!(a|an|the) (\w+ )?(proxy|load balancer|ingress|firewall))"
        r"(it|its|this|that|the|a|an|each|every|last|those|what|which|versions?|session_\w+|`\w+)",
        "after",
        "the events behind the cursor",
    ),
    Word(r"(comes?|came|goes|goes on|lies|stands?|stored|stand|begins) behind", "after", "it comes behind version 3"),
    Word(r"behind which", "after which", "the position behind which it goes on"),
    Word(r"where (it is|they are|there is|there are)", "if, when", "the status, where there is one"),
    Word(r"for ever", "forever, never ends", "stay connected for ever"),
    Word(r"(is|are) none of", "is not in, is beyond", "position 9 is none of this stream"),
    Word(r"all the same", "still, nevertheless; the same value for all", "lease_s differs; give all the same"),
    Word(r"(take|takes|taken|taking) in", "read, accept, process", "what it said last could not be taken in"),
)


class Hit(NamedTuple):
    """One occurrence."""

    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text!r}: {self.instead}"


def hits(text: str) -> list[Hit]:
    """Every occurrence in a text, in order."""
    return sorted(
        Hit(text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), word.instead)
        for word in WORDS
        for match in _compiled(word).finditer(text)
    )


def _compiled(word: Word) -> re.Pattern[str]:
    first = r"\b" if word.pattern[0] != "[" else ""
    return re.compile(rf"{first}(?:{word.pattern})\b".replace(" ", r"[\s#]+"), re.IGNORECASE)


def texts() -> Iterator[Path]:
    """Every file that is checked."""
    for pattern in TEXTS:
        yield from sorted(ROOT.glob(pattern))


def name_of(path: Path) -> str:
    """As the list and the tests name it: relative to the project."""
    return path.resolve().relative_to(ROOT).as_posix()


def main() -> int:
    """Print; exit 1 if there was anything to print."""
    found = False
    for path in [Path(argument) for argument in sys.argv[1:]] or texts():
        for hit in hits(path.read_text()):
            found = True
            print(f"{name_of(path)}:{hit.line}: {hit.text}: {hit.instead}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
