"""The contexts of the `nats` CLI: where to connect and as whom, under a name, in files that users have already."""

import os
from pathlib import Path
from typing import Final

import msgspec

from jido_nats.broker.options import ConnectOptions
from jido_nats.core.subjects import is_token
from jido_nats.errors import ConfigurationError

# What such a file can also say, and this client cannot do: better told than connected as somebody else.
_UNKNOWN_HERE: Final = ("nsc", "user_jwt", "user_seed", "socks_proxy", "tls_first", "jetstream_domain")


class _Context(msgspec.Struct):
    url: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""
    inbox_prefix: str = ""


def read_context(name: str) -> ConnectOptions:
    """The connection of that context. `ConfigurationError`: there is none, or it asks for what is not supported."""
    file = _folder() / f"{name}.json"
    if not all(is_token(part) for part in name.split(".")):
        raise ConfigurationError(f"--context takes a name as 'nats context ls' shows them, not {name!r}")
    try:
        content = file.read_bytes()
        context = msgspec.json.decode(content, type=_Context)
        asked = msgspec.json.decode(content, type=dict[str, object])
    except OSError as error:
        raise ConfigurationError(f"the context {name} cannot be read: {file}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeError):
        raise ConfigurationError(
            f"the context {name} is not one of the nats CLI's: {file}"
        ) from None  # may hold secrets
    if unsupported := [field for field in _UNKNOWN_HERE if asked.get(field)]:
        raise ConfigurationError(f"the context {name} uses {', '.join(unsupported)}, which jido-nats cannot")
    return _options(context)


def _options(context: _Context) -> ConnectOptions:
    return ConnectOptions(
        servers=tuple(context.url.split(",")) if context.url else ConnectOptions.servers,
        user=context.user or None,
        password=context.password or None,
        token=context.token or None,
        nkey_seed_file=_path(context.nkey),
        credentials_file=_path(context.creds),
        tls_ca=_path(context.ca),
        tls_cert=_path(context.cert),
        tls_key=_path(context.key),
        inbox_prefix=context.inbox_prefix or None,
    )


def _path(text: str) -> str | None:
    return str(Path(text).expanduser()) if text else None


def _folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "nats" / "context"
