"""The trace of the current task, as a W3C Trace Context `traceparent`.

A command's header sets it and tasks inherit it, so everything that the command causes has it, its worker included.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

HEADER: Final = "traceparent"
CURRENT: Final[ContextVar[str | None]] = ContextVar("jido_traceparent", default=None)

# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags
_TRACEPARENT: Final = re.compile(r"\A(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")


def traceparent_in(headers: Mapping[str, str]) -> str | None:
    """The `traceparent` in a message's headers; None if it is absent or invalid (invalid ones are ignored)."""
    found = next((value for name, value in headers.items() if name.lower() == HEADER), "")
    return found if _TRACEPARENT.match(found) else None


def headers(traceparent: str | None) -> dict[str, str]:
    """The headers that carry it; empty without one."""
    return {HEADER: traceparent} if traceparent else {}
