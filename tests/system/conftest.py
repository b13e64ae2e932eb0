"""A deployment with the roles of `nats.conf`: the server, a manager with its two users, and members of other roles."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from jido_nats import LocalServer, SessionManager, Settings
from tests.tools.roles import SECRETS, Member, as_user, member_at
from tests.tools.support import wait_for_ever


@pytest.fixture
async def roles_server() -> AsyncIterator[LocalServer]:
    """A server with the roles, of the test's own."""
    async with LocalServer(secrets=SECRETS, sync_interval="2m") as server:
        yield server


@pytest.fixture
async def roles_manager(roles_server: LocalServer) -> AsyncIterator[SessionManager]:
    """A manager that serves with its two users."""
    manager, api = as_user(roles_server, "manager"), as_user(roles_server, "manager-api")
    settings = Settings(lease_s=2)
    async with SessionManager.connect(manager, worker=wait_for_ever, settings=settings, api=api) as running:
        await running.start_serving()
        yield running


@pytest.fixture
async def members(roles_server: LocalServer, roles_manager: SessionManager) -> AsyncIterator[dict[str, Member]]:
    """A stock client of each role beside a manager at work, with the sessions `example` and `other`."""
    async with AsyncExitStack() as stack:
        members = {
            user: await stack.enter_async_context(member_at(roles_server, user))
            for user in ("client", "observer", "session-example", "operator")
        }
        for session_id in ("example", "other"):
            assert (await members["client"].create(session_id))["status"] == "active"
        yield members
