"""Programs that end when the test process does, however it ends: a suite that is killed cleans up nothing. Linux.

    python -I -S bound.py PARENT_PID SIGNAL PROGRAM ARGUMENTS...

sends itself the signal at the parent's end, and becomes the program. As in `jido_nats/broker/parent_death.py`, the
parent is the thread that starts it: the main thread, in tests.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def bound(*argv: str, number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line of a program that gets the signal when this process ends."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(number)), *argv]


def main() -> None:
    """Ask for the signal, and become the program."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]), 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        return  # the parent died before the kernel was asked
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the program would inherit that
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
