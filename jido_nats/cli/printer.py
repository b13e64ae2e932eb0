"""Records and events as text for a terminal, and as JSON lines."""

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.text import Text

from jido_nats.broker.consumer import StreamMessage
from jido_nats.cli.escape import json_printable, printable, printable_lines
from jido_nats.client.streams import EventMessage, OutputMessage
from jido_nats.client.watch import SessionChanged, SnapshotComplete, Watched, WatchedSession
from jido_nats.contract.rules import Finding
from jido_nats.core import codec, journal
from jido_nats.core.events import Event, SessionCreated, SessionStatus, UnknownEvent
from jido_nats.core.journal import AcceptedMessage, Checkpoint
from jido_nats.core.output import ConversationAdded
from jido_nats.core.requests import SendReply
from jido_nats.core.session import DEFAULT_WORKER, SessionRecord, Status

STATUS_STYLES: Final = {
    Status.INITIALIZING: "cyan",
    Status.ACTIVE: "green",
    Status.IDLE: "yellow",
    Status.TERMINATING: "magenta",
    Status.TERMINATED: "red",
}
UNKNOWN_STYLE: Final = "blue"


LEVEL_STYLES: Final = {"ok": "green", "warning": "yellow", "error": "bold red"}


class Printer:
    """Prints data: one JSON object per line, or text for people (80 columns, no colour in a pipe)."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, soft_wrap=True)

    def record(self, record: SessionRecord) -> None:
        """One session, with every field of its record."""
        if self.as_json:
            _print_json(record)
            return
        for name, value in msgspec.to_builtins(record, builtin_types=(datetime,)).items():
            self.console.print(Text.assemble((f"{name:<16} ", "dim"), _value(name, value)))

    def records(self, records: Iterable[SessionRecord]) -> None:
        """Sessions, one per line."""
        rows = list(records)
        if self.as_json:
            for record in rows:
                _print_json(record)
            return
        if not rows:
            self.console.print("no sessions")
        for record in rows:
            line = Text.assemble(
                (f"{printable(record.session_id):<44} ", "bold"),
                (f"{printable(record.status):<13}", status_style(record.status)),
                (_clock(record.updated_at), "dim"),
            )
            line.append(again_text(record.attempt, record.cause))
            line.append(_why(None, record.error) if record.status is Status.INITIALIZING else "")
            if record.reason:
                line.append(f" {printable(record.reason)}")
            if record.worker != DEFAULT_WORKER:
                line.append(f" worker={printable(record.worker)}", "dim")
            if record.metadata:
                line.append(f" {_short(record.metadata)}", "dim")
            self.console.print(line)

    def event(self, message: EventMessage, *, subject: bool = False) -> None:
        """One event in a line, with its sequence; `subject`: also the subject on which it arrived."""
        if self.as_json:
            _print_json_text({"sequence": message.sequence, "subject": message.subject}, message)
            return
        line = Text(f"{message.sequence:>6} ", "dim") if message.sequence else Text()
        self.console.print(line + event_text(message.event, message.subject if subject else None))

    def output(self, message: OutputMessage) -> None:
        """One output or message of a conversation, in a line."""
        if self.as_json:
            data = msgspec.Raw(message.data) if message.data.startswith(b"{") else message.output
            _print_json({"sequence": message.sequence, "subject": message.subject, "output": data})
            return
        output = message.output
        line = Text(f"{message.sequence:>6} ", "dim") if message.sequence else Text()
        line.append(f"{_clock(output.created_at)}", "dim").append(f" {_brief(output.session_id)} ")
        if isinstance(output, ConversationAdded):
            line.append(f"{printable(output.role)}: ", "bold").append(_text(output.content))
        else:
            line.append(f"{printable(output.name)} ", "cyan").append(_text(output.data))
        self.console.print(line)

    def journal_entry(self, message: StreamMessage) -> None:
        """One entry of a journal, in a line; also one that cannot be read."""
        try:
            entry = journal.decode(message.data)
        except codec.DecodeError as error:
            if self.as_json:
                _print_json({"sequence": message.sequence, "unreadable": str(error)})
            else:
                self.console.print(Text(f"{message.sequence:>6} ") + Text(printable(f"unreadable: {error}"), "red"))
            return
        if self.as_json:
            _print_json({"sequence": message.sequence, "entry": entry})
            return
        line = Text(f"{message.sequence:>6} ", "dim")
        line.append(f"attempt {entry.attempt} ", "dim").append(journal.entry_type(entry), "cyan")
        match entry:
            case AcceptedMessage():
                line.append(f" {printable(entry.message_id)} {printable(entry.role)}: ").append(_text(entry.content))
            case Checkpoint(handled=handled, state=state):
                line.append(f" handled up to {handled}")
                if state is not msgspec.UNSET:
                    line.append(" state ", "dim").append(_text(state))
        self.console.print(line)

    def sent(self, reply: SendReply) -> None:
        """The reply to a send."""
        if self.as_json:
            _print_json(reply)
        else:
            again = " (sent before)" if reply.replayed else ""
            self.console.print(Text(printable(f"{reply.message_id} is in the inbox of {reply.session_id}{again}")))

    def past_event(self, event: Event) -> None:
        """One event of a history, in a line."""
        if self.as_json:
            _print_json(event)
        else:
            self.console.print(event_text(event))

    def watched(self, message: Watched) -> None:
        """A session of the snapshot, the end of the snapshot, or a change."""
        match message:
            case WatchedSession(record):
                if self.as_json:
                    _print_json({"kind": "session", "record": record})
                else:
                    self.records([record])
            case SnapshotComplete(position, token):
                if self.as_json:
                    _print_json({"kind": "snapshot_complete", "position": position, "position_token": token})
                else:
                    self.console.print(f"end of the snapshot, at position {position}; changes follow", style="dim")
            case SessionChanged(event, record, position, token):
                if self.as_json:
                    place = {"position": position, "position_token": token}
                    _print_json({"kind": "changed", **place, "event": event, "record": record})
                else:
                    self.console.print(Text(f"{position:>6} ", "dim") + event_text(event))

    def finding(self, level: str, check: str, message: str) -> None:
        """One finding of the doctor."""
        if self.as_json:
            says = message.encode("utf-8", "backslashreplace").decode()  # the name of a server that is not UTF-8
            _print_json({"level": level, "check": check, "says": says})
        else:
            self.console.print(
                Text.assemble((f"{level:<8}", LEVEL_STYLES[level]), (f"{check:<11}", "bold"), printable(message))
            )

    def violation(self, finding: Finding) -> None:
        """One finding of the conformance check; mere notes go to stderr."""
        if finding.note:
            sys.stderr.write(f"{printable(str(finding))}\n")
        elif self.as_json:
            _print_json(finding)
        else:
            self.console.print(Text(printable(str(finding))))

    def note(self, text: str, style: str = "") -> None:
        """A sentence for people; not printed with --json."""
        if not self.as_json:
            self.console.print(Text(text, style))


def status_style(status: Status | str) -> str:
    """The colour of a status, also of one that only newer versions know."""
    return STATUS_STYLES.get(Status(status), UNKNOWN_STYLE)


def event_text(event: Event, subject: str | None = None) -> Text:
    """An event as a coloured line; `subject` is shown below it."""
    session_id = event.session_id
    if isinstance(event, UnknownEvent):
        line = Text(f"{_brief(session_id)} v{event.version} {printable(event.event_type)}")
    elif isinstance(event, SessionCreated):
        line = Text.assemble(
            (_clock(event.created_at), "dim"), f" {_brief(session_id)} v{event.version} ", ("created", "bold")
        )
        if event.worker != DEFAULT_WORKER:
            line.append(f" worker={printable(event.worker)}", "dim")
        if event.metadata:
            line.append(f" {_short(event.metadata)}", "dim")
    elif isinstance(event, SessionStatus):
        line = Text.assemble(
            (_clock(event.updated_at), "dim"),
            f" {_brief(session_id)} v{event.version} {printable(event.previous_status)} → ",
            (printable(event.status), status_style(event.status)),
        )
        line.append(again_text(event.attempt, event.cause))
        line.append(_why(event.reason, event.error))
    else:
        line = Text.assemble(
            (_clock(event.updated_at), "dim"), f" {_brief(session_id)} v{event.version} ", ("ended", "bold red")
        )
        line.append(again_text(event.attempt))
        line.append(_why(event.reason, event.error))
    if subject is not None:
        line.append(f"\n         on {printable(subject)}", "dim")
    return line


def again_text(attempt: int | None, cause: str | None = None) -> str:
    """` attempt 3, crashed` for an attempt that is not the first; `cause`: why it began, until it is active."""
    if attempt is None or attempt == 1:
        return ""
    return f" attempt {attempt}" + (f", {printable(cause)}" if cause else "")


def _why(reason: str | None, error: str | None) -> str:
    return "".join([f" ({printable(reason)})" if reason else "", f" {printable(error)}" if error else ""])


def _text(value: Any) -> str:
    return printable_lines(value if isinstance(value, str) else codec.encode(value).decode())


def _value(name: str, value: Any) -> Text:
    if name in ("status", "previous_status"):
        return Text(printable(value), status_style(value))
    if isinstance(value, datetime):
        return Text(value.isoformat().replace("+00:00", "Z"))
    return Text(_text(value))


def _brief(session_id: str) -> str:
    """Enough of an id to tell sessions apart: a long one is cut at its start."""
    return printable(session_id if len(session_id) <= 16 else f"…{session_id[-15:]}")


def _short(metadata: dict[str, Any], width: int = 40) -> str:
    text = printable(codec.encode(metadata).decode())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}.{moment.microsecond // 1000:03}"


def _print_json(value: object) -> None:
    sys.stdout.write(json_printable(codec.encode(value).decode()) + "\n")
    sys.stdout.flush()


def _print_json_text(first: dict[str, Any], message: EventMessage) -> None:
    # The original bytes if they are JSON: a recording keeps fields that this version does not know.
    event = msgspec.Raw(message.data) if message.data.startswith(b"{") else message.event
    _print_json({**first, "event": event})
