"""The roles of `nats.conf`: what each may do, and what the server refuses it, by real servers and stock clients.

Two tiers: who has any JetStream permission in the account of the streams can write into them by a reply subject
(shown here), who lives in the guests' account cannot (shown here too).
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import nats
import pytest

from jido_nats import (
    Client,
    ConnectOptions,
    LocalServer,
    NotAllowed,
    ServerUnusable,
    SessionManager,
    Settings,
    Unavailable,
)
from jido_nats.broker.connection import Connection
from jido_nats.broker.local_server import find_binary, project_config, variables
from jido_nats.errors import OutcomeUnknown
from tests.tools.programs import ROOT
from tests.tools.roles import PASSWORDS, SECRETS, Member, as_user, member_at
from tests.tools.support import eventually, wait_for_ever

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
STREAMS = ("JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")
READ = ("JIDO_CLIENT", "KV_JIDO_SESSIONS")

# What can be tried, by what it would do. An `x` stands for any name.
EVENTS = {"jido.client.events", "jido.client.session.example", "jido.client.session.example.output"}
STATE = {"jido.fence.example", "$KV.JIDO_SESSIONS.example", "$KV.JIDO_MANAGERS.x"}
BETWEEN_MANAGERS = {"jido.manager.x.terminate.example"}
DECLARE = {f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE") for stream in STREAMS}
DESTROY = {
    f"$JS.API.STREAM.{verb}.{stream}"
    for verb in ("DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN")
    for stream in STREAMS
}
ELSEWHERE = {"x", "jido.x", "$KV.x.x", "$JS.API.STREAM.CREATE.x", "$JS.API.STREAM.LIST", "$SYS.REQ.SERVER.PING"}
FOREIGN_INBOXES = {"_INBOX.x", "_R_.x", "_INBOX.someone-else.x"}
CHANGE = {"jido.session.create", *(f"jido.session.{v}.other" for v in ("terminate", "idle", "activate", "send"))}
LOOK = {"jido.session.list", "jido.session.get.other", "jido.session.history.other"}
CHANGE_EXAMPLE = {f"jido.session.{verb}.example" for verb in ("terminate", "idle", "activate", "send")}
LOOK_EXAMPLE = {f"jido.session.{verb}.example" for verb in ("get", "history")}
READ_STREAMS = {
    *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("INFO", "MSG.GET") for stream in READ),
    *(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.x" for stream in READ),
    "$JS.API.CONSUMER.CREATE.JIDO_CLIENT.x.jido.client.session.other",
    "$JS.API.CONSUMER.CREATE.JIDO_CLIENT.x.jido.client.events",
    "$JS.API.CONSUMER.CREATE.KV_JIDO_SESSIONS.x.$KV.JIDO_SESSIONS.>",
}
READ_DIRECTLY = {
    "$JS.API.DIRECT.GET.JIDO_CLIENT",
    "$JS.API.DIRECT.GET.JIDO_CLIENT.jido.client.session.other",
    "$JS.API.DIRECT.GET.KV_JIDO_SESSIONS",
    "$JS.API.DIRECT.GET.KV_JIDO_SESSIONS.$KV.JIDO_SESSIONS.other",
    "$JS.API.CONSUMER.CREATE.JIDO_CLIENT",
    *(f"$JS.API.CONSUMER.INFO.{stream}.x" for stream in READ),
}
READ_LEASES = {"$JS.API.STREAM.MSG.GET.KV_JIDO_MANAGERS", "$JS.API.CONSUMER.CREATE.KV_JIDO_MANAGERS.x.$KV.>"}
DELETE_CONSUMERS = {f"$JS.API.CONSUMER.DELETE.{stream}.x" for stream in READ}
ACKNOWLEDGE = {"$JS.ACK.JIDO_CLIENT.x.1.1.1.1.1", "$JS.ACK.hub.A.JIDO_CLIENT.x.1.1.1.1.1"}
ACKNOWLEDGE_OWN = {"$JS.ACK.JIDO_CLIENT.observer.1.1.1.1.1", "$JS.ACK.hub.A.JIDO_CLIENT.observer.1.1.1.1.1"}
ACKNOWLEDGE_RECORDS = {"$JS.ACK.KV_JIDO_SESSIONS.x.1.1.1.1.1"}

WHO_AM_I = {"$SYS.REQ.USER.INFO"}
# What a manager uses while readers have all consumers of a stream.
FOLLOW_DIRECTLY = {f"$JS.API.DIRECT.GET.{stream}" for stream in ("JIDO_CLIENT", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")}
READER = WHO_AM_I | READ_STREAMS | READ_DIRECTLY | LOOK | LOOK_EXAMPLE | ACKNOWLEDGE_OWN
MAY_PUBLISH = {
    "manager": set.union(
        EVENTS, STATE, BETWEEN_MANAGERS, DECLARE, READ_STREAMS, READ_LEASES, DELETE_CONSUMERS, WHO_AM_I, FOLLOW_DIRECTLY
    ),
    "manager-api": FOREIGN_INBOXES | WHO_AM_I,
    "client": READER | CHANGE | CHANGE_EXAMPLE | DELETE_CONSUMERS | ACKNOWLEDGE,
    "observer": READER,
    "session-example": CHANGE_EXAMPLE | LOOK_EXAMPLE | WHO_AM_I,
}
ALL = sorted(MAY_PUBLISH)
PUBLISH = set.union(DESTROY, ELSEWHERE, ACKNOWLEDGE_RECORDS, *MAY_PUBLISH.values())

COMMANDS = {"jido.session.create", "jido.session.list", "jido.session.*.*", "jido.manager.*.*.*", "$SRV.PING"}
HEAR_ALL = {"jido.client.events", "jido.client.session.*", "jido.client.>"}
HEAR_EXAMPLE = {"jido.client.session.example", "jido.client.session.example.output"}
MAY_SUBSCRIBE = {
    "manager": set[str](),
    "manager-api": COMMANDS,
    "client": HEAR_ALL | HEAR_EXAMPLE,
    "observer": HEAR_ALL | HEAR_EXAMPLE,
    "session-example": HEAR_EXAMPLE,
}
SUBSCRIBE = set.union(
    COMMANDS,
    HEAR_ALL,
    HEAR_EXAMPLE,
    {">", "_INBOX.>", "_INBOX.*", "_INBOX.someone-else.>", "_R_.>", "$KV.>", "$JS.>", "jido.>", "jido.fence.*"},
    {"jido.client.session.other"},
)
MAY_SUBSCRIBE["client"].add("jido.client.session.other")
MAY_SUBSCRIBE["observer"].add("jido.client.session.other")
NOT_MANAGERS = ["client", "observer", "session-example"]


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A server with the roles, of the test's own."""
    async with LocalServer(secrets=SECRETS, sync_interval="2m") as server:
        yield server


@pytest.fixture
async def roles_manager(server: LocalServer) -> AsyncIterator[SessionManager]:
    """A manager that serves with its two users."""
    manager, api = as_user(server, "manager"), as_user(server, "manager-api")
    settings = Settings(lease_s=2)
    async with SessionManager.connect(manager, worker=wait_for_ever, settings=settings, api=api) as running:
        await running.start_serving()
        yield running


@pytest.fixture
async def members(server: LocalServer, roles_manager: SessionManager) -> AsyncIterator[dict[str, Member]]:
    """One stock client of each role beside a manager at work, with the sessions `example` and `other`."""
    async with AsyncExitStack() as stack:
        members = {user: await stack.enter_async_context(member_at(server, user)) for user in NOT_MANAGERS}
        for session_id in ("example", "other"):
            assert (await members["client"].create(session_id))["status"] == "active"
        yield members


# The table, as the server decides it


@pytest.mark.parametrize("user", ALL)
async def test_a_role_may_publish_this_alone(server: LocalServer, user: str) -> None:
    async with member_at(server, user) as member:
        refused = {subject for subject in PUBLISH if await member.publish_refused(subject)}

    assert refused == PUBLISH - MAY_PUBLISH[user]


@pytest.mark.parametrize("user", ALL)
async def test_a_role_may_subscribe_to_this_alone(server: LocalServer, user: str) -> None:
    async with member_at(server, user) as member:
        refused = {subject for subject in SUBSCRIBE if await member.subscribe_refused(subject)}

    assert refused == SUBSCRIBE - MAY_SUBSCRIBE[user]


@pytest.mark.parametrize("user", ALL)
async def test_an_inbox_is_its_owner_s_alone(server: LocalServer, user: str) -> None:
    async with member_at(server, user) as member:
        heard = {other for other in ALL if not await member.subscribe_refused(f"_INBOX.{other}.>")}

    assert heard == {user}


async def test_nobody_comes_in_without_a_password(server: LocalServer) -> None:
    for url in (server.url, server.url.replace("//", "//client:wrong@"), server.url.replace("//", "//client:@")):
        with pytest.raises(ServerUnusable, match="refused the credentials"):
            async with Client.connect(url):
                pass


@pytest.mark.parametrize("user", sorted(PASSWORDS))
async def test_a_password_is_no_user_that_may_do_anything(server: LocalServer, user: str) -> None:
    """The account that refuses empty passwords has users that are called as the passwords."""
    refusals: list[str] = []

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    nc = await nats.connect(server.url, user=PASSWORDS[user], password=PASSWORDS[user], error_cb=on_error)
    member = Member(nc, user, refusals)
    assert await member.publish_refused("jido.session.create")
    assert await member.subscribe_refused("jido.client.events")
    await nc.close()


# What the roles do


async def test_a_client_does_everything(server: LocalServer, roles_manager: SessionManager) -> None:
    async with Client.connect(as_user(server, "client")) as client:
        await client.create_session(session_id="s1")
        assert (await client.idle_session("s1")).status == "idle"
        assert [record.session_id for record in await client.list_sessions()] == ["s1"]
        async with client.watch_sessions() as watched:
            assert (await anext(watched)).record.session_id == "s1"  # type: ignore[union-attr]
        assert (await client.terminate_session("s1")).status == "terminated"
        async with client.events(since="all", durable="mine") as events:
            versions = [(await anext(events)).event.version for _ in range(6)]
            await events.acknowledge()

    assert versions == [1, 2, 3, 4, 5, 5]


async def test_an_observer_reads(server: LocalServer, members: dict[str, Member]) -> None:
    async with Client.connect(as_user(server, "observer")) as observer:
        assert len(await observer.list_sessions()) == 2
        assert len(await observer.session_history("other")) == 2
        async with observer.watch_sessions() as watched:
            assert (await anext(watched)).record.session_id == "example"  # type: ignore[union-attr]
        for durable in (None, "observer"):
            async with observer.events(since="all", durable=durable) as events:
                assert (await anext(events)).event.version == 1


async def test_an_observer_s_durable_carries_on(server: LocalServer, members: dict[str, Member]) -> None:
    read = []
    async with Client.connect(as_user(server, "observer")) as observer:
        for _ in range(4):
            async with observer.events(since="all", durable="observer") as events:
                read.append((await anext(events)).sequence)
                await events.acknowledge()

    assert read == sorted(set(read))


@pytest.mark.parametrize("attempt", ["create_session", "terminate_session", "idle_session", "activate_session"])
async def test_an_observer_changes_nothing(server: LocalServer, members: dict[str, Member], attempt: str) -> None:
    before = await members["client"].positions()
    arguments = [] if attempt == "create_session" else ["example"]

    async with Client.connect(as_user(server, "observer")) as observer:
        async with asyncio.timeout(4):  # at once, not after a time-out
            with pytest.raises(NotAllowed, match=r"may not publish to jido\.session\."):
                await getattr(observer, attempt)(*arguments)

    assert await members["client"].positions() == before


async def test_one_session_s_user_commands_and_hears_it(members: dict[str, Member]) -> None:
    guest = members["session-example"]
    ear = await guest.hear(EXAMPLE_SUBJECT)

    assert (await guest.ask("jido.session.idle.example"))["status"] == "idle"
    assert (await guest.ask("jido.session.activate.example"))["status"] == "active"
    assert (await guest.ask("jido.session.terminate.example"))["status"] == "terminated"

    await eventually(lambda: len(ear.messages) == 4)
    assert ear.told(EXAMPLE_SUBJECT) == ["3 idle", "4 active", "5 terminating", "6 terminated"]
    assert len((await guest.ask("jido.session.history.example"))["events"]) == 7
    assert (await guest.ask("jido.session.get.example"))["status"] == "terminated"


async def test_one_session_s_user_with_our_client(server: LocalServer, members: dict[str, Member]) -> None:
    async with Client.connect(as_user(server, "session-example")) as guest:
        assert (await guest.get_session_info("example")).status == "active"
        assert [event.version for event in await guest.session_history("example")] == [1, 2]
        for attempt in (guest.get_session_info("other"), guest.session_history("other"), guest.list_sessions()):
            async with asyncio.timeout(4):
                with pytest.raises(NotAllowed):
                    await attempt


async def test_a_subject_that_may_not_be_heard_is_told(server: LocalServer) -> None:
    async with Client.connect(as_user(server, "session-example")) as guest:
        with pytest.raises(NotAllowed, match=r"may not subscribe to jido\.client\.events"):
            async with guest.listen("jido.client.events", print):
                pass
        async with guest.listen(EXAMPLE_SUBJECT, print):  # what was refused is forgotten
            pass


async def test_an_inbox_that_may_not_be_heard_is_told(server: LocalServer) -> None:
    async with Client.connect(replace(as_user(server, "client"), inbox_prefix="_INBOX.other")) as client:
        for _ in range(2):
            async with asyncio.timeout(4):
                with pytest.raises(NotAllowed, match=r"may not receive replies under _INBOX\.other"):
                    await client.list_sessions()


async def test_of_two_subjects_that_differ_by_case_none_is_said_to_be_refused(server: LocalServer) -> None:
    """nats-py tells the refused one in lower case; a wrong "surely not done" would be worse than a time-out."""
    connection = await Connection.open(as_user(server, "session-example"), "test")
    subjects = ("jido.session.get.Example", "jido.session.get.eXample")

    asked = [connection.request(subject, timeout_s=0.5) for subject in subjects]
    found = await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(NotAllowed, match=r"get\.Example"):
        await connection.request(subjects[0], timeout_s=0.5)

    assert [type(error) for error in found] == [OutcomeUnknown, OutcomeUnknown]
    await connection.close()


async def test_a_manager_needs_a_user_that_may_answer(server: LocalServer) -> None:
    manager = SessionManager.connect(as_user(server, "manager"), worker=wait_for_ever)
    with pytest.raises(ServerUnusable, match="may not answer commands"):
        async with manager:
            await manager.start_serving()


async def test_two_managers_pass_commands_on(
    server: LocalServer, roles_manager: SessionManager, members: dict[str, Member]
) -> None:
    manager, api = as_user(server, "manager"), as_user(server, "manager-api")
    async with SessionManager.connect(manager, worker=wait_for_ever, settings=Settings(lease_s=2), api=api) as second:
        assert (await second.idle_session("example")).owner == roles_manager.manager_id


# Attacks


@pytest.mark.parametrize("user", NOT_MANAGERS)
async def test_an_event_cannot_be_forged(members: dict[str, Member], user: str) -> None:
    before = await members["client"].positions()
    ear = await members["observer"].hear("jido.client.>")

    for subject in ("jido.client.events", EXAMPLE_SUBJECT):
        assert await members[user].publish_refused(subject, FORGED)

    await members["observer"].nc.flush()
    assert ear.messages == []
    assert await members["client"].positions() == before


@pytest.mark.parametrize("user", NOT_MANAGERS)
async def test_a_record_cannot_be_forged(members: dict[str, Member], user: str) -> None:
    before = await members["client"].positions()

    assert await members[user].publish_refused("$KV.JIDO_SESSIONS.example", b"{}")

    assert await members["client"].positions() == before


@pytest.mark.parametrize("user", NOT_MANAGERS)
async def test_nobody_answers_in_the_manager_s_place(members: dict[str, Member], user: str) -> None:
    for queue in ("", "q"):
        assert await members[user].subscribe_refused("jido.session.create", queue)

    assert (await members["client"].create("s3"))["status"] == "active"


@pytest.mark.parametrize("user", NOT_MANAGERS)
@pytest.mark.parametrize("verb", ["DELETE", "PURGE", "UPDATE"])
async def test_the_stream_cannot_be_touched(members: dict[str, Member], user: str, verb: str) -> None:
    before = await members["client"].stored()

    assert await members[user].api(f"STREAM.{verb}.JIDO_CLIENT", b'{"name":"JIDO_CLIENT"}') is None

    assert [m.data for m in await members["client"].stored()] == [m.data for m in before]


async def test_a_guest_reads_no_other_session(members: dict[str, Member]) -> None:
    guest = members["session-example"]
    filtered = "JIDO_CLIENT.x.jido.client.session.other"

    assert await guest.api("DIRECT.GET.JIDO_CLIENT.jido.client.session.other") is None
    assert await guest.api(f"CONSUMER.CREATE.{filtered}", b"{}") is None
    assert await guest.subscribe_refused("jido.client.session.other")
    assert await guest.subscribe_refused("jido.client.events")


@pytest.mark.parametrize("user", ["observer", "session-example"])
async def test_another_s_consumer_cannot_be_acknowledged(members: dict[str, Member], user: str) -> None:
    client = members["client"]
    pull = await client.js.pull_subscribe("jido.client.events", durable="audit", stream="JIDO_CLIENT")
    (message,) = await pull.fetch(1)

    assert await members[user].publish_refused(message.reply, b"+ACK")

    assert (await pull.consumer_info()).num_ack_pending == 1


async def test_another_s_reply_is_not_heard(members: dict[str, Member]) -> None:
    for user in NOT_MANAGERS:
        for subject in ("_INBOX.>", "_INBOX.*.>", "_INBOX.manager.>", "_INBOX.manager-api.>"):
            assert await members[user].subscribe_refused(subject)


@pytest.mark.parametrize("reply", ["jido.client.events", EXAMPLE_SUBJECT, "$KV.JIDO_SESSIONS.example", "_INBOX.>"])
async def test_the_manager_answers_no_event_subject(members: dict[str, Member], reply: str) -> None:
    before = await members["client"].positions()

    await members["client"].nc.publish("jido.session.terminate.example", b"", reply=reply)
    await members["client"].ask("jido.session.get.other")

    assert await members["client"].positions() == before
    assert (await members["client"].ask("jido.session.get.example"))["status"] == "active"


@pytest.mark.parametrize("user", ["client", "observer"])
@pytest.mark.parametrize("target", ["jido.client.events", EXAMPLE_SUBJECT])
async def test_the_trusted_tier_can_forge_by_reply_subject(members: dict[str, Member], user: str, target: str) -> None:
    """A known gap of NATS, which the README tells: this is why untrusted programs are in an account of their own."""
    trusted, before = members[user], len(await members["client"].stored())

    await trusted.nc.publish("$JS.API.STREAM.INFO.JIDO_CLIENT", b"", reply=target)

    await eventually(lambda: grown(members["client"], before))
    assert (await members["client"].stored())[-1].subject == target


async def test_the_trusted_tier_can_write_a_record_by_reply_subject(members: dict[str, Member]) -> None:
    (_, before) = await members["client"].positions()

    await members["observer"].nc.publish(
        "$JS.API.DIRECT.GET.JIDO_CLIENT", b'{"seq":2}', reply="$KV.JIDO_SESSIONS.forged"
    )

    await eventually(lambda: later_records(members["client"], before))


@pytest.mark.parametrize("user", ["client", "observer"])
async def test_a_push_consumer_cannot_command(members: dict[str, Member], user: str) -> None:
    """It may have the server send stored messages to any subject, but with no inbox to answer: not executed."""
    config = {"name": "push", "deliver_subject": "jido.session.terminate.example", "ack_policy": "none"}
    request = json.dumps({"stream_name": "JIDO_CLIENT", "config": config}).encode()

    created = await members[user].api("CONSUMER.CREATE.JIDO_CLIENT.push", request)

    assert created is not None
    assert b"error" not in created.data
    await members[user].ask("jido.session.get.example")
    assert (await members[user].ask("jido.session.get.example"))["status"] == "active"


@pytest.mark.parametrize("target", [EXAMPLE_SUBJECT, "jido.client.events", "$KV.JIDO_SESSIONS.example", "_R_.x"])
async def test_a_guest_cannot_forge_by_reply_subject(members: dict[str, Member], target: str) -> None:
    guest, client = members["session-example"], members["client"]
    ear = await client.hear("jido.client.>")
    before = await client.positions()

    for verb in ("get", "history"):
        await guest.nc.publish(f"jido.session.{verb}.example", b"", reply=target)
    for subject in sorted(READ_STREAMS | READ_DIRECTLY | {"$JS.API.INFO"}):
        assert await guest.publish_refused(subject, b'{"seq":2}', reply=target)
    await guest.nc.publish("$SYS.REQ.USER.INFO", b"", reply=target)
    await guest.ask("jido.session.get.example")
    await client.ask("jido.session.get.other")

    assert await client.positions() == before
    assert ear.messages == []


async def test_a_guest_s_reply_subject_stays_among_the_guests(members: dict[str, Member]) -> None:
    """There it may land where another guest listens; it is a reply and no event, and readers pass it over."""
    guest = members["session-example"]
    ear = await guest.hear(EXAMPLE_SUBJECT)

    await guest.nc.publish("jido.session.get.example", b"", reply=EXAMPLE_SUBJECT)

    await eventually(lambda: ear.messages)
    assert "type" not in ear.on(EXAMPLE_SUBJECT)[0]


# The auditor of the comment in nats.conf


async def test_an_auditor_needs_no_more_than_nats_conf_says() -> None:
    async with LocalServer(config=auditor_config()) as server:
        async with SessionManager.connect(server.url, worker=wait_for_ever, settings=Settings(lease_s=2)) as manager:
            await manager.create_session()
        refusals: list[str] = []

        async def on_error(error: Exception) -> None:
            refusals.append(str(error))

        nc = await nats.connect(
            server.url, user="auditor", password="a", inbox_prefix="_INBOX.auditor", error_cb=on_error
        )
        auditor = Member(nc, "auditor", refusals)
        config = {"name": "X", "durable_name": "X", "ack_policy": "explicit", "filter_subject": "jido.client.events"}
        request = json.dumps({"stream_name": "JIDO_CLIENT", "config": config}).encode()
        assert await auditor.api("CONSUMER.CREATE.JIDO_CLIENT.X.jido.client.events", request)
        pull = await auditor.js.pull_subscribe_bind("X", "JIDO_CLIENT")
        (message,) = await pull.fetch(1)
        await message.ack_sync()

        assert refusals == []
        assert (await pull.consumer_info()).num_ack_pending == 0
        for other in ("X.jido.client.session.a", "X", "Y.jido.client.events"):
            assert await auditor.api(f"CONSUMER.CREATE.JIDO_CLIENT.{other}", request) is None
        await nc.close()


# What the server takes for a password


def test_every_role_has_its_variable() -> None:
    assert variables(project_config()) == set(SECRETS)


@pytest.mark.parametrize("variable", sorted(SECRETS))
async def test_the_server_does_not_start_without_a_password(variable: str) -> None:
    secrets = {name: secret for name, secret in SECRETS.items() if name != variable}
    with pytest.raises(ServerUnusable, match=f"variable reference for '{variable}'"):
        async with LocalServer(secrets=secrets):
            pass


@pytest.mark.parametrize("variable", sorted(SECRETS))
@pytest.mark.parametrize("empty", ["", '""'])
async def test_the_server_does_not_start_with_an_empty_password(variable: str, empty: str) -> None:
    code, said = await check_config(find_binary(), SECRETS | {variable: empty})

    assert code != 0
    assert "User entry requires a user" in said


async def test_the_server_does_not_start_with_a_password_used_twice() -> None:
    with pytest.raises(ServerUnusable, match="Duplicate user"):
        async with LocalServer(secrets=SECRETS | {"JIDO_CLIENT_PASSWORD": PASSWORDS["manager"]}):
            pass


@pytest.mark.parametrize("secret", ["12345", "5k", "1.5", "true", "-7", "2025-01-24T10:30:00Z"])
async def test_what_looks_like_a_number_wants_quotes(secret: str) -> None:
    """nats-server's own language: told at start, never taken for something else."""
    bare, quoted = ({**SECRETS, "JIDO_CLIENT_PASSWORD": text} for text in (secret, f'"{secret}"'))

    assert (await check_config(find_binary(), bare))[0] != 0
    assert (await check_config(find_binary(), quoted))[0] == 0


@pytest.mark.parametrize("secret", ["a,b", "a;b", "a b", "a}b", "a'b", "{a", "$a", "a\\b"])
async def test_no_password_is_cut_short(secret: str) -> None:
    assert (await check_config(find_binary(), SECRETS | {"JIDO_CLIENT_PASSWORD": secret}))[0] != 0


@pytest.mark.parametrize("secret", ["12345", "true", "a,b;c d#e", 'qu"ote', "back\\slash", "gr\u00fc\u00df", "$HOME"])
async def test_the_start_script_takes_any_password(secret: str) -> None:
    code, said = await check_config(ROOT / "deploy/nats-server.sh", SECRETS | {"JIDO_CLIENT_PASSWORD": secret})

    assert (code, "is valid" in said) == (0, True), said


@pytest.mark.parametrize("variable", sorted(SECRETS))
async def test_the_start_script_wants_every_password(variable: str) -> None:
    code, said = await check_config(ROOT / "deploy/nats-server.sh", SECRETS | {variable: ""})

    assert code != 0
    assert f"{variable} is unset or empty" in said


@pytest.mark.parametrize("secret", ["12345", "a,b;c d#e", 'qu"ote', "back\\slash", "gr\u00fc\u00df", "$HOME"])
async def test_a_quoted_password_is_that_password(secret: str) -> None:
    async with LocalServer(secrets=SECRETS | {"JIDO_CLIENT_PASSWORD": secret}) as server:
        options = ConnectOptions(servers=(server.url,), user="client", password=secret)
        async with Client.connect(options):
            pass


async def test_a_trial_server_lets_everybody_in() -> None:
    async with LocalServer() as server, Client.connect(server.url) as client:
        with pytest.raises(Unavailable, match="no session manager"):
            await client.list_sessions()


async def grown(member: Member, before: int) -> bool:
    return len(await member.stored()) > before


async def later_records(member: Member, before: int) -> bool:
    return (await member.positions())[1] > before


def auditor_config() -> str:
    """A trial account with the auditor whose permissions stand in a comment of `nats.conf`."""
    comment = project_config().partition("# An auditor")[2].partition("\n    ]")[0]
    permissions = re.findall(r"#   +(.*)", comment)
    return "\n".join(
        [
            "accounts { SYS {}, JIDO { jetstream: enabled, users: [",
            "  { user: trial, password: trial }",
            '  { user: auditor, password: "a", permissions {',
            *permissions,
            "  } } ] } }",
            "no_auth_user: trial",
        ]
    )


async def check_config(program: Path, secrets: dict[str, str]) -> tuple[int, str]:
    """How the program ends when it is asked only to check `nats.conf`, with exactly this in the environment."""
    inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
    path = f"{find_binary().parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *(str(program), "-t", *([] if program.suffix == ".sh" else ["-c", str(ROOT / "nats.conf")])),
        env=inherited | secrets | {"PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()
