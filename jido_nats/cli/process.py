"""How our programs run: event loop, signals, limits, exit code."""

import asyncio
import contextlib
import errno
import gc
import io
import logging
import os
import re
import select
import signal
import stat
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, NoReturn

import click

from jido_nats.cli import logs, systemd
from jido_nats.cli.escape import printable, printable_lines
from jido_nats.errors import JidoError
from jido_nats.manager.health_server import HealthServer
from jido_nats.manager.manager import SessionManager
from jido_nats.worker.processes import become_undumpable

EXIT_INTERRUPTED: Final = 130
HURRY_AFTER_S: Final = 1.0
# How long tasks that still run when a program is done may take to end.
LEAVE_S: Final = 2.0
GC_YOUNG: Final = 20_000
GC_MIDDLE: Final = 20
GC_OLD: Final = 50
DESCRIPTORS_MAX: Final = 65_536
# Variables with passwords and tokens. `SERVE` has the manager's options in deploy/systemd.
_SECRET: Final = re.compile(r"(NATS|JIDO)_.*(PASSWORD|TOKEN).*|SERVE")

log = logging.getLogger(__name__)


def run_program(work: Coroutine[Any, Any, int | None], *, fast: bool = False) -> NoReturn:
    """Run it, and exit with its code. `fast`: on uvloop, if installed."""
    forget_secrets()
    runner = asyncio.Runner(loop_factory=_fast_loop() if fast else None)
    try:
        code = _exit_code(runner, work)
    except Exception:
        sys.stderr.write(f"{printable_lines(traceback.format_exc().rstrip())}\n")
        code = 1
    _leave(runner, code)


def _exit_code(runner: asyncio.Runner, work: Coroutine[Any, Any, int | None]) -> int:
    try:
        return runner.run(work) or 0
    except JidoError as error:
        return _print_error(str(error))
    except TimeoutError:
        return _print_error("timed out; try again, or allow more time with --timeout")
    except (KeyboardInterrupt, asyncio.CancelledError):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: not an error
        return 0
    except OSError as error:
        if error.filename is not None:
            return _print_error(f"{error.filename} cannot be used: {error.strerror}")
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _print_error(f"the output cannot be written: {error.strerror}")


async def while_read(work: Coroutine[Any, Any, int | None]) -> int | None:
    """The work's result; `BrokenPipeError` when the reader of a piped stdout has gone, even if nothing is written."""
    task, loop, gone = asyncio.current_task(), asyncio.get_running_loop(), False
    assert task is not None

    def on_gone() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    def wait_until_gone() -> None:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        poll.poll()
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(on_gone)

    if sys.stdout is not None and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        threading.Thread(target=wait_until_gone, name="reader of stdout", daemon=True).start()
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            raise BrokenPipeError from None
        raise


def _leave(runner: asyncio.Runner, code: int) -> NoReturn:
    """Cancel the remaining tasks, then exit, even if some do not end: workers that swallow their cancellation."""
    with contextlib.suppress(KeyboardInterrupt):
        runner.run(_end_others())
    if not asyncio.all_tasks(runner.get_loop()):
        runner.close()
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):  # closing the loop would wait forever
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=LEAVE_S)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def fail(message: str) -> NoReturn:
    """Print an error in one line, and exit."""
    sys.exit(_print_error(message))


def _print_error(message: str) -> int:
    click.echo(f"jido-nats: {printable(message)}", err=True)
    return 1


async def serve_until_signal(manager: SessionManager) -> None:
    """Serve until the first SIGTERM, Ctrl-C or SIGHUP. Another one, a second later or more, cuts the shutdown short.

    (`timeout` and others send the same signal twice at once; that counts as one. A terminal that is closed sends
    SIGHUP and nothing more, so that the sessions end in order.)
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    hurry, numbers = task.cancel, (signal.SIGTERM, signal.SIGINT, *_hangup())

    def on_signal() -> None:
        systemd.notify("STOPPING=1")
        manager.stop()
        _on_signals(numbers, _ignore)
        loop.call_later(HURRY_AFTER_S, lambda: _on_signals(numbers, hurry))

    _on_signals(numbers, on_signal)
    await manager.serve()


def end_on_sigterm() -> None:
    """Make SIGTERM, and SIGHUP of a closed terminal, cancel the current task, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    numbers, cancel = (signal.SIGTERM, *_hangup()), task.cancel

    def on_signal() -> None:
        _on_signals(numbers, _ignore)  # a second one must not interrupt the cleanup
        cancel()

    _on_signals(numbers, on_signal)


def _hangup() -> tuple[signal.Signals, ...]:
    """SIGHUP, unless the parent wants it ignored, as `nohup` does."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


def _on_signals(numbers: tuple[signal.Signals, ...], handler: Callable[[], object]) -> None:
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, handler)


def _ignore() -> None:
    """One signal is enough."""


@contextlib.asynccontextmanager
async def monitored(manager: SessionManager, host: str, port: int | None) -> AsyncIterator[None]:
    """Serve metrics and health until the manager is closed; that includes its draining."""
    if port is None:
        yield
        return
    with HealthServer(manager.snapshot, host=host, port=port) as monitoring:
        logs.announce(f"metrics and health on {monitoring.url}")
        yield
        await manager.close()


def forget_secrets() -> None:
    """Remove from the environment what the options have been read from, so that nothing inherits it.

    What this process was started with stays in its /proc/PID/environ, which only root can read: see `main`.
    """
    for name in [name for name, value in os.environ.items() if _is_secret(name, value)]:
        del os.environ[name]


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET.fullmatch(name)) or (name == "NATS_URL" and "@" in value)


def restore_sigchld() -> None:
    """Undo that SIGCHLD is ignored, which is inherited: the exit codes of children would be lost."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def repair_inherited() -> None:
    """Undo what a parent may leave to a process and that would break it; the first thing that the programs do.

    * A standard stream that is closed: the next file or socket would take its number, and get what is written to it.
    * Signals that end it, blocked: it could not be stopped.
    * stdout that cannot encode every character, in a locale that is not UTF-8. Files and pipes get UTF-8 nevertheless;
      a terminal gets escapes for what it cannot show.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if not _is_open(number):
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
            assert opened == number
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = None if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def prepare_process() -> None:
    """For many sessions: as many file descriptors as this process may have, and fewer garbage collections.

    Sessions are freed by their reference counts; the collector finds only rare cycles, and each collection
    traverses all sessions.
    """
    restore_sigchld()
    if sys.platform == "linux" and not become_undumpable():
        log.warning("other programs of this user can read the memory and the environment of this process")
    gc.set_threshold(GC_YOUNG, GC_MIDDLE, GC_OLD)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
