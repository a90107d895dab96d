"""Task ids in messages, read and exchanged; and whose it is what a server says of a task."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

from mcpmux.protocol import tasks
from mcpmux.protocol.events import Log, Opening, TaskTold
from mcpmux.protocol.upstream import LinkCore
from mcpmux.protocol.upstream.asks import UNAWAITED
from mcpmux.protocol.upstream.attribution import AFTERMATH
from mcpmux.protocol.upstream.received import Deliver, Stray
from tests.protocol.test_asks import FORM, answer, asked, asking, note, refusal, shared

TASK = {"taskId": "t-1", "status": "working", "ttl": 1500, "createdAt": "now", "lastUpdatedAt": "now"}
META = {"_meta": {tasks.RELATED: {"taskId": "t-1"}, "other": 1}}
LONG = 10_000.0


def raw(value: object) -> Raw:
    return Raw(json.dumps(value).encode())


def read(value: Raw | dict[str, Raw] | None) -> object:
    if isinstance(value, dict):
        return {name: json.loads(bytes(member)) for name, member in value.items()}
    return None if value is None else json.loads(bytes(value))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}, (True, True)),
        ({"requests": {"tools": {"call": {}}}}, (True, False)),
        ({"cancel": {}, "requests": {"sampling": {"createMessage": {}}}}, (False, True)),
        ({"requests": {"tools": {"call": True}}}, (False, False)),
        ({}, (False, False)),
        (None, (False, False)),
        ([], (False, False)),
    ],
)
def test_what_a_server_announces_is_taken_literally(capabilities: object, expected: tuple[bool, bool]) -> None:
    found = tasks.announced({"tasks": raw(capabilities)})
    assert (found.calls, found.cancel) == expected


def test_a_tool_says_of_tasks_what_it_is_told_to() -> None:
    tool: dict[str, object] = {"name": "x", "execution": {"taskSupport": "required", "more": 1}}
    told = json.loads(tasks.listed(json.dumps(tool).encode(), tasks.OPTIONAL))
    assert told == {"name": "x", "execution": {"taskSupport": "optional", "more": 1}}
    assert json.loads(tasks.listed(json.dumps(tool).encode(), "")) == {"name": "x", "execution": {"more": 1}}
    alone = b'{"name":"x","execution":{"taskSupport":"optional"}}'
    assert json.loads(tasks.listed(alone, "")) == {"name": "x"}


@pytest.mark.parametrize(
    ("execution", "takes"),
    [({"taskSupport": "optional"}, "optional"), ({"taskSupport": "required"}, "required"),
     ({"taskSupport": "forbidden"}, ""), ({}, ""), ({"taskSupport": 1}, ""), (None, ""), ("optional", "")],
)  # fmt: skip
def test_a_tool_is_no_task_unless_it_says_so(execution: object, takes: str) -> None:
    assert tasks.support(json.dumps({"name": "x", "execution": execution}).encode()) == takes
    assert not tasks.support(b'{"name":"x"}')


@pytest.mark.parametrize(
    ("ttl", "life"), [(1500, 1.5), (0, 0.0), (None, None), (-1, None), ("60", None), (1e400, None)]
)
def test_how_long_a_task_is_kept_is_read_in_seconds(ttl: object, life: float | None) -> None:
    text = json.dumps({**TASK, "ttl": ttl}).replace("Infinity", "1e400")
    found = tasks.standing(Raw(text.encode()))
    assert found is not None
    assert found.life == life


@pytest.mark.parametrize(
    "broken", [[], "t", {}, {**TASK, "taskId": 1}, {**TASK, "status": None}, {**TASK, "taskId": "x" * 1025}]
)
def test_what_is_no_task_is_none(broken: object) -> None:
    assert tasks.standing(raw(broken)) is None
    assert tasks.made(raw({"task": broken})) is None


def test_an_id_is_exchanged_wherever_it_stands_and_nothing_else() -> None:
    assert read(tasks.renamed_made(raw({"task": TASK, **META}), "ours")) == {
        "task": {**TASK, "taskId": "ours"},
        "_meta": {tasks.RELATED: {"taskId": "ours"}, "other": 1},
    }
    assert read(tasks.renamed(raw(TASK), "ours")) == {**TASK, "taskId": "ours"}
    marked = read(tasks.marked(raw({"content": []}), "ours"))
    assert marked == {"content": [], "_meta": {tasks.RELATED: {"taskId": "ours"}}}
    assert tasks.marked(raw({"_meta": 1}), "ours") is None
    assert read(tasks.remarked_raw(raw({"a": 1}), "ours")) == {"a": 1}
    assert read(tasks.unmarked({"_meta": raw(META["_meta"]), "a": raw(1)})) == {"_meta": {"other": 1}, "a": 1}


# Whose it is -----------------------------------------------------------------------------------------------------


def waiting(core: LinkCore[str], task: str, owner: str, caller: str = "ana") -> int:
    """A request for the result of this task."""
    return core.open(Opening("tasks/result", {"taskId": raw(task)}, caller, task=task), owner)[0]


def test_what_is_asked_for_a_task_goes_to_who_waits_for_it_whoever_else_calls() -> None:
    core = shared()
    waiting(core, "t-1", "hers")
    core.open(Opening("tools/call", {"name": raw("x")}, "eve"), "his")
    asked(core.receive(asking(params={**FORM, **META}), None, 0.0), "hers")


def test_what_is_asked_for_a_task_that_nobody_waits_for_is_turned_down() -> None:
    core = shared()
    core.open(Opening("tools/call", {"name": raw("x")}, "eve"), "his")
    waiting(core, "t-2", "another")
    code, text = refusal(core.receive(asking(params={**FORM, **META}), None, 0.0), "ask_unawaited")
    assert (code, text) == (UNAWAITED.code, UNAWAITED.text)


def test_on_a_stream_of_its_own_a_task_may_ask_in_any_call() -> None:
    core = shared(streamed=True)
    call = core.open(Opening("tasks/get", {"taskId": raw("t-1")}, "ana"), "hers")[0]
    core.open(Opening("tools/call", {"name": raw("x")}, "eve"), "his")
    asked(core.receive(asking(params={**FORM, **META}), call, 0.0), "hers")


def test_while_a_task_is_at_work_a_log_message_may_be_its() -> None:
    core = shared()
    made = core.open(Opening("tools/call", {"name": raw("x")}, "ana"), "hers")[0]
    core.receive(answer(made), None, 0.0)
    core.outlasts("t-1", "ana", LONG)
    core.open(Opening("tools/call", {"name": raw("x")}, "eve"), "his")
    message = note("notifications/message", level="error", data="secret")
    late = AFTERMATH * 10
    (found,) = core.receive(message, None, late)
    assert isinstance(found, Stray)
    core.outlasts("t-1", "", 0.0)
    (found,) = core.receive(message, None, late)
    assert isinstance(found, Deliver)
    assert isinstance(found.event, Log)


def test_a_task_that_was_forgotten_counts_no_longer_than_it_lives() -> None:
    core = shared()
    core.outlasts("t-1", "ana", LONG)
    core.open(Opening("tools/call", {"name": raw("x")}, "eve"), "his")
    message = note("notifications/message", level="error", data="hers")
    assert isinstance(core.receive(message, None, LONG - 1)[0], Stray)
    assert isinstance(core.receive(message, None, LONG + 1)[0], Deliver)


def test_how_a_task_stands_belongs_to_no_call() -> None:
    core = shared()
    (found,) = core.receive(note("notifications/tasks/status", **TASK), None, 0.0)
    assert isinstance(found, TaskTold)
    assert found.task == "t-1"
    (found,) = core.receive(note("notifications/tasks/status", taskId=1), None, 0.0)
    assert isinstance(found, Stray)
