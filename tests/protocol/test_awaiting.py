"""`protocol/upstream/awaiting.py`: what follows on what, for a call of which its server makes a task.

Source: MCP 2025-11-25 basic/utilities/tasks; the extension io.modelcontextprotocol/tasks (SEP-2663).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from msgspec import Raw

from mcpmux.protocol.events import Ask, Failure, Log, Opening, Progress, Result
from mcpmux.protocol.upstream.awaiting import (
    FIRST_ASK,
    LONGEST_PAUSE,
    LOSSES,
    PAUSE,
    SHORTEST_PAUSE,
    SOON,
    Awaiting,
    Go,
    Over,
    Put,
    Rest,
    Step,
)

ABLE = {"elicitation": Raw(b"{}")}
RELATED = "io.modelcontextprotocol/related-task"
EXTENSION = "io.modelcontextprotocol/tasks"
FORM = {"method": "elicitation/create", "params": {"mode": "form", "message": "?", "requestedSchema": {}}}
REFUSED = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}


def raw(value: object) -> Raw:
    return Raw(json.dumps(value, separators=(",", ":")).encode())


def result(**members: object) -> Result:
    return Result(raw(members))


def started(*, modern: bool) -> Awaiting:
    return Awaiting(Opening("tools/call", {"name": raw("t")}, "ana", client=ABLE), modern=modern)


def at_work(**state: object) -> Awaiting:
    """A call of the modern era whose task is being looked at."""
    awaiting = started(modern=True)
    awaiting.answered(Failure(-32021, "needed", raw(REFUSED)))
    awaiting.answered(result(resultType="task", taskId="t-1", status="working", **state))
    awaiting.rested()
    return awaiting


def asked(step: Step | None) -> tuple[str, dict[str, object]]:
    """Method and params of what follows."""
    assert isinstance(step, Go)
    return step.opening.method, {name: json.loads(bytes(value)) for name, value in (step.opening.params or {}).items()}


def looked(awaiting: Awaiting, status: str, **more: object) -> Step:
    return awaiting.answered(result(resultType="complete", taskId="t-1", status=status, **more))


# 2025-11-25 ------------------------------------------------------------------------------------------------------


def test_what_is_made_a_task_is_waited_for_and_its_id_goes_no_further() -> None:
    awaiting = started(modern=False)
    assert awaiting.may_become and awaiting.cancelling() is None
    step = awaiting.answered(result(task={"taskId": "t-1", "status": "working"}))
    assert asked(step) == ("tasks/result", {"taskId": "t-1"})
    assert not awaiting.may_become
    assert awaiting.cancelling() == Opening(
        "tasks/cancel", {"taskId": raw("t-1")}, "ana", task="t-1", client=ABLE, awaits=True
    )
    named = {RELATED: {"taskId": "t-1"}}
    assert awaiting.answered(result(content=[], _meta={**named, "x": 1})) == Over(result(content=[], _meta={"x": 1}))
    assert awaiting.shown(Ask(1, "m", {"_meta": raw(named), "a": raw(1)})) == Ask(1, "m", {"a": raw(1)})
    assert awaiting.shown(Progress({"progress": raw(1), "_meta": raw(named)})) == Progress({"progress": raw(1)})
    assert awaiting.shown(Log("info", raw({"data": 1, "_meta": named}))) == Log("info", raw({"data": 1}))
    assert json.loads(bytes(awaiting.marked(result(action="accept")).result))["_meta"] == named  # type: ignore[union-attr]


@pytest.mark.parametrize("end", [Failure(-32050, "no"), Result(raw({"content": []}))])
def test_what_is_made_no_task_is_the_answer(end: Result | Failure) -> None:
    assert started(modern=False).answered(end) == Over(end)
    assert started(modern=True).answered(end) == Over(end)


def test_a_lost_answer_is_asked_for_again_unless_it_is_lost_again_and_again() -> None:
    awaiting = started(modern=False)
    assert awaiting.lost(0.0) is None  # nobody knows whether the call was carried out
    awaiting.answered(result(task={"taskId": "t-1", "status": "working"}))
    times = [100.0 + number * SOON for number in range(1, 9)]
    assert all(isinstance(awaiting.lost(now), Rest) for now in times)
    assert asked(awaiting.rested()) == ("tasks/result", {"taskId": "t-1"})
    found = [awaiting.lost(times[-1] + number / 10) for number in range(1, LOSSES + 1)]
    assert [step is None for step in found] == [False] * (LOSSES - 1) + [True]


# The extension ---------------------------------------------------------------------------------------------------


def test_only_a_refusal_for_want_of_tasks_alone_is_asked_again_and_once() -> None:
    awaiting = started(modern=True)
    assert not awaiting.may_become
    step = awaiting.answered(Failure(-32021, "needed", raw(REFUSED)))
    assert asked(step) == ("tools/call", {"name": "t"})
    assert isinstance(step, Go) and step.opening.task
    assert awaiting.may_become
    again = Failure(-32021, "needed", raw(REFUSED))
    assert awaiting.answered(again) == Over(again)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (-32601, REFUSED),
        (-32021, None),
        (-32021, {"requiredCapabilities": {"sampling": {}}}),
        (-32021, {"requiredCapabilities": {"extensions": {EXTENSION: {}, "x/y": {}}}}),
        (-32021, {"requiredCapabilities": {"extensions": {EXTENSION: {}}, "sampling": {}}}),
    ],
)
def test_any_other_refusal_is_the_answer(code: int, data: object) -> None:
    refusal = Failure(code, "no", None if data is None else raw(data))
    assert started(modern=True).answered(refusal) == Over(refusal)


@pytest.mark.parametrize(
    ("wanted", "pause"), [({}, PAUSE), ({"pollIntervalMs": 300}, 0.3), ({"pollIntervalMs": 0}, SHORTEST_PAUSE),
                          ({"pollIntervalMs": 10**9}, LONGEST_PAUSE), ({"pollIntervalMs": -1}, PAUSE)],
)  # fmt: skip
def test_a_task_is_looked_at_as_often_as_its_server_says(wanted: Mapping[str, object], pause: float) -> None:
    awaiting = at_work()
    assert looked(awaiting, "working", **wanted) == Rest(pause)
    assert asked(awaiting.rested()) == ("tasks/get", {"taskId": "t-1"})


def test_what_a_task_asks_is_asked_once_and_answered_together() -> None:
    awaiting = at_work()
    step = looked(awaiting, "input_required", inputRequests={"a": FORM, "b": FORM})
    assert isinstance(step, Put)
    assert [(ask.id, ask.key) for ask in step.asks] == [(FIRST_ASK + 1, "a"), (FIRST_ASK + 2, "b")]
    assert awaiting.answer(FIRST_ASK + 1, result(action="decline")) is None
    assert not awaiting.has_asked(FIRST_ASK + 1)
    assert awaiting.has_asked(FIRST_ASK + 2)
    method, params = asked(awaiting.answer(FIRST_ASK + 2, Failure(-32000, "nobody")))
    assert method == "tasks/update"
    assert params["inputResponses"] == {"a": {"action": "decline"}, "b": {"action": "cancel"}}
    assert isinstance(awaiting.answered(result(resultType="complete")), Rest)
    awaiting.rested()
    assert isinstance(looked(awaiting, "input_required", inputRequests={"a": FORM}), Rest)
    awaiting.rested()
    more = looked(awaiting, "input_required", inputRequests={"c": FORM})
    assert isinstance(more, Put)
    assert more.asks[0].id == FIRST_ASK + 3


def test_what_the_client_cannot_be_asked_ends_the_call_and_its_task() -> None:
    sampling = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
    for asks in ({"a": sampling}, {"a": 1}, [], None):
        step = looked(at_work(), "input_required", inputRequests=asks)
        assert isinstance(step, Over) and step.at_work and isinstance(step.end, Failure)


@pytest.mark.parametrize(
    ("status", "more", "end"),
    [
        ("completed", {"result": {"content": []}}, Result(raw({"content": []}))),
        ("failed", {"error": {"code": -32050, "message": "no", "data": 1}}, Failure(-32050, "no", raw(1))),
        ("cancelled", {"statusMessage": "enough"}, Failure(-32603, "enough")),
    ],
)
def test_the_end_of_a_task_is_the_end_of_its_call(
    status: str, more: Mapping[str, object], end: Result | Failure
) -> None:
    assert looked(at_work(), status, **more) == Over(end)


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_an_end_that_cannot_be_read_is_an_error(status: str) -> None:
    step = looked(at_work(), status)
    assert isinstance(step, Over) and isinstance(step.end, Failure)


def test_a_task_that_is_not_heard_of_any_more_is_cancelled() -> None:
    awaiting = at_work()
    for end in (Failure(-32020, "headers"), result(resultType="complete"), result(taskId="t-2", status="working")):
        step = awaiting.answered(end)
        assert isinstance(step, Over) and step.at_work
        assert isinstance(step.end, Failure) and step.end.code == -32603
