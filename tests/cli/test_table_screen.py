"""`jido-nats watch` in a terminal, as somebody sits before it."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jido_nats import LocalServer, SessionManager
from jido_nats.broker.connection import Connection
from jido_nats.broker.options import ConnectOptions
from jido_nats.core import codec, lifecycle, subjects
from jido_nats.core.settings import Settings
from jido_nats.store import topology
from tests.core.samples import T0
from tests.tools.programs import run
from tests.tools.support import Stranger, eventually
from tests.tools.terminal import Terminal, in_terminal

EVIL = "\x1b[41mEVIL\x9b42m\x07"
EVIL_SHOWN = r"\x1b[41mEVIL\x9b42m\x07"
COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(3[0-7]|4[0-7]|38|48|9[0-7])[;m]")


@asynccontextmanager
async def watching(server: LocalServer, *options: str, **terminal: Any) -> AsyncIterator[Terminal]:
    """The table, once it is live."""
    async with in_terminal("watch", "--server", server.url, *options, **terminal) as shown:
        await shown.showed("● live")
        yield shown


@pytest.mark.usefixtures("manager")
async def test_the_table_follows_every_change(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("before", metadata={"project": "demo"})
    async with watching(server) as terminal:
        await terminal.showed("before", "● active", "project=demo", " 1 session ")
        await stranger.create("later")
        await stranger.ask("jido.session.idle.later")
        await terminal.showed("later", "○ idle", " 2 sessions", "later v3 active → idle")
        await stranger.ask("jido.session.terminate.before")
        await terminal.showed("✕ terminated", "✕ 1 ended", " 1 session ")


@pytest.mark.usefixtures("manager")
async def test_what_has_ended_leaves_the_table(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("s1")
    async with watching(server) as terminal:
        await stranger.ask("jido.session.terminate.s1")
        await terminal.showed("no sessions", "✕ 1 ended")


async def test_the_filters_are_those_of_the_lines(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("mine", metadata={"of": "me"})
    await stranger.create("other", metadata={"of": "you"})
    async with watching(server, "--metadata", "of=me", "--status", "active") as terminal:
        await terminal.showed("mine", " 1 session ", "active  of=me")
        await stranger.ask("jido.session.idle.mine")
        await terminal.showed("no sessions", "mine v3 active → idle")


@pytest.mark.usefixtures("manager")
async def test_a_restart_of_the_server_is_told_then_ridden(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("before")
    async with watching(server) as terminal:
        await server.kill()
        await terminal.showed("reconnecting", "before")
        await server.start()
        await terminal.showed("● live")
        assert b"connection lost" not in terminal.raw  # what is logged would tear the screen
        await eventually(lambda: stranger.nc.is_connected)
        await stranger.create("later")
        await terminal.showed("before", "later", " 2 sessions")
        terminal.press("q")
        assert await terminal.ended() == 0


async def test_a_stream_that_has_lost_the_place_is_read_anew(server: LocalServer, stranger: Stranger) -> None:
    async with _made_by_hand(server) as connection:
        for session_id in ("first", "gone", "gone"):
            await _store(connection, session_id)
        async with watching(server) as terminal:
            await terminal.showed("first")
            await stranger.js.delete_stream("JIDO_CLIENT")
            await connection.request(subjects.key("JIDO_SESSIONS", "gone"), headers={"KV-Operation": "DEL"})
            await topology.declare(connection, Settings())
            await _store(connection, "second")
            await terminal.showed("● live", "first", "second", " 2 sessions")


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("how", "code"),
    [("q", 0), ("\x03", 130), (signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGHUP, 130)],
)
async def test_the_terminal_is_given_back(server: LocalServer, how: str | signal.Signals, code: int) -> None:
    async with watching(server) as terminal:
        assert not terminal.is_as_before()
        if isinstance(how, str):
            terminal.press(how)
        else:
            terminal.process.send_signal(how)
        assert await terminal.ended() == code
        assert terminal.is_as_before()


async def test_an_error_is_told_on_a_terminal_that_was_given_back(server: LocalServer) -> None:
    async with in_terminal("watch", "--server", server.url) as terminal:
        assert await terminal.ended() == 1
        assert terminal.is_as_before()
        assert terminal.raw.endswith(b"a manager creates it: 'jido-nats serve'\r\n")


@pytest.mark.usefixtures("manager")
async def test_ctrl_z_lends_the_terminal_to_the_shell(server: LocalServer) -> None:
    async with watching(server) as terminal:
        terminal.press("\x1a")
        await eventually(lambda: _state_of(terminal) == "T" and terminal.is_as_before())

        terminal.screen.reset()
        terminal.process.send_signal(signal.SIGCONT)
        await terminal.showed("● live")


@pytest.mark.usefixtures("manager")
async def test_ctrl_s_stops_nothing(server: LocalServer, stranger: Stranger) -> None:
    async with watching(server) as terminal:
        terminal.press("\x13\x1c")
        await stranger.create("later")
        await terminal.showed("later")


@pytest.mark.usefixtures("manager")
async def test_what_is_paused_stands_still_until_it_goes_on(server: LocalServer, stranger: Stranger) -> None:
    async with watching(server) as terminal:
        terminal.press("p")
        await terminal.showed("paused, 0 since")
        await stranger.create("later")
        await terminal.showed("paused, 2 since")
        assert not terminal.shows("later")
        terminal.press(" ")
        await terminal.showed("later")


@pytest.mark.usefixtures("manager")
async def test_a_search_shows_what_has_the_text(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("one", metadata={"task": "Übersetzen"})
    await stranger.create("two")
    async with watching(server) as terminal:
        await terminal.showed("two")
        terminal.press("/über\r")
        await terminal.showed("one", "1-1 of 1")
        assert not terminal.shows("two")
        terminal.press("\x1b")
        await terminal.showed("two", "1-2 of 2")


@pytest.mark.usefixtures("manager")
async def test_the_keys_are_told(server: LocalServer) -> None:
    async with watching(server) as terminal:
        terminal.press("?")
        await terminal.showed("sort by id, status, time", "search ids and metadata")


@pytest.mark.usefixtures("manager")
async def test_a_window_may_change_its_size(server: LocalServer, stranger: Stranger) -> None:
    for number in range(30):
        await stranger.create(f"session_with_a_long_name_{number:02}", metadata={"note": "日本語のメタデータ" * 5})
    async with watching(server, columns=140, rows=40) as terminal:
        await terminal.showed("session_with_a_long_name_00", "OWNER", "日本語", "1-26 of 30")
        for columns, rows, row in ((40, 10, "long_name_03"), (80, 24, "long_name_13"), (20, 4, "live")):
            terminal.resize(columns, rows)
            await terminal.showed(row)
            assert len(terminal.lines) == rows
        terminal.press("q")
        assert await terminal.ended() == 0


@pytest.mark.usefixtures("manager")
async def test_metadata_cannot_speak_to_the_terminal(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("s1", metadata={EVIL: EVIL})
    async with watching(server, columns=140) as terminal:
        terminal.press("/x1b[41mevil\r")
        await stranger.create("s2", metadata={EVIL: EVIL})
        await terminal.showed(EVIL_SHOWN, "s2 v1 created")
        assert not _obeyed(terminal.raw)


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize("command", [["watch", "--plain"], ["list"], ["get", "s1"], ["events", "--since", "all"]])
async def test_metadata_cannot_speak_by_lines_either(
    server: LocalServer, stranger: Stranger, command: list[str]
) -> None:
    await stranger.create("s1", metadata={EVIL: EVIL})
    async with in_terminal(*command, "--server", server.url, columns=200) as terminal:
        await terminal.showed("41mEVIL")
        assert not _obeyed(terminal.raw)


@pytest.mark.usefixtures("manager")
async def test_no_colour_is_shown_where_none_is_wanted(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("s1")
    async with watching(server) as coloured, watching(server, NO_COLOR="1") as plain:
        await coloured.showed("s1")
        await plain.showed("s1")
        assert COLOUR.search(coloured.raw)
        assert not COLOUR.search(plain.raw)
        assert b"\x1b[1;7m SESSION" in plain.raw


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("options", "term"), [(["--plain"], "xterm"), (["--json"], "xterm"), ([], "dumb")], ids=["plain", "json", "dumb"]
)
async def test_lines_are_shown_where_they_are_wanted(
    server: LocalServer, stranger: Stranger, options: list[str], term: str
) -> None:
    await stranger.create("s1")
    async with in_terminal("watch", "--server", server.url, *options, columns=200, TERM=term) as terminal:
        await terminal.showed("s1")
        await terminal.showed("snapshot_complete" if "--json" in options else "end of the snapshot")
        assert b"\x1b[?1049h" not in terminal.raw


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("command", "what", "lines"),
    [
        (["events", "--since", "all", "--no-follow"], b"replaying", 100),
        (["events", "--since", "all", "--no-follow", "--json"], b"replaying", 100),
        (["conform"], b"checking", 1),
    ],
    ids=["events", "json", "conform"],
)
async def test_long_reading_says_how_far_it_is(
    server: LocalServer, stranger: Stranger, tmp_path: Path, command: list[str], what: bytes, lines: int
) -> None:
    await asyncio.gather(*(stranger.create(f"s{number}") for number in range(50)))
    with (tmp_path / "out").open("wb") as file:
        async with in_terminal(*command, "--server", server.url, stdout=file) as terminal:
            assert await terminal.ended() == 0
    said = (tmp_path / "out").read_text()
    assert what in terminal.raw
    assert (said.count("\n"), "\x1b" in said) == (lines, False)


@pytest.mark.usefixtures("manager")
async def test_a_bar_does_not_tear_what_is_printed(server: LocalServer, stranger: Stranger) -> None:
    await asyncio.gather(*(stranger.create(f"s{number}") for number in range(50)))
    for _ in range(2):
        await stranger.js.publish("jido.client.events", b"no event")
    async with in_terminal("conform", "--server", server.url, columns=140) as terminal:
        assert await terminal.ended() == 1
        assert len([line for line in terminal.lines if "on jido.client.events: " in line]) == 2
        assert not terminal.shows("━")


@pytest.mark.usefixtures("manager")
async def test_a_bar_is_for_people_only(server: LocalServer, stranger: Stranger) -> None:
    await stranger.create("s1")
    finished = await run("events", "--since", "all", "--no-follow", "--server", server.url)
    assert finished.err == ""


@asynccontextmanager
async def _made_by_hand(server: LocalServer) -> AsyncIterator[Connection]:
    """What a manager would declare, and nobody who writes but the test."""
    connection = await Connection.open(ConnectOptions(servers=(server.url,)), "by hand")
    try:
        await topology.declare(connection, Settings())
        yield connection
    finally:
        await connection.close()


async def _store(connection: Connection, session_id: str) -> None:
    """A session's record and first event, as a manager would write them."""
    record, events = lifecycle.create(session_id, owner="m", at=T0)
    await connection.request(subjects.key("JIDO_SESSIONS", session_id), codec.encode(record))
    for event in events:
        await connection.request(subjects.EVENTS, codec.encode(event))


def _state_of(terminal: Terminal) -> str:
    stat = Path(f"/proc/{terminal.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def _obeyed(raw: bytes) -> bool:
    """Whether something of `EVIL` came through as it is."""
    return b"\x1b[41m" in raw or "\x9b".encode() in raw or b"\x07" in raw
