"""The places of the write path where a test can make the process die or freeze; in production nothing happens there.

Tests hand in their own (`SessionManager.failpoints`); `reach` is the only thing that is called.
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
)


class Failpoints:
    """Failpoints that do nothing."""

    def reach(self, place: str) -> None:
        """One of `PLACES` is reached."""
