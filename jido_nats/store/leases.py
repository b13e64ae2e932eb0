"""Which managers are alive: one entry with a TTL in `JIDO_MANAGERS` for each, which that manager renews.

Safety does not rest on leases: a manager that wrongly believes another dead claims the session's fence first, and
from then on the other can store nothing (see `writer`). Leases decide *when* to take over, and stop a manager that
was frozen from answering for sessions that it may have lost.

A dead holder's entry expires on the server by itself, and its marker notifies the other managers. How a manager holds
its own lease is in `lease`.
"""

import asyncio
import contextlib
import functools
import logging
import math
import os
import re
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage
from jido_nats.broker.follower import FollowingConsumer
from jido_nats.broker.jetstream import (
    EXPECTED_SEQUENCE,
    MARKER_REASON,
    MESSAGE_TTL,
    StoredMessage,
    api,
    last_message,
    settled,
    store,
)
from jido_nats.broker.life import RecentChanges
from jido_nats.broker.stream_info import last_position, server_time_ns
from jido_nats.core import codec, subjects
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.position import NS_PER_S
from jido_nats.core.session import KNOWN_FEATURES
from jido_nats.errors import Conflict, NotSent, OutcomeUnknown, Unavailable

MARKER_TTL_S: Final = 60
# An entry that is older than so many lease times, and so many seconds, is no lease any more.
OVERDUE_LEASES: Final = 3
OVERDUE_S: Final = 5
_SECONDS: Final = re.compile(r"\A(\d{1,9})s\Z")

log = logging.getLogger(__name__)


def describe(manager_id: str, version: str) -> ManagerInfo:
    """This process, as its lease describes it."""
    return ManagerInfo(
        manager_id=manager_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=datetime.now(UTC),
        version=version,
        knows=tuple(sorted(KNOWN_FEATURES)),
    )


class _Renewal(NamedTuple):
    """The last renewal of a lease: its sequence in the bucket, when it was stored, and for how long it holds."""

    sequence: int
    time_ns: int
    lease_s: int | None


class Leases:
    """The leases of all managers, followed; what a decision depends on is read at the leader."""

    def __init__(self, connection: Connection, bucket: str, *, lease_s: int | None = None) -> None:
        """`lease_s`: this manager's lease time, which all managers have to share; None if that does not matter."""
        self._connection = connection
        self._bucket = bucket
        self._stream = subjects.bucket_stream(bucket)
        self.lease_s = lease_s
        self._reported: set[tuple[str, int]] = set()
        self.managers: dict[str, ManagerInfo] = {}
        self._renewals: dict[str, _Renewal] = {}
        # Set by a follower that has read every lease that there was.
        self.read = asyncio.Event()
        # Set when a manager's lease has ended.
        self.gone = asyncio.Event()
        # Set when a manager with another lease time is seen.
        self.disagreement = asyncio.Event()

    def follow(self) -> FollowingConsumer:
        """Every lease, then every change; pass each message to `apply`."""
        self.managers.clear()
        self._renewals.clear()
        self.read.clear()
        return FollowingConsumer(
            self._connection,
            self._stream,
            [subjects.all_keys(self._bucket)],
            Start("last_per_subject"),
            recent=RecentChanges(),
            silence_max_s=MARKER_TTL_S / 2,
        )

    async def last_position(self) -> int:
        """The sequence of the bucket's last change, at its leader; 0 if there is none."""
        return await last_position(self._connection, self._stream, subjects.all_keys(self._bucket))

    def apply(self, message: StreamMessage) -> bool:
        """Apply one message; True if a manager's lease has ended."""
        manager_id = subjects.session_of(message.subject)
        info = _info_in(message)
        if info is not None:
            lease_s = lease_time(message)
            self.managers[manager_id] = info
            self._renewals[manager_id] = _Renewal(message.sequence, message.time_ns, lease_s)
            self._compare_lease_time(manager_id, lease_s)
            return False
        self._renewals.pop(manager_id, None)
        if self.managers.pop(manager_id, None) is None:
            return False
        self.gone.set()
        return True

    def others(self, manager_id: str) -> dict[str, ManagerInfo]:
        """The other managers, as of their last renewals."""
        return {name: info for name, info in self.managers.items() if name != manager_id}

    def full_at(self, manager_id: str) -> float:
        """The sequence of the last renewal in which that manager is full; infinite if it is not."""
        info = self.managers.get(manager_id)
        return self._renewals[manager_id].sequence if info is not None and info.full else math.inf

    def others_have_room(self, manager_id: str, *, after: float) -> bool:
        """Whether another manager answers commands and is not full, by a renewal after that sequence."""
        return any(
            info.serves and not info.full and self._renewals[name].sequence > after
            for name, info in self.others(manager_id).items()
        )

    def check_read(self) -> None:
        """Raise `Unavailable` until every lease is read."""
        if not self.read.is_set():
            raise Unavailable("not done: the leases of the other managers are not read yet; ask again")

    def passed_on(self, manager_id: str) -> None:
        """A session was passed on to that manager: count it, until its next renewal does."""
        if (info := self.managers.get(manager_id)) is not None:
            self.managers[manager_id] = msgspec.structs.replace(info, sessions=info.sessions + 1)

    def check_known(self, features: Iterable[str]) -> None:
        """Raise `Unavailable` unless every manager, as of its last renewal, knows these features.

        A manager that starts later and does not know one leaves the records that need it to those that do.
        """
        self.check_read()
        for feature in features:
            lacking = next((name for name, info in self.managers.items() if feature not in info.knows), None)
            if lacking is not None:
                raise Unavailable(
                    f"not done: upgrade all managers first; {lacking} does not know the feature {feature!r}"
                )

    def _compare_lease_time(self, manager_id: str, lease_s: int | None) -> None:
        """Report, once, a lease time that differs from this manager's: all have to agree on one."""
        if self.lease_s is None or lease_s is None or lease_s == self.lease_s:
            return
        if (manager_id, lease_s) in self._reported:
            return
        self._reported.add((manager_id, lease_s))
        self.disagreement.set()
        log.warning(
            "lease_s differs from another manager's; use one value for the whole deployment",
            extra={"other": manager_id, "its_lease_s": lease_s, "lease_s": self.lease_s},
        )

    async def remove_overdue(self) -> None:
        """Remove the entries that are so old, by the server's clock, that their managers cannot be renewing them.

        Their TTL removes them long before that, unless they were written without one, or the server has lost it, as it
        was seen to do after it was killed.
        """
        now_ns = await server_time_ns(self._connection, self._stream)
        for manager_id, renewal in list(self._renewals.items()):
            lease_s = max(self.lease_s or 0, renewal.lease_s or 0)
            if lease_s and now_ns - renewal.time_ns > (OVERDUE_LEASES * lease_s + OVERDUE_S) * NS_PER_S:
                await self._remove(manager_id, renewal.sequence)

    async def is_alive(self, manager_id: str) -> bool:
        """Whether that manager has a lease, read at the leader."""
        if not subjects.is_token(manager_id):  # from a record or claim that no manager wrote
            return False
        subject = subjects.key(self._bucket, manager_id)
        message = await settled(self._connection, lambda: last_message(self._connection, self._stream, subject))
        return message is not None and bool(message.data)

    async def _remove(self, manager_id: str, sequence: int) -> None:
        log.error("an entry outlived its lease; removing it", extra={"manager_id": manager_id})
        headers = {EXPECTED_SEQUENCE: str(sequence), "KV-Operation": "DEL", MESSAGE_TTL: f"{MARKER_TTL_S}s"}
        with contextlib.suppress(Conflict, NotSent, OutcomeUnknown):  # its manager lives after all, or the next time
            await store(self._connection, self._stream, subjects.key(self._bucket, manager_id), b"", headers)


async def any_lease(connection: Connection, bucket: str) -> bool:
    """Whether any manager has a lease, read at the leader."""
    stream = subjects.bucket_stream(bucket)
    keys = {"subjects_filter": subjects.all_keys(bucket)}
    info = await settled(connection, lambda: api(connection, f"STREAM.INFO.{stream}", keys))
    for subject in info["state"].get("subjects") or ():
        message = await settled(connection, functools.partial(last_message, connection, stream, subject))
        if message is not None and _info_in(message) is not None:
            return True
    return False


def lease_time(message: StreamMessage) -> int | None:
    """The lease time in a message of the bucket, in seconds; None if it has none."""
    seconds = _SECONDS.match(message.headers.get(MESSAGE_TTL, ""))  # another client may use another format
    return int(seconds[1]) if seconds is not None else None


def _info_in(message: StreamMessage | StoredMessage) -> ManagerInfo | None:
    """The manager's description of itself; None for the end of its lease, and for an entry of another kind."""
    if not message.data or MARKER_REASON in message.headers:
        return None
    try:
        return codec.decode(message.data, ManagerInfo)
    except codec.DecodeError as error:
        log.warning("an entry of the bucket is not a lease", extra={"subject": message.subject, "error": str(error)})
        return None
