"""A demonstration in a few seconds: a server, a manager, four sessions; all events received live, then replayed."""

import asyncio
import contextlib
import logging
from collections import Counter
from pathlib import Path

from jido_nats.broker.local_server import LocalServer
from jido_nats.cli.printer import Printer
from jido_nats.client.client import Client
from jido_nats.client.streams import EventMessage
from jido_nats.core import subjects
from jido_nats.core.session import Status
from jido_nats.core.settings import Settings
from jido_nats.manager.manager import SessionManager
from jido_nats.worker import crash
from jido_nats.worker.program import Program
from jido_nats.worker.session import Session

LEASE_S = 2
HEAR_TIMEOUT_S = 5.0
STEP_S = 0.3

# A program, as `serve --exec` runs it: it reads its session and one message, answers, and exits.
SCRIPT = """
read -r session
read -r message
echo '{"type":"output","name":"progress","data":{"percent":50}}'
echo '{"type":"say","content":"a shell script answers"}'
"""
OUTPUTS = 3
PROGRAM = Program(["sh", "-c", SCRIPT])


async def agent(session: Session) -> None:
    """The demo's worker: the session's metadata says what it does."""
    match session.metadata["task"]:
        case "write a haiku":
            await asyncio.sleep(2 * STEP_S)
        case "wait for work":
            await asyncio.sleep(STEP_S)
            await session.idle()
            await asyncio.Event().wait()
        case "divide by zero":
            await asyncio.sleep(STEP_S)
            raise ZeroDivisionError("division by zero")
        case "run a shell script":
            await PROGRAM(session)


async def run(printer: Printer, binary: Path | None) -> bool:
    """Run the demo; whether the replay is identical to what was received live."""
    logging.getLogger(crash.__name__).setLevel(logging.CRITICAL)  # one of its workers crashes, on purpose
    async with LocalServer(binary=binary) as server:
        printer.note(f"A local nats-server listens on {server.url}.", "bold")
        settings = Settings(lease_s=LEASE_S)
        async with (
            Client.connect(server.url) as client,
            SessionManager.connect(server.url, worker=agent, settings=settings) as manager,
        ):
            await manager.start_serving()
            heard = await _play(printer, client)
            printer.note("\nA durable consumer replays all of it from the stream:", "bold")
            replayed = await _replay(client, heard)
            kept = await _replay_output(printer, client)
            return _compare(printer, heard, replayed) and kept


async def _play(printer: Printer, client: Client) -> list[EventMessage]:
    """Run the sessions; what core NATS subscribers received, in order."""
    heard: list[EventMessage] = []

    def on_event(message: EventMessage) -> None:
        heard.append(message)
        printer.event(message, subject=True)

    tasks = {
        "completes": "write a haiku",
        "terminated": "wait for work",
        "crashes": "divide by zero",
        "a-program": "run a shell script",
    }
    async with contextlib.AsyncExitStack() as stack:
        for subject in (subjects.EVENTS, *(subjects.session(name) for name in tasks)):
            await stack.enter_async_context(client.listen(subject, on_event))
        await stack.enter_async_context(client.listen_output(None, printer.output))
        printer.note("A manager runs four sessions; core NATS subscribers receive every event:", "bold")
        for session_id, task in tasks.items():
            await client.create_session(session_id=session_id, metadata={"task": task})
        await client.send_message("a-program", "user", "are you there?")
        await client.wait("terminated", Status.IDLE, timeout_s=HEAR_TIMEOUT_S)
        await client.terminate_session("terminated", detail="the demo is over")
        for session_id in tasks:
            await client.wait(session_id, Status.TERMINATED, timeout_s=HEAR_TIMEOUT_S)
        await _all_heard(heard, tasks)
    return heard


async def _all_heard(heard: list[EventMessage], tasks: dict[str, str]) -> None:
    """Wait until the last copy of each session's end has arrived."""
    ends = {subjects.session(session_id) for session_id in tasks}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HEAR_TIMEOUT_S
    while not ends <= {m.subject for m in heard if getattr(m.event, "status", None) is Status.TERMINATED}:
        if loop.time() > deadline:
            return  # the comparison will show what is missing
        await asyncio.sleep(0.01)


async def _replay(client: Client, heard: list[EventMessage]) -> list[EventMessage]:
    replayed: list[EventMessage] = []
    for session_id in [None, *sorted({m.event.session_id for m in heard})]:
        durable = f"demo-{session_id or 'all'}"
        async with client.events(session_id=session_id, since="all", durable=durable) as events:
            replayed += [message async for message in events.stored()]
            await events.acknowledge()
    return replayed


async def _replay_output(printer: Printer, client: Client) -> bool:
    """Whether the program's output and conversation are stored."""
    async with client.output(session_id="a-program", since="all") as output:
        kept = len([message async for message in output.stored()])
    printer.note(f"  {subjects.output('a-program')}: {kept} stored")
    return kept == OUTPUTS


def _compare(printer: Printer, heard: list[EventMessage], replayed: list[EventMessage]) -> bool:
    """The same messages on the same subjects, and on each subject in the same order."""
    same = True
    for subject in sorted({m.subject for m in heard + replayed}):
        live = [m.data for m in heard if m.subject == subject]
        stored = [m.data for m in replayed if m.subject == subject]
        same = same and live == stored
        verdict = "identical" if live == stored else "DIFFERENT"
        printer.note(f"  {subject}: {len(live)} received, {len(stored)} replayed, {verdict}")
    kinds = Counter(type(m.event).__name__ for m in replayed)
    printer.note(f"  {', '.join(f'{number} {kind}' for kind, number in sorted(kinds.items()))}")
    if same:
        printer.note("The replay is identical to what was received live, byte for byte.", "bold green")
    else:
        printer.note("The replay differs from what was received live.", "bold red")
    return same
