"""What one session stores, written directly with nats-py: the same messages, sizes, headers and waits, no checks.

A record is a compare-and-set on its key; an event asserts the session's fence; each waits for its acknowledgement
before the next is sent. The design's "How a session changes" says why; this only repeats it.
`tests/bench/test_bench.py` compares this with what a manager stores, message by message.
"""

import contextlib
from dataclasses import dataclass
from typing import Final

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from jido_nats.bench.baseline.storage import Names

OWNER: Final = "manager_01a205e6-48ab-7764-99fb-19dd4197b73c"
CLOCK: Final = "2025-01-24T10:30:00.000001Z"
TERMINATED_TTL: Final = "3600s"
OPENING: Final = ',"opening":true'
SEALED: Final = ',"sealed":true'
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"


@dataclass(slots=True)
class BaselineSession:
    """One session of the baseline: the state that its next write needs."""

    session_id: str
    status: str = "initializing"
    previous: str = ""
    version: int = 1
    revision: int = 0
    fence: int = 0
    after: int = 0


class BaselineWriter:
    """Writes sessions on one connection; `note` is in their metadata, as in ours."""

    def __init__(self, js: JetStreamContext, names: Names, note: str) -> None:
        self._js = js
        self._note = note
        self._stream = names.stream
        self._key = f"$KV.{names.bucket}."
        self._records = f"KV_{names.bucket}"
        self._events = names.events
        self._session = f"{names.prefix}.client.session."
        self._fence = f"{names.prefix}.fence."
        self._acknowledged = 0

    async def create(self, session: BaselineSession) -> bytes:
        """To `active`: a check that the id is unused, one opening record, three events; returns the record."""
        with contextlib.suppress(NotFoundError):
            await self._js.get_last_msg(self._stream, self._session + session.session_id)
        record = await self._commit(session, "active", "", OPENING)
        created = (
            f'{{"type":"session_created","session_id":"{session.session_id}","version":1,'
            f'"created_at":"{CLOCK}","metadata":{{"bench":"{self._note}"}}}}'
        )
        await self._publish(session, self._events, created, "1.session_created")
        await self._publish_events(session, "")
        return record

    async def step(self, session: BaselineSession, status: str, why: str = "") -> bytes:
        """One transition: the record, then its events; returns the record."""
        record = await self._commit(session, status, why)
        await self._publish_events(session, why)
        return record

    async def seal(self, session: BaselineSession, why: str) -> None:
        """Write the record again, with a TTL."""
        await self._write(session, self._record(session, why, SEALED), {"Nats-TTL": TERMINATED_TTL})

    async def claim(self, session: BaselineSession) -> None:
        """Advance the fence, as a takeover does."""
        body = f'{{"manager":"{OWNER}"}}'.encode()
        headers = {EXPECTED: str(session.fence)}
        subject = self._fence + session.session_id
        session.fence = (await self._js.publish(subject, body, stream=self._stream, headers=headers)).seq

    async def _publish_events(self, session: BaselineSession, why: str) -> None:
        version = session.version
        event = (
            f'{{"type":"session_status","session_id":"{session.session_id}","version":{version},'
            f'"status":"{session.status}","previous_status":"{session.previous}","updated_at":"{CLOCK}"{why}}}'
        )
        await self._publish(session, self._events, event, f"{version}.session_status")
        if session.status == "terminated":
            end = (
                f'{{"type":"session_terminated","session_id":"{session.session_id}","version":{version},'
                f'"updated_at":"{CLOCK}"{why}}}'
            )
            await self._publish(session, self._events, end, f"{version}.session_terminated")
        await self._publish(session, self._session + session.session_id, event, f"{version}.session_status.session")

    async def _commit(self, session: BaselineSession, status: str, why: str, kind: str = "") -> bytes:
        session.previous, session.status = session.status, status
        session.version += 1
        session.after = self._acknowledged
        record = self._record(session, why, kind)
        await self._write(session, record, {})
        return record

    async def _write(self, session: BaselineSession, record: bytes, more: dict[str, str]) -> None:
        headers = {EXPECTED: str(session.revision), **more}
        subject = self._key + session.session_id
        session.revision = (await self._js.publish(subject, record, stream=self._records, headers=headers)).seq

    def _record(self, session: BaselineSession, why: str, kind: str) -> bytes:
        after = f',"after":{session.after}' if session.after else ""
        return (
            f'{{"session_id":"{session.session_id}","status":"{session.status}","version":{session.version},'
            f'"owner":"{OWNER}","created_at":"{CLOCK}","updated_at":"{CLOCK}",'
            f'"metadata":{{"bench":"{self._note}"}},"previous_status":"{session.previous}"{why}{after}{kind}}}'
        ).encode()

    async def _publish(self, session: BaselineSession, subject: str, event: str, name: str) -> None:
        headers = {
            EXPECTED: str(session.fence),
            EXPECTED_SUBJECT: self._fence + session.session_id,
            "Nats-Msg-Id": f"{session.session_id}.{name}",
            "Content-Type": "application/json",
        }
        ack = await self._js.publish(subject, event.encode(), stream=self._stream, headers=headers)
        self._acknowledged = max(self._acknowledged, ack.seq)
