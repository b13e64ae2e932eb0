"""Programs that end when the test process does, however it ends: a suite that is killed cleans up nothing. Linux.

The parent is the thread that starts them: the main thread, in tests.
"""

import os
import signal
import sys

from jido_nats.broker import parent_death


def bound(*argv: str, number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line of a program that gets the signal when this process ends."""
    return [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), str(int(number)), *argv]
