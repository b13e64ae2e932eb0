"""The worker under test: it adds up the numbers that it is sent."""

from jido_nats import Session


async def adder(session: Session) -> None:
    """Say the sum after every number, until "done"; anything else crashes the session."""
    total = 0
    try:
        async for message in session.messages():
            if message.content == "done":
                return
            if not isinstance(message.content, int):
                raise ValueError(f"not a number: {message.content!r}")
            total += message.content
            await session.say(total)
    finally:
        await session.emit("total", total)  # also when it is terminated: that cancels the worker
