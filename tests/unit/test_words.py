"""The project's texts are in plain English: no word of `tests/tools/words.py` comes back."""

from pathlib import Path

import pytest

from tests.tools.words import WORDS, Word, hits, name_of, texts

CLEAN = [
    "The dashboard runs behind a reverse proxy, or behind the load balancer.",
    "This replica is behind, and nothing is left behind.",
    "Amend the record, as recommended. A caller who waits gets an answer.",
    "Enough of an id to tell sessions apart.",
    "It does not know. Who decides that a manager is dead?",
    "Where is it? It is logged where the caller sees it.",
]


@pytest.mark.parametrize("path", list(texts()), ids=name_of)
def test_a_text_has_none_of_the_words(path: Path) -> None:
    assert [str(hit) for hit in hits(path.read_text())] == []


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.pattern)
def test_a_word_is_found_in_its_example(word: Word) -> None:
    assert word.instead in {hit.instead for hit in hits(word.example)}


def test_a_phrase_is_found_across_lines_of_a_comment() -> None:
    assert [hit.line for hit in hits("x = 1\n# letting\n# go of it")] == [2]


@pytest.mark.parametrize("text", CLEAN)
def test_the_same_word_in_its_usual_sense_is_left_alone(text: str) -> None:
    assert hits(text) == []
