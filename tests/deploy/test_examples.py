"""The examples do what their pages say, each copied into an empty folder and run as a user runs it."""

import ast
import asyncio
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

import jido_nats
from jido_nats import Client, ConversationAdded, LocalServer, Status
from tests.conftest import StartManager
from tests.dashboard.stage import chromium, new_page
from tests.tools import http
from tests.tools.children.kin import kin_of
from tests.tools.programs import ROOT, Finished, Program, running
from tests.tools.support import DEADLINE_S, Puppet, eventually

EXAMPLES: Final = ROOT / "deploy" / "examples"
NAMES: Final = ("chat_agent", "web_relay", "worker_tests")
PAGE_LINES_MAX: Final = 40

# One Chromium for all pages.
in_module: Final = pytest.mark.asyncio(loop_scope="module")

MODEL_HEAD: Final = """
import asyncio
from pathlib import Path
from typing import NamedTuple

class Turn(NamedTuple):
    role: str
    text: str
"""
WAITING_MODEL: Final = f"""{MODEL_HEAD}
async def stream_reply(conversation):
    yield "first "
    await asyncio.to_thread(Path("go").read_bytes)
    yield "second "
"""
CRASHING_MODEL: Final = f"""{MODEL_HEAD}
async def stream_reply(conversation):
    yield "first "
    raise ConnectionError("the model is away")
"""
FAILS_ONCE_MODEL: Final = f"""{MODEL_HEAD}
async def stream_reply(conversation):
    text = " ".join(turn.text for turn in conversation)
    yield f"{{len(conversation)}}: "
    if "fail" in conversation[-1].text and not Path("failed").exists():
        Path("failed").touch()
        raise ConnectionError("the model is away")
    yield text
"""
# The agent, which fails the first time right before its checkpoint.
FAILS_AT_CHECKPOINT: Final = """
from agent import agent as real

class Failing:
    def __init__(self, session):
        self._session = session

    def __getattr__(self, name):
        return getattr(self._session, name)

    async def checkpoint(self, state, *, handled):
        if self.attempt == 1:
            raise RuntimeError("boom")
        await self._session.checkpoint(state, handled=handled)

async def agent(session):
    await real(Failing(session))
"""
ENDLESS_MODEL: Final = f"""{MODEL_HEAD}
async def stream_reply(conversation):
    try:
        yield "first "
        await asyncio.Event().wait()
    finally:
        Path("closed").touch()
"""


def copied(name: str, tmp_path: Path) -> Path:
    """The example, alone in a folder."""
    return shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))


def blocks(name: str, language: str) -> list[str]:
    """The blocks of one language on the example's page."""
    return re.findall(rf"```{language}\n(.*?)```", (EXAMPLES / name / "README.md").read_text(), re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """What the page says to type, in order."""
    return [shlex.split(line) for block in blocks(name, "sh") for line in block.splitlines()]


def environment(**extra: str) -> dict[str, str]:
    """This one, without what pytest and jido-nats read from it."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "NATS_", "JIDO_"))
    }
    return clean | extra


async def python(folder: Path, *arguments: str, **env: str) -> asyncio.subprocess.Process:
    """Python, started in the folder."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, env=environment(**env), stdout=pipe, stderr=pipe
    )


@asynccontextmanager
async def up(folder: Path, command: list[str]) -> AsyncIterator[str]:
    """`jido-nats up`, as the page says, on a free port: the server's URL."""
    assert command[:2] == ["jido-nats", "up"]
    async with running(*command[1:], "--port", "0", cwd=folder) as program:
        await program.said("Ctrl-C stops it")
        (url,) = re.findall(r"running on (nats://\S+)", program.out)
        yield url


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_short(name: str) -> None:
    assert len((EXAMPLES / name / "README.md").read_text().splitlines()) <= PAGE_LINES_MAX


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*/*.py")), ids=lambda file: file.stem)
def test_an_example_uses_public_names_only(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jido_nats"):
            assert node.module == "jido_nats"
            assert {name.name for name in node.names} <= set(jido_nats.__all__)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            assert ast.unparse(node.value) == "self"


# The chat agent


@pytest.fixture
def chat_agent(tmp_path: Path) -> Path:
    """The example, copied."""
    return copied("chat_agent", tmp_path)


async def test_the_chat_agent_answers_as_its_page_shows(chat_agent: Path) -> None:
    _, start, (_, *chat) = commands("chat_agent")

    async with up(chat_agent, start) as url:
        finished = await Program(await python(chat_agent, *chat, NATS_URL=url)).finished()

    assert [finished.out] == blocks("chat_agent", "text")
    assert (finished.code, finished.err) == (0, "")


async def test_the_answer_is_kept(chat_agent: Path) -> None:
    _, start, (_, *chat) = commands("chat_agent")

    async with up(chat_agent, start) as url, Client.connect(url) as client:
        await Program(await python(chat_agent, *chat, NATS_URL=url)).finished()
        async with client.output(since="all") as stream:
            outputs = [message.output async for message in stream.stored()]

    assert [(o.role, o.content) for o in outputs if isinstance(o, ConversationAdded)] == [
        ("user", "hello there"),
        ("assistant", "Message 1 has 2 words: hello there"),
        ("user", "and goodbye"),
        ("assistant", "Message 2 has 2 words: and goodbye"),
    ]
    assert len(outputs) == 4  # and no token


async def test_a_token_is_printed_while_the_model_is_at_work(chat_agent: Path) -> None:
    (chat_agent / "model.py").write_text(WAITING_MODEL)
    os.mkfifo(chat_agent / "go")

    async with up(chat_agent, commands("chat_agent")[1]) as url:
        process = await python(chat_agent, "chat.py", "hello", NATS_URL=url)
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.readuntil(b"tokens: first ")
            await asyncio.to_thread((chat_agent / "go").write_bytes, b"")
            rest, _ = await process.communicate()

    assert rest.decode() == "second \nanswer: first second\n"


async def test_the_chat_client_reports_a_crash(chat_agent: Path) -> None:
    (chat_agent / "model.py").write_text(CRASHING_MODEL)

    async with up(chat_agent, commands("chat_agent")[1]) as url:
        finished = await Program(await python(chat_agent, "chat.py", "hello", NATS_URL=url)).finished()

    assert (finished.code, finished.err) == (
        1,
        "the session has ended: crashed, ConnectionError: the model is away (model.py:12 in stream_reply)\n",
    )


async def test_the_chat_agent_goes_on_with_its_conversation_after_a_crash(chat_agent: Path) -> None:
    (chat_agent / "model.py").write_text(FAILS_ONCE_MODEL)

    async with up(chat_agent, commands("chat_agent")[1]) as url:
        finished = await Program(
            await python(chat_agent, "chat.py", "hello", "fail", "and goodbye", NATS_URL=url)
        ).finished()
        said = await answers(url)

    assert (finished.code, finished.err) == (0, "")
    assert (chat_agent / "failed").exists()
    assert said == ["1: hello", "3: hello 1: hello fail", "5: hello 1: hello fail 3: hello 1: hello fail and goodbye"]


async def test_the_chat_agent_goes_on_after_it_was_killed_in_the_middle_of_an_answer(chat_agent: Path) -> None:
    (chat_agent / "model.py").write_text(WAITING_MODEL)
    os.mkfifo(chat_agent / "go")
    command = [*commands("chat_agent")[1], "--isolation", "process"]

    async with up(chat_agent, command) as url, Client.connect(url) as client:
        process = await python(chat_agent, "chat.py", "hello", NATS_URL=url)
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.readuntil(b"tokens: first ")
            (record,) = await client.list_sessions()
            for pid in kin_of(record.session_id):
                os.kill(pid, signal.SIGKILL)
            await process.stdout.readuntil(b"first ")
            await asyncio.to_thread((chat_agent / "go").write_bytes, b"")
            rest, _ = await process.communicate()
        said = await answers(url)

    assert (rest.decode(), process.returncode) == ("second \nanswer: first second\n", 0)
    assert said == ["first second"]


async def test_the_chat_agent_says_no_answer_twice(chat_agent: Path) -> None:
    (chat_agent / "failing.py").write_text(FAILS_AT_CHECKPOINT)
    command = ["failing:agent" if word == "agent:agent" else word for word in commands("chat_agent")[1]]

    async with up(chat_agent, command) as url:
        finished = await Program(await python(chat_agent, "chat.py", "hello", "bye", NATS_URL=url)).finished()
        said = await answers(url)

    assert (finished.code, finished.err) == (0, "")
    assert said == ["Message 1 has 1 words: hello", "Message 2 has 1 words: bye"]


async def answers(url: str) -> list[Any]:
    """What the agent has said, in all sessions."""
    async with Client.connect(url) as client, client.output(since="all") as stream:
        outputs = [message.output async for message in stream.stored()]
    return [o.content for o in outputs if isinstance(o, ConversationAdded) and o.role == "assistant"]


async def test_ctrl_c_in_the_client_closes_the_model_s_stream(chat_agent: Path) -> None:
    (chat_agent / "model.py").write_text(ENDLESS_MODEL)

    async with up(chat_agent, commands("chat_agent")[1]) as url:
        process = await python(chat_agent, "chat.py", "hello", NATS_URL=url)
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            await process.stdout.readuntil(b"first ")
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()

        assert (process.returncode, errors) == (130, b"")
        assert (chat_agent / "closed").exists()


async def test_the_chat_client_says_that_there_is_no_server(chat_agent: Path) -> None:
    finished = await Program(await python(chat_agent, "chat.py", "hello", NATS_URL="nats://127.0.0.1:1")).finished()

    assert (finished.code, finished.out) == (1, "")
    assert finished.err.startswith("no NATS server answers at nats://127.0.0.1:1")


# The web relay


class Site(NamedTuple):
    """The web app, running."""

    url: str
    program: Program

    async def send(self, text: str) -> http.Answer:
        """What the form does."""
        return await http.ask(self.url, "POST", "/messages", {"text": text})

    async def stop(self) -> Finished:
        """How it ends after Ctrl-C."""
        return await self.program.end(signal.SIGINT)


class Echo(NamedTuple):
    """What web apps before the example's own worker have in common."""

    folder: Path
    nats_url: str
    browser: Browser


@asynccontextmanager
async def site(folder: Path, nats_url: str) -> AsyncIterator[Site]:
    """The web app, as the page says, on a free port."""
    (_, *start) = commands("web_relay")[-1]
    program = Program(await python(folder, *start, NATS_URL=nats_url, PORT="0"))
    try:
        await program.said("Uvicorn running on")
        (url,) = re.findall(r"running on (http://\S+)", program.err)
        yield Site(url, program)
    finally:
        await program.kill()


@pytest.fixture
def web_relay(tmp_path: Path) -> Path:
    """The example, copied."""
    return copied("web_relay", tmp_path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def echo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Echo]:
    """The example's own worker and a Chromium: sites and pages are a test's own."""
    folder = copied("web_relay", tmp_path_factory.mktemp("echo"))
    async with up(folder, commands("web_relay")[1]) as nats_url, chromium() as browser:
        yield Echo(folder, nats_url, browser)


@pytest_asyncio.fixture(loop_scope="module")
async def echo_site(echo: Echo) -> AsyncIterator[Site]:
    """The web app before the example's own worker."""
    async with site(echo.folder, echo.nats_url) as echo_site:
        yield echo_site


@pytest_asyncio.fixture(loop_scope="module")
async def page(echo: Echo, echo_site: Site) -> AsyncIterator[Page]:
    """Its page, open in Chromium."""
    async with new_page(echo.browser) as page:
        await page.goto(echo_site.url)
        await expect(page.locator("#status")).to_have_text("active")
        yield page


@pytest.fixture
async def relay(
    web_relay: Path, server: LocalServer, start_manager: StartManager, puppet: Puppet
) -> AsyncIterator[Site]:
    """The web app before a worker that is the test."""
    await start_manager(puppet)
    async with site(web_relay, server.url) as running_site:
        yield running_site


async def type_in(page: Page, text: str) -> None:
    """Send a message from the page."""
    await page.get_by_label("Message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def subscriptions(server: LocalServer) -> int:
    """How many subscriptions the web app has."""
    assert server.monitoring_url is not None
    answer = await http.ask(server.monitoring_url, path="/connz")
    return sum(c["subscriptions"] for c in answer.json["connections"] if c.get("name") == "jido-nats client")


async def said_by(stream: http.EventSource, role: str) -> Any:
    """The next message of that role."""
    while True:
        message = (await stream.named("message")).data
        if message["role"] == role:
            return message["content"]


@in_module
async def test_the_page_shows_what_is_said(page: Page) -> None:
    items = page.locator("#conversation li:not(.streaming)")

    await type_in(page, "hello there")

    await expect(items).to_have_text(["hello there", "you said hello there"])
    await expect(page.get_by_label("Message")).to_have_value("")


@in_module
async def test_the_page_shows_tokens_as_they_come(page: Page) -> None:
    await type_in(page, " ".join(["word"] * 100))  # ten seconds

    await expect(page.locator(".streaming")).to_have_text(re.compile(r"^you said (word ){1,50}$"))


@in_module
async def test_text_is_never_markup(page: Page) -> None:
    text = "<img src=x onerror=alert(1)>&amp;<script>alert(2)</script>"

    await type_in(page, text)

    await expect(page.locator("#conversation li")).to_have_text([text, f"you said {text}"])
    assert await page.locator("#conversation img, #conversation script").count() == 0


@in_module
async def test_a_reload_shows_the_conversation_again(page: Page) -> None:
    items = page.locator("#conversation li:not(.streaming)")
    await type_in(page, "hello")
    await expect(items).to_have_count(2)

    await page.reload()

    await expect(items).to_have_text(["hello", "you said hello"])


@in_module
async def test_the_page_shows_the_end_of_the_session(page: Page, echo: Echo) -> None:
    async with Client.connect(echo.nats_url) as client:
        for record in await client.list_sessions():
            await client.terminate_session(record.session_id)

    await expect(page.locator("#status")).to_have_text("terminated")
    await expect(page.get_by_role("button", name="Send")).to_be_disabled()


@in_module
async def test_a_browser_gets_status_tokens_and_the_answer(echo_site: Site) -> None:
    async with http.listening(echo_site.url, "/stream") as stream:
        assert (await stream.named("status")).data == "active"
        assert (await echo_site.send("hello\n\ndata: x")).status == 202
        heard = [await anext(aiter(stream)) for _ in range(5)]

    assert [(event.name, event.data) for event in heard] == [
        ("message", {"role": "user", "content": "hello\n\ndata: x"}),
        ("token", "you "),
        ("token", "said "),
        ("token", "hello\n\ndata: "),
        ("token", "x "),
    ]


async def test_a_browser_that_leaves_leaves_no_subscription(relay: Site, server: LocalServer) -> None:
    before = await subscriptions(server)

    async with http.listening(relay.url, "/stream") as stream:
        await stream.named("status")
        assert await subscriptions(server) > before

    async def as_before() -> bool:
        return await subscriptions(server) == before

    await eventually(as_before)
    finished = await relay.stop()
    assert "Traceback" not in finished.err, finished.err


async def test_a_browser_that_takes_nothing_is_given_up(relay: Site, server: LocalServer, puppet: Puppet) -> None:
    (session,) = puppet.sessions.values()
    async with http.listening(relay.url, "/stream") as quick:
        await quick.named("status")
        with_quick = await subscriptions(server)
        async with http.listening(relay.url, "/stream") as slow:
            await slow.named("status")
            slow.pause()
            for _ in range(100):  # 10 MB, more than sockets hold
                await session.emit("token", "x" * 100_000, ephemeral=True)
            await session.say("done")

            assert await said_by(quick, "assistant") == "done"

            async def given_up() -> bool:
                return await subscriptions(server) == with_quick

            await eventually(given_up)
        finished = await relay.stop()
    assert "Traceback" not in finished.err, finished.err


async def test_the_web_app_stops_though_a_browser_listens(relay: Site, puppet: Puppet) -> None:
    async with http.listening(relay.url, "/stream") as stream:
        await stream.named("status")

        finished = await relay.stop()

        assert [event async for event in stream] == []
    assert finished.code == 0
    assert "ERROR" not in finished.err


async def test_the_web_app_terminates_its_session(relay: Site, server: LocalServer) -> None:
    async with Client.connect(server.url) as client:
        (record,) = await client.list_sessions()

        await relay.stop()

        ended = await client.get_session_info(record.session_id)
        assert (ended.status, ended.detail) == (Status.TERMINATED, "the web app has stopped")


async def test_a_message_to_a_session_that_has_ended_is_refused(relay: Site, server: LocalServer) -> None:
    async with Client.connect(server.url) as client:
        (record,) = await client.list_sessions()
        await client.terminate_session(record.session_id)

    assert (await relay.send("hello")).status == 409


async def test_what_no_browser_of_ours_sends_is_refused(relay: Site) -> None:
    async def status(body: bytes, **headers: str) -> int:
        given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        return (await http.ask(relay.url, "POST", "/messages", body, given)).status

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert await status(b'{"text":"hello"}', **form) == 415
    assert await status(b'{"text":"hello"}', Host="elsewhere.example") == 400
    assert [await status(body) for body in (b"", b"{}", b'{"text":""}', b'{"text":7}')] == [400] * 4
    assert await status(b'{"text":"%s"}' % (b"x" * 20_000)) == 413


# The tests of a worker


@pytest.fixture
def worker_tests(tmp_path: Path) -> Path:
    """The example, copied."""
    return copied("worker_tests", tmp_path)


async def pytest_in(folder: Path) -> Finished:
    """How the page's command ends in the folder, with the plugin that the page names and no other."""
    assert commands("worker_tests")[-1] == ["pytest"]
    arguments = ("-m", "pytest", "-p", "pytest_asyncio.plugin", "-W", "error")
    return await Program(await python(folder, *arguments, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")).finished()


async def test_the_tests_of_the_worker_pass(worker_tests: Path) -> None:
    finished = await pytest_in(worker_tests)

    assert "6 passed in" in finished.out
    assert (finished.code, finished.err) == (0, "")


async def test_the_tests_of_the_worker_find_its_defects(worker_tests: Path) -> None:
    file = worker_tests / "worker.py"
    worker = file.read_text()
    for line, broken in [
        ("total += message.content", "total = message.content"),
        ("return", "raise RuntimeError"),
        ("raise ValueError", "raise TypeError"),
        ('emit("total"', 'emit("sum"'),
    ]:
        worker = worker.replace(line, broken)
    file.write_text(worker)

    assert "4 failed, 2 passed in" in (await pytest_in(worker_tests)).out
