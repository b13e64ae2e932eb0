"""The deployment with the roles of `nats.conf`, as tests/system has it."""

from tests.system.conftest import members, roles_manager, roles_server

__all__ = ["members", "roles_manager", "roles_server"]
