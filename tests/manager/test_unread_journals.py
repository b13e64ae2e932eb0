"""An attempt whose journal cannot be read yet: it waits for NATS, and no session is left without a worker."""

import asyncio

import pytest

from jido_nats import Cause, LocalServer, RestartPolicy, Session, SessionManager, Status
from jido_nats.core.journal import Stored
from jido_nats.manager import journal
from jido_nats.store.journal_log import JournalLog
from tests.conftest import StartManager
from tests.tools.support import Stranger, eventually

ON_CRASH = RestartPolicy(on=(Cause.CRASHED,), backoff_s=2)


async def fails_once(session: Session) -> None:
    """Its first attempt crashes at the first message."""
    await session.messages()
    if session.attempt == 1:
        raise RuntimeError("boom")
    await asyncio.Event().wait()


async def is_told(stranger: Stranger) -> bool:
    """Whether it is published that the second attempt begins."""
    return bool((await stranger.stored_events("jido.client.session.s1"))[-1]["status"] == "initializing")


async def is_active(manager: SessionManager) -> bool:
    """Whether the second attempt of `s1` runs."""
    record = await manager.get_session_info("s1")
    return (record.status, record.attempt) == (Status.ACTIVE, 2)


async def test_an_attempt_waits_until_the_server_is_back(
    server: LocalServer,
    stranger: Stranger,
    start_manager: StartManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(journal, "READ_MAX_S", 0.1)
    manager = await start_manager(fails_once, lease_s=3600)
    await manager.create_session(session_id="s1", restart=ON_CRASH)
    await manager.send_message("s1", "user", "hello")
    await eventually(lambda: is_told(stranger))

    await server.kill()
    await eventually(lambda: "a journal cannot be read; the attempt waits" in caplog.messages)
    await server.start()

    await eventually(lambda: is_active(manager))


async def test_a_first_attempt_that_cannot_read_its_journal_has_not_started(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(log: JournalLog, session_id: str) -> list[Stored]:
        await asyncio.Event().wait()
        return []

    await start_manager(fails_once)
    monkeypatch.setattr(journal, "READ_MAX_S", 0.1)
    monkeypatch.setattr(JournalLog, "read", never)

    answer = await stranger.create("s1", restart={"on": ["crashed"]})

    assert answer["error"]["code"] == "start_failed"
    record = await stranger.ends("s1")
    assert (record["reason"], record["error"]) == ("start_failed", "the journal could not be read in time; ask again")
