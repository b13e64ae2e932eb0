"""What the roles of `nats.conf` try against the managers, each other and the streams, with stock clients.

The attacks use what a role is allowed: reply subjects, consumers, many requests. After each of them the streams hold
what they held, and the sessions go on.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.msg import Msg

from jido_nats import Client, LocalServer, SessionManager
from tests.tools.roles import Member, as_user, js_prefix
from tests.tools.support import eventually

EXAMPLE_SUBJECT = "jido.client.session.example"
FORGED = json.dumps(
    {
        "type": "session_status",
        "session_id": "example",
        "version": 3,
        "status": "terminated",
        "previous_status": "active",
        "updated_at": "2025-01-24T10:30:00Z",
        "reason": "crashed",
    }
).encode()
READERS = ["client", "observer"]
NOT_MANAGERS = [*READERS, "session-example"]
READ = ("JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS")
# Where an answer, or a stored message, would do harm.
TARGETS = (
    "jido.client.events",
    EXAMPLE_SUBJECT,
    f"{EXAMPLE_SUBJECT}.output",
    "jido.fence.example",
    "$KV.JIDO_SESSIONS.example",
    "$KV.JIDO_SESSIONS.forged",
    "$KV.JIDO_MANAGERS.forged",
    "jido.session.terminate.example",
    "jido.admin.erase.example",
    "$SRV.PING",
    "$JS.API.STREAM.PURGE.JIDO_CLIENT",
    "$JS.API.STREAM.DELETE.KV_JIDO_SESSIONS",
    "$JS.API.CONSUMER.DELETE.JIDO_CLIENT.audit",
    "_INBOX.manager.x",
    "_INBOX.manager-api.x",
    "_R_.x",
)
AUDIT = {"name": "audit", "durable_name": "audit", "ack_policy": "explicit", "filter_subject": "jido.client.events"}


@asynccontextmanager
async def unharmed(members: dict[str, Member], *session_ids: str) -> AsyncIterator[None]:
    """Nothing is stored or heard in the block, and the sessions are as before and go on."""
    operator, client = members["operator"], members["client"]
    before = await stored(operator)
    records = [await client.ask(f"jido.session.get.{session_id}") for session_id in session_ids]
    ear = await operator.hear("jido.client.>", "jido.fence.>")
    yield
    for member in members.values():
        await member.flush()
    await operator.ask("jido.session.list")  # a manager has passed whatever came before
    assert await stored(operator) == before
    assert ear.messages == []
    assert [await client.ask(f"jido.session.get.{session_id}") for session_id in session_ids] == records
    for session_id in session_ids:
        assert (await client.ask(f"jido.session.idle.{session_id}"))["status"] == "idle"


async def stored(operator: Member) -> list[tuple[int, int]]:
    """The number of messages and the last sequence of every stream that sessions are in."""
    states = [(await operator.js.stream_info(stream)).state for stream in READ]
    return [(state.messages, state.last_seq) for state in states]


def requests(user: str) -> Iterator[tuple[str, bytes]]:
    """Each kind of request to JetStream that a reader is allowed, such that the server has an answer."""
    prefix = js_prefix(user)
    yield f"{prefix}.INFO", b""
    yield f"{prefix}.STREAM.NAMES", b""
    for stream in READ:
        yield f"{prefix}.STREAM.INFO.{stream}", b'{"subjects_filter":">"}'
        yield f"{prefix}.STREAM.MSG.GET.{stream}", b'{"seq":1}'
        yield f"{prefix}.DIRECT.GET.{stream}", b'{"seq":1,"batch":5}'
        yield f"{prefix}.CONSUMER.INFO.{stream}.mine", b""
        yield f"{prefix}.CONSUMER.MSG.NEXT.{stream}.mine", b'{"batch":3,"no_wait":true}'
        yield f"{prefix}.CONSUMER.CREATE.{stream}.mine", created("mine", stream)
        yield f"$JS.FC.{stream}.mine.x", b""
    yield "$JS.ACK.JIDO_CLIENT.mine.1.1.1.1.1", b"+NXT"
    yield "jido.session.get.example", b""
    yield "jido.session.history.example", b""
    yield "jido.session.list", b""
    yield "$SRV.INFO", b""
    yield "$SYS.REQ.USER.INFO", b""


def created(name: str, stream: str, **config: Any) -> bytes:
    """The payload that creates a consumer."""
    defaults = {"name": name, "ack_policy": "explicit", "inactive_threshold": 600_000_000_000}
    return json.dumps({"stream_name": stream, "config": defaults | config}).encode()


# By publishing, and by the reply subjects of what may be published


@pytest.mark.parametrize("user", NOT_MANAGERS)
async def test_nothing_can_be_forged_by_publishing(members: dict[str, Member], user: str) -> None:
    async with unharmed(members, "example"):
        for target in TARGETS:
            if (user, target) == ("session-example", "jido.session.terminate.example"):
                continue  # its own session
            if user == "client" and target in ("jido.session.terminate.example", "$SRV.PING"):
                continue
            assert await members[user].publish_refused(target, FORGED) or target.startswith(("$JS.API.", "$SRV."))


@pytest.mark.parametrize("user", READERS)
@pytest.mark.parametrize("target", TARGETS)
async def test_no_reply_subject_is_written_to(members: dict[str, Member], user: str, target: str) -> None:
    attacker = members[user]
    for stream in READ:
        await attacker.nc.request(f"jido.js.CONSUMER.CREATE.{stream}.mine", created("mine", stream), timeout=5)

    async with unharmed(members, "example", "other"):
        for subject, payload in requests(user):
            await attacker.nc.publish(subject, payload, reply=target)
        await attacker.nc.publish("$JS.API.INFO", b"", reply=target)


@pytest.mark.parametrize("target", TARGETS)
async def test_a_guest_s_reply_subject_is_not_written_to(members: dict[str, Member], target: str) -> None:
    guest = members["session-example"]

    async with unharmed(members, "example", "other"):
        for subject, payload in requests("session-example"):
            await guest.nc.publish(subject, payload, reply=target)


async def test_a_guest_s_reply_subject_stays_among_the_guests(members: dict[str, Member]) -> None:
    """There it may land where another guest listens; it is a reply and no event, and readers pass it over."""
    guest = members["session-example"]
    ear = await guest.hear(EXAMPLE_SUBJECT)

    await guest.nc.publish("jido.session.get.example", b"", reply=EXAMPLE_SUBJECT)

    await eventually(lambda: ear.messages)
    assert "type" not in ear.on(EXAMPLE_SUBJECT)[0]


@pytest.mark.parametrize("user", NOT_MANAGERS)
@pytest.mark.parametrize("verb", ["DELETE", "PURGE", "UPDATE"])
async def test_the_stream_cannot_be_touched(members: dict[str, Member], user: str, verb: str) -> None:
    async with unharmed(members, "example"):
        for stream in (*READ, "KV_JIDO_MANAGERS"):
            assert await members[user].api(f"STREAM.{verb}.{stream}", {"name": stream}) is None


# In a manager's place


@pytest.mark.parametrize("user", NOT_MANAGERS)
async def test_nobody_answers_in_the_manager_s_place(members: dict[str, Member], user: str) -> None:
    for queue in ("", "q"):
        assert await members[user].subscribe_refused("jido.session.create", queue)

    assert (await members["client"].create("s3"))["status"] == "active"


async def test_another_s_reply_is_not_heard(members: dict[str, Member]) -> None:
    for user in NOT_MANAGERS:
        for subject in ("_INBOX.>", "_INBOX.*.>", "_INBOX.manager.>", "_INBOX.manager-api.>"):
            assert await members[user].subscribe_refused(subject)


@pytest.mark.parametrize("user", READERS)
async def test_nobody_answers_a_manager_s_own_requests(members: dict[str, Member], user: str) -> None:
    """The events show the inbox that their acknowledgement is sent to: each reply subject that is heard is attacked."""
    attacker, client = members[user], members["client"]
    heard: list[str] = []

    async def attack(message: Msg) -> None:
        heard.append(message.reply)
        for subject, payload in requests(user):
            await attacker.nc.publish(subject, payload, reply=message.reply)

    await attacker.nc.subscribe("jido.client.>", cb=attack)
    await attacker.flush()
    created = [await client.create(f"attacked-{number}") for number in range(30)]
    ended = [await client.ask(f"jido.session.terminate.attacked-{number}") for number in range(30)]

    assert {record["status"] for record in created} == {"active"}
    assert {(record["status"], record["reason"]) for record in ended} == {("terminated", "requested")}
    tokens = {reply.rpartition(".")[2] for reply in heard if reply.startswith("_INBOX.manager.")}
    assert len(tokens) > 100
    assert min(map(len, tokens)) == 16  # 64 random bits: the next one cannot be guessed


# By consumers


@pytest.mark.parametrize("user", READERS)
@pytest.mark.parametrize("stream", READ)
async def test_a_push_consumer_delivers_to_its_own_user_alone(
    members: dict[str, Member], roles_manager: SessionManager, user: str, stream: str
) -> None:
    """The server would deliver anywhere in the account of the streams, and sends empty heartbeats too."""
    attacker = members[user]
    others = ("_INBOX.someone.x", f"_INBOX.{user}", f"_INBOX.{user}.*", f"_INBOX.{user}.>", f"_INBOX.{user}x.y")
    targets = [*TARGETS, *others, f"jido.manager.{roles_manager.manager_id}.terminate.example"]
    own = f"_INBOX.{user}.pushed"
    push = {"ack_policy": "none", "idle_heartbeat": 100_000_000, "flow_control": True}

    async with unharmed(members, "example", "other"):
        made = await attacker.api(f"CONSUMER.CREATE.{stream}.mine", body(stream, deliver_subject=own, **push))
        assert made is not None and made["config"]["deliver_subject"] == own
        for target in targets:
            for subject in (f"CONSUMER.CREATE.{stream}.mine", f"CONSUMER.CREATE.{stream}"):
                refused = await attacker.api(subject, body(stream, deliver_subject=target, **push))
                assert refused is not None
                assert refused["error"]["description"].startswith("deliver_subject must be an inbox of this user")
        for number, field in enumerate(("Deliver_Subject", "deliver_\u017fubject")):  # the server understands them
            refused = await attacker.api(f"CONSUMER.CREATE.{stream}.f{number}", body(stream, **{field: TARGETS[0]}))
            assert refused is not None and "cannot be set by programs" in refused["error"]["description"]
        found = await attacker.api(f"CONSUMER.INFO.{stream}.mine")
        assert found is not None and found["config"]["deliver_subject"] == own


@pytest.mark.parametrize(
    "target", ["$KV.JIDO_SESSIONS.example", "jido.fence.example", "$JS.API.STREAM.PURGE.JIDO_CLIENT"]
)
async def test_a_consumer_that_has_lost_its_subscriber_is_not_moved(members: dict[str, Member], target: str) -> None:
    """nats-server 2.15.1 forgets changes of interest beyond 8 while a consumer sleeps; it would deliver without any."""
    attacker = members["observer"]
    slow = {"deliver_policy": "all", "replay_policy": "original", "idle_heartbeat": 100_000_000, "ack_policy": "none"}
    await asyncio.sleep(1)  # the consumer sleeps for as long as lies between two messages
    await members["client"].ask("jido.session.idle.other")

    async with unharmed(members, "example"):
        own = "_INBOX.observer.slow"
        pushed = await attacker.nc.subscribe(own)
        await attacker.flush()
        await attacker.api("CONSUMER.CREATE.JIDO_CLIENT.mine", body("JIDO_CLIENT", deliver_subject=own, **slow))
        for _ in range(4):
            await pushed.unsubscribe()
            await attacker.flush()
            pushed = await attacker.nc.subscribe(own)
            await attacker.flush()
        await pushed.unsubscribe()
        moved = await attacker.api(
            "CONSUMER.CREATE.JIDO_CLIENT.mine", body("JIDO_CLIENT", deliver_subject=target, **slow)
        )
        await asyncio.sleep(0.5)  # some heartbeats

    assert moved is not None and "error" in moved


@pytest.mark.parametrize(
    ("user", "owner", "durable"), [("observer", "client", "audit"), ("client", "observer", "observer")]
)
async def test_a_listed_durable_is_its_role_s_alone(
    members: dict[str, Member], user: str, owner: str, durable: str
) -> None:
    attacker, subject = members[user], f"JIDO_CLIENT.{durable}"
    mine = AUDIT | {"name": durable, "durable_name": durable}
    await made(members[owner], durable, mine)

    for action in ("", "create", "update"):
        other = mine | {"filter_subject": "jido.client.session.nothing", "inactive_threshold": 1_000_000_000}
        request = {"stream_name": "JIDO_CLIENT", "config": other, "action": action}
        for tail in (subject, f"{subject}.{other['filter_subject']}"):
            assert await attacker.api(f"CONSUMER.CREATE.{tail}", request) is None
        assert await attacker.api(f"CONSUMER.DURABLE.CREATE.{subject}", request) is None
        assert "error" in (await attacker.api("CONSUMER.CREATE.JIDO_CLIENT", request) or {})
    assert await attacker.api(f"CONSUMER.MSG.NEXT.{subject}", {"batch": 9, "no_wait": True}) is None
    assert await attacker.api(f"CONSUMER.DELETE.{subject}") is None
    assert await attacker.api(f"CONSUMER.RESET.{subject}") is None
    for first in ("", "JIDO_CLIENT.audit.", "JIDO_CLIENT.observer.", "_.x."):  # as a stream and a consumer of that name
        ack = f"$JS.ACK.{first}JIDO_CLIENT.{durable}.1.1.1.1.1"
        await attacker.nc.publish(ack, b'+NXT {"batch":9}', reply=f"_INBOX.{user}.x")

    pull = await members[owner].js.pull_subscribe_bind(durable, "JIDO_CLIENT")
    (message, *_) = await pull.fetch(9, timeout=2)
    await attacker.nc.publish(message.reply, b"+ACK")
    await attacker.flush()
    info = await pull.consumer_info()
    assert (info.config.filter_subject, info.config.inactive_threshold) == ("jido.client.events", None)
    assert (info.num_ack_pending, info.num_pending) == (4, 0)


async def test_another_role_s_consumer_cannot_be_changed(members: dict[str, Member]) -> None:
    """Whatever its name: it says in its metadata which role has created it; an operator's says nothing."""
    await made(members["client"], "mine", AUDIT | {"name": "mine", "durable_name": "mine"})
    await made(members["operator"], "operated", AUDIT | {"name": "operated", "durable_name": "operated"})

    for name in ("mine", "operated"):
        for action in ("", "create", "update"):
            changed = AUDIT | {"name": name, "durable_name": name, "filter_subject": "jido.client.session.nothing"}
            request = {"stream_name": "JIDO_CLIENT", "config": changed, "action": action}
            refused = await members["observer"].api(f"CONSUMER.CREATE.JIDO_CLIENT.{name}", request)
            assert refused is not None and "was not created by this role" in refused["error"]["description"]
        missing = await members["observer"].api(
            "CONSUMER.CREATE.JIDO_CLIENT.no", body("JIDO_CLIENT") | {"action": "update"}
        )
        assert missing is not None and "there is no consumer no to update" in missing["error"]["description"]
        kept = await members["operator"].api(f"CONSUMER.INFO.JIDO_CLIENT.{name}")
        assert kept is not None and kept["config"]["filter_subject"] == "jido.client.events"


async def test_requests_that_are_expensive_are_refused(members: dict[str, Member]) -> None:
    observer, subject = members["observer"], "CONSUMER.CREATE.JIDO_CLIENT.mine"
    filters = [f"jido.client.session.s{number}" for number in range(65)]

    for config, why in (
        ({"filter_subjects": filters}, "64 filter subjects"),
        ({"metadata": {"a": "x" * 20_000}}, "the limit is 16384"),
        ({"inactive_threshold": 10**18}, "more than a day"),
        ({"direct": True}, "cannot be set by programs in other accounts"),
        ({"pause_until": "9999-12-31T23:59:59-23:59"}, "cannot be set by programs in other accounts"),
        ({"opt_start_seq": 2**64 - 1, "deliver_policy": "by_start_sequence"}, "opt_start_seq must be"),
        ({"ack_wait": 1}, "100 ms or more"),
    ):
        refused = await observer.api(subject, body("JIDO_CLIENT", **config))
        assert refused is not None and why in refused["error"]["description"]
    assert (await members["client"].ask("jido.session.get.example"))["status"] == "active"


async def test_one_role_s_requests_do_not_wait_for_another_s(members: dict[str, Member]) -> None:
    async def ask(user: str, number: int) -> dict[str, Any]:
        subject = f"jido.js.CONSUMER.CREATE.JIDO_CLIENT.c{number}"
        reply = await members[user].nc.request(subject, created(f"c{number}", "JIDO_CLIENT"), timeout=30)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    flood = [asyncio.create_task(ask("observer", number)) for number in range(1000)]
    await asyncio.sleep(0)
    other = await ask("client", 1000)
    answers = await asyncio.gather(*flood)

    refused = [answer["error"] for answer in answers if "error" in answer]
    assert "error" not in other
    assert {(error["code"], error["err_code"]) for error in refused} == {(503, 10023)}
    assert len(refused) < 1000
    assert "error" not in await ask("observer", 1001)


@pytest.mark.parametrize("stream", ["KV_JIDO_MANAGERS", "x"])
async def test_no_consumer_is_created_elsewhere(members: dict[str, Member], stream: str) -> None:
    for user in READERS:
        assert await members[user].api(f"CONSUMER.CREATE.{stream}.mine", body(stream)) is None
        assert "error" in (await members[user].api("CONSUMER.CREATE.JIDO_CLIENT.mine", body(stream)) or {})


async def made(member: Member, name: str, config: dict[str, Any]) -> None:
    """Create a durable in a role."""
    subject = f"CONSUMER.CREATE.JIDO_CLIENT.{name}.jido.client.events"
    answer = await member.api(subject, {"stream_name": "JIDO_CLIENT", "config": config})
    assert answer is not None and "error" not in answer, answer


def body(stream: str, **config: Any) -> dict[str, Any]:
    """The request for a consumer."""
    return {"stream_name": stream, "config": config}


# All of it, again and again


async def test_20_000_attempts_change_no_session(members: dict[str, Member]) -> None:
    dice = random.Random(18)
    attempts = {user: list(requests(user)) for user in NOT_MANAGERS}
    attempts["observer"] += [(f"jido.session.{verb}.example", b"") for verb in ("terminate", "idle", "activate")]
    attempts["session-example"] += [(f"jido.session.{verb}.other", b"") for verb in ("terminate", "idle", "get")]

    async with unharmed(members, "example", "other"):
        for number in range(20_000):
            user = dice.choice(NOT_MANAGERS)
            subject, payload = dice.choice(attempts[user])
            await members[user].nc.publish(subject, payload, reply=dice.choice(TARGETS))
            if number % 1000 == 0:
                await members[user].flush()
                await asyncio.sleep(0)

    assert (await members["client"].create("afterwards"))["status"] == "active"


async def test_our_client_works_meanwhile(roles_server: LocalServer, members: dict[str, Member]) -> None:
    """A consumer of a reader is of no other: theirs have names that cannot be guessed."""
    async with Client.connect(as_user(roles_server, "client")) as client, client.events(since="all") as events:
        first = await anext(events)
        for _ in range(100):
            await members["observer"].api(
                "CONSUMER.CREATE.JIDO_CLIENT", {"stream_name": "JIDO_CLIENT", "config": AUDIT}
            )
        await members["client"].ask("jido.session.terminate.other")
        versions = [(await anext(events)).event.version for _ in range(6)]

    assert first.event.version == 1
    assert versions == [2, 1, 2, 3, 4, 4]
