"""Does one client's flood take the service from the others?

    python -m tests.bench.fairness                        # 256 requests outstanding, each verb in turn
    python -m tests.bench.fairness --rates 1000,2000,…    # no waiting for answers: the rate at which it breaks
    python -m tests.bench.fairness --burst 10000          # so many creates of 30 kB at once

On a server started from `nats.conf`, with one manager. The flood is a guest's (a client's for `create` and `list`,
which guests may not send), at the lowest CPU priority. Beside it another client creates a session, sends it a message
and ends it, again and again, with every third of the time alone. The exit code is 1 if a goal is missed: p99 within
max(250 ms, 5 times that of the same client alone), and no refusal.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nats
from rich.console import Console
from rich.table import Table

from jido_nats import Client, JidoError, LocalServer
from jido_nats.bench.samples import percentile
from jido_nats.core.commands import COMMANDS, Role
from tests.bench.flood import SESSION
from tests.tools.burst import Burst
from tests.tools.programs import ROOT, Program, running
from tests.tools.roles import PASSWORDS, SECRETS, as_user

OUTSTANDING = 256
GOAL_S = 0.25
GOAL_RATIO = 5
PAUSE_S = 0.01
SESSIONS = 200  # so that a list has something to list
HISTORY = 100  # and a history
RECOVERY_S = 5.0
TIMEOUT_S = 10.0


class Phase(NamedTuple):
    """How a client fared for a while: the seconds of its rounds, and the errors."""

    seconds: list[float]
    errors: Counter[str]

    @property
    def p50_ms(self) -> float:
        """The median round, in milliseconds."""
        return 1000 * percentile(self.seconds or [float("inf")], 50)

    @property
    def p99_ms(self) -> float:
        """The slowest round but one in a hundred, in milliseconds."""
        return 1000 * percentile(self.seconds or [float("inf")], 99)


async def play(client: Client, duration_s: float) -> Phase:
    """Create, send and terminate, one after the other, for that long."""
    phase = Phase([], Counter())
    until = time.perf_counter() + duration_s
    while (began := time.perf_counter()) < until:
        try:
            created = await client.create_session()
            await client.send_message(created.session_id, "user", "hello")
            await client.terminate_session(created.session_id)
        except (JidoError, TimeoutError) as error:
            phase.errors[type(error).__name__] += 1
        phase.seconds.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_S)
    return phase


@contextlib.asynccontextmanager
async def flooding(
    server: LocalServer, user: str, verb: str, *, outstanding: int = 0, rate: float = 0.0
) -> AsyncIterator[dict[str, Any]]:
    """A flood in a process of its own; its figures are in the dictionary after the block."""
    figures: dict[str, Any] = {}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.flood", server.url, user, verb, str(outstanding), str(rate)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        await process.stdout.readline()
        yield figures
        process.stdin.close()
        figures |= json.loads(await process.stdout.readline() or b"{}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def deployment() -> AsyncIterator[tuple[LocalServer, Client, Program]]:
    """A server, a manager, and a client that plays; the guest's session exists, and has a history."""
    async with LocalServer(secrets=SECRETS, sync_interval="2m") as server:
        environment = {"NATS_PASSWORD": PASSWORDS["manager"], "NATS_API_PASSWORD": PASSWORDS["manager-api"]}
        users = ("--user", "manager", "--api-user", "manager-api")
        worker = ("--worker", "tests.bench.flood:reader")
        async with (
            running("serve", "--server", server.url, *users, *worker, env=environment) as manager,
            Client.connect(as_user(server, "client"), timeout_s=TIMEOUT_S) as client,
        ):
            await manager.said(" serves on ")
            for number in range(SESSIONS):
                await client.create_session(session_id=f"listed{number}", metadata={"number": number})
            await client.create_session(session_id=SESSION)
            for _ in range(HISTORY // 2):
                await client.idle_session(SESSION)
                await client.activate_session(SESSION)
            yield server, client, manager


def user_for(verb: str) -> str:
    """Who floods with it."""
    return "session-example" if Role.GUEST in COMMANDS[verb].roles else "client"


def meets(alone: Phase, beside: Phase) -> bool:
    """Whether the goal is met."""
    return beside.p99_ms <= max(1000 * GOAL_S, GOAL_RATIO * alone.p99_ms) and not beside.errors


async def measure_verbs(verbs: Sequence[str], outstanding: int, seconds: float) -> bool:
    """A table, a line for each verb; whether all goals are met."""
    table = Table("verb", "alone p50, p99 ms", "beside p50, p99 ms", "rounds", "errors", "flood: answers/s", "goal")
    met = True
    async with deployment() as (server, client, _):
        await play(client, seconds / 2)
        for verb in sorted(verbs, key=lambda verb: verb == "terminate"):  # it ends the guest's session: last
            alone = await play(client, seconds / 2)
            async with flooding(server, user_for(verb), verb, outstanding=outstanding) as figures:
                began = time.perf_counter()
                beside = await play(client, seconds)
                took = time.perf_counter() - began
            met &= meets(alone, beside)
            answers = ", ".join(f"{code}: {count / took:,.0f}" for code, count in figures.get("answers", {}).items())
            table.add_row(*row(verb, alone, beside), answers, "met" if meets(alone, beside) else "MISSED")
            await asyncio.sleep(1)
    Console(width=140).print(table)
    return met


async def measure_rates(verbs: Sequence[str], rates: Sequence[float], seconds: float) -> bool:
    """A table, a line for each verb and rate: a flood that waits for no answer. Whether all recover in time."""
    table = Table(
        "verb, requests/s", "alone p50, p99 ms", "beside p50, p99 ms", "rounds", "errors", "answers", "recovered"
    )
    recovered = True
    for verb in verbs:
        async with deployment() as (server, client, _):
            for rate in rates:
                alone = await play(client, seconds / 2)
                async with flooding(server, user_for(verb), verb, rate=rate) as figures:
                    beside = await play(client, seconds)
                took = await recover(client, alone)
                recovered &= took <= RECOVERY_S
                answers = ", ".join(f"{code}: {count:,}" for code, count in figures.get("answers", {}).items())
                sent = f"sent {figures.get('sent', 0):,}: {answers}"
                broke = "" if meets(alone, beside) else "  (goal missed)"
                table.add_row(*row(f"{verb}, {rate:,.0f}", alone, beside), sent, f"{took:.1f} s{broke}")
    Console(width=160).print(table)
    return recovered


async def measure_burst(creates: int) -> bool:
    """Print what became of them; whether all were answered, and the manager was not disconnected."""
    payload = json.dumps({"metadata": {"x": ["y" * 10] * 2000}}).encode()
    async with deployment() as (server, _, manager):
        options = {"user": "client", "password": PASSWORDS["client"], "inbox_prefix": "_INBOX.client"}
        client = await nats.connect(server.url, pending_size=64 * 1024 * 1024, **options)
        burst, began = Burst(client), time.perf_counter()
        answered = await burst.ask([("jido.session.create", payload)] * creates)
        took = time.perf_counter() - began
        lost = manager.err.count("connection lost")
        memory = next(
            line.split()[1]
            for line in Path(f"/proc/{manager.process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        await client.close()
    missing = creates - burst.codes.total()
    print(f"{creates:,} creates of {len(payload):,} bytes in {took:.1f} s: {dict(burst.codes)}")
    print(f"never answered: {missing:,}; connections lost: {lost}; memory: {int(memory) // 1024} MB")
    return answered and not lost


async def recover(client: Client, alone: Phase) -> float:
    """How long after a flood until a whole second of rounds meets the goal again, in seconds."""
    began = time.perf_counter()
    while time.perf_counter() - began < 6 * RECOVERY_S:
        ended = time.perf_counter()
        if meets(alone, await play(client, 1.0)):
            return ended - began
    return float("inf")


def row(name: str, alone: Phase, beside: Phase) -> list[str]:
    """The cells that both tables have."""
    both = [f"{phase.p50_ms:,.0f}, {phase.p99_ms:,.0f}" for phase in (alone, beside)]
    errors = ", ".join(f"{name}: {count}" for name, count in beside.errors.items()) or "none"
    return [name, *both, str(len(beside.seconds)), errors]


def main() -> int:
    """The exit code: 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--verbs", default=",".join(COMMANDS))
    parser.add_argument("--outstanding", type=int, default=OUTSTANDING)
    parser.add_argument("--rates", default="", help="requests a second of floods that wait for no answer")
    parser.add_argument("--burst", type=int, default=0, help="creates of 30 kB, all sent at once")
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    verbs = options.verbs.split(",")
    if options.burst:
        work = measure_burst(options.burst)
    elif options.rates:
        work = measure_rates(verbs, [float(rate) for rate in options.rates.split(",")], options.seconds)
    else:
        work = measure_verbs(verbs, options.outstanding, options.seconds)
    return 0 if asyncio.run(work) else 1


if __name__ == "__main__":
    sys.exit(main())
