"""The workers of `deploy/docs/workers.md` with a restart policy: killed, they lose nothing and repeat nothing."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from jido_nats import Cause, Client, LocalServer, RestartPolicy, SessionRecord, Status
from tests.tools.children.kin import kin_of, new_id
from tests.tools.pages import block, page, section
from tests.tools.programs import running
from tests.tools.support import Stranger, eventually, nothing
from tests.worker.test_programs import said

ON_CRASH: Final = RestartPolicy(on=(Cause.CRASHED,), attempts_max=0, backoff_s=0.05)


class Documented(NamedTuple):
    """A worker of the page: where it is saved, in which language, how that code begins, and how it is served."""

    file: str
    language: str
    first: str
    serve: tuple[str, ...]


PYTHON: Final = Documented("words.py", "python", "import asyncio\nfrom pathlib", ("--worker", "words:agent"))
ISOLATED: Final = PYTHON._replace(serve=(*PYTHON.serve, "--isolation", "process"))
SHELL: Final = Documented("words.sh", "sh", "#!/bin/sh\n# Adds", ("--exec", "sh words.sh"))
NODE: Final = Documented("words.mjs", "js", "#!/usr/bin/env node\n// Adds", ("--exec", "node words.mjs"))
SHELL_AGENT: Final = Documented("agent.sh", "sh", "#!/bin/sh\nread", ("--exec", "sh agent.sh"))
NODE_AGENT: Final = Documented(
    "agent.mjs", "js", "#!/usr/bin/env node\nimport", ("--exec", "node agent.mjs", "--wait-ready")
)


@asynccontextmanager
async def served(server: LocalServer, worker: Documented, folder: Path) -> AsyncIterator[Client]:
    """A client of a manager with that worker, saved in the folder."""
    (folder / worker.file).write_text(block(page("workers"), worker.language, worker.first))
    async with running("serve", "--server", server.url, *worker.serve, cwd=folder) as manager:
        await manager.said(" serves on ")
        async with Client.connect(server.url) as client:
            yield client


async def kill(session_id: str) -> None:
    """`kill -9` for the session's program and everything that it runs; returns when nothing of it is left."""
    killed = await eventually(lambda: kin_of(session_id))
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await nothing(lambda: set(killed) & set(kin_of(session_id)))


def writer_of(pipe: Path) -> int | None:
    """The end of a named pipe for writing, if somebody reads it: in the middle of a message, here."""
    with contextlib.suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    return None


async def journal(stranger: Stranger, of: str) -> list[dict[str, Any]]:
    """The entries of that type in the journal of the only session, with their sequences."""
    entries = [msgspec.json.decode(message.data) for message in await stranger.stored("JIDO_JOURNAL")]
    numbered = [{**entry, "sequence": sequence} for sequence, entry in enumerate(entries, 1)]
    return [entry for entry in numbered if entry["type"] == of]


async def final_state(stranger: Stranger, messages: int) -> Any:
    """The state of the last checkpoint, once all the messages are handled."""

    async def last() -> list[Any]:
        accepted, checkpoints = await journal(stranger, "message"), await journal(stranger, "checkpoint")
        is_done = len(accepted) == messages and checkpoints and checkpoints[-1]["handled"] == accepted[-1]["sequence"]
        return [checkpoints[-1]["state"]] if is_done else []

    (state,) = await eventually(last)
    return state


@pytest.mark.parametrize("worker", [ISOLATED, SHELL, NODE], ids=lambda worker: worker.file)
async def test_a_worker_that_is_killed_in_the_middle_counts_each_message_once(
    server: LocalServer, stranger: Stranger, tmp_path: Path, worker: Documented
) -> None:
    session_id = new_id()
    for name, words in (("one", 1), ("ten", 10)):
        (tmp_path / name).write_text("word " * words)
    os.mkfifo(pipe := tmp_path / "hundred")

    async with served(server, worker, tmp_path) as client:
        await client.create_session(session_id=session_id, restart=ON_CRASH)
        for name in ("one", "hundred", "ten"):
            await client.send_message(session_id, "user", str(tmp_path / name))
        for attempt in (1, 2):
            reading = await eventually(lambda: writer_of(pipe))
            await kill(session_id)
            os.close(reading)
            await eventually(partial(is_past, client, session_id, attempt))
        reading = await eventually(lambda: writer_of(pipe))
        os.write(reading, b"word " * 100)
        os.close(reading)

        assert await final_state(stranger, 3) == 111  # a digit for each message

        record = await client.get_session_info(session_id)
    assert (record.status, record.attempt) == ("active", 3)
    outputs = await said(stranger, session_id)
    assert [output["total"] for output in outputs if isinstance(output, dict)] == [1, 1]  # each began with the first
    again = [output for output in outputs if isinstance(output, str)]  # a path, or the message's id
    assert (len(again), len(set(again))) == (3, 2)  # that in whose middle it was killed twice, the next once


@pytest.mark.parametrize(
    "worker", [PYTHON, ISOLATED, SHELL, NODE], ids=lambda worker: f"{worker.file}-{worker.serve[-1]}"
)
async def test_a_worker_that_fails_counts_each_message_once(
    server: LocalServer, stranger: Stranger, tmp_path: Path, worker: Documented
) -> None:
    session_id = new_id()
    for name, words in (("one", 1), ("ten", 10)):
        (tmp_path / name).write_text("word " * words)

    async with served(server, worker, tmp_path) as client:
        await client.create_session(session_id=session_id, restart=ON_CRASH)
        for name in ("one", "missing", "ten"):
            await client.send_message(session_id, "user", str(tmp_path / name))
        await eventually(lambda: is_past(client, session_id, 1))
        (tmp_path / "missing").write_text("word " * 100)

        assert await final_state(stranger, 3) == 111


async def is_past(client: Client, session_id: str, attempt: int) -> bool:
    """Whether that attempt is over, and nothing of it runs any more; prints the record for one that is not."""
    record = await client.get_session_info(session_id)
    print(record)
    return (record.attempt or 1) > attempt


@pytest.mark.parametrize("worker", [SHELL_AGENT, NODE_AGENT], ids=lambda worker: worker.file)
async def test_the_other_programs_of_the_page_do_nothing_twice(
    server: LocalServer, stranger: Stranger, tmp_path: Path, worker: Documented
) -> None:
    session_id = new_id()

    async with served(server, worker, tmp_path) as client:
        await client.create_session(session_id=session_id, restart=ON_CRASH)
        await client.send_message(session_id, "user", "hello")
        await eventually(lambda: journal(stranger, "checkpoint"))
        await kill(session_id)
        await eventually(lambda: is_past(client, session_id, 1))
        for content in ("hello again", "bye"):
            await client.send_message(session_id, "user", content)
        record = await client.wait(session_id, Status.TERMINATED)

    assert (record.reason, record.attempt) == ("completed", 2)
    assert len([output for output in await said(stranger, session_id) if output is not None]) == 3  # messages


async def test_the_page_s_policy_restarts_a_worker(server: LocalServer, stranger: Stranger, tmp_path: Path) -> None:
    (tmp_path / "create.py").write_text(
        block(section(page("workers"), "## Workers that are restarted"), "python", "import asyncio\nimport sys")
    )
    session_id = new_id()

    async with served(server, SHELL, tmp_path) as client:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(tmp_path / "create.py"), server.url, session_id
        )
        assert await process.wait() == 0
        await kill(session_id)
        record = await eventually(lambda: second_attempt(client, session_id))

    assert record.restart == RestartPolicy(on=(Cause.CRASHED,), attempts_max=5, backoff_s=1)


async def second_attempt(client: Client, session_id: str) -> SessionRecord | None:
    """The record, once the second attempt is active."""
    record = await client.get_session_info(session_id)
    return record if (record.status, record.attempt) == (Status.ACTIVE, 2) else None
