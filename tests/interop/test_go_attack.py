"""A stock Go client with the passwords of three roles attacks a deployment, and nothing comes of it.

The program is `go/attack`: what `tests/system/test_attacks.py` tries with nats-py it tries with nats.go, 20,000 times.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from jido_nats import LocalServer, SessionManager
from tests.interop import programs
from tests.tools.roles import PASSWORDS, Member, js_prefix
from tests.tools.support import eventually

ATTACKERS: Final = ("client", "observer", "session-example")
READERS: Final = ("client", "observer")
SESSIONS: Final = ("example", "other")
STREAMS: Final = ("JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS")
DURABLES: Final = {"audit": "client", "observer": "observer"}
KINDS: Final = {"ack", "durable", "place", "pretence", "publish", "push"} | {
    "reply",
    "stock",
    "stream",
    "trace",
    "unnamed",
}


@pytest.fixture
def folder() -> Path:
    """Where the program was built; before there is a server, since a first build takes minutes."""
    return programs.built("go")


@pytest.fixture
async def attacked(members: dict[str, Member]) -> dict[str, Member]:
    """The members, with something in each stream and both durables at work: one message acknowledged, two not yet."""
    await members["client"].ask("jido.session.send.example", {"role": "user", "content": "hello"})
    assert await eventually(lambda: members["operator"].stored("JIDO_OUTPUT"))
    for durable, owner in DURABLES.items():
        await make_durable(members[owner], durable)
    return members


@pytest.mark.timeout(600)
async def test_20_000_attempts_of_a_go_client_change_nothing(
    folder: Path, roles_server: LocalServer, roles_manager: SessionManager, attacked: dict[str, Member]
) -> None:
    operator, client = attacked["operator"], attacked["client"]
    own = await subjects_of(roles_manager, attacked)
    before = await everything(operator)
    sessions = [await client.ask(f"jido.session.get.{session_id}") for session_id in SESSIONS]

    reports = await attack(folder, roles_server, own)

    check_reports(reports)
    await operator.ask("jido.session.list")  # a manager has passed whatever came before
    assert await everything(operator) == before
    assert [await client.ask(f"jido.session.get.{session_id}") for session_id in SESSIONS] == sessions
    assert (await client.create("afterwards"))["status"] == "active"
    for session_id in SESSIONS:
        ended = await client.ask(f"jido.session.terminate.{session_id}")
        assert (ended["status"], ended["reason"]) == ("terminated", "requested")
    for durable, owner in DURABLES.items():
        await carries_on(attacked[owner], durable)


async def make_durable(owner: Member, name: str) -> None:
    """A durable of `jido.client.events`, of which the owner has read three messages and acknowledged the first."""
    config = {
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": 3_600_000_000_000,
        "filter_subject": "jido.client.events",
    }
    request = {"stream_name": "JIDO_CLIENT", "config": config}
    made = await owner.api(f"CONSUMER.CREATE.JIDO_CLIENT.{name}.jido.client.events", request)
    assert made is not None and "error" not in made
    subscription = await owner.js.pull_subscribe_bind(name, "JIDO_CLIENT")
    first, *_ = await subscription.fetch(3, timeout=5)
    await first.ack_sync(timeout=5)


async def carries_on(owner: Member, durable: str) -> None:
    """The owner reads what came after the three messages, and nothing else."""
    stored = await owner.stored()
    expected = [number for number, message in enumerate(stored, 1) if message.subject == "jido.client.events"][3:]
    subscription = await owner.js.pull_subscribe_bind(durable, "JIDO_CLIENT")
    read = await subscription.fetch(len(expected), timeout=5)
    assert [message.metadata.sequence.stream for message in read] == expected


async def subjects_of(manager: SessionManager, members: dict[str, Member]) -> list[str]:
    """The manager's own: how others of its kind reach it, its lease, and the inbox of its acknowledgements."""
    ear = await members["operator"].hear("jido.client.>")
    assert (await members["client"].ask("jido.session.idle.other"))["status"] == "idle"
    await eventually(lambda: ear.messages)
    inbox = ear.messages[0].reply
    assert inbox.startswith("_INBOX.manager.")
    return [f"jido.manager.{manager.manager_id}.terminate.example", f"$KV.JIDO_MANAGERS.{manager.manager_id}", inbox]


async def attack(folder: Path, server: LocalServer, own: list[str]) -> dict[str, Any]:
    """What the program reports of each user."""
    environment = {
        "NATS_URL": server.url,
        "NATS_JS_API_PREFIX": js_prefix("client"),
        "ATTACKERS": json.dumps({user: PASSWORDS[user] for user in ATTACKERS}),
    }
    reports: dict[str, Any] = json.loads(await programs.execute(["./attacker", *own], folder, environment))
    return reports


def check_reports(reports: dict[str, Any]) -> None:
    """They were granted nothing that matters, though each user tried everything and the server answered."""
    assert {user: report["granted"] for user, report in reports.items()} == {user: [] for user in ATTACKERS}
    assert sum(sum(report["attempts"].values()) for report in reports.values()) >= 20_000
    for report in reports.values():
        assert set(report["attempts"]) - {"command"} == KINDS
        assert report["refused"] > 100
    for user in READERS:
        assert reports[user]["answers"] > 100
        assert reports[user]["pushes"] == len(STREAMS)
        assert reports[user]["unnamed"] >= 10
        assert reports[user]["heartbeats"] >= 10


async def everything(operator: Member) -> dict[str, Any]:
    """What the streams hold, who holds a lease, and both durables."""
    found: dict[str, Any] = {}
    for stream in STREAMS:
        info = await operator.js.stream_info(stream)
        messages = [(message.subject, message.data, message.headers) for message in await operator.stored(stream)]
        found[stream] = (info.config, info.state.last_seq, messages)
    leases = await operator.js.stream_info("KV_JIDO_MANAGERS", subjects_filter=">")
    found["leases"] = (leases.config, leases.state.subjects)
    for durable in DURABLES:
        found[durable] = await operator.api(f"CONSUMER.INFO.JIDO_CLIENT.{durable}")
        found[durable].pop("ts", None)  # when the server was asked
    return found
