"""A server that comes back with an older store: what was stored after the copy never happened."""

import shutil
from pathlib import Path

from jido_nats import LocalServer


class Backup:
    """A copy of what a stopped server stored."""

    def __init__(self, server: LocalServer, store: Path, copy: Path) -> None:
        self._server = server
        self._store = store
        self._copy = copy

    async def take(self) -> None:
        """Stop the server in an orderly way, copy its store, and start it again."""
        await self._server.stop()
        shutil.copytree(self._store, self._copy)
        await self._server.start()

    async def restore(self) -> None:
        """Kill the server, and start it again with the copy."""
        await self._server.kill()
        shutil.rmtree(self._store)
        shutil.copytree(self._copy, self._store)
        await self._server.start()
