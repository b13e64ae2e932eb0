"""jido_nats: sessions that publish every status change as an event on NATS."""

from jido_nats.api import SessionApi
from jido_nats.broker.local_server import LocalServer
from jido_nats.broker.options import ConnectOptions
from jido_nats.client.client import Client
from jido_nats.client.streams import EventMessage, EventStream, OutputMessage, OutputStream
from jido_nats.client.watch import (
    ManagerLease,
    ManagerWatch,
    SessionChanged,
    SessionWatch,
    SnapshotComplete,
    Watched,
    WatchedSession,
)
from jido_nats.core.codec import Encoding
from jido_nats.core.events import Event, SessionCreated, SessionStatus, SessionTerminated, UnknownEvent
from jido_nats.core.manager_info import KindInfo, ManagerInfo
from jido_nats.core.output import ConversationAdded, Output, SessionOutput
from jido_nats.core.requests import SendReply
from jido_nats.core.session import Cause, Reason, RestartPolicy, Run, SessionRecord, Status
from jido_nats.core.settings import Settings, WorkerSettings
from jido_nats.errors import (
    AlreadyExists,
    BadRequest,
    CommandError,
    ConfigurationError,
    InternalError,
    InvalidTransition,
    JidoError,
    NoSuchWorker,
    NotAllowed,
    NotFound,
    Overloaded,
    PositionTooOld,
    PositionUnavailable,
    ServerUnusable,
    StartFailed,
    StopTimeout,
    TooLarge,
    Unavailable,
)
from jido_nats.manager.manager import SessionManager
from jido_nats.manager.metrics import Durations, Snapshot, Stats
from jido_nats.worker.inbox import Message
from jido_nats.worker.program import Program
from jido_nats.worker.session import Messages, Session, Worker

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "Cause",
    "Client",
    "CommandError",
    "ConfigurationError",
    "ConnectOptions",
    "ConversationAdded",
    "Durations",
    "Encoding",
    "Event",
    "EventMessage",
    "EventStream",
    "InternalError",
    "InvalidTransition",
    "JidoError",
    "KindInfo",
    "LocalServer",
    "ManagerInfo",
    "ManagerLease",
    "ManagerWatch",
    "Message",
    "Messages",
    "NoSuchWorker",
    "NotAllowed",
    "NotFound",
    "Output",
    "OutputMessage",
    "OutputStream",
    "Overloaded",
    "PositionTooOld",
    "PositionUnavailable",
    "Program",
    "Reason",
    "RestartPolicy",
    "Run",
    "SendReply",
    "ServerUnusable",
    "Session",
    "SessionApi",
    "SessionChanged",
    "SessionCreated",
    "SessionManager",
    "SessionOutput",
    "SessionRecord",
    "SessionStatus",
    "SessionTerminated",
    "SessionWatch",
    "Settings",
    "Snapshot",
    "SnapshotComplete",
    "StartFailed",
    "Stats",
    "Status",
    "StopTimeout",
    "TooLarge",
    "Unavailable",
    "UnknownEvent",
    "Watched",
    "WatchedSession",
    "Worker",
    "WorkerSettings",
]
