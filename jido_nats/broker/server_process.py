"""The process of a local nats-server, which does not outlive this one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

_PARENT_DEATH: Final = str(Path(__file__).with_name("parent_death.py"))


class ServerProcess:
    """A child process; on Linux the kernel kills it when this process ends, however that happens.

    A thread starts it, and waits for its end: the kernel takes the end of the thread that started a process for the
    end of its parent.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]) -> None:
        """Start it. Raises `OSError` if that fails."""
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(_bound_to_parent(argv), env, stderr, started), name="nats-server", daemon=True
        )
        self._thread.start()
        started.wait()  # for as long as a fork takes
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it, if it has not ended."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it has ended, at most for `timeout_s`; whether it has."""
        self._thread.join(timeout_s)
        return self.ended

    def _run(self, argv: Sequence[str], env: Mapping[str, str], stderr: IO[bytes], started: threading.Event) -> None:
        null = subprocess.DEVNULL
        try:
            # In a session of its own: Ctrl-C is for this process, and the server ends last.
            self._process = subprocess.Popen(  # a nats-server that this machine has, without a shell  # nosec B603
                argv, stdin=null, stdout=null, stderr=stderr, env=dict(env), start_new_session=True
            )
        except OSError as error:
            self._error = error
        finally:
            started.set()
        if self._process is not None:
            self._process.wait()


def _bound_to_parent(argv: Sequence[str]) -> Sequence[str]:
    if sys.platform != "linux" or not sys.executable:
        return argv
    return [sys.executable, "-I", "-S", _PARENT_DEATH, str(os.getpid()), str(int(signal.SIGKILL)), *argv]
