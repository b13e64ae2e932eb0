"""Random requests at a manager, over a real connection; outside CI.

    python -m tests.fuzz.service --runs 1000000 --seed 1

Prints the answers by code; exit 1 for one that is not the API's own.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from typing import Any, Final

import nats
from nats.aio.msg import Msg

from jido_nats import LocalServer, SessionManager, Settings
from tests.tools.agents import waiting

EXPECTED: Final = {"ok", "400", "404", "409", "413", "429"}
SEEDS = (
    b'{"session_id":"s1","metadata":{"a":[1,2.5,null,true,"x"]},"llm_config":{"model":"m"}}',
    b'{"status":"active","metadata":{"k":"v"},"include_terminated":true,"limit":10,"cursor":"s1"}',
    b'{"type":"session_status","session_id":"s","version":2,"status":"active","previous_status":"idle",'
    b'"updated_at":"2025-01-24T10:30:00.000412Z"}',
    b"\x82\xaasession_id\xa2s1\xa8metadata\x81\xa1a\x01",
)
AT_ONCE: Final = 64


async def fuzz_service(runs: int, seed: int) -> int:
    """Random requests, each answered with the API's own codes, and a manager that is up at the end."""
    dice = random.Random(seed)
    codes: Counter[str] = Counter()
    async with LocalServer(sync_interval="2m") as server:
        settings = Settings(sessions_max=1000)
        async with SessionManager.connect(server.url, worker=waiting, settings=settings) as manager:
            await manager.start_serving()
            client = await nats.connect(server.url)
            started = time.monotonic()
            for _ in range(0, runs, AT_ONCE):
                replies = await asyncio.gather(*(_ask(client, dice) for _ in range(AT_ONCE)))
                codes.update((reply.headers or {}).get("Nats-Service-Error-Code", "ok") for reply in replies)
            await client.close()
            alive = len(await manager.list_sessions())
    unexpected = {code: codes[code] for code in codes if code not in EXPECTED}
    took_s = time.monotonic() - started
    print(f"seed {seed}: {codes.total()} requests in {took_s:.0f} s: {dict(codes)}; {alive} sessions live")
    print(f"unexpected: {unexpected or 'none'}")
    return 1 if unexpected else 0


async def _ask(client: Any, dice: random.Random) -> Msg:
    verb = dice.choice(["create", "create", "list", "get", "terminate", "idle", "activate", "history"])
    subject = f"jido.session.{verb}" if verb in ("create", "list") else f"jido.session.{verb}.s{dice.randrange(2000)}"
    headers = (
        {"Content-Type": dice.choice(["application/json", "application/msgpack", "x/y"])}
        if dice.random() < 0.5
        else None
    )
    reply: Msg = await client.request(subject, _mutated(dice), timeout=30, headers=headers)
    return reply


def _mutated(dice: random.Random) -> bytes:
    data = bytearray(dice.choice(SEEDS))
    for _ in range(dice.randrange(6)):
        match dice.randrange(3):
            case 0 if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
            case 1:
                data.insert(dice.randrange(len(data) + 1), dice.randrange(256))
            case _:
                del data[dice.randrange(len(data) + 1) :]
    return bytes(data)


def main() -> None:
    """Parse, fuzz, exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(fuzz_service(arguments.runs, arguments.seed)))


if __name__ == "__main__":
    main()
