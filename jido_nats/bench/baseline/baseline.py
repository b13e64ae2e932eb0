"""Everything that the baseline uses during a bench: its storage, its responders, its connections."""

import contextlib
import secrets
import time
from collections.abc import AsyncIterator

from nats.aio.client import Client

from jido_nats.bench.baseline.connect import connect
from jido_nats.bench.baseline.journal import BaselineJournal
from jido_nats.bench.baseline.reader import BaselineReader
from jido_nats.bench.baseline.requester import BaselineClient, responders
from jido_nats.bench.baseline.steps import BaselineConsumer, BaselineSteps, BaselineSubscriber
from jido_nats.bench.baseline.storage import Names, journals, storage
from jido_nats.broker.options import ConnectOptions


class Baseline:
    """What measurements use of the baseline. `client` sends commands; the rest writes and reads from this process.

    `pids`: the responder processes.
    """

    def __init__(
        self,
        client: BaselineClient,
        pids: list[int],
        writing: Client,
        hearing: Client,
        names: Names,
        note: str,
        *,
        journals_like: str,
    ) -> None:
        self._journals_like = journals_like
        self.client = client
        self.pids = pids
        self._writing = writing
        self._hearing = hearing
        self._names = names
        self._note = note

    def steps(self, session_id: str) -> BaselineSteps:
        """Transitions of one session."""
        return BaselineSteps(self._writing, self._names, self._note, session_id)

    def subscriber(self) -> BaselineSubscriber:
        """Receives them with core NATS, on a separate connection."""
        return BaselineSubscriber(self._hearing, self._names.events)

    def consumer(self) -> BaselineConsumer:
        """Receives them with a consumer."""
        return BaselineConsumer(self._hearing, self._names.stream, self._names.events)

    @contextlib.asynccontextmanager
    async def journal(self, session_id: str) -> AsyncIterator[BaselineJournal]:
        """A journal, in a stream of its own."""
        async with journals(self._writing, self._names, like=self._journals_like):
            yield BaselineJournal(self._writing, self._names, session_id)

    async def read(self, stream: str, subject: str, count: int) -> float:
        """How many seconds a bare consumer needs for the first `count` messages on a subject of a stream."""
        reader = BaselineReader(self._hearing, stream, subject)
        started = time.perf_counter()
        await reader.open(everything=True)
        try:
            await reader.expect(count)
            await reader.wait()
            return time.perf_counter() - started
        finally:
            await reader.close()


@contextlib.asynccontextmanager
async def open_baseline(
    options: ConnectOptions, *, note: str, managers: int, events_like: str, records_like: str, journals_like: str
) -> AsyncIterator[Baseline]:
    """The baseline for a deployment, with as many responders as it has managers; removed afterwards.

    Its storage is configured as those streams are.
    """
    names = Names(secrets.token_hex(2)[:3])
    async with contextlib.AsyncExitStack() as stack:
        clients: list[Client] = []
        for _ in range(3):
            clients.append(await connect(options))
            stack.push_async_callback(clients[-1].close)
        await stack.enter_async_context(storage(clients[0], names, events_like=events_like, records_like=records_like))
        pids = await stack.enter_async_context(responders(options, names, note, managers))
        client = BaselineClient(clients[0], names, note)
        yield Baseline(client, pids, clients[1], clients[2], names, note, journals_like=journals_like)
