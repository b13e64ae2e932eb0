"""What programs in other accounts may create as a consumer. Pure.

A consumer's configuration is in the payload of the request, where the permissions of NATS do not look, and with a push
consumer the server delivers to any subject of the account that has the streams, those of the JetStream API included.
So the accounts of `nats.conf` import these requests from the managers, which check them.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from jido_nats.core.subjects import CONSUMER_REQUESTS, is_literal, is_token
from jido_nats.errors import BadRequest

REQUEST_BYTES_MAX: Final = 16 * 1024
FILTERS_MAX: Final = 64
# Of a consumer that is not durable.
INACTIVE_MAX_NS: Final = 24 * 3600 * 1_000_000_000
# In a consumer's metadata: the role that has created it, which alone may change it.
ROLE: Final = "jido_role"

# What a reader needs. Exactly these: the server takes `Deliver_Subject` for `deliver_subject`, as the decoder of Go
# does. Not `direct` and `sourcing`, which `max_consumers` does not count, nor `pause_until`.
FIELDS: Final = frozenset(
    [
        "name",
        "durable_name",
        "description",
        "deliver_policy",
        "opt_start_seq",
        "opt_start_time",
        "ack_policy",
        "ack_wait",
        "max_deliver",
        "backoff",
        "filter_subject",
        "filter_subjects",
        "replay_policy",
        "rate_limit_bps",
        "sample_freq",
        "max_waiting",
        "max_ack_pending",
        "flow_control",
        "headers_only",
        "max_batch",
        "max_expires",
        "max_bytes",
        "deliver_subject",
        "deliver_group",
        "idle_heartbeat",
        "inactive_threshold",
        "num_replicas",
        "mem_storage",
        "metadata",
        "priority_groups",
        "priority_policy",
        "priority_timeout",
    ]
)
# How clients write that they do not set a field; such fields are not passed on.
_UNSET: Final[tuple[Any, ...]] = (None, False, "", [], {}, "0001-01-01T00:00:00Z")
# nats-server 2.15.1 stores a sequence of 2**63 or more, and cannot read it when it starts.
SEQUENCE_MAX: Final = 2**62
# The server looks at all that is not acknowledged whenever one of them is due.
ACK_WAIT_MIN_NS: Final = 100_000_000


class ConsumerRequest(NamedTuple):
    """A checked request for a consumer; `action`: as in the JetStream API."""

    role: str
    stream: str
    name: str
    config: dict[str, Any]
    action: str


def role_of(subject: str) -> str:
    """The role whose account imports requests from that subject."""
    return subject.removeprefix(CONSUMER_REQUESTS[:-1]).partition(".")[0]


def parse(subject: str, payload: bytes, *, unnamed: str) -> ConsumerRequest:
    """The request on a subject such as `jido.consumer.<role>.CREATE.<stream>.<name>.<filter>`.

    The forms are those of the JetStream API: `CREATE.<stream>` and `DURABLE.CREATE.<stream>.<name>`, too. A name has to
    be in the subject, where imports and permissions decide on it; without one the consumer is called `unnamed`.
    Raises `BadRequest`.
    """
    role = role_of(subject)
    rest = subject.removeprefix(f"{CONSUMER_REQUESTS[:-1]}{role}.")
    stream, _, rest = rest.removeprefix("DURABLE.").removeprefix("CREATE.").partition(".")
    named, _, filtered = rest.partition(".")
    body = _body(payload)
    config = {name: value for name, value in body.config.items() if name in FIELDS or value not in _UNSET}
    if body.stream_name != stream:
        raise BadRequest(f"stream_name is {body.stream_name!r}, the subject says {stream!r}")
    name = _name(named, config) or unnamed
    if filtered and config.get("filter_subject") != filtered:
        raise BadRequest("filter_subject is not that of the subject")
    _check(role, config)
    metadata = config.get("metadata") or {}
    return ConsumerRequest(
        role, stream, name, config | {"name": name, "metadata": {**metadata, ROLE: role}}, body.action
    )


def _name(named: str, config: Mapping[str, Any]) -> str:
    """The consumer's name; empty if it has none."""
    if any(config.get(field) not in (None, "", named) for field in ("name", "durable_name")):
        raise BadRequest("name and durable_name must be the name in the subject of the request")
    if named and not is_token(named):
        raise BadRequest("a consumer's name must be 1 to 64 letters, digits, '_' or '-'")
    return named


def _check(role: str, config: Mapping[str, Any]) -> None:
    if others := sorted(config.keys() - FIELDS):
        raise BadRequest(f"{others[0]!r} cannot be set by programs in other accounts")
    if (config.get("opt_start_seq") or 0) > SEQUENCE_MAX:
        raise BadRequest(f"opt_start_seq must be {SEQUENCE_MAX} at most")
    if min([config.get("ack_wait") or ACK_WAIT_MIN_NS, *(config.get("backoff") or ())]) < ACK_WAIT_MIN_NS:
        raise BadRequest("ack_wait and backoff must be 100 ms or more")
    deliver = config.get("deliver_subject")
    own = f"_INBOX.{role}."
    if deliver and not (deliver.startswith(own) and is_literal(deliver)):
        raise BadRequest(f"deliver_subject must be an inbox of this user: {own}…")
    if len(config.get("filter_subjects") or ()) > FILTERS_MAX:
        raise BadRequest(f"a consumer may have {FILTERS_MAX} filter subjects at most")
    if not config.get("durable_name") and (config.get("inactive_threshold") or 0) > INACTIVE_MAX_NS:
        raise BadRequest("inactive_threshold is more than a day, and the consumer is not durable")


class _Config(msgspec.Struct):
    """The fields that are checked, by their types; all others are the server's to check."""

    name: str | None = None
    durable_name: str | None = None
    deliver_subject: str | None = None
    filter_subject: str | None = None
    filter_subjects: list[str] | None = None
    inactive_threshold: int | None = None
    opt_start_seq: int | None = None
    ack_wait: int | None = None
    backoff: list[int] | None = None
    metadata: dict[str, str] | None = None


class _Body(msgspec.Struct):
    stream_name: str
    config: dict[str, Any]
    action: str = ""


def _body(payload: bytes) -> _Body:
    if len(payload) > REQUEST_BYTES_MAX:
        raise BadRequest(f"the request is {len(payload)} bytes, the limit is {REQUEST_BYTES_MAX}")
    try:
        body = msgspec.json.decode(payload, type=_Body)
        msgspec.convert(body.config, _Config)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"this is no request for a consumer: {error}") from error
    return body
