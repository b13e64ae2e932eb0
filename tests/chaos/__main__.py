"""Managers as real processes under load, and faults drawn from a seed; then an auditor who knows nothing of us.

    python -m tests.chaos --seed 7 --faults 200 --sessions 5000 [--cluster]

Prints the seed, the faults by kind, what was counted, how long orphans took to end, and every violation.
Exit 1 if there is one.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from jido_nats import Client, JidoError, LocalServer
from jido_nats.cli import logs
from tests.tools import audit
from tests.tools.cluster import Cluster
from tests.tools.proxy import Proxy

CLIENTS = 4
MANAGERS = 3
QUIET_TIMEOUT_S = 120.0
RESTARTED_WITHIN_S = 1.0
DISK_MB = 96


class ManagerProcess:
    """One manager, as `jido-nats serve`, started again whenever it is gone (a new incarnation each time)."""

    def __init__(self, name: str, url: str, lease_s: int, *, failpoints: str, extra: list[str], log: Path) -> None:
        self.name = name
        self.url = url
        self._lease_s = lease_s
        self._failpoints = failpoints
        self._extra = extra
        self._log = log
        self._starts = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False
        self.deaths: list[float] = []

    async def keep(self) -> None:
        """Run it until `stop`."""
        while not self._stopped:
            number = next(self._starts)
            environment = os.environ | {"JIDO_FAILPOINTS": self._failpoints, "JIDO_FAILPOINTS_SEED": str(number)}
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *(
                        "-m",
                        "tests.tools.failpoints",
                        "serve",
                        "--worker",
                        "tests.tools.agents:chaotic",
                        "--server",
                        self.url,
                    ),
                    *("--lease-s", str(self._lease_s), *self._extra),
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=environment,
                )
            await self._process.wait()
            self.deaths.append(time.time())
            await asyncio.sleep(RESTARTED_WITHIN_S * random.random())

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        self._stopped = True
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if self._process is not None:
            await self._process.wait()


class Load:
    """Clients that create and command sessions, and note every answer."""

    def __init__(self, url: str, sessions: int, seed: int) -> None:
        self._url = url
        self.wanted = sessions
        self._dice = random.Random(seed)
        self._ids: list[str] = []
        self.answers: list[dict[str, Any]] = []
        self.connected = asyncio.Event()
        self.done = asyncio.Event()
        self.pause_s = 0.0

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client.connect(self._url, timeout_s=20)) for _ in range(CLIENTS * 4)
            ]
            self.connected.set()
            await asyncio.gather(*(self._work(client) for client in clients))
        self.done.set()

    async def _work(self, client: Client) -> None:
        while len(self._ids) < self.wanted:
            await self._create(client)
            for _ in range(self._dice.randrange(3)):
                await self._command(client, self._dice.choice(self._ids))
            await asyncio.sleep(self.pause_s * self._dice.random())

    async def _create(self, client: Client) -> None:
        session_id = f"chaos_{len(self._ids):06}"
        self._ids.append(session_id)
        await self._note("create", session_id, lambda: client.create_session(session_id=session_id, metadata={"n": 1}))

    async def _command(self, client: Client, session_id: str) -> None:
        verb = self._dice.choice(["get", "get", "idle", "activate", "terminate", "create"])
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "get": lambda: client.get_session_info(session_id),
            "idle": lambda: client.idle_session(session_id),
            "activate": lambda: client.activate_session(session_id),
            "terminate": lambda: client.terminate_session(session_id),
            "create": lambda: client.create_session(session_id=session_id, metadata={"n": 1}),
        }
        await self._note(verb, session_id, calls[verb])

    async def _note(self, verb: str, session_id: str, call: Callable[[], Awaitable[Any]]) -> None:
        started, record, code = time.time(), None, None
        try:
            record = msgspec.to_builtins(await call())
        except JidoError as error:
            code = getattr(error, "code", type(error).__name__)
        self.answers.append(
            {
                "started": started,
                "at": time.time(),
                "verb": verb,
                "session_id": session_id,
                "ok": code is None,
                "code": code,
                "record": record,
            }
        )


class World:
    """What faults happen to."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.dice = random.Random(arguments.seed)
        self.server: LocalServer | None = None
        self.cluster: Cluster | None = None
        self.proxies: list[Proxy] = []
        self.managers: list[ManagerProcess] = []
        self.store: Path | None = None

    @property
    def url(self) -> str:
        if self.cluster is not None:
            return self.cluster.urls
        assert self.server is not None
        return self.server.url

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if self.arguments.cluster:
                self.cluster = await stack.enter_async_context(Cluster(3))
                await self.cluster.ready()
                port = self.cluster.ports[0]
            else:
                self.store = _small_disk(self.folder, stack)
                # A killed process, not a power cut, is what happens here.
                self.server = await stack.enter_async_context(LocalServer(store_dir=self.store, sync_interval="2m"))
                port = self.server.port
            proxy = await stack.enter_async_context(Proxy(port))
            self.proxies.append(proxy)
            await self._start_managers(stack, proxy.url)
            yield

    async def _start_managers(self, stack: contextlib.AsyncExitStack, proxied: str) -> None:
        extra = ["--replicas", "3"] if self.cluster is not None else []
        plans = [(self.url, ""), (proxied, ""), (self.url, "*:die:0.0004")]
        for number, (url, failpoints) in enumerate(plans[:MANAGERS]):
            manager = ManagerProcess(
                f"manager {number}",
                url,
                self.arguments.lease_s,
                failpoints=failpoints,
                extra=extra,
                log=self.folder / f"manager{number}.log",
            )
            self.managers.append(manager)
            task = asyncio.create_task(manager.keep())
            stack.push_async_callback(_end, manager, task)

    # Faults: each leaves things as they should be in the end.

    async def kill_manager(self) -> None:
        self.dice.choice(self.managers).send(signal.SIGKILL)

    async def freeze_manager(self) -> None:
        manager = self.dice.choice(self.managers)
        manager.send(signal.SIGSTOP)
        await asyncio.sleep(self.arguments.lease_s * (0.5 + self.dice.random()))
        manager.send(signal.SIGCONT)

    async def kill_server(self) -> None:
        assert self.server is not None
        await self.server.kill()
        await asyncio.sleep(2 * self.dice.random())
        await self.server.start()

    async def freeze_server(self) -> None:
        assert self.server is not None
        os.kill(self.server.pid, signal.SIGSTOP)
        await asyncio.sleep(self.arguments.lease_s * 1.5 * self.dice.random())
        os.kill(self.server.pid, signal.SIGCONT)

    async def cut_connection(self) -> None:
        self.proxies[0].cut()

    async def black_hole(self) -> None:
        self.proxies[0].black_hole()
        await asyncio.sleep(self.arguments.lease_s * (0.5 + self.dice.random()))
        self.proxies[0].heal()

    async def delay_connection(self) -> None:
        self.proxies[0].delay(0.2)
        await asyncio.sleep(1 + self.dice.random())
        self.proxies[0].delay(0)

    async def fill_disk(self) -> None:
        assert self.store is not None
        filler = self.store / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 65536)
        await asyncio.sleep(2)
        filler.unlink()
        await self.kill_server()  # the stream stays frozen until then

    async def kill_leader(self) -> None:
        assert self.cluster is not None
        for _ in range(2):
            leader = await self.cluster.stream_leader(self.url, "JIDO_CLIENT")
            await self.cluster.kill(leader)
            await asyncio.sleep(1 + self.dice.random())
            await self.cluster.start(leader)
            await asyncio.sleep(5)

    async def restart_rolling(self) -> None:
        assert self.cluster is not None
        for number in range(3):
            await self.cluster.stop(number)
            await asyncio.sleep(0.5)
            await self.cluster.start(number)
            await asyncio.sleep(5)

    async def kill_any_server(self) -> None:
        assert self.cluster is not None
        number = self.dice.randrange(3)
        await self.cluster.kill(number)
        await asyncio.sleep(3 * self.dice.random())
        await self.cluster.start(number)

    def faults(self) -> list[Callable[[], Awaitable[None]]]:
        """Every kind there is here, the frequent ones more than once."""
        common = [self.kill_manager, self.kill_manager, self.freeze_manager, self.cut_connection, self.cut_connection]
        common += [self.black_hole, self.delay_connection]
        if self.cluster is not None:
            return [*common, self.kill_leader, self.restart_rolling, self.kill_any_server]
        single = [self.kill_server, self.kill_server, self.freeze_server]
        return [*common, *single, *([self.fill_disk] if self.store is not None else [])]


async def run(arguments: argparse.Namespace, folder: Path) -> int:
    """One chaos run; the exit code."""
    world = World(arguments, folder)
    async with world.running():
        async with Client.connect(world.url, timeout_s=30) as client:
            await _until_answered(client)
            load = Load(world.url, arguments.sessions, arguments.seed)
            load.pause_s = arguments.faults * 2.0 * CLIENTS * 4 / arguments.sessions
            working = asyncio.create_task(load.run())
            await load.connected.wait()
            counted = await _make_faults(world, arguments.faults)
            load.pause_s = 0
            await asyncio.wait({working}, timeout=QUIET_TIMEOUT_S)
            await working if working.done() else print("the load did not finish in time")
            answered_s = await _restart_and_ask(world, client)
            orphaned_s = await _orphan_many(world, client, arguments.sessions)
            await _end_all(client)
            return await _report(world, load, counted, answered_s, orphaned_s)


async def _make_faults(world: World, number: int) -> Counter[str]:
    counted: Counter[str] = Counter()
    kinds = world.faults()
    for done in range(number):
        fault = world.dice.choice(kinds)
        counted[fault.__name__] += 1
        await fault()
        await asyncio.sleep(world.dice.random())
        if (done + 1) % 20 == 0:
            print(f"{done + 1} faults", file=sys.stderr)
    return counted


async def _restart_and_ask(world: World, client: Client) -> float:
    """Seconds from the server's return, after 2 s away, to the first answer."""
    if world.server is None:
        return 0.0
    await world.server.kill()
    await asyncio.sleep(2)
    await world.server.start()
    started = time.monotonic()
    await client.create_session(session_id="after_the_restart")
    return time.monotonic() - started


async def _orphan_many(world: World, client: Client, number: int) -> float:
    """Seconds from the death of all managers but one, with `number` sessions on them, to the last orphan's end."""
    await asyncio.sleep(2 * world.arguments.lease_s)  # all is calm: what is measured is the takeover
    gate = asyncio.Semaphore(128)

    async def create(index: int) -> str:
        async with gate:
            session_id = f"orphan_{index:06}"
            return (await client.create_session(session_id=session_id, metadata={"task": "wait"})).owner

    share = number * MANAGERS // (MANAGERS - 1)
    owners = Counter(await asyncio.gather(*(create(index) for index in range(share))))
    killed = time.monotonic()
    for manager in world.managers[1:]:
        manager.send(signal.SIGKILL)
    while len(await client.list_sessions(metadata={"task": "wait"})) > max(owners.values()):
        await asyncio.sleep(0.1)
    took_s = time.monotonic() - killed
    orphans = share - max(owners.values())
    print(f"{orphans} or more orphans: the last ended {took_s:.1f} s after their managers died")
    return took_s


async def _until_answered(client: Client) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            await client.list_sessions()
            return
        except JidoError:
            if time.monotonic() > deadline:
                raise


async def _end_all(client: Client) -> None:
    """End every session, then wait until every record is sealed, so that nothing is under way any more."""
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(JidoError):
            live = await client.list_sessions()
            if not live and all(r.sealed for r in await client.list_sessions(include_terminated=True)):
                return
            for record in live:
                with contextlib.suppress(JidoError):
                    await client.terminate_session(record.session_id)
        await asyncio.sleep(0.5)
    print("some sessions were still not sealed")


async def _report(world: World, load: Load, counted: Counter[str], answered_s: float, orphaned_s: float) -> int:
    answers_file = world.folder / "answers.jsonl"
    answers_file.write_text("".join(json.dumps(answer, default=str) + "\n" for answer in load.answers))
    evidence = await audit.read(world.url)
    answers = audit.read_answers(answers_file)
    violations = audit.audit(evidence.messages, evidence.records, evidence.leases, answers, quiet=True, all_ended=True)
    outcomes = Counter(answer["code"] or "ok" for answer in load.answers)
    ends = _orphan_ends(world, evidence.messages)
    print(f"seed {world.arguments.seed}: {sum(counted.values())} faults: {dict(counted)}")
    claims = sum(message.subject.startswith("jido.fence.") for message in evidence.messages)
    print(f"sessions {load.wanted}, messages {len(evidence.messages)}, of them {claims} claims")
    print(f"answers {dict(outcomes)}")
    print(f"owner_lost ends {len(ends)}; after the kill, s: p50 {_at(ends, 0.5):.1f}, max {_at(ends, 1):.1f}")
    print(f"the last orphan's end, beyond the lease time: {orphaned_s - world.arguments.lease_s:.1f} s (goal: 5)")
    print(f"first answer {answered_s:.2f} s after the server came back from 2 s away")
    for violation in violations[:50]:
        print(f"VIOLATION {violation}")
    print(f"violations: {len(violations)}")
    return 1 if violations else 0


def _orphan_ends(world: World, messages: list[audit.Message]) -> list[float]:
    """Seconds from the last death of a manager before it to each `owner_lost`."""
    kills = sorted(death for manager in world.managers for death in manager.deaths)
    ends = []
    for message in messages:
        if b'"owner_lost"' in message.data and b'"session_terminated"' in message.data:
            at = msgspec.json.decode(message.data, type=_Ended).updated_at.timestamp()
            before = [kill for kill in kills if kill <= at]
            if before:
                ends.append(at - before[-1])
    return sorted(ends)


def _at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


class _Ended(msgspec.Struct):
    updated_at: datetime


def _small_disk(folder: Path, stack: contextlib.AsyncExitStack) -> Path | None:
    """A file system that can be filled, where mounting is allowed."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        print("mounting is not allowed here: no full disk among the faults")
        return None
    stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=False)
    return disk


async def _end(manager: ManagerProcess, task: "asyncio.Task[None]") -> None:
    await manager.stop()
    await task


def main() -> None:
    """Parse, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--lease-s", type=int, default=3)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the logs of the managers")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jido-chaos-"))
    logs.configure(logging.ERROR)
    try:
        sys.exit(asyncio.run(run(arguments, folder)))
    finally:
        if arguments.keep:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
