"""The journal of one session at its owner: append, read again for a new attempt, purge what is no longer needed."""

import asyncio
import logging
from bisect import bisect_left, bisect_right
from datetime import datetime
from typing import Any, Final

import msgspec

from jido_nats.core import journal
from jido_nats.core.journal import AcceptedMessage, Checkpoint, Claim, JournalEntry, JournalState, KnownMessage
from jido_nats.errors import Conflict, Fenced, JidoError, Unavailable
from jido_nats.manager.failpoints import Failpoints
from jido_nats.store.index import SessionIndex
from jido_nats.store.journal_log import JournalLog
from jido_nats.store.records import SessionRecords

CLAIMS_MAX: Final = 4
# A read is of this session's entries alone: one that takes longer waits for something that was removed.
READ_MAX_S: Final = 30.0
# How long the end of a session waits for the removal of its journal.
REMOVE_MAX_S: Final = 5.0
# How often to look for journals that were left.
CLEANED_EVERY_S: Final = 600.0
# After how many entries, or bytes, the journal is purged, and how many messages it knows the ids of from then on.
PURGE_EVERY: Final = 64
PURGE_BYTES: Final = 1024 * 1024
KNOWN_MAX: Final = 128

# The newest messages that a checkpoint is to know when it purges what came before it; None: it purges nothing.
Known = tuple[KnownMessage, ...] | None

log = logging.getLogger(__name__)


class SessionJournal:
    """The journal of one session. One append at a time, each after the last: a `Fenced` means that another wrote."""

    __slots__ = (
        "_appended",
        "_appended_bytes",
        "_attempt",
        "_created_at",
        "_failpoints",
        "_handled",
        "_is_checkpointed",
        "_is_claimed",
        "_is_storing",
        "_last",
        "_lock",
        "_log",
        "_messages",
        "_session_id",
        "_taken",
    )

    def __init__(self, log_: JournalLog, failpoints: Failpoints, session_id: str, created_at: datetime) -> None:
        self._log = log_
        self._failpoints = failpoints
        self._session_id = session_id
        self._created_at = created_at
        self._lock = asyncio.Lock()
        self._attempt = 0
        self._last = 0
        self._handled = 0
        self._is_checkpointed = False
        self._is_claimed = False
        self._is_storing = False
        # Sequences: of the messages that the journal has, and of the last one that counts as handled and is not stored
        # as such yet.
        self._messages: list[int] = []
        self._taken = 0
        # Since the last purge.
        self._appended = 0
        self._appended_bytes = 0

    @property
    def is_long(self) -> bool:
        """Whether the next checkpoint should purge what came before it, and so needs the ids of the last messages."""
        return self._appended >= PURGE_EVERY or self._appended_bytes >= PURGE_BYTES

    @property
    def unhandled(self) -> int:
        """How many messages are accepted and not handled."""
        return len(self._messages) - bisect_right(self._messages, max(self._handled, self._taken))

    async def claim(self, attempt: int) -> None:
        """Append the claim of an attempt, so that nobody who wrote before can go on; once. Raises as `accept`."""
        async with self._lock:
            if self._is_claimed:
                return
            for _ in range(CLAIMS_MAX):
                found = await self._read()
                if found.attempt > attempt:
                    raise Fenced(f"a newer attempt of {self._session_id} has claimed its journal")
                self._last = found.last
                try:
                    await self._append(Claim(attempt=attempt, created_at=self._created_at))
                except Fenced:
                    continue
                self._is_claimed = True
                return
            raise Unavailable("other managers are writing the journal; ask again", session_id=self._session_id)

    async def begin(self, attempt: int) -> JournalState:
        """Read what an attempt begins with; from now on entries are of this attempt.

        Raises `JournalUnreadable`, `Unavailable`, and `Fenced` if another manager has written.
        """
        async with self._lock:
            found = await self._read()
            if found.last != self._last or found.attempt > attempt:
                raise Fenced(f"the journal of {self._session_id} was written by another manager, or removed")
            self._attempt, self._handled = attempt, found.handled
            self._is_checkpointed = found.state is not msgspec.UNSET
            self._messages = [sequence for sequence, _ in found.messages]
            if not self._is_checkpointed:
                found.handled = max(found.handled, self._taken)  # some of it may not be stored yet
            return found

    async def accept(self, message: AcceptedMessage) -> int:
        """Append a message; its sequence. Raises `Overloaded`: nothing was stored; `TooLarge`; `Fenced`."""
        async with self._lock:
            sequence = await self._append(message)
            self._messages.append(sequence)
            return sequence

    async def checkpoint(self, state: Any, handled: int, known: Known = None) -> None:
        """Append a checkpoint; unless `known` is None, also purge what came before it. Raises as `accept`."""
        async with self._lock:
            await self._checkpoint(state, handled, known)
            self._is_checkpointed = self._is_checkpointed or state is not msgspec.UNSET

    def note_taken(self, sequence: int) -> bool:
        """The worker asks for another message, so that it has handled those up to `sequence`.

        Whether `store_handled` is to be called: not for a worker that makes checkpoints, nor if that is under way.
        """
        if self._is_checkpointed or sequence <= max(self._handled, self._taken):
            return False
        self._taken = sequence
        is_first, self._is_storing = not self._is_storing, True
        return is_first

    async def store_handled(self, known: Known = None) -> None:
        """Store what is handled, as `checkpoint`; if that fails, it is tried again when the worker takes a message."""
        try:
            async with self._lock:
                while self._taken > self._handled and not self._is_checkpointed:
                    await self._checkpoint(msgspec.UNSET, self._taken, known)
        finally:
            self._is_storing = False

    async def _checkpoint(self, state: Any, handled: int, known: Known) -> None:
        if known is not None and state is msgspec.UNSET and self._is_checkpointed:
            state = (await self._read()).state  # what comes before this entry is purged, and the last state with it
        handled = max(handled, self._handled)
        entry = Checkpoint(
            attempt=self._attempt, created_at=self._created_at, handled=handled, state=state, known=known or ()
        )
        sequence = await self._append(entry)
        self._handled = handled
        if known is not None:
            await self._purge(sequence)

    async def _append(self, entry: JournalEntry) -> int:
        self._failpoints.reach("before append")
        data = journal.encode(entry)
        try:
            self._last = await self._log.append(self._session_id, data, self._last)
        except Conflict as error:
            raise Fenced(f"the journal of {self._session_id} was written by another manager, or removed") from error
        self._appended, self._appended_bytes = self._appended + 1, self._appended_bytes + len(data)
        self._failpoints.reach("appended")
        return self._last

    async def _read(self) -> JournalState:
        try:
            async with asyncio.timeout(READ_MAX_S):
                entries = await self._log.read(self._session_id)
        except TimeoutError as error:
            raise Unavailable(
                "the journal could not be read in time; ask again", session_id=self._session_id
            ) from error
        self._failpoints.reach("journal read")
        return journal.fold(entries, self._created_at)

    async def _purge(self, checkpoint: int) -> None:
        """Remove what came before a checkpoint and is handled. If that fails, the next purge removes it too."""
        self._appended = self._appended_bytes = 0
        first = bisect_right(self._messages, self._handled)
        before = min([checkpoint, *self._messages[first : first + 1]])
        del self._messages[: bisect_left(self._messages, before)]
        self._failpoints.reach("before purge")
        try:
            await self._log.purge(self._session_id, before)
        except JidoError as error:
            log.warning("a journal was not purged", extra={"session_id": self._session_id, "error": str(error)})


class JournalCleaner:
    """Removes the journals of sessions that have ended, which their managers did not live to remove."""

    def __init__(self, journals: JournalLog, records: SessionRecords, index: SessionIndex) -> None:
        self._journals = journals
        self._records = records
        self._index = index

    async def run(self) -> None:
        """Clean now, and then every `CLEANED_EVERY_S`; never returns."""
        while True:
            await self.clean()
            await asyncio.sleep(CLEANED_EVERY_S)

    async def clean(self) -> None:
        """Remove what is left.

        A session's record is committed before anything is in its journal. So what was there before its record is read,
        and found to be sealed or gone, belongs to a session that has ended.
        """
        for session_id in await self._journals.session_ids():
            if (known := self._index.get(session_id)) is not None and not known.sealed:
                continue
            last = await self._journals.last(session_id)
            entry = await self._records.get(session_id)
            if not entry.is_damaged and (entry.record is None or entry.record.sealed):
                await self._journals.purge(session_id, last + 1)


async def remove_journal(journals: JournalLog, session_id: str) -> None:
    """Remove the journal of a session that has ended. If that fails, `JournalCleaner` does it later.

    Up to an entry that was read before: should this be frozen in between, the id may be another session's by then.
    """
    try:
        async with asyncio.timeout(REMOVE_MAX_S):
            await journals.purge(session_id, await journals.last(session_id) + 1)
    except (JidoError, TimeoutError) as error:
        log.warning("a journal was not removed yet", extra={"session_id": session_id, "error": str(error)})
