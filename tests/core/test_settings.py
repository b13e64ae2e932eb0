"""Settings from a TOML file, and errors that name the wrong setting."""

import pytest

from jido_nats import Settings
from jido_nats.core.codec import Encoding
from jido_nats.core.settings import load
from jido_nats.errors import ConfigurationError


def test_an_empty_file_gives_the_defaults() -> None:
    assert load(b"") == Settings()


def test_the_defaults_are_the_design_s() -> None:
    settings = Settings()

    assert (settings.events_stream, settings.sessions_bucket) == ("JIDO_CLIENT", "JIDO_SESSIONS")
    assert (settings.managers_bucket, settings.output_stream) == ("JIDO_MANAGERS", "JIDO_OUTPUT")
    assert (settings.retention_s, settings.duplicate_window_s) == (7 * 86_400, 120)
    assert (settings.terminated_ttl_s, settings.stop_timeout_s) == (3600, 3.0)


def test_every_setting_can_be_in_the_file() -> None:
    settings = load(b'lease_s = 6\nencoding = "msgpack"\nwait_ready = true\nstop_timeout_s = 1.5\n')

    assert (settings.lease_s, settings.stop_timeout_s, settings.wait_ready) == (6, 1.5, True)
    assert settings.encoding is Encoding.MSGPACK


def test_seconds_may_be_an_integer() -> None:
    assert load(b"stop_timeout_s = 2").stop_timeout_s == 2


def test_flags_override_the_file() -> None:
    assert load(b"lease_s = 6\nreplicas = 3", lease_s=9).lease_s == 9


def test_a_flag_that_was_not_passed_overrides_nothing() -> None:
    assert load(b"lease_s = 6", lease_s=None).lease_s == 6


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("laese_s = 6", "laese_s"),
        ('lease_s = "six"', "lease_s"),
        ("lease_s = 0", "lease_s"),
        ("lease_s = 2.5", "lease_s"),
        ("stop_timeout_s = -1", "stop_timeout_s"),
        ("stop_timeout_s = nan", "stop_timeout_s"),
        ('encoding = "xml"', "encoding"),
        ('wait_ready = "yes"', "wait_ready"),
        ('events_stream = "JIDO.CLIENT"', "events_stream"),
        ('sessions_bucket = ""', "sessions_bucket"),
        ("replicas = 6", "replicas"),
        ("[lease]\ns = 1", "lease"),
        ("[workers.coder]\nsessions_max = 0", "workers.coder: sessions_max"),
        ("[workers.coder]\nlease_s = 3", "workers.coder: .*lease_s"),
        ("[workers]\ncoder = 3", "workers.coder"),
        ("workers = 3", "workers"),
        ('[workers.coder]\nisolation = "thread"', "isolation"),
        ('[workers."a.b"]\nsessions_max = 1', "workers.a.b"),
        ('[workers.coder]\nworker_limit = "memory=lots"', "workers.coder: worker_limit"),
        ('labels = {"a b" = "c"}', "labels"),
        ("labels = {a = 1}", "labels"),
    ],
)
def test_a_wrong_setting_is_named(toml: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load(toml.encode())


@pytest.mark.parametrize("toml", [b"lease_s = ", b"\xff", b"lease_s = 1\nlease_s = 2"])
def test_invalid_toml_is_refused(toml: bytes) -> None:
    with pytest.raises(ConfigurationError):
        load(toml)


def test_an_encoding_may_be_given_by_its_name() -> None:
    assert Settings(encoding="msgpack").encoding is Encoding.MSGPACK  # type: ignore[arg-type]  # what people write


def test_a_kind_of_worker_has_its_own_settings_in_the_place_of_the_managers() -> None:
    settings = load(
        b'idle_after_s = 5\nlabels = {gpu = "true"}\n[workers.coder]\nsessions_max = 3\nidle_after_s = 1.5\n'
    )

    coder = settings.of_kind("coder")
    assert (coder.sessions_max, coder.idle_after_s, coder.stop_timeout_s) == (3, 1.5, 3.0)
    assert settings.of_kind("other") is settings
    assert (settings.labels, settings.sessions_max) == ({"gpu": "true"}, 100_000)
