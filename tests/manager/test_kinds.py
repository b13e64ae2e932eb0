"""Several kinds of worker in one deployment: which manager takes a session, and what tells of its kind."""

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest

from jido_nats import Client, LocalServer, NoSuchWorker, Overloaded, Session, SessionManager, Settings, Unavailable
from jido_nats.core import codec
from jido_nats.core.settings import WorkerSettings
from jido_nats.errors import ConfigurationError
from jido_nats.worker.session import wait_forever
from tests.conftest import StartManager
from tests.tools.support import LEASE_S, Stranger, eventually, wait_for_ever

CREATE = "jido.session.create"
CODER: dict[str, Any] = {"worker": "coder"}
GPU: dict[str, Any] = {"worker": "coder", "labels": {"gpu": "true"}}
SID = "s1"


async def tells(session: Session) -> None:
    """Tells its kind and its labels, and waits."""
    await session.emit("kind", [session.worker, session.labels])
    await wait_for_ever(session)


async def never_ready(session: Session) -> None:
    """Is never ready."""
    await wait_for_ever(session)


async def see_each_other(*managers: SessionManager) -> None:
    """Return when each has read every other's newest lease."""

    def seen() -> bool:
        infos = {manager.manager_id: manager._info() for manager in managers}
        return all(m._leases.others(m.manager_id) | {m.manager_id: m._info()} == infos for m in managers)

    for manager in managers:
        manager._lease.renew_soon()
    await eventually(seen)


async def test_a_session_gets_the_worker_that_it_names(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager({"default": wait_for_ever, "coder": tells}, labels={"gpu": "true"})
    ear = await stranger.hear("jido.client.session.s1.output")

    record = await stranger.create(SID, **GPU)

    assert (record["worker"], record["labels"], record["needs"]) == ("coder", {"gpu": "true"}, ["worker"])
    await eventually(lambda: ear.messages)
    assert ear.on("jido.client.session.s1.output")[0]["data"] == ["coder", {"gpu": "true"}]


async def test_every_event_tells_the_kind(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager({"coder": wait_for_ever})
    await stranger.create(SID, **CODER)
    await stranger.ask(f"jido.session.terminate.{SID}")

    events = await stranger.stored_events() + await stranger.stored_events(f"jido.client.session.{SID}")

    assert len(events) == 8
    assert {event["worker"] for event in events} == {"coder"}


async def test_the_default_kind_is_written_nowhere(stranger: Stranger, manager: SessionManager) -> None:
    record = await stranger.create(SID, worker="default", labels={})

    assert not {"worker", "labels", "needs"} & record.keys()
    assert not any("worker" in event for event in await stranger.stored_events())


async def test_a_list_can_be_of_one_kind(start_manager: StartManager) -> None:
    manager = await start_manager({"default": wait_for_ever, "coder": wait_for_ever})
    for number, name in enumerate(("default", "coder", "coder")):
        await manager.create_session(session_id=f"s{number}", worker=name)

    assert [r.session_id for r in await manager.list_sessions(worker="coder")] == ["s1", "s2"]
    assert [r.session_id for r in await manager.list_sessions(worker="default")] == ["s0"]
    assert await manager.list_sessions(worker="nobody") == []


async def test_a_watch_can_be_of_one_kind(server: LocalServer, start_manager: StartManager) -> None:
    manager = await start_manager({"default": wait_for_ever, "coder": wait_for_ever})
    async with Client.connect(server.url) as client, client.watch_sessions(worker="coder") as watched:
        await anext(watched)  # the end of the snapshot
        await manager.create_session(session_id="other")
        await manager.create_session(session_id=SID, worker="coder")

        assert [(await anext(watched)).event.session_id for _ in range(2)] == [SID, SID]  # type: ignore[union-attr]


@pytest.mark.parametrize("field", [{"worker": "a.b"}, {"worker": ""}, {"labels": {"": "x"}}, {"labels": {"a b": "x"}}])
async def test_what_is_no_name_is_refused(stranger: Stranger, manager: SessionManager, field: dict[str, Any]) -> None:
    assert (await stranger.ask(CREATE, field))["error"]["code"] == "bad_request"


# Limits of their own


async def test_a_full_kind_leaves_room_for_the_others(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(
        {"default": wait_for_ever, "coder": wait_for_ever}, workers={"coder": WorkerSettings(sessions_max=1)}
    )
    await stranger.create(SID, **CODER)

    refused = await stranger.create("s2", **CODER)

    assert refused["error"]["code"] == "overloaded"
    assert "'coder' is full" in refused["error"]["message"]
    assert (await stranger.create("s3"))["status"] == "active"


async def test_a_full_kind_has_room_again_when_a_session_ends(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager({"coder": wait_for_ever}, workers={"coder": WorkerSettings(sessions_max=1)})
    await stranger.create(SID, **CODER)
    await stranger.ask(f"jido.session.terminate.{SID}")
    await stranger.ends(SID)

    assert (await stranger.create("s2", **CODER))["status"] == "active"


async def test_each_kind_has_its_own_time_limits(stranger: Stranger, start_manager: StartManager) -> None:
    workers = {"coder": WorkerSettings(idle_after_s=0.05), "reviewer": WorkerSettings(max_lifetime_s=0.05)}
    await start_manager(dict.fromkeys(["default", *workers], wait_for_ever), workers=workers)
    for name in ("default", "coder", "reviewer"):
        await stranger.create(name, worker=name)

    assert (await stranger.ends("reviewer"))["reason"] == "timed_out"
    await eventually(partial(has_status, stranger, "coder", "idle"))
    assert (await stranger.ask("jido.session.get.default"))["status"] == "active"


async def has_status(stranger: Stranger, session_id: str, status: str) -> bool:
    """Whether the session is in that status."""
    return bool((await stranger.ask(f"jido.session.get.{session_id}"))["status"] == status)


async def test_each_kind_has_its_own_time_to_start(stranger: Stranger, start_manager: StartManager) -> None:
    workers = {"coder": WorkerSettings(wait_ready=True, start_timeout_s=0.05)}
    await start_manager({"default": never_ready, "coder": never_ready}, workers=workers)

    assert (await stranger.create("s1", **CODER))["error"]["code"] == "start_failed"
    assert (await stranger.create("s2"))["status"] == "active"


# Who takes it


async def test_a_manager_passes_on_what_it_does_not_run(stranger: Stranger, start_manager: StartManager) -> None:
    plain, coding = await start_manager(), await start_manager({"coder": wait_for_ever}, labels={"gpu": "true"})
    await see_each_other(plain, coding)

    records = [await stranger.create(f"s{number}", **GPU) for number in range(12)]

    assert {record["owner"] for record in records} == {coding.manager_id}
    assert len({record["owner"] for record in [await stranger.create(f"d{n}") for n in range(12)]}) == 1


async def test_what_nobody_runs_is_told_with_what_there_is(stranger: Stranger, start_manager: StartManager) -> None:
    await see_each_other(await start_manager(), await start_manager({"coder": wait_for_ever}, labels={"zone": "a"}))

    for _ in range(4):
        error = (await stranger.ask(CREATE, GPU))["error"]
        assert error["code"] == "no_such_worker"
        assert error["message"] == (
            "no manager runs the worker 'coder' with the labels gpu=true; there is: coder (zone=a); default"
        )


async def test_python_code_gets_an_error_of_its_own(start_manager: StartManager) -> None:
    manager = await start_manager({"coder": wait_for_ever})

    with pytest.raises(NoSuchWorker, match="there is: coder"):
        await manager.create_session()


async def test_all_that_run_it_are_full(stranger: Stranger, start_manager: StartManager) -> None:
    first, second = [await start_manager({"coder": wait_for_ever}, sessions_max=1) for _ in range(2)]
    await see_each_other(first, second, await start_manager())
    for number in range(2):
        assert (await stranger.create(f"s{number}", **CODER))["status"] == "active"

    for _ in range(6):
        assert (await stranger.ask(CREATE, CODER))["error"]["code"] == "overloaded"


async def test_a_manager_that_is_full_passes_on_to_one_with_room(start_manager: StartManager) -> None:
    workers = {"coder": WorkerSettings(sessions_max=1)}
    full, other = (
        await start_manager({"coder": wait_for_ever}, workers=workers),
        await start_manager({"coder": wait_for_ever}),
    )
    await see_each_other(full, other)

    owners = [(await full.create_session(worker="coder")).owner for _ in range(3)]

    assert owners == [full.manager_id, other.manager_id, other.manager_id]


async def test_who_only_waits_stays_out_of_the_way_of_a_worker(start_manager: StartManager) -> None:
    waiting, working = await start_manager(wait_forever), await start_manager()
    await see_each_other(waiting, working)

    assert {(await waiting.create_session()).owner for _ in range(5)} == {working.manager_id}
    await working.close()
    await eventually(lambda: not waiting._leases.others(waiting.manager_id))
    assert (await waiting.create_session()).owner == waiting.manager_id


async def test_no_session_goes_to_who_only_waits_because_the_worker_is_full(start_manager: StartManager) -> None:
    waiting, working = await start_manager(wait_forever), await start_manager(sessions_max=1)
    await working.create_session()
    await see_each_other(waiting, working)

    with pytest.raises(Overloaded, match="is full"):
        await waiting.create_session()


async def test_who_only_waits_takes_no_session_that_asks_for_its_labels_either(start_manager: StartManager) -> None:
    waiting, working = await start_manager(wait_forever, labels={"gpu": "true"}), await start_manager()
    await see_each_other(waiting, working)

    with pytest.raises(NoSuchWorker, match="with the labels gpu=true"):
        await waiting.create_session(labels={"gpu": "true"})


async def test_who_only_waits_takes_no_session_before_it_knows_of_the_others(start_manager: StartManager) -> None:
    waiting = await start_manager(wait_forever)
    waiting._leases.read.clear()

    with pytest.raises(Unavailable, match="not read yet"):
        await waiting.create_session()


async def test_a_kind_that_has_room_again_is_known_at_once(stranger: Stranger, start_manager: StartManager) -> None:
    plain = await start_manager(lease_s=300)  # leases are renewed every 100 s
    coding = await start_manager({"coder": wait_for_ever}, lease_s=300, sessions_max=1)
    await see_each_other(plain, coding)
    await stranger.create(SID, **CODER)
    await eventually(lambda: plain._leases.managers[coding.manager_id].full)

    await stranger.ask(f"jido.session.terminate.{SID}")

    await eventually(partial(can_be_created, stranger, "s2"))


async def test_managers_that_fill_together_go_on_answering(stranger: Stranger, start_manager: StartManager) -> None:
    managers = [await start_manager(lease_s=300, sessions_max=3) for _ in range(3)]
    await see_each_other(*managers)

    async def ask(number: int) -> str:
        for _ in range(30):
            answer = await stranger.create(f"s{number}")
            if "error" not in answer:
                return "active"
            await asyncio.sleep(0.01)
        return str(answer["error"]["code"])

    answers = await asyncio.gather(*(ask(number) for number in range(40)))

    assert sorted(set(answers)) == ["active", "overloaded"]
    assert answers.count("active") == 9


async def test_a_full_manager_beside_one_that_stops_is_full(start_manager: StartManager, stranger: Stranger) -> None:
    full = await start_manager(sessions_max=1)
    await full.create_session()
    stopping = msgspec.structs.replace(full._info(), manager_id="manager_gone", draining=True)
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_gone", codec.encode(stopping), headers={"Nats-TTL": "9s"})
    await eventually(lambda: list(full._leases.others(full.manager_id)) == ["manager_gone"])

    with pytest.raises(Overloaded, match="is full"):
        await full.create_session()


async def test_a_manager_of_any_version_hears_of_no_room(stranger: Stranger, start_manager: StartManager) -> None:
    coding = await start_manager({"coder": wait_for_ever})

    answer = await stranger.ask(f"jido.manager.{coding.manager_id}.create.{SID}", {"session_id": SID})

    assert answer["error"]["code"] == "overloaded"
    assert "does not run the worker 'default'" in answer["error"]["message"]


async def test_a_manager_that_is_stopping_is_worth_waiting_for(start_manager: StartManager, stranger: Stranger) -> None:
    plain, coding = await start_manager(), await start_manager({"coder": wait_for_ever})
    stopping = msgspec.structs.replace(coding._info(), manager_id="manager_gone", draining=True, full=True)
    await coding.close()
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_gone", codec.encode(stopping), headers={"Nats-TTL": "9s"})
    await eventually(lambda: list(plain._leases.others(plain.manager_id)) == ["manager_gone"])

    with pytest.raises(Unavailable, match="is stopping, or answers no commands yet; ask again"):
        await plain.create_session(worker="coder")


async def test_a_manager_that_answers_no_commands_yet_is_worth_waiting_for(
    server: LocalServer, start_manager: StartManager
) -> None:
    plain = await start_manager(lease_s=300)  # which is renewed every 100 s
    settings = Settings(lease_s=300)
    async with SessionManager.connect(server.url, worker={"coder": wait_for_ever}, settings=settings) as embedded:
        await eventually(lambda: embedded.manager_id in plain._leases.others(plain.manager_id))
        with pytest.raises(Unavailable, match="answers no commands yet"):
            await plain.create_session(worker="coder")

        await embedded.start_serving()

        await eventually(lambda: plain._leases.managers[embedded.manager_id].serves)
        assert (await plain.create_session(worker="coder")).owner == embedded.manager_id


async def test_a_worker_that_cannot_be_reached_does_not_stop_one_that_waits(
    server: LocalServer, start_manager: StartManager
) -> None:
    waiting = await start_manager(wait_forever)
    async with SessionManager.connect(server.url, worker=wait_for_ever, settings=Settings(lease_s=LEASE_S)) as embedded:
        await eventually(lambda: embedded.manager_id in waiting._leases.others(waiting.manager_id))

        assert (await waiting.create_session()).owner == waiting.manager_id
        assert (await embedded.create_session()).owner == embedded.manager_id


async def test_a_manager_that_does_not_answer_is_named_as_such(start_manager: StartManager, stranger: Stranger) -> None:
    plain = await start_manager()
    silent = msgspec.structs.replace(
        plain._info(), manager_id="manager_gone", workers={"coder": plain._info().kinds["default"]}
    )
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_gone", codec.encode(silent), headers={"Nats-TTL": "9s"})
    await eventually(lambda: list(plain._leases.others(plain.manager_id)) == ["manager_gone"])

    with pytest.raises(Unavailable, match="does not answer; ask again"):
        await plain.create_session(worker="coder")


async def test_nothing_is_said_about_kinds_before_the_leases_are_read(manager: SessionManager) -> None:
    manager._leases.read.clear()

    with pytest.raises(Unavailable, match="not read yet"):
        await manager.create_session(worker="coder")


async def test_a_repeated_create_finds_its_session_at_a_manager_that_does_not_run_it(
    start_manager: StartManager,
) -> None:
    plain, coding = await start_manager(), await start_manager({"coder": wait_for_ever})
    await see_each_other(plain, coding)
    first = await plain.create_session(session_id=SID, worker="coder")

    again = await plain.create_session(session_id=SID, worker="coder")

    assert (again.replayed, again.owner) == (True, first.owner)


async def test_the_same_id_for_another_kind_is_taken(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager({"default": wait_for_ever, "coder": wait_for_ever}, labels={"gpu": "true"})
    await stranger.create(SID, **CODER)

    for other in ({}, GPU):
        assert (await stranger.create(SID, **other))["error"]["code"] == "already_exists"


async def test_what_is_passed_on_is_spread_before_the_leases_tell(start_manager: StartManager) -> None:
    asked = await start_manager(lease_s=300)
    others = [await start_manager({"coder": wait_for_ever}, lease_s=300) for _ in range(2)]
    for _ in range(10):
        await others[0].create_session(worker="coder")
    await see_each_other(asked, *others)

    for _ in range(40):
        await asked.create_session(worker="coder")

    assert sorted(len(other._sessions) for other in others) in ([25, 25], [24, 26], [23, 27])


# Versions


async def test_a_kind_is_not_introduced_while_an_older_manager_lives(
    stranger: Stranger, start_manager: StartManager
) -> None:
    manager = await start_manager({"default": wait_for_ever, "coder": wait_for_ever})
    old = msgspec.structs.replace(manager._info(), manager_id="manager_old", workers=None, knows=())
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_old", codec.encode(old), headers={"Nats-TTL": "3s"})
    await eventually(lambda: "manager_old" in manager._leases.managers)

    error = (await stranger.create(SID, **CODER))["error"]

    assert error["code"] == "unavailable"
    assert "upgrade all managers first; manager_old does not know the feature 'worker'" in error["message"]
    assert (await stranger.create("s2"))["status"] == "active"
    await eventually(partial(can_be_created, stranger, SID))  # its lease has ended


async def can_be_created(stranger: Stranger, session_id: str) -> bool:
    """Whether a coder can."""
    return (await stranger.create(session_id, **CODER)).get("status") == "active"


# What is no kind


@pytest.mark.parametrize(
    ("worker", "settings", "says"),
    [
        ({}, {}, "at least one worker"),
        ({"a.b": wait_for_ever}, {}, "not 'a.b'"),
        ({"coder": 3}, {}, "the worker coder is 3"),
        ({"coder": wait_for_ever}, {"workers": {"coder": WorkerSettings(isolation="process")}}, "pass a Program"),
        ({"coder": wait_for_ever}, {"workers": {"coder": WorkerSettings(worker_limit="cpu=1")}}, "apply to programs"),
    ],
)
async def test_what_is_no_kind_of_worker_is_told(
    server: LocalServer, worker: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        async with SessionManager.connect(server.url, worker=worker, settings=Settings(lease_s=LEASE_S, **settings)):
            await asyncio.sleep(0)
