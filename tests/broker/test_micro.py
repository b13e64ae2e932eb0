"""The micro service by itself: what it lists, what it refuses, and errors on their way to a caller."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import Endpoint, MicroService, Reply, Request, error_reply, reply_error
from jido_nats.core.codec import Encoding
from jido_nats.errors import CommandError, InternalError, NoResponders, NotFound, Overloaded, TooLarge
from tests.tools.support import eventually

JSON = "application/json"


async def upper(request: Request) -> Reply:
    return Reply(request.data.upper(), JSON)


@contextlib.asynccontextmanager
async def serving(
    connection: Connection, *endpoints: Endpoint, in_flight_max: int = 100
) -> AsyncIterator[MicroService]:
    service = MicroService(
        connection,
        name="test",
        service_id="t1",
        version="1.0.0",
        description="a test",
        in_flight_max=in_flight_max,
    )
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


async def test_a_request_beyond_those_in_flight_is_refused(connection: Connection) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(request: Request) -> Reply:
        begun.set()
        await release.wait()
        return Reply(b"{}", JSON)

    async with serving(connection, Endpoint("a", "a", wait), in_flight_max=1):
        first = asyncio.create_task(connection.request("a"))
        await eventually(begun.is_set)

        assert isinstance(reply_error(await connection.request("a")), Overloaded)

        release.set()
        assert reply_error(await first) is None


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
