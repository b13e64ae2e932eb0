"""The table of commands: every row has its handler, its method and its permissions, and its columns are true."""

import inspect
import re
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
import pytest

from jido_nats import LocalServer, SessionManager
from jido_nats.api import SessionApi
from jido_nats.broker.local_server import project_config
from jido_nats.core.commands import COMMANDS, About, Admission, Command, Replies, Role, RunsAt
from jido_nats.core.requests import HistoryPage, HistoryReply
from tests.conftest import StartManager
from tests.tools.roles import SECRETS, VARIABLES, Member, member_at
from tests.tools.support import Stranger, eventually

USERS: Final = {Role.CLIENT: "client", Role.OBSERVER: "observer", Role.GUEST: "session-example"}
EXAMPLE: Final = "example"
PAYLOADS: Final = {"send": {"role": "user", "content": "hello"}}
STREAMS: Final = ("JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS")
METHODS: Final = {
    name: method
    for name, method in inspect.getmembers(SessionApi, inspect.iscoroutinefunction)
    if not name.startswith("_")
}
EACH: Final = pytest.mark.parametrize("verb", COMMANDS)


class Sent(Exception):
    """Raised instead of a reply."""


class Recorder(SessionApi):
    """An API that records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, type[Any], type[Any]]] = []

    async def _command(self, verb: str, session_id: str, request: msgspec.Struct, kind: type[Any]) -> Any:
        self.asked.append((verb, type(request), kind))
        raise Sent


# Nothing beside the row, the handler and the method


async def test_every_row_has_a_handler(manager: SessionManager) -> None:
    assert manager._running().by_verb.keys() == COMMANDS.keys()


async def test_every_row_has_a_method_of_the_api() -> None:
    recorder = Recorder()

    for method in METHODS.values():
        required = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
        with pytest.raises(Sent):
            await method(recorder, *["text"] * (len(required) - 1))

    assert sorted(verb for verb, _, _ in recorder.asked) == sorted(COMMANDS)
    assert {verb: (request, reply) for verb, request, reply in recorder.asked} == {
        verb: (command.request, {HistoryReply: HistoryPage}.get(command.reply, command.reply))
        for verb, command in COMMANDS.items()
    }


@EACH
def test_a_subject_ends_with_the_verb_or_with_the_id_of_what_it_is_about(verb: str) -> None:
    command = COMMANDS[verb]

    wanted = [verb] if command.about is About.NOTHING else [verb, "*"]
    assert command.subject.split(".")[2:] == wanted


# The columns, against what a manager does


async def stored(stranger: Stranger) -> list[int]:
    """The last sequences of the streams: they move with every write."""
    return [(await stranger.js.stream_info(stream)).state.last_seq for stream in STREAMS]


async def prepare(stranger: Stranger, command: Command) -> None:
    """Bring the command's session into a status that allows it."""
    if command is not COMMANDS["create"]:
        await stranger.create(EXAMPLE)
    if command is COMMANDS["activate"]:
        await stranger.ask(f"jido.session.idle.{EXAMPLE}")


@EACH
async def test_a_command_writes_unless_it_is_a_read(verb: str, stranger: Stranger, manager: SessionManager) -> None:
    command = COMMANDS[verb]
    await prepare(stranger, command)
    before = await stored(stranger)

    reply = await stranger.request(command.subject_for(EXAMPLE), PAYLOADS.get(verb, b""))
    assert "Nats-Service-Error-Code" not in (reply.headers or {})

    if command.admission in (Admission.READ, Admission.SCAN):
        assert await stored(stranger) == before
    else:
        await eventually(lambda: moved(stranger, before))


async def moved(stranger: Stranger, before: list[int]) -> bool:
    return await stored(stranger) != before


@EACH
async def test_a_command_is_forwarded_if_it_runs_at_the_owner(
    verb: str, stranger: Stranger, start_manager: StartManager
) -> None:
    command, owner = COMMANDS[verb], await start_manager()
    await prepare(stranger, command)
    owner.stats.commands.clear()
    other = await start_manager()

    session_id = "" if command.about is About.NOTHING else EXAMPLE
    await other._command(verb, session_id, msgspec.convert(PAYLOADS.get(verb, {}), command.request), command.reply)

    assert set(owner.stats.commands) == ({verb} if command.runs_at is RunsAt.OWNER else set())


# The permissions of `nats.conf`


async def arrivals(user: str) -> set[str]:
    """The commands of the table that reach a manager when this user sends them."""
    async with LocalServer(secrets=SECRETS, sync_interval="2m") as server, AsyncExitStack() as stack:
        api, member = [await stack.enter_async_context(member_at(server, name)) for name in ("manager-api", user)]
        heard = await api.hear(*(command.subject for command in COMMANDS.values()))
        await send_all(member)
        await api.flush()
        assert not api.refusals
        subjects = {message.subject for message in heard.messages}
        return {verb for verb, command in COMMANDS.items() if command.subject_for(EXAMPLE) in subjects}


async def send_all(member: Member) -> None:
    for command in COMMANDS.values():
        await member.nc.publish(command.subject_for(EXAMPLE), b"", reply=f"_INBOX.{member.user}.x")
    await member.flush()


@pytest.mark.parametrize("role", Role)
async def test_a_role_may_send_the_commands_that_name_it(role: Role) -> None:
    assert await arrivals(USERS[role]) == {verb for verb, command in COMMANDS.items() if role in command.roles}


async def test_an_operator_may_send_every_command() -> None:
    assert await arrivals("operator") == COMMANDS.keys()


@pytest.mark.parametrize("user", sorted(VARIABLES.keys() - USERS.values() - {"operator"}))
async def test_a_user_without_a_role_in_the_table_may_send_no_command(user: str) -> None:
    assert await arrivals(user) == set()


@EACH
def test_an_export_says_whether_a_command_is_answered_with_a_stream(verb: str) -> None:
    exports = dict(re.findall(r'\{ service: "([^"]+)"([^}]*)\}', project_config()))
    command = COMMANDS[verb]

    matching = [subject for subject in exports if re.fullmatch(subject.replace("*", "[^.]+"), command.subject)]
    most_exact = min(matching, key=lambda subject: subject.count("*"))

    assert ("response_type: stream" in exports[most_exact]) == (command.replies is Replies.STREAM)
