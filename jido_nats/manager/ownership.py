"""Whether this manager may write its sessions, and whether it may declare other managers dead.

Safety does not rest on this (a claim moves the fence, see `writer`); it keeps a manager that was frozen or cut off
from answering for sessions that it may have lost, and from ending the sessions of live managers.
"""

import asyncio
import contextlib
from typing import Final

from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection
from jido_nats.store.lease import Lease

POLL_S: Final = 0.5


class Ownership:
    """What follows from a manager's own lease: when it lapses, writes and answers stop.

    They resume once the lease is held again and every session was rechecked (`rechecked`).
    """

    def __init__(self, lease: Lease, connection: Connection) -> None:
        self._lease = lease
        self._connection = connection
        # The lease, by its `held_since`, under which the sessions are known to be this manager's.
        self._checked_since: float | None = None
        self._checked = asyncio.Event()

    def may_write(self) -> bool:
        """Whether the lease is held and, after a lapse, the sessions were rechecked."""
        return self._lease.valid and self._lease.held_since == self._checked_since

    async def wait_writable(self) -> None:
        """Return when this manager may write."""
        while not self.may_write():
            self._checked.clear()
            with contextlib.suppress(TimeoutError):  # poll: a renewal at the last moment sets no event
                async with asyncio.timeout(POLL_S):
                    await self._checked.wait()

    def can_declare_dead(self) -> bool:
        """Whether a manager without a lease may be declared dead: this one has been up for a whole lease time.

        After a gap in its own renewals half of that is enough: managers that could not renew either keep trying.
        """
        if not self.may_write() or not self._lease.steady or not self._connection.connected:
            return False
        now, connected_since, held_since = boottime(), self._connection.up_since, self._lease.held_since
        if connected_since is None or held_since is None or now - self._lease.steady_since < self._lease.lease_s / 2:
            return False
        return now - max(connected_since, held_since) >= self._lease.lease_s

    async def wait_regained(self) -> float:
        """Wait until the lease is held again after a lapse; its `held_since`. The sessions then need a recheck."""
        while (since := self._lease.held_since) is None or since == self._checked_since:
            await self._lease.acquired_again.wait()
            self._lease.acquired_again.clear()
        return since

    def rechecked(self, since: float | None) -> None:
        """Every session was rechecked under the lease held since then; without effect if it has lapsed again."""
        if self._lease.held_since == since:
            self._checked_since = since
            self._checked.set()
