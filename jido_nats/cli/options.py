"""Options that commands share: connection and credentials, settings, key-value pairs, JSON."""

import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec

from jido_nats.broker.cli_context import read_context
from jido_nats.broker.options import ConnectOptions
from jido_nats.cli.printer import Printer
from jido_nats.cli.process import run_program, while_read
from jido_nats.core import settings as settings_module
from jido_nats.core.requests import check_restart
from jido_nats.core.session import Cause, RestartPolicy
from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError

DEFAULT_SERVER: Final = "nats://127.0.0.1:4222"
PORT: Final = click.IntRange(0, 65535)


class Common(NamedTuple):
    """The options of every command that connects to a server."""

    connection: ConnectOptions
    printer: Printer


def common_options(
    command: Callable[..., Coroutine[Any, Any, int | None]], *, fast: bool = False, follows: bool = False
) -> Callable[..., None]:
    """Add the common options, and run the command; its result is the exit code.

    `fast`: on uvloop. `follows`: it prints what arrives for as long as its stdout is read.
    """

    @connection_options
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
    @wraps(command)
    def run(as_json: bool, **arguments: Any) -> None:
        connection = {name: arguments.pop(name) for name in _CONNECTION}
        work = _with_common(connection, as_json, arguments)
        run_program(while_read(work) if follows else work, fast=fast)

    async def _with_common(connection: dict[str, Any], as_json: bool, arguments: dict[str, Any]) -> int | None:
        return await command(Common(connect_options(**connection), Printer(as_json=as_json)), **arguments)

    return run


def connection_options(command: Callable[..., None], **flags: str) -> Callable[..., None]:
    """Server and credentials. `flags`: options that have another name here."""
    for name, option in reversed(_CONNECTION.items()):
        command = click.option(flags.get(name, f"--{name.replace('_', '-')}"), name, **option)(command)
    return command


_FILE: Final = click.Path(dir_okay=False)
_CONNECTION: Final[dict[str, dict[str, Any]]] = {
    "server": {"envvar": "NATS_URL", "help": f"NATS URL; several separated by commas.  [default: {DEFAULT_SERVER}]"},
    "context": {"help": "Context of the nats CLI: its server and credentials; options override it."},
    "user": {"envvar": "NATS_USER", "help": "User name."},
    "password": {
        "envvar": "NATS_PASSWORD",
        "help": "Password; prefer NATS_PASSWORD: other users can see command lines.",
    },
    "token": {"envvar": "NATS_TOKEN", "help": "Token; prefer NATS_TOKEN."},
    "nkey": {"envvar": "NATS_NKEY", "type": _FILE, "help": "File with an nkey seed."},
    "creds": {"envvar": "NATS_CREDS", "type": _FILE, "help": "A .creds file."},
    "tls_ca": {"envvar": "NATS_CA", "type": _FILE, "help": "CA certificate for verifying the server."},
    "tls_cert": {"envvar": "NATS_CERT", "type": _FILE, "help": "Client certificate."},
    "tls_key": {"envvar": "NATS_KEY", "type": _FILE, "help": "Private key of the client certificate."},
    "inbox_prefix": {"help": "Prefix of inbox subjects for replies.  [default: _INBOX.<user>]"},
    "js_api_prefix": {"help": "Prefix of the JetStream API.  [default: $JS.API or jido.js, whichever answers]"},
}


def connect_options(
    *, server: str | None, context: str | None, nkey: str | None, creds: str | None, **others: str | None
) -> ConnectOptions:
    """The context's options, if one is named, overridden by those that were given."""
    base = read_context(context) if context is not None else ConnectOptions()
    given: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
    given |= {"nkey_seed_file": nkey} if nkey else {}
    given |= {"credentials_file": creds} if creds else {}
    given |= {"servers": tuple(server.split(","))} if server else {}
    if given.keys() & IDENTITY.keys() - {"password"}:  # one identity at a time
        base = replace(base, **IDENTITY, inbox_prefix=None)
    return replace(base, **given)


IDENTITY: Final[dict[str, Any]] = dict.fromkeys(("user", "password", "token", "nkey_seed_file", "credentials_file"))


def config_option(command: Callable[..., None]) -> Callable[..., None]:
    """The settings file, as the argument `config_file` for `load_settings`."""
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--config", "config_file", type=path, help="Settings file (TOML).")(command)


def load_settings(file: Path | None, *, labels: tuple[str, ...] = (), **overrides: Any) -> Settings:
    """The settings of a TOML file; flags that were given override it. Raises `ConfigurationError`."""
    try:
        content = file.read_bytes() if file is not None else b""
    except OSError as error:
        raise ConfigurationError(f"--config {file}: {error.strerror}") from error
    return settings_module.load(content, labels=labels_of(labels) or None, **overrides)


def pairs_of(texts: tuple[str, ...], option: str = "--metadata") -> dict[str, Any]:
    """`KEY=VALUE` arguments of an option as a dictionary. Raises `ConfigurationError`."""
    for text in texts:
        if "=" not in text:
            raise ConfigurationError(f"{option} takes KEY=VALUE, not {text!r}")
    return dict(text.split("=", 1) for text in texts)


def labels_of(texts: tuple[str, ...]) -> dict[str, str]:
    """The values of `--label`. Raises `ConfigurationError`, also if a label is given twice."""
    labels = pairs_of(texts, "--label")
    if len(labels) < len(texts):
        raise ConfigurationError("--label names the same label twice")
    return labels


def restart_policy(causes: str | None, **limits: float | None) -> RestartPolicy | None:
    """The policy of `--restart` and what goes with it; None without it. Raises `ConfigurationError`, `BadRequest`."""
    given = {name: value for name, value in limits.items() if value is not None}
    if causes is None:
        if given:
            option = f"--{next(iter(given)).replace('_', '-')}"
            raise ConfigurationError(f"{option} goes with --restart, which says after what to go on")
        return None
    on = tuple(Cause(cause.strip()) for cause in causes.split(",") if cause.strip())
    policy = RestartPolicy(on=on, **given)  # type: ignore[arg-type]
    check_restart(policy)
    return policy


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """The JSON object given to an option; None without the option. Raises `ConfigurationError`."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ConfigurationError(f"{option} takes a JSON object: {error}") from error


def text_of_stdin() -> str:
    """All of standard input. Raises `ConfigurationError` if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"standard input is not valid UTF-8: {error.reason} at byte {error.start}") from error
