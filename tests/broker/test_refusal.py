"""Why a server hangs up on a new connection."""

import asyncio

import nats
import pytest

from jido_nats import Client, ConnectOptions, LocalServer, ServerUnusable
from jido_nats.broker.refusal import refusal_of

ACCOUNTS = """accounts {
  SYS {}
  ONE { users: [{user: one, password: one}], limits { max_connections: 1 } }
  OTHER { users: [{user: other, password: other}] }
}"""


async def test_a_server_that_takes_no_more_connections_is_quoted() -> None:
    async with LocalServer(config="max_connections: 2") as server:
        held = [await nats.connect(server.url) for _ in range(2)]

        with pytest.raises(ServerUnusable, match=r"refused the connection: maximum connections exceeded$"):
            async with Client.connect(server.url):
                pass

        for client in held:
            await client.close()


async def test_an_account_that_takes_no_more_connections_is_quoted_and_others_get_in() -> None:
    async with LocalServer(config=ACCOUNTS) as server:
        first, other = (ConnectOptions(servers=(server.url,), user=user, password=user) for user in ("one", "other"))
        async with Client.connect(first):
            with pytest.raises(ServerUnusable, match="maximum account active connections exceeded"):
                async with Client.connect(first):
                    pass
            async with Client.connect(other) as client:
                assert client.connected


async def test_a_server_that_accepts_connections_refuses_nothing(server: LocalServer) -> None:
    assert await refusal_of(server.url) is None


@pytest.mark.parametrize("url", ["nats://127.0.0.1:1", "127.0.0.1:1", "ws://127.0.0.1:1", "nats://", "nats://:1"])
async def test_what_cannot_be_asked_says_nothing(url: str) -> None:
    assert await refusal_of(url) is None


async def test_a_server_that_hangs_up_without_a_word_is_not_called_absent() -> None:
    hung_up: list[asyncio.StreamWriter] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hung_up.append(writer)
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","proto":1,"max_payload":1048576,"headers":true}\r\n')
        await reader.readline()
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(ServerUnusable, match="closes the connection at once; its log says why"):
            async with Client.connect(f"nats://127.0.0.1:{port}"):
                pass
        for writer in hung_up:  # some attempts may still be waiting
            writer.transport.abort()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
