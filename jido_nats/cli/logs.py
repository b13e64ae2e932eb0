"""How the programs log: one line per record on stderr, a sentence followed by its data."""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import msgspec

from jido_nats.cli.escape import MARGIN, json_printable, printable, printable_lines

# Attributes that every log record has; all others come from `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """`12:00:00 WARNING connection lost, reconnecting connection=jido-nats client`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        data = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        return printable(super().formatMessage(record) + data)  # programs' stderr is in it, and errors of theirs

    def formatException(self, ei: Any) -> str:
        return f"{MARGIN}{printable_lines(super().formatException(ei))}"

    def formatStack(self, stack_info: str) -> str:
        return f"{MARGIN}{printable_lines(stack_info)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (RFC 3339), `level`, `logger`, `message`, the data, and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            text = msgspec.json.encode(line, enc_hook=repr).decode()
        except UnicodeEncodeError:  # the name of a file that is not UTF-8, for example
            text = json.dumps(line, default=str)
        return json_printable(text)


def use_format(name: str) -> None:
    """`line`, for people, or `json`, for programs."""
    formatter = JsonFormatter() if name == "json" else LineFormatter()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def announce(text: str) -> None:
    """Write to stderr whatever the log level is: plain text, or a JSON record if the log is JSON."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonFormatter):
            handler.handle(logging.LogRecord("jido_nats", logging.INFO, "", 0, text, (), None))
        else:
            sys.stderr.write(f"{printable(text)}\n")


def configure(level: int) -> None:
    """Log to stderr, `level` and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("jido_nats.stderr").setLevel(min(level, logging.INFO))  # stderr of the programs that sessions run
    _log_what_nobody_catches()
    # When a TLS connection ends, asyncio warns that "returning true from eof_received() has no effect".
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    # nats-py logs a traceback even for what it recovers from; our connection logs one line.
    logging.getLogger("nats").setLevel(logging.CRITICAL)


def _log_what_nobody_catches() -> None:
    """Python prints such errors as they are, whatever is in their text."""

    def log(sentence: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        logging.getLogger("jido_nats").critical(sentence, exc_info=(kind, error or kind(), trace))

    sys.excepthook = lambda kind, error, trace: log("an error was not caught", kind, error, trace)
    threading.excepthook = lambda args: log(
        "an error in a thread was not caught", args.exc_type, args.exc_value, args.exc_traceback
    )
    sys.unraisablehook = lambda args: log(
        f"an error was ignored: {args.err_msg or 'in a finalizer'}", args.exc_type, args.exc_value, args.exc_traceback
    )
    logging.captureWarnings(capture=True)
