"""What programs of all kinds write: every line with an `id` is answered, whatever is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jido_nats.worker.line_id import ID_BYTES_MAX, IdFinder, id_of
from jido_nats.worker.protocol import LINE_BYTES_MAX
from tests.conftest import StartManager
from tests.tools.children.kin import child
from tests.tools.support import Stranger, eventually
from tests.worker.test_isolation import OUTPUT, send, worker
from tests.worker.test_programs import READY, has_said

LONG = b"x" * (LINE_BYTES_MAX + 1)
TOO_LONG = f"a line has at most {LINE_BYTES_MAX} bytes"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"type":"output","data":"' + LONG + b'","id":1}', (1, "too_large", TOO_LONG)),
        (b'{"id":"a","type":"output","data":"' + LONG + b'"}', ("a", "too_large", TOO_LONG)),
        (b'{"type":"printout","id":1}', (1, "bad_request", "the types are ready, idle, activate, touch, output,")),
        (b'{"id":1}', (1, "bad_request", "missing required field `type`")),
        (b'{"type":"output","ephemeral":"yes","id":1}', (1, "bad_request", "`$.ephemeral`")),
        (b'{"type":"say","id":1}', (1, "bad_request", "missing required field `content`")),
        (b'{"type":"output","data":NaN,"id":1}', (1, "bad_request", "invalid character")),
        (b'{"type":"output","data":99999999999999999999,"id":1}', (1, "bad_request", "64 bits")),
        (b'{"type":"say","content":"caf\xe9","id":1}', (1, "bad_request", "not valid UTF-8")),
        (b'{"type":"idle","id":[1.50]}', ([1.5], "bad_request", "`$.id`")),
        (b'{"type":"idle","id":99999999999999999999}', (99999999999999999999, "bad_request", "`$.id`")),
        (b'{"type":"idle","id":nope}', (None, "bad_request", "invalid character")),
        (b'{"type":"idle","id":1}{"type":"idle","id":2}', (1, "bad_request", "trailing characters")),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else "",
)
async def test_a_line_with_an_id_is_answered(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path, line: bytes, answer: tuple[Any, str, str]
) -> None:
    (tmp_path / "lines").write_bytes(line + b"\n")
    await start_manager(child("writes.py", str(tmp_path / "lines")))
    await stranger.create("s1")

    (text,) = await eventually(lambda: has_said(stranger, "s1", 1))

    got = json.loads(text)
    assert (got["type"], got["id"], got["code"]) == ("refused", *answer[:2])
    assert answer[2] in got["message"]


async def test_the_line_after_one_that_is_too_long_is_carried_out(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path
) -> None:
    (tmp_path / "lines").write_bytes(b'{"data":"' + LONG + b'"}\n{"type":"output","data":"after"}\n')
    await start_manager(child("writes.py", str(tmp_path / "lines")))
    await stranger.create("s1")

    assert await eventually(lambda: has_said(stranger, "s1", 1)) == ["after"]


@pytest.mark.parametrize("ready", [b'\xef\xbb\xbf{"type":"ready"}\n', b'{"type":"ready"}\r\n'], ids=["BOM", "CRLF"])
async def test_a_program_of_another_world_starts(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path, ready: bytes
) -> None:
    (tmp_path / "lines").write_bytes(ready)
    await start_manager(child("writes.py", str(tmp_path / "lines")), **READY, start_timeout_s=5)

    assert (await stranger.create("s1")).get("status") == "active"


async def test_output_that_is_too_large_is_refused_in_isolation(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(worker("echoes", wait_ready=True), **READY)
    await stranger.create("s1")
    ear = await stranger.hear(OUTPUT)

    await send(stranger, "s1", "too large")

    await eventually(lambda: len(ear.messages) == 3)
    assert ear.on(OUTPUT)[-1]["data"] == TOO_LONG


# The id of a line that cannot be decoded

TEXT = st.text('"\\{}[]:,id é\n')
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)
)


@given(st.dictionaries(TEXT, PLAIN), st.integers() | TEXT, st.data())
def test_it_is_found_however_the_bytes_come(others: dict[str, Any], wanted: Any, data: st.DataObject) -> None:
    others.pop("id", None)
    items = list(others.items())
    items.insert(data.draw(st.integers(0, len(items))), ("id", wanted))
    line = json.dumps(dict(items), ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(line)))))

    finder = IdFinder()
    for start, end in zip([0, *cuts], [*cuts, len(line)], strict=True):
        finder.feed(line[start:end])

    found = finder.found()
    assert found is not None
    assert json.loads(found) == wanted or len(found) > ID_BYTES_MAX


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"a":{"id":3},"b":[{"id":4}],"c":"id"}', None),
        (b'{"a":"\\"id\\":7","z":"\\\\","id":5', b"5"),
        (b' {"id" : "a,}\\"" ,', b'"a,}\\""'),
        (b'{"id":null}', None),
        (b'{"id":"' + ID_BYTES_MAX * b"x" + b'"}', b"null"),
        (b'log: {"id":1}', None),
        (b'log {"id":1}', None),
        (b'["id",1]', None),
        (b'{"a":' + 99 * b"[" + 99 * b"]" + b',"id":1}', None),
        (b'{"a" "id":1}', None),
        (b"", None),
    ],
)
def test_only_the_objects_own_id_counts(line: bytes, found: bytes | None) -> None:
    assert id_of(line) == found
