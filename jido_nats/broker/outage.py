"""Why connections are down, once for all of them: a manager has several, which fail together and for one reason."""

import logging
import threading
from typing import Final

log: Final = logging.getLogger(__name__)


class Outage:
    """The reasons why connections of one program cannot reconnect; shared by its connections, also across threads.

    A reason is logged when the first of them meets it, and again only after none of them has had it any more.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def failed(self, connection: str, why: str, *, level: int) -> None:
        """A reconnect has failed."""
        with self._lock:
            is_known = why in self._reasons.values()
            self._reasons[connection] = why
        if not is_known:
            log.log(level, "cannot reconnect, still trying", extra={"connection": connection, "error": why})

    def over(self, connection: str) -> bool:
        """The connection is up, or closed; whether it was the last of those that could not reconnect."""
        with self._lock:
            return self._reasons.pop(connection, None) is not None and not self._reasons

    def why(self, connection: str) -> str:
        """Why its last attempt failed, or an empty string."""
        return self._reasons.get(connection, "")
