"""A streaming chat agent, the worker of a session: `jido-nats up --worker agent:agent`."""

from collections.abc import Sequence
from contextlib import aclosing

from jido_nats import Session

from model import Turn, stream_reply


async def agent(session: Session) -> None:
    """Answer every message, until the session is terminated."""
    conversation: list[Turn] = []
    async for message in session.messages():
        conversation.append(Turn("user", str(message.content)))
        answer = await stream(session, conversation)
        conversation.append(Turn("assistant", answer))
        await session.say(answer)  # kept
        await session.flush()  # stored before the next answer begins


async def stream(session: Session, conversation: Sequence[Turn]) -> str:
    """Emit the model's tokens as they come; return the whole answer."""
    tokens: list[str] = []
    async with aclosing(stream_reply(conversation)) as reply:  # terminated halfway: the model's connection is closed
        async for token in reply:
            await session.emit("token", token, ephemeral=True)  # published live, not kept
            tokens.append(token)
    return "".join(tokens).strip()
