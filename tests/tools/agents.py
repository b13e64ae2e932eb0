"""Workers for managers that run as processes in tests: what each does is in the session's metadata."""

import asyncio
import random
import threading

from jido_nats import InvalidTransition, Session


async def chaotic(session: Session) -> None:
    """A short random life, drawn from the session's id: steps, then it completes, crashes or waits to be ended."""
    if session.metadata.get("task") == "wait":
        await asyncio.Event().wait()
    dice = random.Random(session.session_id)
    for _ in range(dice.randrange(4)):
        await asyncio.sleep(dice.random())
        try:
            await (session.idle() if dice.random() < 0.5 else session.activate())
        except InvalidTransition:
            continue  # a command was there first
    match dice.randrange(4):
        case 0:
            return
        case 1:
            raise RuntimeError("chaos")
        case _:
            await asyncio.Event().wait()


async def waiting(session: Session) -> None:
    """Waits to be ended."""
    await asyncio.Event().wait()


async def blocking(session: Session) -> None:
    """Blocks its manager's event loop for three seconds, as a badly written worker does."""
    await asyncio.sleep(0.1)  # the create is answered first
    threading.Event().wait(3)
    await asyncio.Event().wait()
