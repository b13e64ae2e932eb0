"""Python workers that do what one should not, for sessions in processes of their own; and some that behave."""

import asyncio
import ctypes
import os
import resource
import sys
import threading
import warnings

from jido_nats import BadRequest, InvalidTransition, Session, TooLarge


class Stop(BaseException):
    """What is not even an `Exception`."""


async def does(session: Session) -> None:
    """What its metadata say, when it is told to."""
    await session.emit("pid", os.getpid())
    async for message in session.messages():
        match message.content:
            case "loop":
                await session.emit("looping", True)
                while True:
                    pass
            case "exit":
                os._exit(5)
            case "segfault":
                ctypes.string_at(0)
            case "allocate":
                resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
                hoard = [bytearray(1 << 24) for _ in range(1000)]
                await session.emit("allocated", len(hoard))
            case "raise":
                raise RuntimeError("boom")
            case "raise no Exception":
                raise Stop("now")
            case "sys.exit":
                sys.exit(3)
            case "return":
                return
            case "leave a thread":
                threading.Thread(target=threading.Event().wait).start()
                return


async def echoes(session: Session) -> None:
    """Speaks the whole protocol."""
    print("no line of the protocol")
    await session.ready()
    async for message in session.messages():
        await session.say(message.content, role="echo")
        match message.content:
            case "idle":
                await session.idle()
                await session.emit("status", session.status)
            case "refused":
                try:
                    await session.activate()
                except InvalidTransition as error:
                    await session.emit("refused", str(error))
            case "no JSON":
                for data in (float("nan"), b"bytes", {1: 2}):
                    try:
                        await session.emit("no JSON", data)
                    except BadRequest:
                        await session.emit("refused", str(type(data)))
            case "too large":
                try:
                    await session.emit("too large", "x" * 3_000_000)
                except TooLarge as error:
                    await session.emit("refused", str(error))
            case "many":
                numbers = await asyncio.gather(*(session.emit("one", n, ephemeral=True) for n in range(8000)))
                await session.emit("numbers", [numbers[0], numbers[-1]])
            case "inherited":
                await session.emit("inherited", [name for name in os.environ if name.startswith(("NATS_", "JIDO_"))])


async def takes_side_by_side(session: Session) -> None:
    """Several tasks wait for a message each at once; the first gives up."""
    await session.ready()

    async def take() -> None:
        async for message in session.messages():
            await session.emit("taken", message.content)
            return

    async with asyncio.TaskGroup() as group:
        impatient, *_ = [group.create_task(take()) for _ in range(5)]
        await asyncio.sleep(0)
        impatient.cancel()


async def never_takes(session: Session) -> None:
    """Takes no message."""
    await session.ready()
    await asyncio.Event().wait()


async def swallows(session: Session) -> None:
    """Does not stop when it is asked to."""
    await session.ready()
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def fails_to_tidy_up(session: Session) -> None:
    """Fails while it stops."""
    await session.ready()
    try:
        await asyncio.Event().wait()
    finally:
        raise RuntimeError("not saved")


async def says_much_beside_a_listener(session: Session) -> None:
    """Waits for messages in the background, as an agent does, while it says much at once."""
    await session.ready()
    taken = asyncio.Semaphore(0)

    async def listen() -> None:
        async for message in session.messages():
            await session.emit("taken", len(message.content))
            taken.release()

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        await taken.acquire()
        for number in range(5):
            await asyncio.gather(*(session.emit("much", "y" * 20_000) for _ in range(100)))
            await session.emit("round", number)
        listening.cancel()


async def uses_tools(session: Session) -> None:
    """Runs each message as a command, as an agent runs a tool, and emits its exit code."""
    await session.ready()
    async for message in session.messages():
        null = asyncio.subprocess.DEVNULL
        tool = await asyncio.create_subprocess_shell(message.content, stdin=null, stdout=null, stderr=null)
        await session.emit("exit code", await tool.wait())


async def uses_tools_stubbornly(session: Session) -> None:
    """The same, and does not stop when it is asked to."""
    task = asyncio.create_task(uses_tools(session))
    while True:
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue


async def shows_its_environment(session: Session) -> None:
    """Emits the names of its variables, and of those that a child of its process inherits."""
    inherited = await asyncio.create_subprocess_exec("env", stdout=asyncio.subprocess.PIPE)
    names = [line.partition(b"=")[0].decode() for line in (await inherited.communicate())[0].splitlines()]
    await session.emit("names", sorted({*names, *os.environ}))
    await session.messages()


async def forges(session: Session) -> None:
    """Says the session's text wherever it reaches the log: in what it prints, raises, and lets nobody catch."""
    text = session.metadata["text"]

    def raises() -> None:
        raise RuntimeError(text)

    class Leaves:
        def __del__(self) -> None:
            raises()

    Leaves()
    thread = threading.Thread(target=raises)
    thread.start()
    thread.join()
    warnings.warn(text, stacklevel=1)
    asyncio.get_running_loop().call_soon(raises)
    await asyncio.sleep(0)
    raise RuntimeError(text) from ValueError(text)


async def remembers(session: Session) -> None:
    """Emits how its attempt begins, and each message; does what it is told, once: what comes again is done."""
    await session.emit("began", [session.attempt, session.state])
    async for message in session.messages():
        await session.emit("got", [message.content, message.redelivered])
        match message.content:
            case "exit" if not message.redelivered:
                await session.flush()
                os._exit(5)
            case "checkpoint":
                await session.checkpoint({"by": session.attempt}, handled=message)
            case "refused":
                for state in ("x" * 600_000, float("nan"), {1: 2}):
                    try:
                        await session.checkpoint(state, handled=message)
                    except (BadRequest, TooLarge) as error:
                        await session.emit("refused", error.code)
            case "conversation":
                await session.flush()
                said = await session.conversation(limit=2)
                await session.emit("conversation", [[each.role, each.content] for each in said])
            case "no conversation":
                try:
                    await session.conversation(limit=0)
                except BadRequest as error:
                    await session.emit("refused", str(error))


async def says_that_it_is_stopping(session: Session) -> None:
    """Emits whether it is stopping: before, and while it is cancelled."""
    await session.emit("stopping", session.stopping.is_set())
    await session.ready()
    try:
        await asyncio.Event().wait()
    finally:
        await session.emit("stopping", session.stopping.is_set())
