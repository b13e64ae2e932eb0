"""Chat with the agent: each argument is a message. `python chat.py "hello there" "and goodbye"`"""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from jido_nats import (
    Cause,
    Client,
    ConversationAdded,
    JidoError,
    OutputMessage,
    RestartPolicy,
    SessionOutput,
    Status,
)

# The agent goes on after a crash, but not after three in a row.
POLICY: Final = RestartPolicy(on=(Cause.CRASHED,), attempts_max=3, backoff_s=1)
NATS_URL: Final = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")


class SessionEnded(Exception):
    """The session ended before it answered."""


async def chat(lines: Sequence[str]) -> None:
    """Send the lines to a new session, one after the other; terminate it in the end."""
    async with Client.connect(NATS_URL) as client:
        record = await client.create_session(metadata={"example": "chat_agent"}, restart=POLICY)
        session_id = record.session_id
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(raise_when_ended(client, session_id))
                for line in lines:
                    print(f"you:    {line}\ntokens: ", end="", flush=True)
                    print(f"\nanswer: {await ask(client, session_id, line)}")
                watch.cancel()
        finally:
            await client.terminate_session(session_id)


async def ask(client: Client, session_id: str, line: str) -> str:
    """Send a message; print the tokens of the answer as they come, and return it as it is kept."""
    async with client.listen_output(session_id, print_token), client.output(session_id=session_id) as outputs:
        await client.send_message(session_id, "user", line)
        while True:
            output = (await anext(outputs)).output
            if isinstance(output, ConversationAdded) and output.role == "assistant":
                return str(output.content)


def print_token(message: OutputMessage) -> None:
    """Print what is a token."""
    if isinstance(message.output, SessionOutput) and message.output.name == "token":
        print(message.output.data, end="", flush=True)


async def raise_when_ended(client: Client, session_id: str) -> None:
    """Wait for the session's end, which is one that nobody here asked for."""
    record = await client.wait(session_id, Status.TERMINATED)
    raise SessionEnded(f"the session has ended: {record.reason}, {record.error}")


def main() -> int:
    """The exit code."""
    code = 0
    try:
        asyncio.run(chat(sys.argv[1:]))
    except* (JidoError, SessionEnded) as failure:
        code = 1
        print(*failure.exceptions, sep="\n", file=sys.stderr)
    except* KeyboardInterrupt:
        code = 130
    return code


if __name__ == "__main__":
    sys.exit(main())
