"""The pages of `deploy/docs`: programs run, commands exist, links lead somewhere, and nothing is stale."""

import asyncio
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Final, get_args

import click
import msgspec
import pytest

from jido_nats import (
    Client,
    LocalServer,
    Output,
    Reason,
    SessionManager,
    SessionOutput,
    Settings,
    Status,
)
from jido_nats.cli.main import main as command_line
from jido_nats.core import lifecycle
from jido_nats.core.events import KnownEvent
from jido_nats.core.settings import load
from jido_nats.errors import COMMAND_ERRORS, CommandError
from jido_nats.worker.protocol import FromProgram
from tests.tools import reference
from tests.tools.pages import anchors, block, blocks, documented, links, page, pages, section
from tests.tools.programs import ROOT, run, running
from tests.tools.support import eventually

PAGES: Final = [path.relative_to(ROOT).as_posix() for path in pages()]
# Where a reader is sent that is no file of ours.
ELSEWHERE: Final = ("https://",)
COMMAND: Final = re.compile(r"(?:^|[\s`/])(jido-nats [a-z][^`\n]*)", re.MULTILINE)
SCRIPT: Final = re.compile(r"python -m (tests\.[\w.]+)([^`\n]*)")


# Nothing is stale


def test_the_python_reference_is_what_the_code_says() -> None:
    text = page("python-api")
    assert reference.with_generated(text, reference.python_reference()) == text, f"run {reference.COMMAND}"


def test_every_public_name_is_in_the_python_reference() -> None:
    import jido_nats

    assert {name.lower() for name in jido_nats.__all__} <= anchors(page("python-api"))


def test_the_settings_are_what_the_code_says() -> None:
    text = page("settings")
    assert reference.with_generated(text, reference.settings_toml()) == text, f"run {reference.COMMAND}"


def test_every_setting_is_described() -> None:
    (toml,) = blocks(page("settings"), "toml")
    described = re.findall(r"^(?:# )?(\w+) = \S+ +# \w", toml, re.MULTILINE)
    assert described == [field.name for field in msgspec.structs.fields(Settings)]


def test_the_settings_shown_are_the_defaults() -> None:
    assert [load(toml.encode()) for toml in blocks(page("settings"), "toml")] == [Settings()]


def test_the_flags_of_settings_are_those_of_serve() -> None:
    names = {field.name for field in msgspec.structs.fields(Settings)}
    flags = {option.opts[0] for option in command_line.commands["serve"].params if option.name in names}
    assert set(re.findall(r"`(--[\w-]+)`", page("settings"))) == flags


def test_the_diagram_is_the_lifecycle_s() -> None:
    assert blocks(page("contract"), "mermaid") == [lifecycle.diagram() + "\n"]


def test_the_reasons_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", section(page("contract"), "## The life of a session"), re.M)
    passing = {reason: "yes" if reason in lifecycle.PASSING_REASONS else "no" for reason in Reason}
    assert dict(rows) == passing


def test_the_errors_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section(page("contract"), "## Errors"), re.MULTILINE)
    kinds: list[type[CommandError]] = [CommandError, *COMMAND_ERRORS]
    assert {(int(status), code) for status, code in rows} == {(kind.status, kind.code) for kind in kinds}


def test_the_messages_shown_are_messages() -> None:
    shown = [line for code in blocks(page("contract"), "json") for line in code.splitlines()]
    assert {type(msgspec.json.decode(line, type=KnownEvent | Output)) for line in shown} == {
        *get_args(KnownEvent),
        *get_args(Output),
    }


def test_the_protocol_s_lines_are_those_that_there_are() -> None:
    lines = set(re.findall(r'`\{"type":"(\w+)"', section(page("workers"), "## The protocol of programs")))
    spoken = {str(kind.__struct_config__.tag) for kind in get_args(FromProgram)}
    assert lines == (spoken - {"next"}) | {"session", "message", "done", "refused"}  # `next`: our own child process


@pytest.mark.parametrize("name", ["guarantees", "../README"])
def test_log_lines_and_messages_are_those_of_the_code(name: str) -> None:
    """What is quoted as a sentence, of three words and more, is one that the code prints."""
    sources = " ".join(path.read_text() for path in (ROOT / "jido_nats").rglob("*.py"))
    quoted = [text for text in re.findall(r"`((?!nats )[a-z][\w ']+(?: …)?)`", page(name)) if len(text.split()) > 3]
    assert quoted
    assert [text for text in quoted if text.removesuffix(" …") not in sources] == []


# Commands


def commands(name: str) -> list[str]:
    """The `jido-nats` commands that a page names, up to a pipe."""
    return [line.partition(" |")[0].partition(" > ")[0] for line in COMMAND.findall((ROOT / name).read_text())]


@pytest.mark.parametrize("name", [name for name in PAGES if commands(name)])
def test_every_command_named_has_the_options_named(name: str) -> None:
    wrong = []
    for line in commands(name):
        words = re.sub(r"#.*|['\"].*?['\"]", "", line).split()
        command = command_line.commands.get(words[1])
        options = {o for p in command.params for o in p.opts} if isinstance(command, click.Command) else set[str]()
        if command is None or set(re.findall(r"(?<!\S)--[a-z-]+", " ".join(words))) - options:
            wrong.append(line)
    assert wrong == []


@pytest.mark.parametrize(
    "line", sorted({"".join(found) for path in pages() for found in SCRIPT.findall(path.read_text())})
)
def test_every_script_named_takes_the_options_named(line: str) -> None:
    module, *words = line.split()
    path = ROOT / module.replace(".", "/")  # read, not run: some scripts write
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


# Links


def place(path: Path, link: str) -> tuple[Path, str]:
    """The file that a link of a page leads to, and the anchor there."""
    file, _, name = link.partition("#")
    return ((path.parent / file).resolve() if file else path), name


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    found = [place(path, link) for link in links(path.read_text()) if not link.startswith(ELSEWHERE)]
    assert [str(file) for file, _ in found if not file.exists()] == []
    assert [f"{file}#{name}" for file, name in found if name and name not in anchors(file.read_text())] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path.suffix == ".md" and path not in seen:
            seen.add(path)
            waiting += [place(path, link)[0] for link in links(path.read_text()) if not link.startswith(ELSEWHERE)]
    assert set(pages()) <= seen


# Workers


async def converse(server: LocalServer, *arguments: str, cwd: Path) -> list[Any]:
    """What a worker of the page says to `hello` and `bye`; the commands print what the page shows."""
    async with running("serve", "--server", server.url, *arguments, cwd=cwd) as manager:
        await manager.said(" serves on ")
        for command in documented(section(page("workers"), "## Try it")):
            done = await run(*shlex.split(command.line)[1:], env={"NATS_URL": server.url})
            assert (done.code, command.unseen(done.out)) == (0, []), f"$ {command.line}\n{done.out}{done.err}"
        async with Client.connect(server.url) as client:
            return await said_in(client)


async def said_in(client: Client) -> list[Any]:
    """What is kept of the session `s1`: data of output, (role, content) of messages."""
    said: list[Any] = []
    async with client.output(session_id="s1", since="all") as output:
        async for message in output.stored():
            heard = message.output
            said.append(heard.data if isinstance(heard, SessionOutput) else (heard.role, heard.content))
    return said


@pytest.mark.parametrize("isolation", ["task", "process"])
async def test_the_coroutine_answers(server: LocalServer, tmp_path: Path, isolation: str) -> None:
    (tmp_path / "echo.py").write_text(block(page("workers"), "python", "from jido_nats import Session"))

    said = await converse(server, "--worker", "echo:agent", "--isolation", isolation, cwd=tmp_path)

    assert set(map(repr, said)) == {
        repr(one)
        for one in [
            ("user", "hello"),
            {"about": "hello"},
            ("assistant", "you said hello"),
            ("user", "bye"),
            {"about": "bye"},
            ("assistant", "you said bye"),
        ]
    }


async def test_the_shell_script_answers(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "agent.sh").write_text(block(page("workers"), "sh", "#!/bin/sh"))

    said = await converse(server, "--exec", "sh agent.sh", cwd=tmp_path)

    assert [one for one in said if isinstance(one, str)] == ["working on it", "working on it"]


async def test_the_node_program_answers(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "agent.mjs").write_text(block(page("workers"), "js", "#!/usr/bin/env node"))

    said = await converse(server, "--exec", "node agent.mjs", "--wait-ready", cwd=tmp_path)

    assert [one for one in said if isinstance(one, dict)] == [
        {"tool": "echo", "input": "hello"},
        {"tool": "echo", "input": "bye"},
    ]


# Clients, and the contract


async def test_the_watch_shows_every_session_and_then_each_change(
    server: LocalServer, manager: SessionManager, tmp_path: Path
) -> None:
    await manager.create_session(session_id="s1")
    (tmp_path / "watch.py").write_text(block(page("clients"), "python", "import asyncio\nimport sys\n\nfrom jido_nats"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", str(tmp_path / "watch.py"), server.url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(2)]
        await manager.idle_session("s1")
        lines.append(await process.stdout.readline())
    finally:
        process.kill()
        await process.communicate()

    assert [re.sub(rb"1\.\d+\.\d+\.\d+\n", b"TOKEN", line).strip() for line in lines] == [
        b"there is s1 active",
        b"that is all, at 3 TOKEN",
        b"changed s1 idle TOKEN",
    ]


async def test_a_recording_conforms(server: LocalServer, manager: SessionManager, tmp_path: Path) -> None:
    await manager.create_session(session_id="s1")
    await manager.terminate_session("s1")
    await eventually(lambda: sealed(manager))

    for command in documented(section(page("contract"), "## Check a program against the contract")):
        line = command.line.replace("recording.jsonl", str(tmp_path / "recording.jsonl"))
        arguments, _, target = line.partition(" > ")
        done = await run(*shlex.split(arguments)[1:], env={"NATS_URL": server.url})
        if target:
            Path(target).write_text(done.out)
        assert (done.code, command.unseen(done.out)) == (0, []), f"$ {command.line}\n{done.out}{done.err}"


async def sealed(manager: SessionManager) -> bool:
    return (await manager.get_session_info("s1")).status is Status.TERMINATED
