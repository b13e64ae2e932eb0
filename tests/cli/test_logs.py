"""What a log prints: what programs say in it cannot speak to the operator's terminal."""

import json
import logging
import sys
from pathlib import Path

import pytest

from jido_nats import LocalServer
from jido_nats.cli.logs import JsonFormatter, LineFormatter
from tests.tools.programs import serving
from tests.tools.support import Stranger

HOSTILE = "one\r12:00:00 ERROR fire\x1b[2J\x07\x9b31m\u202e\u2028\x7f\n13:00:00 ERROR forged"
FORMATTERS = [LineFormatter(), JsonFormatter()]


def record(message: str, **data: str) -> logging.LogRecord:
    """A log record with data."""
    made = logging.LogRecord("jido_nats", logging.INFO, "", 0, message, (), None)
    vars(made).update(data)
    return made


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["line", "json"])
def test_a_record_is_one_printable_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record(HOSTILE, error=HOSTILE))

    assert line.isprintable()
    assert line.count("fire") == 2


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["line", "json"])
def test_the_name_of_a_file_that_is_not_utf_8_can_be_logged(formatter: logging.Formatter) -> None:
    line = formatter.format(record("cannot be read", file="a\udce9"))

    assert line.isprintable()
    assert "a\\udce9" in line


def test_a_json_record_keeps_its_value() -> None:
    line = json.loads(JsonFormatter().format(record(HOSTILE + "é🦊")))

    assert line["message"] == HOSTILE + "é🦊"


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["line", "json"])
def test_a_traceback_has_nothing_but_lines(formatter: logging.Formatter) -> None:
    made = record("failed")
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        made.exc_info = sys.exc_info()

    assert formatter.format(made).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["line", "json"])
async def test_standard_error_of_a_program_cannot_speak_to_the_terminal(
    server: LocalServer, stranger: Stranger, tmp_path: Path, name: str
) -> None:
    program = tmp_path / "program.sh"
    program.write_text(r"printf '\033]0;title\007\r12:00 ERROR fire\n\302\233 31m\n' >&2; exit 3")
    async with serving(server.url, "--log-format", name, "--exec", f"sh {program}") as manager:
        await stranger.create("s1")
        await stranger.ends("s1")
        await manager.said("31m")

        assert manager.err.replace("\n", "").isprintable()
