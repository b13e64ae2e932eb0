"""Workers for programs that are started with `--worker tests.tools.workers:NAME`."""

import asyncio
import os
import subprocess

from jido_nats import Session

NO_WORKER = "not to be called"


async def completes(session: Session) -> None:
    """Returns at once."""


async def crashes(session: Session) -> None:
    """Fails at once."""
    raise RuntimeError("boom")


async def exits(session: Session) -> None:
    """Ends its process."""
    os._exit(3)


async def runs_a_command(session: Session) -> None:
    """Emits the exit code of a command."""
    await session.emit("exit code", subprocess.run(["sh", "-c", "exit 3"], check=False).returncode)


async def never_stops(session: Session) -> None:
    """Swallows every cancellation."""
    while True:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue


async def gets_ready(session: Session) -> None:
    """Is ready, and waits."""
    await session.ready()
    await asyncio.Event().wait()


async def remembers(session: Session) -> None:
    """Keeps all messages in its state, one checkpoint for each; crashes once at a message `crash`."""
    state = session.state or []
    async for message in session.messages():
        if message.content == "crash" and not message.redelivered:
            raise RuntimeError("boom")
        state.append(message.content)
        await session.checkpoint(state, handled=message)
