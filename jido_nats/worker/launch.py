"""Become a program, as another user and within limits. Run as a program; standard library only.

    python -I -S launch.py UID:GID:GROUP,… NAME=SOFT:HARD,… PROGRAM ARGUMENTS...

Either of the first two may be empty. It is a program of its own so that nothing of this happens in a process that has
threads, between a fork and an exec.
"""

import contextlib
import os
import resource
import signal
import sys
import warnings  # noqa: F401 - os.execvp imports it, when the program's user may not be able to read it any more

EXIT_CANNOT_RUN = 126
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4


def main() -> None:
    """Give up what the program may not have, and become it."""
    user, limits, *argv = sys.argv[1:]
    try:
        if user:
            _become(*user.split(":"))
        for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and the program would inherit that
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        for limit in filter(None, limits.split(",")):
            name, soft, hard = limit.replace("=", ":").split(":")
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(soft), int(hard)))
        os.execvp(argv[0], argv)  # the operator's program, without a shell  # nosec B606
    except (OSError, ImportError, MemoryError) as error:
        print(f"{argv[0]} cannot be started: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_RUN)


def _become(uid_text: str, gid_text: str, groups: str) -> None:
    """This user, with no group and no capability of the manager's."""
    import ctypes

    uid, gid = int(uid_text), int(gid_text)
    libc = ctypes.CDLL(None, use_errno=True)
    for pipe in (0, 1, 2):  # so that /dev/stderr and the like can be opened
        with contextlib.suppress(OSError):
            os.fchown(pipe, uid, gid)
    os.setgroups([int(group) for group in groups.split(",")])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # What a manager that is not root was given outlives both the change of user and an exec.
    if sys.platform == "linux" and libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "its capabilities cannot be dropped")


if __name__ == "__main__":
    main()
