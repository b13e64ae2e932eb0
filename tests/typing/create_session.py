"""Create a session, talk to it, and end it."""

import asyncio

from jido_nats import Client, Overloaded, Reason, SendReply, SessionApi, SessionRecord, Status


async def create(api: SessionApi) -> SessionRecord:
    try:
        return await api.create_session(metadata={"project": "demo"}, llm_config=None, idle_timeout_s=60)
    except Overloaded as error:
        print(error.status, error.code, error.session_id)
        raise


async def main() -> None:
    async with Client.connect("nats://127.0.0.1:4222", timeout_s=5) as client:
        session = await client.create_session(session_id="s1")
        if session.replayed:
            print("created by an earlier, equal request")
            session = await create(client)
        session = await client.wait(session.session_id, "active", timeout_s=5)
        session = await client.wait(session.session_id, Status.IDLE)
        reply: SendReply = await client.send_message(session.session_id, "user", {"text": "hello"})
        print(reply.number + 1, session.metadata.get("project"))
        session = await client.terminate_session(session.session_id, detail="no longer needed")
        reason: Reason | None = session.reason
        print(reason, session.updated_at.isoformat())


async def count(client: Client, status: Status | str | None = None) -> int:
    idle = await client.list_sessions(status="idle", metadata={"project": "demo"})
    ended = await client.list_sessions(status=Status.TERMINATED)
    return len(idle) + len(ended) + len(await client.list_sessions(status=status))


if __name__ == "__main__":
    asyncio.run(main())
