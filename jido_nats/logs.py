"""How the programs log: a sentence a line on stderr, with its data behind it."""

import logging
import sys
from typing import Final

# Attributes that every log record has; the others are the data of `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """`12:00:00 WARNING connection lost, reconnecting connection=jido-nats client`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        data = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        return super().formatMessage(record) + data


def configure(level: int) -> None:
    """Log to stderr from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("jido_nats.stderr").setLevel(min(level, logging.INFO))  # what programs of sessions say
    # nats-py reports what it recovers from with tracebacks; our connection says the same in a line.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
