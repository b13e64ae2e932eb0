"""The micro service by itself: what it lists, what it refuses, and errors on their way to a caller."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jido_nats.broker.admission import Lane
from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import Endpoint, MicroService, Reply, Request, error_reply, reply_error
from jido_nats.broker.turns import PARTY, Party, Turns
from jido_nats.core import codec
from jido_nats.core.codec import Encoding
from jido_nats.core.requests import ErrorReply
from jido_nats.errors import CommandError, InternalError, NoResponders, NotFound, Overloaded, TooLarge
from tests.tools.support import eventually

JSON = "application/json"


async def upper(request: Request) -> Reply:
    return Reply(request.data.upper(), JSON)


@contextlib.asynccontextmanager
async def serving(connection: Connection, *endpoints: Endpoint, **limits: float) -> AsyncIterator[MicroService]:
    service = MicroService(connection, name="test", service_id="t1", version="1.0.0", description="a test", **limits)
    await service.start(list(endpoints))
    try:
        yield service
    finally:
        await service.stop(1.0)


async def listed(connection: Connection, verb: str) -> list[str]:
    answer: dict[str, Any] = msgspec.json.decode((await connection.request(f"$SRV.{verb}.test")).data)
    return [endpoint["name"] for endpoint in answer["endpoints"]]


@pytest.mark.parametrize("verb", ["INFO", "STATS"])
async def test_an_endpoint_that_is_not_listed_is_served_all_the_same(connection: Connection, verb: str) -> None:
    shown, private = Endpoint("shown", "a", upper), Endpoint("private", "b", upper, listed=False)

    async with serving(connection, shown, private):
        assert (await connection.request("b", b"x")).data == b"X"
        assert await listed(connection, verb) == ["shown"]


async def test_an_endpoint_answers_nobody_while_it_is_unsubscribed(connection: Connection) -> None:
    endpoint = Endpoint("a", "a", upper)

    async with serving(connection, endpoint) as service:
        await service.unsubscribe(endpoint)
        with pytest.raises(NoResponders):
            await connection.request("a")

        await service.subscribe(endpoint)
        assert (await connection.request("a", b"x")).data == b"X"


async def test_a_stopped_service_subscribes_to_nothing_more(connection: Connection) -> None:
    endpoint = Endpoint("a", "a", upper)
    async with serving(connection, endpoint) as service:
        pass

    await service.subscribe(endpoint)

    with pytest.raises(NoResponders):
        await connection.request("a")


class Held:
    """A handler that waits until it is released."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.release = asyncio.Event()

    async def __call__(self, request: Request) -> Reply:
        self.begun.append(request.subject)
        await self.release.wait()
        return Reply(b"{}", JSON)


@pytest.mark.parametrize("content_type", [JSON, "application/msgpack"])
async def test_a_request_for_which_its_lane_has_no_room_is_refused(connection: Connection, content_type: str) -> None:
    held = Held()
    endpoint = Endpoint("a", "a", held, lane=Lane(in_flight_max=1))
    async with serving(connection, endpoint):
        first = asyncio.create_task(connection.request("a"))
        await eventually(lambda: held.begun)

        refused = await connection.request("a", headers={"Content-Type": content_type})

        assert (refused.headers or {})["Content-Type"] == content_type
        body = codec.decode(refused.data, ErrorReply, codec.encoding_of(content_type))
        assert body.error.code == Overloaded.code
        assert (endpoint.requests, endpoint.errors) == (1, 1)
        held.release.set()
        assert reply_error(await first) is None


async def test_endpoints_with_lanes_of_their_own_do_not_take_each_other_s_room(connection: Connection) -> None:
    held = Held()
    one, other = (Endpoint(name, name, held, lane=Lane(in_flight_max=1)) for name in "ab")
    async with serving(connection, one, other):
        asked = [asyncio.create_task(connection.request(name)) for name in "ab"]

        await eventually(lambda: sorted(held.begun) == ["a", "b"])
        held.release.set()
        assert [reply_error(reply) for reply in await asyncio.gather(*asked)] == [None, None]


@pytest.mark.parametrize(("data", "headers"), [(b"x" * 1000, {}), (b"", {"X": "x" * 1000})])
async def test_the_bytes_of_all_requests_in_flight_are_bounded(
    connection: Connection, data: bytes, headers: dict[str, str]
) -> None:
    held = Held()
    async with serving(connection, Endpoint("a", "a", held), Endpoint("b", "b", held), bytes_max=100):
        # One that is larger is taken alone.
        asked = asyncio.create_task(connection.request("a", data, headers=headers))
        await eventually(lambda: held.begun)

        assert isinstance(reply_error(await connection.request("b", b"x")), Overloaded)

        held.release.set()
        assert reply_error(await asked) is None
        assert reply_error(await connection.request("b", b"x")) is None


async def test_a_request_that_has_waited_for_too_long_is_refused(connection: Connection) -> None:
    held = Held()
    lane = Lane(turns=Turns(1))
    async with serving(connection, Endpoint("a", "a", held, lane=lane), wait_max_s=0.05):
        first = asyncio.create_task(connection.request("a"))
        await eventually(lambda: held.begun)

        assert isinstance(reply_error(await connection.request("a")), Overloaded)

        held.release.set()
        assert reply_error(await first) is None
        assert reply_error(await connection.request("a")) is None


async def test_what_a_handler_starts_works_for_the_same_party(connection: Connection) -> None:
    parties: list[Party] = []

    async def note() -> None:
        parties.append(PARTY.get())

    async def handle(request: Request) -> Reply:
        await asyncio.gather(note(), asyncio.create_task(note()))
        return Reply(b"{}", JSON)

    party = Party("a", "b")
    async with serving(connection, Endpoint("a", "a", handle, party_of=lambda _: party)):
        await connection.request("a")

    assert parties == [party, party]


async def test_a_reply_that_the_server_would_not_take_is_too_large(connection: Connection) -> None:
    async def write_a_book(request: Request) -> Reply:
        return Reply(bytes(connection.max_payload), JSON)

    async with serving(connection, Endpoint("a", "command.*", write_a_book)):
        error = reply_error(await connection.request("command.s1"))

    assert isinstance(error, TooLarge)
    assert error.session_id == "s1"


@pytest.mark.parametrize("error", [NotFound("there is no s1", session_id="s1"), InternalError("a defect")])
async def test_an_error_arrives_as_the_error_that_it_was(connection: Connection, error: CommandError) -> None:
    async def fail(request: Request) -> Reply:
        return error_reply(error, Encoding.JSON, "")

    async with serving(connection, Endpoint("a", "a", fail)):
        arrived = reply_error(await connection.request("a"))

    assert type(arrived) is type(error)
    assert (str(arrived), arrived and arrived.session_id) == (str(error), error.session_id)
    assert arrived is not error


async def test_the_header_of_an_error_is_one_line_of_ascii(connection: Connection) -> None:
    async def fail(request: Request) -> Reply:
        return error_reply(NotFound("two\nlines, é"), Encoding.JSON, "")

    async with serving(connection, Endpoint("a", "a", fail)):
        reply = await connection.request("a")

    assert (reply.headers or {})["Nats-Service-Error"] == "two lines, ?"
