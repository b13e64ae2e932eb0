"""The pending requests of one connection: a future for each, and one timer for all."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from nats.aio.msg import Msg

from jido_nats.errors import BrokerError, NotAllowed, OutcomeUnknown

# How late a timeout may be noticed.
TICK_S: Final = 0.05
TOKEN_BYTES: Final = 8


class Pending:
    """One request: its subject, its inbox, its deadline (of the loop's clock), and a future for the (last) reply."""

    __slots__ = ("deadline", "future", "inbox", "is_last", "subject", "token")

    def __init__(self, subject: str, inbox: str, token: str, deadline: float, future: "asyncio.Future[Msg]") -> None:
        self.subject = subject
        self.inbox = inbox
        self.token = token
        self.deadline = deadline
        self.future = future
        # Of a request with several replies: takes each, and returns whether it is the last.
        self.is_last: Callable[[Msg], bool] | None = None

    def expect_many(self, is_last: Callable[[Msg], bool]) -> list[Msg]:
        """Expect several replies, until `is_last` is true of one; the list to which they will be added."""
        replies: list[Msg] = []

        def take(reply: Msg) -> bool:
            replies.append(reply)
            return is_last(reply)

        self.is_last = take
        return replies


class Requests:
    """The pending requests; `on_expired` is called when some of them timed out."""

    def __init__(self, on_expired: Callable[[], None]) -> None:
        self._on_expired = on_expired
        self._loop = asyncio.get_running_loop()
        self._pending: dict[str, Pending] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.inbox = ""

    def new_token(self) -> str:
        """A token that nobody can guess: an answer is recognized by it, and inboxes are visible as reply subjects."""
        return secrets.token_hex(TOKEN_BYTES)

    def open(self, subject: str | None, timeout_s: float) -> Pending:
        """A request to `subject` (None: to its own inbox); after `timeout_s` it fails with `OutcomeUnknown`."""
        token = self.new_token()
        inbox = self.inbox + token
        deadline = self._loop.time() + timeout_s
        pending = Pending(subject or inbox, inbox, token, deadline, self._loop.create_future())
        self._pending[token] = pending
        if self._timer is None:
            self._timer = self._loop.call_later(min(TICK_S, timeout_s), self._tick)
        return pending

    def close(self, pending: Pending) -> None:
        """The caller has the reply, or no longer waits for it."""
        self._pending.pop(pending.token, None)

    def answer(self, message: Msg) -> None:
        """Pass a reply to the request that waits for it."""
        pending = self._pending.get(message.subject[len(self.inbox) :])
        if pending is None or pending.future.done():
            return
        if pending.is_last is None or pending.is_last(message):
            pending.future.set_result(message)

    def fail(self, error: Callable[[], BrokerError]) -> None:
        """Fail all pending requests."""
        for pending in self._pending.values():
            _fail(pending, error())

    def refuse(self, subject: str) -> bool:
        """The server has refused a subject, given in lower case: fail its requests; returns whether it failed any."""
        refused = [pending for pending in self._pending.values() if pending.subject.lower() == subject]
        if len({pending.subject for pending in refused}) != 1:
            return False  # some differ only in case: which one was refused is unknown, so they time out
        for pending in refused:
            _fail(pending, NotAllowed(f"publish to {pending.subject}", pending.subject))
        return True

    def _tick(self) -> None:
        now, expired = self._loop.time(), False
        for pending in self._pending.values():
            if pending.deadline <= now and not pending.future.done():
                _fail(pending, OutcomeUnknown(f"no answer on {pending.subject}"))
                expired = True
        self._timer = self._loop.call_later(TICK_S, self._tick) if self._pending else None
        if expired:
            self._on_expired()


def _fail(pending: Pending, error: BrokerError) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)
