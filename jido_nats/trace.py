"""The trace that the current task works for: a `traceparent` as W3C Trace Context writes it.

A command's header sets it; tasks inherit it, so what the command causes, and the worker that it starts, have it too.
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
    """The `traceparent` of a message, None where there is none that is valid (which is then ignored)."""
    found = next((value for name, value in headers.items() if name.lower() == HEADER), "")
    return found if _TRACEPARENT.match(found) else None


def headers(traceparent: str | None) -> dict[str, str]:
    """The header that carries it, or none."""
    return {HEADER: traceparent} if traceparent else {}
