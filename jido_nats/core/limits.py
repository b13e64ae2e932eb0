"""Which of a session's time limits expires next. Pure: the caller passes all times in, from a clock of its choice."""

from collections.abc import Mapping
from typing import NamedTuple

from jido_nats.core.requests import limits_of
from jido_nats.core.session import SessionRecord, Status


class Limit(NamedTuple):
    """A time limit: when it expires, its name, and its length in seconds."""

    moment: float
    name: str
    seconds: float


def next_limit(
    record: SessionRecord, defaults: Mapping[str, float], *, began_at: float, active_at: float
) -> Limit | None:
    """The limit that expires first, of those that apply in the session's status; None if none applies.

    A limit in the record overrides the default of the same name; 0 means no limit. `began_at`: when the session was
    created; `active_at`: when it last had a status change, a message or output.
    """
    since = {"max_lifetime_s": began_at}
    match record.status:
        case Status.ACTIVE:
            since["idle_after_s"] = active_at
        case Status.IDLE:
            since["idle_timeout_s"] = active_at
        case Status.INITIALIZING if record.run is not None and record.run.cause is not None:
            pass  # it waits for its next attempt
        case _:
            return None
    given = {name: limit for name, limit in limits_of(record).items() if limit is not None}
    seconds = {**defaults, **given}
    limits = (Limit(since[name] + seconds[name], name, seconds[name]) for name in since if seconds.get(name))
    return min(limits, default=None)
