"""The same with FastStream, stored like `contenders.py durable`, and 128 at once. Needs `pip install faststream[nats]`.

python tests/bench/faststream_contender.py nats://127.0.0.1:4222
"""

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from faststream.nats import NatsBroker, NatsMessage

CREATE = "contender.create"
EVENTS = "contender.events"
SESSION = "contender.session"
AT_ONCE = 128


async def serve(url: str) -> None:
    """Answer until killed."""
    broker = NatsBroker(url, logger=None, log_level=logging.CRITICAL)

    async def create(request: dict[str, Any], message: NatsMessage) -> dict[str, Any]:
        bucket = await broker.key_value(bucket="CONTENDER")
        now = datetime.now(UTC).isoformat()
        record = {**request, "status": "initializing", "version": 1, "created_at": now, "updated_at": now}
        await bucket.put(record["session_id"], json.dumps(record).encode())
        await broker.publish({"type": "session_created", **record}, EVENTS, stream="CONTENDER")
        record |= {"status": "active", "version": 2, "updated_at": datetime.now(UTC).isoformat()}
        await bucket.put(record["session_id"], json.dumps(record).encode())
        for subject in (EVENTS, f"{SESSION}.{record['session_id']}"):
            await broker.publish({"type": "session_status", **record}, subject, stream="CONTENDER")
        return record

    await broker.connect()
    stream = broker.config.connection_state.stream
    await stream.add_stream(name="CONTENDER", subjects=[EVENTS, f"{SESSION}.*"])
    broker.subscriber(CREATE, max_workers=AT_ONCE)(create)
    await broker.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
