"""Read events, output and the state of every session and manager."""

import asyncio
from datetime import UTC, datetime
from typing import assert_never

from jido_nats import (
    Client,
    ConversationAdded,
    Event,
    EventMessage,
    EventStream,
    ManagerLease,
    Output,
    OutputMessage,
    PositionUnavailable,
    SessionChanged,
    SessionCreated,
    SessionOutput,
    SessionStatus,
    SessionTerminated,
    SnapshotComplete,
    Status,
    UnknownEvent,
    Watched,
    WatchedSession,
)


def describe(event: Event) -> str:
    match event:
        case SessionCreated():
            return f"created with {event.metadata}"
        case SessionStatus():
            return f"{event.previous_status} → {event.status}"
        case SessionTerminated():
            return event.reason
        case UnknownEvent():
            return f"something new: {event.event_type}"
        case _:
            assert_never(event)


def print_event(message: EventMessage) -> None:
    print(message.sequence, message.subject, len(message.data), describe(message.event))


async def print_all(stream: EventStream) -> None:
    async for message in stream:
        print_event(message)


async def read_all(client: Client) -> None:
    try:
        async with client.events(since="all", durable="reader") as events:
            await print_all(events)
    except PositionUnavailable as error:
        print(error.wanted, error.first, error.last)


async def read_one(client: Client, session_id: str) -> Status | None:
    last: Status | None = None
    async with client.events(session_id=session_id, since=datetime.now(UTC)) as events:
        async for message in events:
            last = message.event.status
            print_event(message)
            if last is Status.TERMINATED:
                break
    async with client.events(session_id=session_id, since=1) as events:
        await print_all(events)
        statuses: list[Status] = [message.event.status async for message in events.stored()]
    return statuses[-1] if statuses else last


async def read_some(client: Client, session_id: str | None) -> None:
    async with client.events(session_id=session_id) as events, client.listen("jido.client.events", print_event):
        async for message in events:
            event: Event = message.event
            print(event.session_id, events.caught_up)


def text_of(output: Output) -> str:
    match output:
        case SessionOutput():
            return output.name
        case ConversationAdded():
            return output.role


def print_output(message: OutputMessage) -> None:
    print(message.sequence, text_of(message.output))


async def read_output(client: Client) -> None:
    async with client.output(session_id="s1") as output, client.listen_output(None, print_output):
        async for message in output:
            print_output(message)


def position_of(change: Watched) -> int | None:
    match change:
        case WatchedSession():
            return None
        case SnapshotComplete() | SessionChanged():
            return change.position


async def watch(client: Client, status: Status | str) -> None:
    async with client.watch_sessions(status=status, include_terminated=True) as sessions:
        async for change in sessions:
            print(position_of(change))
    async with client.watch_managers() as managers:
        async for manager_id, lease in managers:
            print(manager_id, None if lease is None else valid_for(lease))


def valid_for(lease: ManagerLease) -> str:
    return f"{lease.info.host}: {lease.lease_s} s from {lease.renewed_at:%X}"


async def main() -> None:
    async with Client.connect() as client:
        await asyncio.gather(read_all(client), read_one(client, "s1"), read_some(client, None), watch(client, "idle"))


if __name__ == "__main__":
    asyncio.run(main())
