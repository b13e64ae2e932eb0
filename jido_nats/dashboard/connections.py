"""Connections of browsers, which one slow or silent client must not use up.

uvicorn closes a connection that is idle between two requests, and answers 503 beyond `limit_concurrency`
connections. It waits without end for the first request, for the rest of one, and for a client that does not read;
and connections that wait count, so that a client that opens enough of them locks out all others. Therefore

* a connection is aborted if for `STALL_TIMEOUT_S` its client neither completes a request nor reads what is for it;
* at most half of the connections may be waiting: one more, and the one that has waited longest is aborted. A browser
  sends its request at once, so that is never one of a browser. A limit for each peer would not do: behind a proxy
  all browsers are one peer.
"""

import asyncio
import logging
from typing import Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

# With half as many more that wait, fewer than the 1,024 files that a process may usually have open.
CONNECTIONS_MAX: Final = 600
# asyncio accepts so many at once, before it hands over the first, and they have to fit into those 1,024 as well.
BACKLOG: Final = 256
STALL_TIMEOUT_S: Final = 20.0
LOOK_S: Final = 1.0

log = logging.getLogger(__name__)


class BoundedConnection(H11Protocol):
    """One connection; `uvicorn.Config(limit_concurrency=…)` is required."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; makes room for it."""
        super().connection_made(transport)
        self._progress_at = self.loop.time()
        self._unsent = 0
        self._looking = self.loop.call_later(LOOK_S, self._look)
        assert self.limit_concurrency is not None
        waiting = [each for each in cast("set[BoundedConnection]", self.connections) if each.is_waiting]
        if len(waiting) > self.limit_concurrency // 2:
            min(waiting, key=lambda each: each._progress_at)._abort("too many connections without a request")

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._looking.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._progress_at = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        """The client has read."""
        self._progress_at = self.loop.time()
        super().resume_writing()

    @property
    def is_waiting(self) -> bool:
        """Whether it is open for a request, or for the rest of one."""
        return not self.is_served and not self.transport.is_closing()

    @property
    def is_served(self) -> bool:
        """Whether a whole request is being answered."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _look(self) -> None:
        """Abort the connection if its client has made no progress for too long."""
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or (self.is_served and not self.flow.write_paused):
            self._progress_at = self.loop.time()
        self._unsent = unsent
        if self.loop.time() - self._progress_at > STALL_TIMEOUT_S:
            self._abort("no whole request, or nothing read, in time")
        else:
            self._looking = self.loop.call_later(LOOK_S, self._look)

    def _abort(self, why: str) -> None:
        log.debug("a connection is closed", extra={"peer": self.client, "why": why})
        self.transport.abort()
