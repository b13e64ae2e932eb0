"""What a manager tells of itself: metrics, health, logs as JSON, systemd; and how it drains."""

import asyncio
import http.client
import json
import logging
import signal
import socket
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jido_nats import Client, ConfigurationError, LocalServer, Reason, Session, SessionManager, Settings, Status
from jido_nats.manager import stopping
from jido_nats.manager.health_server import HealthServer
from tests.conftest import StartManager
from tests.tools.processes import manager_process
from tests.tools.programs import running, serving
from tests.tools.support import Puppet, Stranger, Stubborn, eventually


def fetch(port: int, path: str, method: str = "GET", *, host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
async def monitoring(manager: SessionManager) -> AsyncIterator[HealthServer]:
    """The monitoring of `manager`."""
    with HealthServer(manager.snapshot, host="127.0.0.1", port=0) as monitoring:
        yield monitoring


async def ask(monitoring: HealthServer, path: str) -> tuple[int, str]:
    """Status and body of an answer, while the loop goes on."""
    return await asyncio.to_thread(fetch, monitoring.port, path)


async def samples(monitoring: HealthServer) -> dict[tuple[str, frozenset[Any]], float]:
    """Every sample of a scrape, by its name and labels."""
    status, text = await ask(monitoring, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def labelled(name: str, **labels: str) -> tuple[str, frozenset[Any]]:
    """The key of a sample; `from_` stands for `from`."""
    return name, frozenset((key.rstrip("_"), value) for key, value in labels.items())


async def test_a_new_attempt_is_a_transition_with_its_cause(
    stranger: Stranger, manager: SessionManager, monitoring: HealthServer, puppet: Puppet
) -> None:
    await stranger.create("s1", restart={"on": ["crashed"], "backoff_s": 60})
    puppet.crash("s1", RuntimeError("boom"))

    labels = {"from_": "active", "to": "initializing", "reason": "crashed", "worker": "default"}
    assert await eventually(lambda: counted(monitoring, labelled("jido_transitions_total", **labels))) == 1


async def counted(monitoring: HealthServer, key: tuple[str, frozenset[Any]]) -> float:
    return (await samples(monitoring)).get(key, 0)


async def test_what_happens_is_counted(
    stranger: Stranger, manager: SessionManager, puppet: Puppet, monitoring: HealthServer
) -> None:
    await stranger.create("s1")
    await stranger.create("s2")
    await stranger.ask("jido.session.idle.s1")
    await stranger.ask("jido.session.idle.s1")  # refused
    puppet.crash("s2", RuntimeError("boom"))
    await stranger.ends("s2")

    found = await samples(monitoring)

    assert found[labelled("jido_sessions", status="idle", worker="default")] == 1
    assert found[labelled("jido_sessions", status="active", worker="default")] == 0
    assert found[labelled("jido_transitions_total", from_="", to="initializing", reason="", worker="default")] == 2
    assert (
        found[labelled("jido_transitions_total", from_="active", to="terminated", reason="crashed", worker="default")]
        == 1
    )
    assert found[labelled("jido_command_seconds_count", verb="idle")] == 2
    assert found[labelled("jido_command_seconds_bucket", verb="idle", le="+Inf")] == 2
    assert found[labelled("jido_command_errors_total", verb="idle", code="invalid_transition")] == 1
    assert found[labelled("jido_events_published_total")] == len(await stranger.stored_events()) == 7
    assert found[labelled("jido_events_unpublished")] == 0
    assert 0 <= found[labelled("jido_lease_age_seconds")] < 2


async def test_takeovers_are_counted(server: LocalServer, stranger: Stranger, start_manager: StartManager) -> None:
    async with manager_process(server.url) as doomed:
        await stranger.create("s1")
        doomed.send(signal.SIGKILL)
    survivor = await start_manager(lease_s=1)

    await stranger.ends("s1")

    assert survivor.stats.takeovers == 1


async def test_what_is_committed_and_not_yet_told_is_counted(stranger: Stranger, manager: SessionManager) -> None:
    creating = asyncio.gather(*(stranger.create(f"s{number}") for number in range(50)))

    await eventually(lambda: manager.stats.versions_unpublished > 0)

    await creating
    assert manager.stats.versions_unpublished == 0


async def is_ready(monitoring: HealthServer) -> bool:
    return await ask(monitoring, "/readyz") == (200, "ok\n")


async def test_a_manager_that_serves_is_ready(manager: SessionManager, monitoring: HealthServer) -> None:
    await eventually(lambda: is_ready(monitoring))
    assert await ask(monitoring, "/livez") == (200, "ok\n")


async def test_a_manager_without_its_server_lives_and_is_not_ready(
    server: LocalServer, manager: SessionManager, monitoring: HealthServer
) -> None:
    await server.stop()

    async def refused() -> bool:
        status, text = await ask(monitoring, "/readyz")
        return status == 503 and "no connection to NATS" in text

    await eventually(refused)
    assert (await ask(monitoring, "/livez"))[0] == 200


async def test_the_four_connections_of_a_manager_log_once_why_they_cannot_reconnect(
    server: LocalServer, manager: SessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    await server.stop()

    # Each of them has tried: this one, the output's, the lease's (in its thread) and the commands'.
    await eventually(lambda: sum("no NATS server answers" in reason for reason in manager.snapshot().not_ready) == 4)
    assert [record.getMessage() for record in caplog.records].count("cannot reconnect, still trying") == 1


async def test_a_manager_whose_loop_is_blocked_does_not_live(manager: SessionManager, monitoring: HealthServer) -> None:
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(fetch(monitoring.port, "/livez")))
    asking.start()
    asking.join()  # in the loop's own thread

    assert answers == [(503, "the manager's event loop does not answer\n")]


@pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405)])
async def test_other_requests_are_refused(
    manager: SessionManager, monitoring: HealthServer, path: str, method: str, status: int
) -> None:
    assert (await asyncio.to_thread(fetch, monitoring.port, path, method))[0] == status


async def test_a_port_that_is_taken_is_said(manager: SessionManager, monitoring: HealthServer) -> None:
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{monitoring.port}"):
        HealthServer(manager.snapshot, host="127.0.0.1", port=monitoring.port)


async def test_serve_shows_its_metrics(server: LocalServer) -> None:
    async with serving(server.url, "--metrics-port", "0") as program:
        port = int(program.err.partition("http://127.0.0.1:")[2].split()[0])
        assert "jido_manager_info" in (await asyncio.to_thread(fetch, port, "/metrics"))[1]


async def test_a_scraper_that_hangs_up_is_no_error(server: LocalServer) -> None:
    async with serving(server.url, "--metrics-port", "0", "--log-format", "json") as program:
        port = int(program.err.partition("http://127.0.0.1:")[2].split('"')[0])
        with socket.create_connection(("127.0.0.1", port)) as scraper:
            scraper.sendall(b"GET /met")
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset when it is closed
        assert (await asyncio.to_thread(fetch, port, "/livez"))[0] == 200
        finished = await program.end(signal.SIGTERM)

    assert {json.loads(line)["level"] for line in finished.err.splitlines()} == {"info"}


async def test_logs_are_json_with_the_session_s_id(server: LocalServer, tmp_path: Path) -> None:
    command = "sh -c 'echo to the log >&2; read -r session; read -r message'"
    async with serving(server.url, "--exec", command, "--log-format", "json") as program:
        async with Client.connect(server.url) as client:
            await client.create_session(session_id="s1")
        await program.said("to the log")
        finished = await program.end(signal.SIGTERM)

    lines = [json.loads(line) for line in finished.err.splitlines()]
    said = next(line for line in lines if line["message"] == "to the log")
    assert (said["session_id"], said["logger"], said["level"]) == ("s1", "jido_nats.stderr", "info")


async def test_a_draining_manager_lets_sessions_end_by_themselves(
    server: LocalServer, stranger: Stranger, puppet: Puppet
) -> None:
    settings = Settings(lease_s=2, drain_timeout_s=10)
    async with SessionManager.connect(server.url, worker=puppet, settings=settings) as manager:
        await manager.start_serving()
        await stranger.create("s1")
        closing = asyncio.create_task(manager.close())
        await eventually(lambda: manager.snapshot().not_ready == ["draining, 1 sessions are left"])
        assert (await stranger.ask("jido.session.get.s1"))["status"] == "active"  # it still answers

        puppet.complete("s1")
        await closing

    assert (await stranger.ends("s1"))["reason"] == "completed"


async def test_a_draining_manager_takes_no_new_sessions(
    server: LocalServer, stranger: Stranger, puppet: Puppet
) -> None:
    settings = Settings(lease_s=2, drain_timeout_s=10)
    async with SessionManager.connect(server.url, worker=puppet, settings=settings) as manager:
        await manager.start_serving()
        await stranger.create("s1")
        closing = asyncio.create_task(manager.close())
        await eventually(lambda: manager.snapshot().not_ready == ["draining, 1 sessions are left"])

        refused = await stranger.ask("jido.session.create", {"session_id": "s2"})

        assert refused["error"]["code"] == "unavailable"
        puppet.complete("s1")
        await closing


async def test_what_does_not_end_in_time_is_ended(server: LocalServer, stranger: Stranger, puppet: Puppet) -> None:
    settings = Settings(lease_s=2, drain_timeout_s=0.2)
    async with SessionManager.connect(server.url, worker=puppet, settings=settings) as manager:
        await manager.start_serving()
        await stranger.create("s1")

    assert (await stranger.ends("s1"))["reason"] == Reason.MANAGER_STOPPED
    assert (await stranger.ends("s1"))["status"] == Status.TERMINATED


async def test_a_manager_that_stops_logs_how_many_sessions_are_left(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "jido_nats.manager.stopping")
    monkeypatch.setattr(stopping, "REPORT_EVERY_S", 0.05)
    puppet, stubborn = Puppet(), Stubborn()

    async def worker(session: Session) -> None:
        await (stubborn if session.session_id == "stubborn" else puppet)(session)

    manager = await start_manager(worker, drain_timeout_s=30, stop_timeout_s=1.0)
    for session_id in ("s1", "s2", "stubborn"):
        await stranger.create(session_id)

    closing = asyncio.create_task(manager.close())
    await eventually(lambda: "draining: 3 sessions are left" in caplog.messages)
    puppet.complete("s1")
    await eventually(lambda: "draining: 2 sessions are left" in caplog.messages)
    manager._sessions.running._emptied.set_result(None)  # type: ignore[union-attr]  # the time is over
    await eventually(lambda: "ending: 1 sessions are left" in caplog.messages)
    stubborn.let_go.set()
    await closing

    assert caplog.messages[0] == "draining 3 sessions, up to 30 s"
    assert "ending 2 sessions, giving up if none ends for 11 s" in caplog.messages


async def test_a_manager_without_sessions_stops_without_a_line(
    start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start_manager(drain_timeout_s=30)

    await manager.close()

    assert caplog.messages == []


async def test_a_draining_manager_says_so_in_its_lease_at_once(
    server: LocalServer, stranger: Stranger, puppet: Puppet
) -> None:
    settings = Settings(lease_s=60, drain_timeout_s=30)
    async with SessionManager.connect(server.url, worker=puppet, settings=settings) as manager:
        await manager.start_serving()
        await stranger.create("s1")
        assert not await lease_says(stranger, b"draining")

        closing = asyncio.create_task(manager.close())

        await eventually(lambda: lease_says(stranger, b'"draining":true'))
        puppet.complete("s1")
        await closing


async def lease_says(stranger: Stranger, text: bytes) -> bool:
    return any(text in entry.data for entry in await stranger.stored("KV_JIDO_MANAGERS"))


@pytest.mark.parametrize(
    ("host", "url"), [("::1", "http://[::1]:"), ("[::1]", "http://[::1]:"), ("::", "http://[::]:")]
)
async def test_metrics_are_served_on_ipv6(manager: SessionManager, host: str, url: str) -> None:
    with HealthServer(manager.snapshot, host=host, port=0) as monitoring:
        status, _ = await asyncio.to_thread(fetch, monitoring.port, "/livez", host="::1")

    assert (status, monitoring.url.startswith(url)) == (200, True)


async def test_every_address_means_those_of_ipv4_too(manager: SessionManager) -> None:
    with HealthServer(manager.snapshot, host="::", port=0) as monitoring:
        assert (await asyncio.to_thread(fetch, monitoring.port, "/livez"))[0] == 200


async def test_a_host_that_does_not_exist_is_named(manager: SessionManager) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.host\.invalid"):
        HealthServer(manager.snapshot, host="no.such.host.invalid", port=0)


async def test_systemd_is_told(server: LocalServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        async with running("serve", "--server", server.url, env=env) as program:
            await program.said(" serves on ")
            heard = [sock.recv(100) for _ in range(6)]
            await program.end(signal.SIGTERM)
            while heard[-1] != b"STOPPING=1":
                heard.append(sock.recv(100))

    assert heard.count(b"READY=1") == 1
    assert heard.count(b"WATCHDOG=1") >= 5
