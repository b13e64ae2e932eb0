"""Which time limit of a session is over next. Pure: the moments are handed in, of whichever clock the caller has."""

from collections.abc import Mapping
from typing import NamedTuple

from jido_nats.core.requests import limits_of
from jido_nats.core.session import SessionRecord, Status


class Limit(NamedTuple):
    """A time limit: the moment when it is over, which it is, and how many seconds it allows."""

    moment: float
    name: str
    seconds: float


def next_limit(
    record: SessionRecord, defaults: Mapping[str, float], *, began_at: float, active_at: float
) -> Limit | None:
    """The limit that is over first, of those that count in the session's status; None: no limit counts.

    A limit of the record wins over the default of that name; 0 means none. `began_at`: when the session was created;
    `active_at`: when it last had a change, a message or output.
    """
    since = {"max_lifetime_s": began_at}
    match record.status:
        case Status.ACTIVE:
            since["idle_after_s"] = active_at
        case Status.IDLE:
            since["idle_timeout_s"] = active_at
        case _:
            return None
    given = {name: limit for name, limit in limits_of(record).items() if limit is not None}
    seconds = {**defaults, **given}
    limits = (Limit(since[name] + seconds[name], name, seconds[name]) for name in since if seconds.get(name))
    return min(limits, default=None)
