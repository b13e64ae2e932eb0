"""What a manager that stops reports: how many of its sessions are left, at once and then now and then."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sized
from typing import Final

REPORT_EVERY_S: Final = 5.0

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def reported(doing: str, sessions: Sized, until: str, *, level: int = logging.WARNING) -> AsyncIterator[None]:
    """Log "<doing> 239 sessions, <until>", and what is left of them every `REPORT_EVERY_S`, until the block ends.

    `level`: of the first line; what takes long enough for another one is a warning.
    """
    if not len(sessions):
        yield
        return
    log.log(level, "%s %d sessions, %s", doing, len(sessions), until)
    reporting = asyncio.create_task(_report(doing, sessions), name=f"{doing}: report")
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)


async def _report(doing: str, sessions: Sized) -> None:
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        log.warning("%s: %d sessions are left", doing, len(sessions))
