"""The options of a connection: servers, credentials, TLS."""

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jido_nats.core.subjects import is_literal
from jido_nats.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, repr=False)
class ConnectOptions:
    """Servers, credentials and TLS of a connection. Its `repr` shows no secrets.

    `user` and `password`, or `token`, or `nkey_seed_file` (a file with the seed of an nkey), or `credentials_file`
    (a `.creds` file); `tls_ca` is a CA to trust, `tls_cert` and `tls_key` are the client's certificate. Files are
    given as paths. `inbox_prefix`: where replies arrive; None means `_INBOX.<user>` if there is a user, else `_INBOX`.
    `js_api_prefix`: the subject under which JetStream's API is reached; None means `$JS.API`, or `jido.js`, the prefix
    of `nats.conf`'s imports, if that is where it answers.
    """

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey_seed_file: str | None = None
    credentials_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_hostname: str | None = None
    inbox_prefix: str | None = None
    js_api_prefix: str | None = None

    def __post_init__(self) -> None:
        # A scheme is the same in capitals; nats-py, and we where we ask whether it is TLS, know the small letters only.
        object.__setattr__(self, "servers", tuple(_with_lower_scheme(server) for server in self.servers))

    def safe_servers(self) -> str:
        """The servers without the secrets that their URLs may contain."""
        return ", ".join(_without_userinfo(server) for server in self.servers)

    def inbox(self) -> str:
        """The prefix of the inboxes: each user has its own, so that permissions can hide its replies from others."""
        if self.inbox_prefix is not None:
            return self.inbox_prefix
        user = self.user or _user_in(self.servers[0])
        return f"_INBOX.{user}" if user and is_literal(user) else "_INBOX"

    def __repr__(self) -> str:
        return f"<ConnectOptions {self.safe_servers()} as {self.user or _user_in(self.servers[0]) or 'nobody named'}>"


def check_options(options: ConnectOptions) -> None:
    """Raise `ConfigurationError` for a prefix that is no subject, and for a file that is unreadable or not its kind."""
    for prefix in (options.inbox_prefix, options.js_api_prefix):
        if prefix is not None and not is_literal(prefix):
            raise ConfigurationError(f"{prefix!r} is no prefix of subjects: tokens separated by dots, no wildcards")
    paths = (options.nkey_seed_file, options.credentials_file, options.tls_ca, options.tls_cert, options.tls_key)
    for path in filter(None, paths):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if options.credentials_file is not None:
        content = Path(options.credentials_file).read_bytes()
        if b"BEGIN NATS USER JWT" not in content or b"BEGIN USER NKEY SEED" not in content:  # nats-py would hang
            raise ConfigurationError(f"{options.credentials_file} is not a .creds file")
    try:
        tls_context(options)
    except (ssl.SSLError, OSError) as error:
        named = ", ".join(filter(None, (options.tls_ca, options.tls_cert, options.tls_key)))
        raise ConfigurationError(f"no usable certificate or key in {named}: {error}") from error


def tls_context(options: ConnectOptions) -> ssl.SSLContext | None:
    """The TLS context; None if the options do not ask for TLS. Raises as `ssl` does."""
    if not (options.tls_ca or options.tls_cert or any(s.startswith(("tls://", "wss://")) for s in options.servers)):
        return None
    context = ssl.create_default_context(cafile=options.tls_ca)
    if options.tls_cert:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


def _with_lower_scheme(server: str) -> str:
    scheme, separator, rest = server.partition("://")
    return f"{scheme.lower()}{separator}{rest}" if separator else server


def _without_userinfo(server: str) -> str:
    scheme, separator, rest = server.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _user_in(server: str) -> str | None:
    """The user in a URL; a name without a password is a token."""
    with contextlib.suppress(ValueError):
        url = urlsplit(server if "://" in server else f"nats://{server}")
        return unquote(url.username) if url.username and url.password is not None else None
    return None
