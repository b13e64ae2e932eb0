"""Run a program that the kernel sends a signal when its parent dies. Linux; a program of the standard library only.

    python -I -S parent_death.py PARENT_PID SIGNAL PROGRAM ARGUMENTS...

The request belongs to this process, and survives its `exec`. It names the thread that started this process, so that
thread has to live as long as the program may.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, and become the program."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]), 0, 0, 0)
    except (ImportError, MemoryError, OSError, AttributeError):
        pass  # the program runs without
    if os.getppid() != int(sys.argv[1]):
        return  # the parent died before the kernel was asked
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the program would inherit that
    os.execv(sys.argv[3], sys.argv[3:])  # what its caller names, without a shell  # nosec B606


if __name__ == "__main__":
    main()
