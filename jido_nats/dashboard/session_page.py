"""Everything about one session: its record, and its events in the stream."""

from typing import Any

from jido_nats.client.client import Client
from jido_nats.core.events import Event, SessionStatus, UnknownEvent
from jido_nats.core.lifecycle import ended_event
from jido_nats.core.session import SessionRecord, Status
from jido_nats.dashboard.state import DashboardState
from jido_nats.errors import NotFound, Unavailable


async def describe_session(client: Client, state: DashboardState, session_id: str) -> dict[str, Any]:
    """`{"record"?, "history"}`, also without a manager. Raises `NotFound` if there is neither."""
    record = state.sessions.get(session_id) or await _record(client, session_id)
    history = await _history(client, session_id)
    if record is None and not history:
        raise NotFound("no such session: there is no record, and no event of it in the stream", session_id=session_id)
    return {"record": record, "history": history}


async def _record(client: Client, session_id: str) -> SessionRecord | None:
    try:
        return await client.get_session_info(session_id)
    except (NotFound, Unavailable):
        return None


async def _history(client: Client, session_id: str) -> list[Event]:
    try:
        return await client.session_history(session_id)
    except NotFound:
        return []
    except Unavailable:
        return await _replayed(client, session_id)


async def _replayed(client: Client, session_id: str) -> list[Event]:
    """If no manager answers: the events on the session's own subject, which are all except its creation."""
    found: list[Event] = []
    async with client.events(session_id=session_id, since="all") as events:
        async for message in events.stored():
            event = message.event
            if isinstance(event, UnknownEvent):
                continue
            found.append(event)
            if isinstance(event, SessionStatus) and event.status is Status.TERMINATED:
                found.append(ended_event(event))
    return found
