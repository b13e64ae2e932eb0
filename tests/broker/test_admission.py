"""Lanes: who finds room; and who a caller is."""

import json

import pytest

from jido_nats import LocalServer
from jido_nats.broker.admission import Lane, caller_of
from jido_nats.broker.connection import Connection, Message
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.turns import Party
from tests.tools.support import eventually

ONE, OTHER = Party("a", "1"), Party("a", "2")


def test_a_lane_is_full_for_everybody() -> None:
    lane = Lane(in_flight_max=2)

    assert [lane.enter(Party(name)) for name in "abc"] == [True, True, False]
    lane.leave(Party("a"))
    assert lane.enter(Party("c"))


def test_a_party_finds_no_more_room_than_its_own() -> None:
    lane = Lane(each_max=1)

    assert [lane.enter(party) for party in (ONE, ONE, OTHER)] == [True, False, True]
    lane.leave(ONE)
    assert lane.enter(ONE)


def test_a_caller_finds_no_more_room_whatever_it_is_for() -> None:
    lane = Lane(caller_max=2)

    assert [lane.enter(Party("a", str(number))) for number in range(3)] == [True, True, False]
    assert lane.enter(Party("b"))


def test_a_party_without_a_purpose_counts_once() -> None:
    lane = Lane(caller_max=2, each_max=2)

    assert [lane.enter(Party("a")) for _ in range(3)] == [True, True, False]
    lane.leave(Party("a"))
    lane.leave(Party("a"))
    assert lane.enter(Party("a"))


def message(reply: str, **headers: str) -> Message:
    return Message(None, "x", reply, b"", headers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "info", "caller"),
    [
        ("_INBOX.abc.1", None, "_INBOX.abc"),
        ("_INBOX.abc", None, "_INBOX"),
        ("_INBOX.abc.1", "no JSON", "_INBOX.abc"),
        ("_INBOX.abc.1", '{"rtt": 1}', "_INBOX.abc"),
        ("_R_.x.1", '{"acc": "B", "rtt": 1}', "B  0"),
        ("_R_.x.1", '{"acc": "B", "server": "S", "id": 7, "user": "u"}', "B S 7"),
    ],
)
def test_a_caller_is_known_by_what_the_server_says_or_by_its_inbox(reply: str, info: str | None, caller: str) -> None:
    headers = {} if info is None else {"Nats-Request-Info": info}

    assert caller_of(message(reply, **headers)) == caller


CONFIG = """
accounts {
  SYS {}
  A { users: [{user: a, password: a}], exports: [{service: "shared"}, {service: "plain"}] }
  B { users: [{user: b, password: b}], imports: [
    {service: {account: A, subject: "shared"}, share: true}, {service: {account: A, subject: "plain"}}] }
}
"""


async def test_a_server_overwrites_what_a_client_says_about_itself() -> None:
    async with LocalServer(config=CONFIG) as server:
        answers = await Connection.open(ConnectOptions(servers=(server.url,), user="a", password="a"), "a")
        asks = [
            await Connection.open(ConnectOptions(servers=(server.url,), user="b", password="b"), name) for name in "bc"
        ]
        callers: list[str] = []
        for subject in ("shared", "plain"):
            await answers.subscribe(subject, lambda message: callers.append(caller_of(message)))
        await answers.flush()
        forged = json.dumps({"acc": "evil", "server": "evil", "id": 1})
        for subject in ("shared", "plain"):
            for connection in asks:
                reply = connection.new_inbox()
                await connection.publish(subject, b"", headers={"Nats-Request-Info": forged}, reply=reply)
                await connection.flush()
        await eventually(lambda: len(callers) == 4)
        for connection in (answers, *asks):
            await connection.close()

    assert len(set(callers[:2])) == 2  # two connections
    assert all(caller.startswith("B jido-nats ") for caller in callers[:2])
    assert callers[2:] == ["B  0", "B  0"]
