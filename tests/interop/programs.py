"""The subscribers in other languages: how each is built, outside the tree, and run.

Built programs are kept in `JIDO_INTEROP_CACHE` (`~/.cache/jido-nats-interop`), a folder for each state of a source.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

HERE: Final = Path(__file__).parent
CACHE: Final = Path(os.environ.get("JIDO_INTEROP_CACHE") or Path.home() / ".cache" / "jido-nats-interop")
REQUIRED: Final = os.environ.get("JIDO_REQUIRE_INTEROP") == "1"
BUILD_TIMEOUT_S: Final = 540
RUN_TIMEOUT_S: Final = 60
LEFT_BEHIND: Final = frozenset({"node_modules", "target"})

CHROMIUM: Final = (
    "chromium",
    "--headless",
    "--no-sandbox",  # CI is root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
# Behind the page's own module, so `window.heard` is there: the page tells the test what it heard.
TELL_TEST: Final = b"""
<script type="module">
  const post = (path, text) => fetch(path, { method: "POST", body: text });
  window.heard.then((text) => post("/heard", text), (error) => post("/failed", `${error.stack}`));
</script>
"""


class Language(NamedTuple):
    """One program: its folder, what has to be on PATH or known to pkg-config, how it is built and run there."""

    folder: str
    tools: tuple[str, ...]
    build: tuple[str, ...]
    run: str = ""
    libraries: tuple[str, ...] = ()


_JAVASCRIPT: Final = ("npm ci", "npx esbuild browser.js --bundle --format=esm --outfile=bundle.js")
LANGUAGES: Final = {
    "go": Language("go", ("go",), ("go build -o subscriber .", "go build -o attacker ./attack"), "./subscriber"),
    "node": Language("javascript", ("node", "npm"), _JAVASCRIPT, "node node.js"),
    "browser": Language("javascript", ("node", "npm", "chromium"), _JAVASCRIPT),
    "rust": Language(
        "rust",
        ("cargo", "cc"),
        ("env CARGO_PROFILE_DEV_DEBUG=0 cargo install -q --debug --path . --root . --target-dir ../cargo-target",),
        "bin/subscriber",
    ),
    "java": Language(
        "java",
        ("javac", "mvn"),
        ("mvn -q -B process-classes",),
        "java -cp target/classes:target/dependency/* Subscriber",
    ),
    "c": Language("c", ("cc", "make", "pkg-config"), ("make",), "./subscriber", ("libnats", "jansson")),
}


def built(name: str) -> Path:
    """The folder that holds the built program; the test is skipped where the toolchain is missing."""
    language = LANGUAGES[name]
    if missing := _missing(language):
        text = f"{name}: no {', '.join(missing)} here; tests/interop/install.sh installs what Debian has"
        (pytest.fail if REQUIRED else pytest.skip)(text)
    source = HERE / language.folder
    folder = CACHE / f"{language.folder}-{_digest(source, language.build)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: one build at a time, and each only once
        if not (folder / ".built").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
            for command in language.build:
                _build(command.split(), folder)
            (folder / ".built").touch()
    return folder


async def run(name: str, folder: Path, url: str, role: Mapping[str, str]) -> str:
    """What the program printed; fails with what it complained about if it failed.

    `role`: the environment that makes it one of the roles of `nats.conf` (`tests.tools.roles.environment`), or nothing.
    """
    if name == "browser":
        return await _run_in_browser(folder, url, role)
    return await execute([*LANGUAGES[name].run.split(), url], folder, role)


async def execute(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """What a built program printed; fails with what it complained about if it failed."""
    clean = {variable: value for variable, value in os.environ.items() if not variable.startswith("NATS_")}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**clean, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            output, complaints = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0, complaints.decode()
    return output.decode()


async def _run_in_browser(folder: Path, url: str, role: Mapping[str, str]) -> str:
    """What the page heard: it is served to a headless Chromium, and posts it when it is done."""
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    query = {"server": url} | {name.removeprefix("NATS_").lower(): value for name, value in role.items()}
    with _serving(folder, said) as page, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *CHROMIUM,
            f"--user-data-dir={profile}",
            f"{page}/browser.html?{urllib.parse.urlencode(query)}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a browser is many processes, and they end together
        )
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                return await said
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.contextmanager
def _serving(folder: Path, said: "asyncio.Future[str]") -> Iterator[str]:
    """The built page over HTTP on loopback; what it posts becomes the result of `said`."""
    loop = asyncio.get_running_loop()

    def settle(path: str, text: str) -> None:
        if not said.done():
            said.set_result(text) if path == "/heard" else said.set_exception(AssertionError(text))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/browser.html"):
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write((folder / "browser.html").read_bytes() + TELL_TEST)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            loop.call_soon_threadsafe(settle, self.path, body)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing on stderr."""

    def handler(*arguments: Any) -> Handler:
        return Handler(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="page server")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _missing(language: Language) -> list[str]:
    tools = [tool for tool in language.tools if shutil.which(tool) is None]
    if tools:
        return tools
    known = {name: subprocess.run(["pkg-config", name], check=False).returncode == 0 for name in language.libraries}
    return [name for name in language.libraries if not known[name]]


def _digest(source: Path, commands: tuple[str, ...]) -> str:
    paths = [path for path in sorted(source.rglob("*")) if path.is_file() and not LEFT_BEHIND & set(path.parts)]
    files = [(path.relative_to(source).as_posix(), path.read_bytes()) for path in paths]
    return hashlib.sha256(repr((files, commands)).encode()).hexdigest()[:12]


def _build(command: list[str], folder: Path) -> None:
    nice = ["nice", "-n", "10", *command]
    done = subprocess.run(nice, cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
