"""The contexts of the `nats` CLI: named files, which users already have, with servers and credentials."""

import os
from pathlib import Path
from typing import Final

import msgspec

from jido_nats.broker.options import ConnectOptions
from jido_nats.core.subjects import is_token
from jido_nats.errors import ConfigurationError

# Fields that this client does not support: refuse them rather than connect as another user or to another place.
_UNSUPPORTED: Final = ("nsc", "user_jwt", "user_seed", "socks_proxy", "tls_first")


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
    jetstream_domain: str = ""
    jetstream_api_prefix: str = ""


def read_context(name: str) -> ConnectOptions:
    """The options in that context. `ConfigurationError`: it does not exist, or uses an unsupported field."""
    file = _folder() / f"{name}.json"
    if not all(is_token(part) for part in name.split(".")):
        raise ConfigurationError(f"--context takes a name as 'nats context ls' shows them, not {name!r}")
    try:
        content = file.read_bytes()
        context = msgspec.json.decode(content, type=_Context)
        fields = msgspec.json.decode(content, type=dict[str, object])
    except OSError as error:
        raise ConfigurationError(f"the context {name} cannot be read: {file}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeError):
        raise ConfigurationError(
            f"the context {name} is not a valid nats CLI context: {file}"
        ) from None  # the cause may quote secrets
    if unsupported := [field for field in _UNSUPPORTED if fields.get(field)]:
        raise ConfigurationError(f"the context {name} uses {', '.join(unsupported)}, which jido-nats does not support")
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
        js_api_prefix=context.jetstream_api_prefix or _domain_prefix(context.jetstream_domain),
    )


def _domain_prefix(domain: str) -> str | None:
    return f"$JS.{domain}.API" if domain else None


def _path(text: str) -> str | None:
    return str(Path(text).expanduser()) if text else None


def _folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "nats" / "context"
