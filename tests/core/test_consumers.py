"""Requests for consumers from other accounts: what is passed on, and what is refused."""

import json
from typing import Any

import pytest

from jido_nats.core.consumers import FILTERS_MAX, INACTIVE_MAX_NS, REQUEST_BYTES_MAX, ROLE, parse
from jido_nats.errors import BadRequest


def request(**config: Any) -> bytes:
    return json.dumps({"stream_name": "S", "config": config, "action": "update"}).encode()


@pytest.mark.parametrize(
    ("subject", "config"),
    [
        ("CREATE.S.mine", {}),
        ("CREATE.S.mine", {"name": "mine", "durable_name": "mine"}),
        ("CREATE.S.mine", {"name": "", "durable_name": None, "filter_subjects": ["a", "b"]}),
        ("CREATE.S.mine.a.*.b", {"name": "mine", "filter_subject": "a.*.b"}),
        ("DURABLE.CREATE.S.mine", {"durable_name": "mine"}),
        ("CREATE.S.mine", {"deliver_subject": "_INBOX.client.x.y", "idle_heartbeat": 5, "priority_groups": ["a"]}),
    ],
)
def test_every_form_of_a_request_is_passed_on(subject: str, config: dict[str, Any]) -> None:
    found = parse(f"jido.consumer.client.{subject}", request(**config), unnamed="u")

    assert (found.role, found.stream, found.name, found.action) == ("client", "S", "mine", "update")
    assert found.config == config | {"name": "mine", "metadata": {ROLE: "client"}}


def test_fields_that_are_not_set_are_not_passed_on() -> None:
    unset = {"pause_until": "0001-01-01T00:00:00Z", "direct": False, "sourcing": None, "Deliver_Subject": ""}

    found = parse("jido.consumer.client.CREATE.S.mine", request(ack_wait=None, **unset), unnamed="u")

    assert found.config == {"name": "mine", "ack_wait": None, "metadata": {ROLE: "client"}}


def test_a_consumer_without_a_name_gets_the_given_one() -> None:
    found = parse("jido.consumer.client.CREATE.S", request(), unnamed="u")

    assert (found.name, found.config["name"]) == ("u", "u")


def test_the_role_is_not_the_caller_s_to_say() -> None:
    found = parse("jido.consumer.client.CREATE.S.mine", request(metadata={ROLE: "observer", "a": "b"}), unnamed="u")

    assert found.config["metadata"] == {ROLE: "client", "a": "b"}


@pytest.mark.parametrize(
    ("subject", "payload", "why"),
    [
        ("CREATE.S.mine", b"", "no request for a consumer"),
        ("CREATE.S.mine", b"[]", "no request for a consumer"),
        ("CREATE.S.mine", b"\xff", "no request for a consumer"),
        ("CREATE.S.mine", b'{"stream_name":"S"}', "no request for a consumer"),
        ("CREATE.S.mine", b'{"stream_name":"S","config":' + b"[" * 5000, "no request for a consumer"),
        ("CREATE.S.mine", request(deliver_subject=7), "no request for a consumer"),
        ("CREATE.S.mine", request(metadata={"a": 1}), "no request for a consumer"),
        ("CREATE.S.mine", b" " * (REQUEST_BYTES_MAX + 1), "the limit is 16384"),
        ("CREATE.T.mine", request(), "stream_name is 'S', the subject says 'T'"),
        ("CREATE.S.mine", request(name="other"), "must be the name in the subject"),
        ("CREATE.S", request(name="other"), "must be the name in the subject"),
        ("CREATE.S", request(durable_name="other"), "must be the name in the subject"),
        ("CREATE.S.a b", request(), "a consumer's name must be"),
        ("CREATE.S.mine.a", request(filter_subject="b"), "filter_subject is not that of the subject"),
        ("CREATE.S.mine.a", request(), "filter_subject is not that of the subject"),
        ("CREATE.S.mine", request(filter_subjects=["a"] * (FILTERS_MAX + 1)), "64 filter subjects at most"),
        ("CREATE.S.mine", request(opt_start_seq=2**63), "opt_start_seq must be"),
        ("CREATE.S.mine", request(opt_start_seq=1.5e19), "no request for a consumer"),
        ("CREATE.S.mine", request(ack_wait=1), "100 ms or more"),
        ("CREATE.S.mine", request(backoff=[10**9, 0]), "100 ms or more"),
        ("CREATE.S.mine", request(inactive_threshold=INACTIVE_MAX_NS + 1), "more than a day"),
        *(
            ("CREATE.S.mine", request(**{field: "$KV.JIDO_SESSIONS.x"}), "cannot be set by programs in other accounts")
            for field in (
                "Deliver_Subject",
                "deliver_\u017fubject",
                "DELIVER_SUBJECT",
                "direct",
                "sourcing",
                "pause_until",
                "",
            )
        ),
        *(
            ("CREATE.S.mine", request(deliver_subject=deliver), "must be an inbox of this user")
            for deliver in ("x", "_INBOX.x", "_INBOX.client", "_INBOX.client.", "_INBOX.client.>", "_INBOX.client.*")
        ),
        ("CREATE.S.mine", request(deliver_subject="_INBOX.client.a..b"), "must be an inbox of this user"),
        ("CREATE.S.mine", request(deliver_subject="_INBOX.client.a b"), "must be an inbox of this user"),
    ],
)
def test_what_is_refused(subject: str, payload: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        parse(f"jido.consumer.client.{subject}", payload, unnamed="u")


def test_a_durable_may_be_inactive_for_as_long_as_it_likes() -> None:
    parse(
        "jido.consumer.client.CREATE.S.d",
        request(durable_name="d", inactive_threshold=INACTIVE_MAX_NS + 1),
        unnamed="u",
    )
