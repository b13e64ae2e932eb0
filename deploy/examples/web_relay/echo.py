"""A worker to try the relay with: it streams back what it is sent, word by word."""

import asyncio

from jido_nats import Session


async def agent(session: Session) -> None:
    """Answer every message, until the session is terminated."""
    async for message in session.messages():
        answer = f"you said {message.content}"
        for word in answer.split(" "):
            await asyncio.sleep(0.1)
            await session.emit("token", f"{word} ", ephemeral=True)
        await session.say(answer)
        await session.flush()
