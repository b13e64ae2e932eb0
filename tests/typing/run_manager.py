"""Run a manager with a worker, and look at it."""

import asyncio
import sys

from jido_nats import (
    ConnectOptions,
    Encoding,
    InvalidTransition,
    LocalServer,
    Message,
    Messages,
    Program,
    Session,
    SessionManager,
    Settings,
    Snapshot,
    Worker,
    WorkerSettings,
)


async def echo(session: Session) -> None:
    await session.ready()
    first: list[Message] = await session.messages()
    for message in first:
        number: int = await session.emit("echo", {"content": message.content}, ephemeral=True)
        print(number, session.metadata.get("project"), session.llm_config)
    waiting: Messages = session.messages()
    async for message in waiting:
        await session.say(message.content, role=message.role)
        try:
            await session.idle()
        except InvalidTransition as error:
            print(error.session_id)


def choose(external: bool) -> Worker:
    return Program([sys.executable, "worker.py"], stop_timeout_s=1.0) if external else echo


def show(snapshot: Snapshot) -> None:
    for status, count in snapshot.sessions.items():
        print(status.value, count)
    for verb, durations in snapshot.stats.commands.items():
        print(verb, durations.sum_s)


async def main() -> None:
    settings = Settings(encoding=Encoding.MSGPACK, idle_after_s=30, sessions_max=10)
    async with LocalServer(port=0) as server:
        options = ConnectOptions(servers=(server.url,), user="manager", password="secret")
        async with SessionManager.connect(options, worker=choose(external=False), settings=settings) as manager:
            session = await manager.create_session()
            print(session.session_id, manager.manager_id)
            show(manager.snapshot())
            await manager.serve()


async def several_kinds() -> None:
    workers: dict[str, Worker] = {"coder": echo, "reviewer": Program("node agent.mjs", wait_ready=True)}
    limits = {"coder": WorkerSettings(sessions_max=5, idle_after_s=1.5)}
    async with SessionManager.connect(
        worker=workers, settings=Settings(labels={"gpu": "true"}, workers=limits)
    ) as manager:
        session = await manager.create_session(worker="coder", labels={"gpu": "true"})
        print(session.worker, session.labels["gpu"], await manager.list_sessions(worker="coder"))


if __name__ == "__main__":
    asyncio.run(main())
