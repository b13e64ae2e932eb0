"""What is wrong with a deployment, in sentences: the checks are read-only, and each says what to do."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start
from jido_nats.broker.jetstream import IMPORTED_API, MESSAGE_ID, api, timestamp
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.stream_info import last_position
from jido_nats.cli import monitoring
from jido_nats.cli.findings import CheckContext, Finding, Findings, Level
from jido_nats.cli.storage_check import check_storage
from jido_nats.core import subjects
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.session import DEFAULT_WORKER, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import BrokerError, JidoError, NoResponders, NotAllowed, ServerUnusable
from jido_nats.store import topology
from jido_nats.store.leases import Leases
from jido_nats.store.records import Entry, SessionRecords, entry_of
from jido_nats.store.snapshot import snapshot

CHECK_TIMEOUT_S: Final = 10.0
CLOCK_DIFFERENCE_MAX_S: Final = 1.0
SETTLED_AFTER_S: Final = 5.0
STORAGE_SHARE_MAX: Final = 0.8
NAMED_MAX: Final = 3
OPERATOR: Final = "operator"
# The names of the connections of managers.
_OURS: Final = re.compile(r"jido-nats (\w+ )?manager_")


async def examine(options: ConnectOptions, settings: Settings, monitoring_url: str | None) -> Findings:
    """Every finding, as it is made."""
    try:
        connection = await Connection.open(options, "jido-nats doctor")
    except ServerUnusable as error:
        yield Finding(Level.ERROR, "server", str(error))
        return
    try:
        leases = Leases(connection, settings.managers_bucket)
        context = CheckContext(connection, settings, monitoring_url, {}, leases, set(), {}, {})
        for name, check in CHECKS.items():
            if "no jetstream" in context.seen and name not in WITHOUT_JETSTREAM:
                continue
            for finding in await _findings(name, check, context):
                yield finding
    finally:
        await connection.close()


async def _findings(name: str, check: "Check", context: CheckContext) -> list[Finding]:
    """What one check finds, in a bounded time."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            found += [finding async for finding in check(context)]
    except NotAllowed as error:
        found.append(Finding(Level.WARNING, name, f"not checked: {error}; run the doctor as the manager's user"))
    except TimeoutError:
        found.append(_no_reply(name, context.connection))
    except JidoError as error:
        found.append(Finding(Level.ERROR, name, f"could not be checked: {error}"))
    return found


def _no_reply(name: str, connection: Connection) -> Finding:
    if connection.js_api_prefix == IMPORTED_API:
        text = "not checked: outside the account of the streams a manager has to run for it; use the manager's user"
        return Finding(Level.WARNING, name, text)
    return Finding(Level.ERROR, name, f"no reply within {CHECK_TIMEOUT_S:g} s; is JetStream enabled for this account?")


def exit_code(levels: set[Level]) -> int:
    """0, 1 with warnings, 2 with errors."""
    return 2 if Level.ERROR in levels else 1 if Level.WARNING in levels else 0


async def _server(context: CheckContext) -> Findings:
    version = ".".join(map(str, context.connection.server_version))
    if context.connection.server_version < topology.SERVER_VERSION_MIN:
        yield Finding(Level.ERROR, "server", f"nats-server {version} is too old; 2.12 or newer is needed")
    else:
        yield Finding(Level.OK, "server", f"{context.connection.options.safe_servers()} runs nats-server {version}")


async def _jetstream(context: CheckContext) -> Findings:
    try:
        info = await api(context.connection, "INFO")
    except NoResponders:
        context.seen.add("no jetstream")
        yield Finding(Level.ERROR, "jetstream", "JetStream is disabled for this account; enable it in the server")
        return
    used, limit = info.get("storage", 0), info.get("limits", {}).get("max_storage", -1)
    if 0 < limit * STORAGE_SHARE_MAX < used:
        yield Finding(Level.WARNING, "jetstream", f"{used} of {limit} bytes of storage are used; raise the limit")
    else:
        yield Finding(Level.OK, "jetstream", f"{info.get('streams', 0)} streams, {used} bytes stored")


async def _user(context: CheckContext) -> Findings:
    try:
        reply = await context.connection.request("$SYS.REQ.USER.INFO", timeout_s=2.0)
        user = json.loads(reply.data)["data"]
        context.user.update(user)
    except (BrokerError, ValueError, KeyError):
        yield Finding(Level.WARNING, "user", "the server does not report this user; its permissions are unknown")
        return
    allowed = (user.get("permissions") or {}).get("publish", {}).get("allow")
    rights = "may publish to any subject" if allowed is None else f"may publish to {len(allowed)} subjects"
    level = Level.WARNING if allowed is None and context.connection.options.user is not None else Level.OK
    yield Finding(level, "user", f"{user.get('user') or 'no user'} in account {user.get('account')}, {rights}")


async def _account(context: CheckContext) -> Findings:
    """Whether others share the account of the streams: any JetStream permission in it is enough to write into them."""
    account = context.user.get("account")
    if account is None:
        return
    if context.connection.js_api_prefix == IMPORTED_API:
        yield Finding(Level.OK, "account", f"{account} imports JetStream: its users cannot write into the streams")
        return
    if context.connection.options.user is None:
        text = "every client without credentials shares the account of the streams and may do everything; loopback only"
        yield Finding(Level.OK, "account", text)
        return
    connected = monitoring.users_of(context.monitoring_url, account, other_than=_OURS)
    if connected is None:
        text = f"{account} has the streams; whether only managers use it was not checked (--monitoring URL)"
        yield Finding(Level.OK, "account", text)
    elif others := connected - {context.connection.options.user, OPERATOR}:
        text = f"{', '.join(sorted(others))} use {account}, the account of the streams: with any JetStream permission "
        text += "there a user can end sessions and hide records; give them an account of their own, as nats.conf does"
        yield Finding(Level.WARNING, "account", text)
    else:
        yield Finding(Level.OK, "account", f"{account} has the streams, and only managers and operators use it")


async def _clock(context: CheckContext) -> Findings:
    before = datetime.now(UTC)
    answer = await api(context.connection, f"STREAM.INFO.{context.settings.events_stream}")
    after = datetime.now(UTC)
    server = timestamp(answer["ts"])
    off_s = max((before - server).total_seconds(), (server - after).total_seconds(), 0.0)
    if off_s > CLOCK_DIFFERENCE_MAX_S:
        text = f"this machine's clock and the server's differ by {off_s:.1f} s; synchronize both with NTP"
        yield Finding(Level.WARNING, "clock", text)
    else:
        yield Finding(Level.OK, "clock", "this machine's clock and the server's agree")


async def _managers(context: CheckContext) -> Findings:
    async with context.leases.follow() as consumer:
        async for message in snapshot(consumer, context.leases.last_position):
            context.leases.apply(message)
    context.seen.add("leases")
    if not context.leases.managers:
        yield Finding(Level.WARNING, "managers", "no manager is alive; start one with 'jido-nats serve'")
    for info in context.leases.managers.values():
        where = f"{info.manager_id} on {info.host} (pid {info.pid}, version {info.version})"
        text = f"{where} has a lease, and reported {info.sessions} sessions"
        text += _offered(info)
        if info.draining:
            yield Finding(Level.OK, "managers", f"{text}; it is draining: it stops once they have ended")
        elif info.full:
            yield Finding(Level.WARNING, "managers", f"{text}, and is full")
        else:
            yield Finding(Level.OK, "managers", text)
    for finding in _workers(list(context.leases.managers.values())):
        yield finding
    versions = {info.version for info in context.leases.managers.values()}
    if len(versions) > 1:
        yield Finding(
            Level.WARNING, "managers", f"managers of several versions are running: {', '.join(sorted(versions))}"
        )


def _offered(info: ManagerInfo) -> str:
    """A manager's kinds of worker and its labels, if they say more than that it runs one kind."""
    kinds = [
        f"{name} ({'only waits' if kind.waits else 'full' if kind.full else kind.sessions})"
        for name, kind in info.kinds.items()
        if len(info.kinds) > 1 or name != DEFAULT_WORKER
    ]
    labels = [f"{name}={value}" for name, value in info.labels.items()]
    return "".join(f", {what}: {', '.join(texts)}" for what, texts in (("workers", kinds), ("labels", labels)) if texts)


def _workers(managers: list[ManagerInfo]) -> list[Finding]:
    """Whether sessions of some kind only wait, or cannot be created now."""
    found: list[Finding] = []
    for name in sorted({name for info in managers for name in info.kinds}):
        offered = [(info, info.kinds[name]) for info in managers if name in info.kinds]
        waiting = [info.manager_id for info, kind in offered if kind.waits]
        working = [(info, kind) for info, kind in offered if not kind.waits]
        if not working:
            text = f"the worker {name!r} only waits at every manager that has it ({_some(waiting)}); --worker gives one"
            found.append(Finding(Level.WARNING, "workers", text))
        elif waiting:
            text = f"{_some(waiting)} was started without a worker, and takes no sessions while others have {name!r}"
            found.append(Finding(Level.OK, "workers", text))
        taking = [(info, kind) for info, kind in working if not info.draining]
        if taking and all(kind.full for _, kind in taking) and not (len(managers) == 1 and managers[0].full):
            found.append(Finding(Level.WARNING, "workers", f"every manager that runs the worker {name!r} is full"))
    return found


async def _sessions(context: CheckContext) -> Findings:
    registry = SessionRecords(context.connection, context.settings.sessions_bucket, terminated_ttl_s=0)
    entries: dict[str, Entry] = {}
    async with registry.follow() as consumer:
        async for message in snapshot(consumer, registry.last_position):
            entry = entry_of(message)
            record = entry.record
            if entry.is_damaged or (record is not None and (record.unknown_needs or not record.sealed)):
                entries[entry.session_id] = entry
            else:
                entries.pop(entry.session_id, None)
    foreign = [entry.session_id for entry in entries.values() if entry.is_damaged]
    records = [entry.record for entry in entries.values() if entry.record is not None]
    newer = [record for record in records if record.unknown_needs]
    context.records.update({record.session_id: record for record in records if not record.unknown_needs})
    if foreign:
        text = (
            f"{len(foreign)} entries of {context.settings.sessions_bucket} are not session records ({_some(foreign)}): "
        )
        yield Finding(Level.WARNING, "sessions", text + "no manager ends them; delete what is not a session")
    if newer:
        yield Finding(Level.WARNING, "sessions", _of_newer_versions(newer))
    live = sum(record.status is not Status.TERMINATED for record in context.records.values())
    orphans = [r.session_id for r in context.records.values() if r.owner not in context.leases.managers]
    if "leases" not in context.seen:
        yield Finding(
            Level.WARNING, "sessions", f"{live} live sessions; whether their owners are alive was not checked"
        )
    elif orphans:
        text = f"{len(orphans)} sessions have no live owner ({_some(orphans)}): a running manager ends them"
        yield Finding(Level.ERROR, "sessions", text)
    else:
        yield Finding(Level.OK, "sessions", f"{live} live sessions, each with a live owner")


def _of_newer_versions(records: list[SessionRecord]) -> str:
    ids = _some([record.session_id for record in records])
    features = ", ".join(sorted({feature for record in records for feature in record.unknown_needs}))
    return (
        f"{len(records)} sessions were written by a newer version ({ids}): managers of this version leave them alone; "
        f"run one that knows: {features}"
    )


async def _unpublished(context: CheckContext) -> Findings:
    """A version is fully stored when its copy on the session's own subject is; version 1 has none."""
    now = datetime.now(UTC)
    open_since = [r for r in context.records.values() if r.version > 1 and _age_s(r, now) > SETTLED_AFTER_S]
    last = await _last_ids(context)
    behind = [r.session_id for r in open_since if last.get(r.session_id) != subjects.last_message_id(r)]
    if behind:
        text = (
            f"{len(behind)} sessions have committed events that are not published ({_some(behind)}); is NATS degraded?"
        )
        yield Finding(Level.ERROR, "events", text)
    else:
        yield Finding(Level.OK, "events", "every committed event is published")


async def _durability(context: CheckContext) -> Findings:
    replicas = min(context.replicas.values(), default=1)
    if replicas > 1:
        yield Finding(Level.OK, "durability", f"{replicas} replicas: the data survives the loss of one machine")
        return
    always = monitoring.syncs_always(context.monitoring_url)
    if always:
        yield Finding(
            Level.OK, "durability", "one replica, sync_interval always: acknowledged changes survive a power cut"
        )
    elif always is None:
        text = "one replica, and sync_interval cannot be read (--monitoring URL): it has to be 'always'"
        yield Finding(Level.WARNING, "durability", text)
    else:
        text = (
            "one replica, no sync_interval 'always': a power cut loses acknowledged changes; set it, or use 3 replicas"
        )
        yield Finding(Level.WARNING, "durability", text)


Check = Callable[[CheckContext], Findings]

CHECKS: Final[dict[str, Check]] = {
    "server": _server,
    "jetstream": _jetstream,
    "user": _user,
    "account": _account,
    "storage": check_storage,
    "clock": _clock,
    "managers": _managers,
    "sessions": _sessions,
    "events": _unpublished,
    "durability": _durability,
}
WITHOUT_JETSTREAM: Final = frozenset({"server", "jetstream", "user"})


async def _last_ids(context: CheckContext) -> dict[str, str]:
    """The `Nats-Msg-Id` of the last message on each session's own subject."""
    stream = context.settings.events_stream
    until = await last_position(context.connection, stream, subjects.ALL_SESSIONS)
    found: dict[str, str] = {}
    consumer = OrderedConsumer(
        context.connection, stream, [subjects.ALL_SESSIONS], Start("last_per_subject"), headers_only=True
    )
    if not until:
        return found
    async with consumer:
        while consumer.position < until:
            message = await consumer.next()
            found[subjects.session_of(message.subject)] = message.headers.get(MESSAGE_ID, "")
    return found


def _age_s(record: SessionRecord, now: datetime) -> float:
    return (now - record.updated_at).total_seconds()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
