"""This manager's own lease: an entry with a TTL in `JIDO_MANAGERS`, which it renews as long as it lives.

* The holder counts its lease from the moment it *sent* the last renewal that was acknowledged, so its own
  deadline is never later than the server's. Its clock keeps running while the machine is suspended.
* Renewals run in a thread with its own event loop and connection: a worker that blocks the manager's loop does
  not cost the lease. The thread runs until the lease is released: what ends it by mistake is logged, and it restarts.
* A renewal without an answer may still be stored: a refused compare-and-set means "read and compare", not "lost".
* Window: between the server's expiry and the holder's own deadline there is none; between the deadline and the
  holder's next check of it there is one message in flight, which the fence refuses.

What leases are for, and those of the other managers, is in `leases`.
"""

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Final

from jido_nats.broker.backoff import Backoff
from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import EXPECTED_SEQUENCE, MESSAGE_TTL, last_message, store
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.outage import Outage
from jido_nats.core import codec, subjects
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.errors import Conflict, JidoError, NotSent, OutcomeUnknown
from jido_nats.store.leases import MARKER_TTL_S

RENEWALS_PER_LEASE: Final = 3
RETRY_WAIT_S: Final = 0.2
RESTART_WAIT_S: Final = 0.2
RESTART_WAIT_MAX_S: Final = 1.0
START_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


class Lease:
    """This manager's own lease, renewed in its own thread from `acquire` to `release`.

    A change of `lease_s` holds from the next renewal on.
    """

    def __init__(
        self, options: ConnectOptions, bucket: str, manager_id: str, lease_s: int, *, outage: Outage | None = None
    ) -> None:
        self._options = options
        self._outage = outage
        self._bucket = bucket
        self._stream = subjects.bucket_stream(bucket)
        self.lease_s = lease_s
        self._manager_id = manager_id
        self._renewed_at = self._deadline = 0.0
        self._revision = 0
        self.held_since: float | None = None
        # Since when its renewals have been frequent enough that other managers could renew theirs, too.
        self.steady_since = 0.0
        self._thread = threading.Thread(target=self._run, name=f"lease {self._manager_id}", daemon=True)
        self._started: asyncio.Future[None] | None = None
        self._manager_loop: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Set in the thread's loop to renew at once, or to end after `release`.
        self._wake: asyncio.Event | None = None
        self._connection: Connection | None = None
        # Set in the manager's loop each time the lease is held again after a lapse.
        self.acquired_again = asyncio.Event()
        self._released = threading.Event()
        # Why the thread had to be restarted; empty once the lease was renewed since.
        self._failure = ""
        self._lapse_logged = False

    @property
    def age_s(self) -> float:
        """Seconds since the last acknowledged renewal was sent."""
        return boottime() - self._renewed_at

    @property
    def valid(self) -> bool:
        """Whether the lease is surely still held, by this machine's clock."""
        return boottime() < self._deadline

    @property
    def steady(self) -> bool:
        """Whether the last renewal is recent enough that no NATS outage since can have cost other managers theirs.

        A manager that renews every third of the lease lapses only if NATS is unavailable for the other two thirds.
        """
        return self.age_s <= self.lease_s / 2

    @property
    def not_ready(self) -> list[str]:
        """A sentence for each reason why the lease is not renewed as it should be."""
        connection = self._connection
        failing = [f"the lease's thread fails: {self._failure}"] if self._failure else []
        return failing + (connection.not_ready if connection is not None else [])

    async def acquire(self, info: Callable[[], ManagerInfo]) -> None:
        """Create the entry and keep renewing it; `info` is called for each renewal, in the lease's thread.

        Raises `TimeoutError` if it cannot be stored within `START_TIMEOUT_S`.
        """
        self._manager_loop = asyncio.get_running_loop()
        self._started = self._manager_loop.create_future()
        self._info = info
        self._thread.start()
        async with asyncio.timeout(START_TIMEOUT_S):
            await asyncio.shield(self._started)

    async def release(self) -> None:
        """Delete the entry, so that no manager has to wait for its expiry; also while it is being acquired."""
        self._released.set()
        if self._thread.is_alive():
            self.renew_soon()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, START_TIMEOUT_S)
        self._deadline = 0.0

    def renew_soon(self) -> None:
        """Renew now, since what the entry says has changed."""
        if self._loop is not None and self._wake is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just ended
                self._loop.call_soon_threadsafe(self._wake.set)

    def _run(self) -> None:
        """The thread: renew until the lease is released, whatever happens."""
        backoff = Backoff(RESTART_WAIT_S, RESTART_WAIT_MAX_S)
        while not self._released.is_set():
            try:
                asyncio.run(self._keep_renewed())
            except JidoError as error:
                if self.held_since is None:
                    self._call_manager(_fail, self._started, error)
                    return
                self._failure = str(error)  # `Connection` retries by itself; this one could not even be opened
            except (Exception, asyncio.CancelledError) as error:  # nobody cancels it, but nats-py's tasks end so
                self._failure = "".join(traceback.format_exception_only(error)).strip()
                log.exception("the lease's thread failed; restarting it", extra={"manager_id": self._manager_id})
            self._log_lapse()
            self._released.wait(backoff.next_s())

    async def _keep_renewed(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        name = f"jido-nats lease {self._manager_id}"
        self._connection = connection = await Connection.open(self._options, name, outage=self._outage)
        try:
            while not self._released.is_set():
                wait_s = self.lease_s / RENEWALS_PER_LEASE if await self._renew(connection) else RETRY_WAIT_S
                self._log_lapse()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                self._wake.clear()
            await self._delete_entry(connection)
        finally:
            self._connection = None
            await connection.close()

    async def _renew(self, connection: Connection) -> bool:
        """Renew once, over the last revision; False if it has to be retried soon."""
        sent_at, lease_s = boottime(), self.lease_s
        headers = {EXPECTED_SEQUENCE: str(self._revision), MESSAGE_TTL: f"{lease_s}s"}
        subject = subjects.key(self._bucket, self._manager_id)
        timeout_s = min(2.0, lease_s / RENEWALS_PER_LEASE)
        try:
            entry = codec.encode(self._info())
            self._revision = await store(connection, self._stream, subject, entry, headers, timeout_s=timeout_s)
        except Conflict:
            await self._read_revision(connection)
            return False
        except (NotSent, OutcomeUnknown):
            return False
        acquired, first = not self.valid, self.held_since is None
        if not self.steady:
            self.steady_since = boottime()
        if acquired:  # before the deadline: a thread that sees a valid lease has to see that it is a new one
            self.held_since = boottime()
        self._renewed_at, self._deadline = sent_at, sent_at + lease_s
        self._failure, self._lapse_logged = "", False
        if acquired and first:
            self._call_manager(_succeed, self._started)
        elif acquired:
            self._call_manager(self.acquired_again.set)
        return True

    def _log_lapse(self) -> None:
        """Log, once, that the lease has lapsed."""
        if self.valid or self.held_since is None or self._lapse_logged or self._released.is_set():
            return
        self._lapse_logged = True
        extra = {"manager_id": self._manager_id, "lease_s": self.lease_s, "why": "; ".join(self.not_ready)}
        log.warning("the lease has lapsed: writes and answers stop until it is held again", extra=extra)

    def _call_manager(self, callback: Callable[..., object], *arguments: object) -> None:
        assert self._manager_loop is not None
        with contextlib.suppress(RuntimeError):  # the manager's loop may be closed
            self._manager_loop.call_soon_threadsafe(callback, *arguments)

    async def _read_revision(self, connection: Connection) -> None:
        """Read the entry's revision: that of our own renewal that got no answer, or of its expiry marker."""
        with contextlib.suppress(JidoError):
            message = await last_message(connection, self._stream, subjects.key(self._bucket, self._manager_id))
            self._revision = 0 if message is None else message.sequence

    async def _delete_entry(self, connection: Connection) -> None:
        self._deadline = 0.0
        with contextlib.suppress(JidoError):
            headers = {"KV-Operation": "DEL", MESSAGE_TTL: f"{MARKER_TTL_S}s"}
            await store(connection, self._stream, subjects.key(self._bucket, self._manager_id), b"", headers)


def _succeed(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: "asyncio.Future[None]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
