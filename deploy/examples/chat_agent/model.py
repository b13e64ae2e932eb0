"""The model of the chat agent. THE MODEL CALL GOES HERE: replace the body of `stream_reply` with yours."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple

TOKEN_DELAY_S: Final = 0.05


class Turn(NamedTuple):
    """One message of a conversation; `role` is "user" or "assistant"."""

    role: str
    text: str


async def stream_reply(conversation: Sequence[Turn]) -> AsyncGenerator[str, None]:
    """The reply to the last turn, token by token, as the model produces it.

    An exception that is raised here is a crash: the agent is restarted, and gets the same message again. The third
    one in a row ends the session: `terminated`, with the reason `crashed` and the error.
    """
    questions = [turn.text for turn in conversation if turn.role == "user"]
    reply = f"Message {len(questions)} has {len(questions[-1].split())} words: {questions[-1]}"
    for token in reply.split(" "):
        await asyncio.sleep(TOKEN_DELAY_S)  # a real model takes its time as well
        yield f"{token} "
