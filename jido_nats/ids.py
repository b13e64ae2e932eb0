"""New identifiers: unique without coordination, and ordered by time."""

import secrets
import time
import uuid


def uuid7() -> uuid.UUID:
    """A version 7 UUID: milliseconds since 1970, then random bits (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def new_session_id() -> str:
    """`session_<uuid7>`."""
    return f"session_{uuid7()}"


def new_message_id() -> str:
    """`message_<uuid7>`."""
    return f"message_{uuid7()}"


def new_manager_id() -> str:
    """`manager_<uuid7>`: one incarnation of a manager, never reused."""
    return f"manager_{uuid7()}"
