"""What a program that runs as a worker may not have: its manager's user and privileges, more than its limits, secrets.

A program is started by a thread that has given up new privileges, in `process_group`; its user and its limits are set
by `launch`, a helper that becomes the program.
"""

import os
import pwd
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from jido_nats.core import confinement
from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError

_LAUNCH: Final = str(Path(__file__).with_name("launch.py"))
# Environment variables that a program does not inherit: the manager's credentials and settings, and what systemd has
# said to the manager alone. `SERVE` has the manager's options in deploy/systemd.
_NOT_INHERITED_PREFIXES: Final = ("NATS_", "JIDO_", "WATCHDOG_", "LISTEN_")
_NOT_INHERITED: Final = frozenset(("NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "SERVE"))
# What a program inherits also if there is a list.
_ALWAYS_INHERITED: Final = frozenset(("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ"))
# What belongs to the manager's user: a program of another user does not inherit it.
_PERSONAL: Final = ("HOME", "USER", "LOGNAME", "MAIL", "SHELL")
# Capabilities by their bit: to change the user and its groups, and to end what runs as another user.
_CAPABILITIES: Final = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
# At the soft limit a program is killed by SIGXCPU, which says why; one that ignores that is killed at the hard limit.
CPU_GRACE_S: Final = 1
ID_MAX: Final = 2**32 - 2


class _User(NamedTuple):
    uid: int
    gid: int
    groups: Sequence[int]
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}:{','.join(map(str, self.groups))}"


class Confinement:
    """The user, the limits and the environment of a manager's programs, as `--worker-user` and the like say them."""

    def __init__(self, user: str | None = None, limit: str | None = None, env: Sequence[str] | None = None) -> None:
        """Raises `ConfigurationError` where it cannot be had."""
        self.options: Final = (user, limit, None if env is None else tuple(env))
        self._user = None if user is None else _user_of(user)
        try:
            self._limits = {} if limit is None else confinement.limits_of(limit)
            self._variables = None if env is None else confinement.variables_of(env)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        _check_limits(self._limits)
        for name in self._variables.inherited if self._variables is not None else ():
            if not _is_inherited(name):
                raise ConfigurationError(
                    f"--worker-env {name}: that is the manager's own; give a program its own with {name}=VALUE"
                )

    def command(self, argv: Sequence[str]) -> Sequence[str]:
        """What has to be started to run this program."""
        if self._user is None and not self._limits:
            return argv
        limits = ",".join("{}={}:{}".format(*_rlimit(name, value)) for name, value in self._limits.items())
        return [sys.executable, "-I", "-S", _LAUNCH, str(self._user or ""), limits, *argv]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """What a program gets of its manager's environment."""
        env = {name: value for name, value in inherited.items() if _is_inherited(name)}
        if self._user is not None:
            for name in _PERSONAL:
                env.pop(name, None)
            env |= self._user.variables
        if self._variables is not None:
            allowed = _ALWAYS_INHERITED | self._variables.inherited
            env = {name: value for name, value in env.items() if name in allowed}
            env.update(self._variables.values)
        return env


def confinement_of(settings: Settings) -> Confinement:
    """The confinement that a manager's settings ask for. Raises `ConfigurationError`."""
    return Confinement(settings.worker_user, settings.worker_limit, settings.worker_env)


def check_confined(settings: Settings, confined: Confinement | None) -> None:
    """Raise `ConfigurationError` where the settings ask for what the worker, of this confinement, does not do."""
    wanted = (settings.worker_user, settings.worker_limit, settings.worker_env)
    if any(option is not None for option in wanted) and (confined is None or confined.options != wanted):
        raise ConfigurationError(
            "worker_user, worker_limit and worker_env apply to programs (--exec, --isolation process, or "
            "Program(…, user=…, limit=…, env=…)); this worker runs inside its manager, and can reach all that it has"
            if confined is None
            else "worker_user, worker_limit and worker_env are not those that the Program was given"
        )


def _is_inherited(name: str) -> bool:
    return name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_PREFIXES)


def _user_of(text: str) -> _User:
    """`NAME`, `UID` or `UID:GID`. Raises `ConfigurationError`, also if this process may not become it."""
    name, has_gid, gid_text = text.partition(":")
    entry = _entry_of(name)
    if entry is None and not (name.isdecimal() and name.isascii()):
        raise ConfigurationError(f"--worker-user {text}: there is no user {name!r}")
    if has_gid and not (gid_text.isdecimal() and gid_text.isascii()):
        raise ConfigurationError(f"--worker-user {text}: the group is a number, as in 10002:10002")
    if entry is None and not has_gid:
        raise ConfigurationError(f"--worker-user {text}: no user has this number; give its group too, as {text}:GID")
    uid = int(name) if entry is None else entry.pw_uid
    gid = int(gid_text) if has_gid or entry is None else entry.pw_gid
    if max(uid, gid) > ID_MAX:
        raise ConfigurationError(f"--worker-user {text}: the numbers of users and groups are below {ID_MAX + 1}")
    _check_may_become(text, uid)
    groups = [gid] if has_gid or entry is None else os.getgrouplist(entry.pw_name, gid)
    if entry is None:
        return _User(uid, gid, groups, {"HOME": "/"})
    return _User(uid, gid, groups, {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name})


def _entry_of(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        return None


def _check_may_become(text: str, uid: int) -> None:
    if uid == 0:
        raise ConfigurationError(f"--worker-user {text}: programs run as root would be confined by nothing")
    if uid == os.geteuid():
        raise ConfigurationError(f"--worker-user {text}: that is the manager's own user; give another")
    missing = _missing_capabilities()
    if missing:
        raise ConfigurationError(
            f"--worker-user {text}: only root, or a manager with {', '.join(_CAPABILITIES)}, can run programs as "
            f"another user; this one lacks {', '.join(missing)}"
        )


def _missing_capabilities() -> list[str]:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return [] if os.geteuid() == 0 else list(_CAPABILITIES)
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def _rlimit(name: str, value: int) -> tuple[str, int, int]:
    """The operating system's name of a limit, its soft and its hard value."""
    return confinement.LIMITS[name][0], value, value + CPU_GRACE_S if name == "cpu" else value


def _check_limits(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        rlimit, _, hard = _rlimit(name, value)
        mine = resource.getrlimit(getattr(resource, f"RLIMIT_{rlimit}"))[1]
        if mine != resource.RLIM_INFINITY and hard > mine:
            raise ConfigurationError(f"--worker-limit {name}: this manager's own hard limit is lower, {mine}")
