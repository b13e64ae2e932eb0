"""The roles of `nats.conf`: what each reaches in the account of the streams, by real servers and stock clients."""

import asyncio
import json
import re
from dataclasses import replace

import nats
import pytest

from jido_nats import Client, ConnectOptions, LocalServer, NotAllowed, ServerUnusable, SessionManager, Settings
from jido_nats.broker.connection import Connection
from jido_nats.broker.local_server import project_config
from jido_nats.errors import OutcomeUnknown
from tests.tools.roles import INSIDE, PASSWORDS, SECRETS, Member, as_user, js_prefix, member_at
from tests.tools.support import DEADLINE_S, brief, eventually, wait_for_ever

EXAMPLE_SUBJECT = "jido.client.session.example"
STREAMS = ("JIDO_CLIENT", "JIDO_OUTPUT", "JIDO_JOURNAL", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")
READ = ("JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS")
FOLLOWED = ("JIDO_CLIENT", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")

# What can be tried, by what it would do; in the words of the account of the streams. An `x` stands for any name.
EVENTS = {"jido.client.events", "jido.client.session.example", "jido.client.session.example.output"}
STATE = {"jido.fence.example", "jido.journal.example", "$KV.JIDO_SESSIONS.example", "$KV.JIDO_MANAGERS.x"}
BETWEEN_MANAGERS = {"jido.manager.x.terminate.example"}
OPERATE = {"jido.admin.erase.example", "jido.admin.drain.x"}
DECLARE = {f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE") for stream in STREAMS}
DESTROY = {
    f"$JS.API.STREAM.{verb}.{stream}"
    for verb in ("DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN")
    for stream in STREAMS
}
ELSEWHERE = {"x", "jido.x", "$KV.x.x", "$JS.API.STREAM.CREATE.x", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.x"}
INBOXES = {"_INBOX.x", "_R_.x", "_INBOX.someone-else.x"}
CHANGE = {"jido.session.create", *(f"jido.session.{v}.other" for v in ("terminate", "idle", "activate", "send"))}
LOOK = {"jido.session.list", "jido.session.get.other", "jido.session.history.other"}
CHANGE_EXAMPLE = {f"jido.session.{verb}.example" for verb in ("terminate", "idle", "activate", "send")}
LOOK_EXAMPLE = {f"jido.session.{verb}.example" for verb in ("get", "history")}
MICRO = {"$SRV.PING", "$SRV.INFO.jido-session-manager", "$SRV.STATS.x.y"}
DISCOVER = {"$JS.API.INFO", "$JS.API.STREAM.NAMES"}
READ_STREAMS = {
    *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("INFO", "MSG.GET") for stream in READ),
    *(f"$JS.API.DIRECT.GET.{stream}{last}" for stream in READ for last in ("", ".x.y")),
    *(f"$JS.API.CONSUMER.CREATE.{stream}{name}" for stream in READ for name in ("", ".x", ".x.jido.client.events")),
    *(f"$JS.API.CONSUMER.{verb}.{stream}.x" for verb in ("INFO", "MSG.NEXT") for stream in READ),
    *(f"$JS.FC.{stream}.x.y" for stream in READ),
}
OBSERVER_S = {
    *(f"$JS.API.CONSUMER.CREATE.JIDO_CLIENT.observer{filtered}" for filtered in ("", ".jido.client.events")),
    *(f"$JS.API.CONSUMER.{verb}.JIDO_CLIENT.observer" for verb in ("INFO", "MSG.NEXT", "DURABLE.CREATE")),
    "$JS.ACK.JIDO_CLIENT.observer.1.1.1.1.1",
}
AUDIT_S = {
    *(f"$JS.API.CONSUMER.CREATE.JIDO_CLIENT.audit{filtered}" for filtered in ("", ".jido.client.events")),
    *(f"$JS.API.CONSUMER.{verb}.JIDO_CLIENT.audit" for verb in ("INFO", "MSG.NEXT", "DURABLE.CREATE", "DELETE")),
    "$JS.ACK.JIDO_CLIENT.audit.1.1.1.1.1",
}
# Of consumers with any other name.
CONSUMERS = {
    *(f"$JS.API.CONSUMER.DELETE.{stream}.x" for stream in READ),
    *(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.x" for stream in ("JIDO_CLIENT", "JIDO_OUTPUT")),
    *(f"$JS.ACK.{stream}.x.1.1.1.1.1" for stream in ("JIDO_CLIENT", "JIDO_OUTPUT")),
}
NOBODY = {
    "$JS.API.CONSUMER.DELETE.JIDO_CLIENT.observer",
    "$JS.ACK.KV_JIDO_SESSIONS.x.1.1.1.1.1",
    # Of domains, or of a stream and a consumer with those names: JetStream takes it as both.
    *(
        f"$JS.ACK.{first}.JIDO_CLIENT.{name}.1.1.1.1.1"
        for first in ("hub.A", "KV_JIDO_MANAGERS.x")
        for name in ("observer", "x")
    ),
    "$JS.API.CONSUMER.RESET.JIDO_CLIENT.x",
    "$JS.API.CONSUMER.PAUSE.JIDO_CLIENT.x",
    "$JS.API.CONSUMER.LIST.JIDO_CLIENT",
}
FOLLOW = {
    *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in FOLLOWED),
    *(f"$JS.API.STREAM.INFO.{stream}" for stream in STREAMS),
    *(f"$JS.API.DIRECT.GET.{stream}" for stream in FOLLOWED),
    *(f"$JS.API.CONSUMER.CREATE.{stream}.x" for stream in FOLLOWED),
    *(f"$JS.API.CONSUMER.CREATE.{stream}.x.jido.client.events" for stream in FOLLOWED),
    *(f"$JS.API.CONSUMER.{verb}.{stream}.x" for verb in ("MSG.NEXT", "DELETE") for stream in FOLLOWED),
    *(f"$JS.API.CONSUMER.INFO.{stream}.x" for stream in READ),
    "$JS.API.CONSUMER.CREATE.JIDO_OUTPUT.x",
    *(
        f"$JS.API.{verb}.GET.{stream}"
        for verb in ("STREAM.MSG", "DIRECT")
        for stream in ("JIDO_OUTPUT", "JIDO_JOURNAL")
    ),
    "$JS.API.STREAM.PURGE.JIDO_JOURNAL",
}
FOLLOW |= {
    f"$JS.API.CONSUMER.{rest}"
    for name in ("audit", "observer")
    for rest in (
        *(f"{verb}.JIDO_CLIENT.{name}" for verb in ("CREATE", "INFO", "MSG.NEXT", "DELETE")),
        f"CREATE.JIDO_CLIENT.{name}.jido.client.events",
    )
}

READER = DISCOVER | READ_STREAMS | MICRO | LOOK | LOOK_EXAMPLE
MAY_REACH = {
    "manager": set.union(EVENTS, STATE, BETWEEN_MANAGERS, DECLARE, FOLLOW, {"$JS.API.INFO"}),
    "manager-api": INBOXES,
    "client": READER | CHANGE | CHANGE_EXAMPLE | CONSUMERS | AUDIT_S,
    "observer": READER | OBSERVER_S,
    "session-example": CHANGE_EXAMPLE | LOOK_EXAMPLE,
}
ALL = sorted(MAY_REACH)
ATTEMPTS = set.union(DESTROY, ELSEWHERE, OPERATE, NOBODY, *MAY_REACH.values())

COMMANDS = {"jido.session.create", "jido.session.list", "jido.session.*.*", "jido.manager.*.*.*", "$SRV.PING"}
HEAR_ALL = {"jido.client.events", "jido.client.session.*", "jido.client.>", "jido.client.session.other"}
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
    {
        ">",
        "_INBOX.>",
        "_INBOX.*",
        "_INBOX.someone-else.>",
        "_R_.>",
        "$KV.>",
        "$JS.>",
        "jido.>",
        "jido.fence.*",
        "jido.journal.*",
    },
    {"jido.js.>", "jido.admin.>"},
)
NOT_MANAGERS = ["client", "observer", "session-example"]


# The table, as the server decides it


@pytest.mark.parametrize("user", ALL)
async def test_a_role_reaches_this_alone(roles_server: LocalServer, user: str) -> None:
    """What it publishes is heard by an operator who listens to everything in the account of the streams."""
    async with member_at(roles_server, "operator") as operator, member_at(roles_server, user) as member:
        ear = await operator.hear(">")
        for subject in ATTEMPTS:
            here = subject.replace("$JS.API", js_prefix(user), 1)
            await member.nc.publish(here, subject.encode())
            if here != subject:
                await member.nc.publish(subject, b"outside: " + subject.encode())
        await member.flush()
        await operator.nc.publish("all.of.it", b"all of it")
        await eventually(lambda: any(message.subject == "all.of.it" for message in ear.messages))
        reached = {message.data.decode() for message in ear.messages}

    assert reached & ATTEMPTS == MAY_REACH[user]
    assert not [payload for payload in reached if payload.startswith("outside: ")]
    created = {message.subject for message in ear.messages if ".CREATE." in message.subject}
    if user not in INSIDE:  # the managers look at what is created
        assert {subject.rpartition(".CREATE.")[0].removesuffix(".DURABLE") for subject in created} <= {
            f"jido.consumer.{user}"
        }


@pytest.mark.parametrize("user", ALL)
async def test_a_role_may_subscribe_to_this_alone(roles_server: LocalServer, user: str) -> None:
    async with member_at(roles_server, user) as member:
        refused = {subject for subject in SUBSCRIBE if await member.subscribe_refused(subject)}

    assert refused == SUBSCRIBE - MAY_SUBSCRIBE[user]


@pytest.mark.parametrize("user", ALL)
async def test_an_inbox_is_its_owner_s_alone(roles_server: LocalServer, user: str) -> None:
    async with member_at(roles_server, user) as member:
        heard = {other for other in ALL if not await member.subscribe_refused(f"_INBOX.{other}.>")}

    assert heard == {user}


async def test_nobody_comes_in_without_a_password(roles_server: LocalServer) -> None:
    for url in (
        roles_server.url,
        roles_server.url.replace("//", "//client:wrong@"),
        roles_server.url.replace("//", "//client:@"),
    ):
        with pytest.raises(ServerUnusable, match="refused the credentials"):
            async with Client.connect(url):
                pass


@pytest.mark.parametrize("user", sorted(PASSWORDS))
async def test_a_password_is_no_user_that_may_do_anything(roles_server: LocalServer, user: str) -> None:
    """The account that refuses empty passwords has users that are called as the passwords."""
    refusals: list[str] = []

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    nc = await nats.connect(roles_server.url, user=PASSWORDS[user], password=PASSWORDS[user], error_cb=on_error)
    member = Member(nc, user, refusals)
    assert await member.publish_refused("jido.session.create")
    assert await member.subscribe_refused("jido.client.events")
    await nc.close()


# What the roles do


async def test_a_client_does_everything(roles_server: LocalServer, roles_manager: SessionManager) -> None:
    async with Client.connect(as_user(roles_server, "client")) as client:
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


async def test_an_observer_reads(roles_server: LocalServer, members: dict[str, Member]) -> None:
    async with Client.connect(as_user(roles_server, "observer")) as observer:
        assert len(await observer.list_sessions()) == 2
        assert len(await observer.session_history("other")) == 2
        async with observer.watch_sessions() as watched:
            assert (await anext(watched)).record.session_id == "example"  # type: ignore[union-attr]
        for durable in (None, "observer"):
            async with observer.events(since="all", durable=durable) as events:
                assert (await anext(events)).event.version == 1


async def test_an_observer_s_durable_carries_on(roles_server: LocalServer, members: dict[str, Member]) -> None:
    read = []
    async with Client.connect(as_user(roles_server, "observer")) as observer:
        for _ in range(4):
            async with observer.events(since="all", durable="observer") as events:
                read.append((await anext(events)).sequence)
                await events.acknowledge()

    assert read == sorted(set(read))


@pytest.mark.parametrize("user", ["client", "observer"])
async def test_a_stock_client_reads_through_the_imports(members: dict[str, Member], user: str) -> None:
    member = members[user]
    pushed = await member.js.subscribe("jido.client.events", stream="JIDO_CLIENT", ordered_consumer=True)
    pulled = await member.js.pull_subscribe("jido.client.session.*", stream="JIDO_CLIENT")
    bucket = await member.js.key_value("JIDO_SESSIONS")
    watcher = await bucket.watchall()

    events = [json.loads((await pushed.next_msg(timeout=5)).data) for _ in range(4)]
    (active, _) = await pulled.fetch(2, timeout=5)
    entry = await bucket.get("example")
    watched = await watcher.updates(timeout=5)  # type: ignore[no-untyped-call]

    assert [brief(event) for event in events] == ["1 created", "2 active"] * 2
    assert active.subject == EXAMPLE_SUBJECT
    assert watched is not None
    assert (watched.key, watched.value) == ("example", entry.value)
    assert (await bucket.history("other"))[0].key == "other"
    assert member.refusals == []


@pytest.mark.parametrize(("user", "durable"), [("client", "audit"), ("client", "mine"), ("observer", "observer")])
async def test_a_stock_durable_carries_on(
    roles_server: LocalServer, members: dict[str, Member], user: str, durable: str
) -> None:
    read = []
    for _ in range(3):
        async with member_at(roles_server, user) as member:
            pull = await member.js.pull_subscribe("jido.client.events", durable=durable, stream="JIDO_CLIENT")
            (message,) = await pull.fetch(1, timeout=5)
            read.append(message.metadata.sequence.stream)
            await message.ack_sync()

    assert read == sorted(set(read))


async def test_a_team_needs_no_more_than_nats_conf_says() -> None:
    async with LocalServer(secrets=SECRETS, config=with_team("billing-secret")) as server:
        manager, api = as_user(server, "manager"), as_user(server, "manager-api")
        async with SessionManager.connect(manager, worker=wait_for_ever, api=api) as running:
            await running.start_serving()
            await running.create_session(session_id="s1")
            options = ConnectOptions(servers=(server.url,), user="billing", password="billing-secret")
            async with Client.connect(options) as team:
                async with team.events(since="all", durable="billing") as events:
                    assert (await anext(events)).event.version == 1
                    await events.acknowledge()
                with pytest.raises(NotAllowed):
                    async with team.events(since="all", durable="another"):
                        pass
                with pytest.raises(NotAllowed):
                    await team.list_sessions()
            nc = await nats.connect(
                server.url, user="billing", password="billing-secret", inbox_prefix="_INBOX.billing"
            )
            pull = await nc.jetstream(prefix="jido.js").pull_subscribe_bind("billing", "JIDO_CLIENT")
            (message,) = await pull.fetch(1, timeout=5)
            await nc.close()

    assert json.loads(message.data)["version"] == 2


def with_team(password: str) -> str:
    """The accounts of `nats.conf` with the team of its comment."""
    config = project_config()
    accounts = config[config.index("accounts {") :]
    before, _, rest = accounts.partition("  # BILLING {")
    block, _, after = rest.partition("  # }\n")
    team = re.sub(r"(?m)^  # ", "", f"  # BILLING {{{block}  # }}")
    return before + team.replace("$JIDO_BILLING_PASSWORD", password) + "\n" + after


@pytest.mark.parametrize("attempt", ["create_session", "terminate_session", "idle_session", "activate_session"])
async def test_an_observer_changes_nothing(roles_server: LocalServer, members: dict[str, Member], attempt: str) -> None:
    before = await members["client"].positions()
    arguments = [] if attempt == "create_session" else ["example"]

    async with Client.connect(as_user(roles_server, "observer")) as observer:
        async with asyncio.timeout(DEADLINE_S):  # half of what the client waits for a reply
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


async def test_one_session_s_user_with_our_client(roles_server: LocalServer, members: dict[str, Member]) -> None:
    async with Client.connect(as_user(roles_server, "session-example")) as guest:
        assert (await guest.get_session_info("example")).status == "active"
        assert [event.version for event in await guest.session_history("example")] == [1, 2]
        for attempt in (guest.get_session_info("other"), guest.session_history("other"), guest.list_sessions()):
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(NotAllowed):
                    await attempt


async def test_a_subject_that_may_not_be_heard_is_told(roles_server: LocalServer) -> None:
    async with Client.connect(as_user(roles_server, "session-example")) as guest:
        with pytest.raises(NotAllowed, match=r"may not subscribe to jido\.client\.events"):
            async with guest.listen("jido.client.events", print):
                pass
        async with guest.listen(EXAMPLE_SUBJECT, print):  # what was refused is forgotten
            pass


async def test_an_inbox_that_may_not_be_heard_is_told(roles_server: LocalServer) -> None:
    async with Client.connect(replace(as_user(roles_server, "client"), inbox_prefix="_INBOX.other")) as client:
        for _ in range(2):
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(NotAllowed, match=r"may not receive replies under _INBOX\.other"):
                    await client.list_sessions()


async def test_of_two_subjects_that_differ_by_case_none_is_said_to_be_refused(roles_server: LocalServer) -> None:
    """nats-py tells the refused one in lower case; a wrong "surely not done" would be worse than a time-out."""
    connection = await Connection.open(as_user(roles_server, "session-example"), "test")
    subjects = ("jido.session.get.Example", "jido.session.get.eXample")

    asked = [connection.request(subject, timeout_s=0.5) for subject in subjects]
    found = await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(NotAllowed, match=r"get\.Example"):
        await connection.request(subjects[0], timeout_s=0.5)

    assert [type(error) for error in found] == [OutcomeUnknown, OutcomeUnknown]
    await connection.close()


async def test_a_manager_needs_a_user_that_may_answer(roles_server: LocalServer) -> None:
    manager = SessionManager.connect(as_user(roles_server, "manager"), worker=wait_for_ever)
    with pytest.raises(ServerUnusable, match="may not answer commands"):
        async with manager:
            await manager.start_serving()


async def test_two_managers_pass_commands_on(
    roles_server: LocalServer, roles_manager: SessionManager, members: dict[str, Member]
) -> None:
    manager, api = as_user(roles_server, "manager"), as_user(roles_server, "manager-api")
    async with SessionManager.connect(manager, worker=wait_for_ever, settings=Settings(lease_s=2), api=api) as second:
        assert (await second.idle_session("example")).owner == roles_manager.manager_id
