"""The places in the write path where a test can kill or freeze the process; in production nothing happens there.

Tests set their own `SessionManager.failpoints`; only `reach` is called.
"""

from typing import Final

PLACES: Final = (
    "before commit",
    "committed",
    "before message 1",
    "before message 2",
    "before message 3",
    "published",
    "before seal",
    "sealed",
    "before claim",
    "claimed",
    "looked",
    "before append",
    "appended",
    "journal read",
    "before purge",
)


class Failpoints:
    """Failpoints that do nothing."""

    def reach(self, place: str) -> None:
        """Called at each of `PLACES`."""
