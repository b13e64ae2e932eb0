"""Admission: which requests of a micro service are handled, which wait for their turn, and which are refused."""

import math
from collections import Counter
from typing import Final

import msgspec

from jido_nats.broker.connection import Message
from jido_nats.broker.turns import Party, Turns

# What the server says about the sender of a request that comes from another account; it overwrites what clients send.
REQUEST_INFO: Final = "Nats-Request-Info"


class Lane:
    """A class of requests that has its own room, so that a flood of one class leaves room for the others.

    `in_flight_max`: how many are handled or wait, in all; `caller_max`: of one caller; `each_max`: of one party.
    `turns`: how many of them are handled at a time.
    """

    def __init__(
        self,
        *,
        in_flight_max: float = math.inf,
        caller_max: float = math.inf,
        each_max: float = math.inf,
        turns: Turns | None = None,
    ) -> None:
        self.turns: Final = turns or Turns()
        self._in_flight_max = in_flight_max
        self._caller_max = caller_max
        self._each_max = each_max
        # How many are in flight, of each party and, as `Party(caller)`, of each caller.
        self._counts = Counter[Party]()
        self._in_flight = 0

    def enter(self, party: Party) -> bool:
        """Whether there is room for one more request of that party; if so, it is in flight until `leave`."""
        caller = Party(party.caller)
        if (
            self._in_flight >= self._in_flight_max
            or self._counts[caller] >= self._caller_max
            or self._counts[party] >= self._each_max
        ):
            return False
        self._in_flight += 1
        self._counts.update({caller, party})
        return True

    def leave(self, party: Party) -> None:
        """The request is answered."""
        self._in_flight -= 1
        for key in {Party(party.caller), party}:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


def caller_of(message: Message) -> str:
    """Who sent a request: its connection if the server names it, else its account, else its inbox.

    The server names the connection to a service that is imported with `share: true`. Within an account nobody vouches
    for the inbox.
    """
    try:
        info = msgspec.json.decode((message.headers or {}).get(REQUEST_INFO, ""), type=_RequestInfo)
    except msgspec.MsgspecError:
        return message.reply.rpartition(".")[0]
    return f"{info.acc} {info.server} {info.id}"


def by_caller(message: Message) -> Party:
    """The party of a request that is for nothing in particular: its caller."""
    return Party(caller_of(message))


class _RequestInfo(msgspec.Struct):
    acc: str
    server: str = ""
    id: int = 0
