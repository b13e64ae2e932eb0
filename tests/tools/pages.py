"""The Markdown that users read: its code, its commands with what they print, its links."""

import re
from pathlib import Path
from typing import Final

import msgspec

from tests.tools.programs import ROOT

README: Final = ROOT / "README.md"
DOCS: Final = ROOT / "deploy/docs"
ENDLESS: Final = "^C"
ANY: Final = "…"


def page(name: str) -> str:
    """The text of a page of `deploy/docs`, by its name without the ending."""
    return (DOCS / f"{name}.md").read_text()


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    others = ["tests/interop/README.md", "jido_nats/ARCHITECTURE.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md"]
    return sorted([README, *(ROOT / other for other in others), *(ROOT / "deploy").rglob("*.md")])


def section(text: str, heading: str) -> str:
    """What stands under a heading (`## …`), up to the next one of its level."""
    marks = heading.split(" ", maxsplit=1)[0]
    return text.partition(f"\n{heading}\n")[2].partition(f"\n{marks} ")[0]


def blocks(text: str, language: str) -> list[str]:
    """The code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block(text: str, language: str, first: str) -> str:
    """The code in that language that begins so."""
    return next(found for found in blocks(text, language) if found.startswith(first))


class Documented(msgspec.Struct):
    """A command of a page with the lines that stand below it."""

    line: str
    shown: list[str]

    @property
    def endless(self) -> bool:
        """Whether the reader ends it."""
        return ENDLESS in self.shown

    def unseen(self, output: str) -> list[str]:
        """The lines below it that it did not print: numbers may differ, `…` stands for anything."""
        printed = [" ".join(line.split()) for line in output.splitlines()]
        return [
            line
            for line in self.shown
            if line not in (ENDLESS, ANY) and line.strip() and not any(_pattern(line).search(real) for real in printed)
        ]


def documented(text: str) -> list[Documented]:
    """The commands of a text, in order: the lines of its `console` blocks that begin with `$ `."""
    found: list[Documented] = []
    for code in blocks(text, "console"):
        for line in code.splitlines():
            if line.startswith("$ "):
                found.append(Documented(line.removeprefix("$ "), []))
            else:
                found[-1].shown.append(line)
    return found


def links(text: str) -> list[str]:
    """Where the links and pictures of a text lead; code is none."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(text: str) -> set[str]:
    """The anchors of a text's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        name, count = anchor(heading), 0
        while (name if not count else f"{name}-{count}") in found:
            count += 1
        found.add(f"{name}-{count}" if count else name)
    return found


def anchor(heading: str) -> str:
    """A heading's anchor: lower case, without punctuation, `-` for each blank."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _pattern(line: str) -> re.Pattern[str]:
    text = re.escape(" ".join(line.split())).replace(ANY, ".*")
    return re.compile(re.sub(r"\d+", r"\\d+", text))
