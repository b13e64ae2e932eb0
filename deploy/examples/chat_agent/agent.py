"""A streaming chat agent, the worker of a session: `jido-nats up --worker agent:agent`."""

from collections.abc import Sequence
from contextlib import aclosing

from jido_nats import ConversationAdded, Session

from model import Turn, stream_reply


async def agent(session: Session) -> None:
    """Answer every message, until the session is terminated; after a crash, go on with the same conversation."""
    state = session.state or {"turns": [], "said": 0}  # of the last checkpoint
    conversation = [Turn(*turn) for turn in state["turns"]]
    said = state["said"]  # the number of the last answer
    async for message in session.messages():  # first what an earlier attempt has not handled
        conversation.append(Turn("user", str(message.content)))
        found = await said_after(session, said) if message.redelivered else None
        if found is not None:
            answer, said = str(found.content), found.number
        else:
            answer = await stream(session, conversation)
            said = await session.say(answer)  # kept
            await session.flush()  # stored before the next answer begins
        conversation.append(Turn("assistant", answer))
        turns = [[turn.role, turn.text] for turn in conversation]
        await session.checkpoint({"turns": turns, "said": said}, handled=message)  # both or none


async def said_after(session: Session, number: int) -> ConversationAdded | None:
    """The answer that an earlier attempt has said before it failed, without a checkpoint; None if there is none."""
    await session.flush()  # it may be on its way
    answers = [added for added in await session.conversation() if added.role == "assistant" and added.number > number]
    return answers[-1] if answers else None


async def stream(session: Session, conversation: Sequence[Turn]) -> str:
    """Emit the model's tokens as they come; return the whole answer."""
    tokens: list[str] = []
    async with aclosing(stream_reply(conversation)) as reply:  # terminated halfway: the model's connection is closed
        async for token in reply:
            await session.emit("token", token, ephemeral=True)  # published live, not kept
            tokens.append(token)
    return "".join(tokens).strip()
