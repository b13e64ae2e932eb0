"""What the dashboard is shown with: workers that lead different lives."""

import asyncio
import random
from typing import Any

from jido_nats import Session

MODELS = ("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-1")
PROJECTS = ("atlas", "billing", "crawler", "docs", "evals", "support")
TASKS = ("answer a question", "review a change", "summarise a thread", "translate a page", "triage an issue")


async def agent(session: Session) -> None:
    """Says hello, answers what it is told, and ends or fails where its metadata or a message says so."""
    await session.ready()
    match session.metadata.get("ends"):
        case "completed":
            return
        case "crashed":
            raise TimeoutError("the model did not answer within 30 s (attempt 3 of 3)")
        case "never":
            await _stay()
    await session.emit("plan", {"steps": ["read", "draft", "check"], "budget_tokens": 12000})
    await session.say("I am ready. What shall I do?")
    async for message in session.messages():
        if message.content == "crash" and not message.redelivered:
            raise RuntimeError("boom")
        await session.emit("thinking", {"about": message.content}, ephemeral=True)
        await session.emit("tool", {"name": "search", "query": message.content, "results": 3})
        await session.say(f"You said: {message.content}")


async def _stay() -> None:
    """Ignores the first cancellation, as a worker that hangs in a library does."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


def metadata(dice: random.Random) -> dict[str, Any]:
    """Metadata as real ones look."""
    return {
        "project": dice.choice(PROJECTS),
        "task": dice.choice(TASKS),
        "user": f"u{dice.randrange(1000, 9999)}",
        "model": dice.choice(MODELS),
    }
