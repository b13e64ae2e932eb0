"""What answers a command may be no session manager: a caller gets an error of the tree, whatever came."""

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from jido_nats import Client, JidoError, LocalServer
from tests.tools.support import Stranger

BODIES = [b"", b"\xff\xfe", b"[]", b"{}", b'{"error":7}', b'{"error":{"code":1}}', b'{"sessions":3}', b'{"events":[1]}']
HEADERS: list[dict[str, str]] = [
    {},
    {"Nats-Service-Error-Code": "x"},
    {"Nats-Service-Error-Code": "404", "Nats-Service-Error": "no such thing"},
    {"Content-Type": "application/msgpack"},
]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: ", ".join(headers) or "no headers")
@pytest.mark.parametrize("body", BODIES)
async def test_an_answer_of_another_service_is_an_error_of_the_tree(
    server: LocalServer, stranger: Stranger, body: bytes, headers: dict[str, str]
) -> None:
    async def answer(message: Msg) -> None:
        await stranger.nc.publish(message.reply, body, headers=headers or None)

    await stranger.nc.subscribe("jido.session.>", cb=answer)
    await stranger.flush()
    async with Client.connect(server.url, timeout_s=1) as client:
        calls: list[Any] = [
            client.create_session(),
            client.get_session_info("s1"),
            client.list_sessions(),
            client.session_history("s1"),
            client.send_message("s1", "user", "hello"),
            client.terminate_session("s1"),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, JidoError)] == []
    assert any(isinstance(one, JidoError) for one in outcomes)
