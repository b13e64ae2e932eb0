"""Mistakes that both type checkers must report: an ignore that is not needed is an error in both."""

from jido_nats import Client, Session, SessionCreated, SessionManager, SessionStatus, Status


async def a_session_s_events_are_statuses(client: Client) -> None:
    async with client.events(session_id="s1") as events:
        async for message in events:
            created: SessionCreated = message.event  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
            print(created.metadata)


async def not_every_event_is_a_status(client: Client) -> None:
    async with client.events() as events:
        async for message in events:
            status: SessionStatus = message.event  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
            print(status.status)


async def a_status_is_not_a_number(client: Client) -> None:
    await client.list_sessions(status=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.watch_sessions(status=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def options_have_names(client: Client) -> None:
    await client.create_session("s1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def a_record_does_not_change(client: Client) -> None:
    record = await client.get_session_info("s1")
    record.status = Status.IDLE  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def not_a_coroutine(session: Session) -> None:
    print(session.session_id)


manager = SessionManager.connect(worker=not_a_coroutine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
