"""`SessionCore` asks: what a legacy client is asked, in which revision, and whose its answers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.protocol import envelope
from mcpmux.protocol.downstream import legacy
from mcpmux.protocol.downstream.legacy import GARBAGE, Admission, Answered, SessionCore
from mcpmux.protocol.envelope import Reply, Request
from mcpmux.protocol.events import Ask, Completed, Failure, Result

FORM: Final = {"message": "Name?", "requestedSchema": {"type": "object", "properties": {}}}
URL: Final = {"mode": "url", "message": "Go", "url": "https://x.example", "elicitationId": "e-1"}
MODEL: Final = {"messages": [], "maxTokens": 1}
EVERYTHING: Final = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}}


def raw(params: dict[str, Any]) -> dict[str, Raw]:
    return {name: Raw(json.dumps(value).encode()) for name, value in params.items()}


def session(revision: str = "2025-11-25", able: object = EVERYTHING) -> SessionCore:
    params = raw({"protocolVersion": revision, "capabilities": able, "clientInfo": {"name": "t", "version": "1"}})
    return SessionCore(legacy.greeted(Request(0, "initialize", params)))


def admitted(core: SessionCore, request: int | str = 1) -> Admission:
    return core.admit(Request(request, "tools/call", {"name": Raw(b'"x"')}))


def asking(method: str, params: dict[str, Any] | None, number: int = 70) -> Ask:
    return Ask(number, method, None if params is None else raw(params))


def sent(core: SessionCore, call: Admission, ask: Ask) -> dict[str, Any]:
    wire = core.ask(call, ask)
    assert isinstance(wire, bytes), wire
    found = json.loads(wire)
    assert isinstance(found, dict)
    return found


def test_the_request_has_an_id_of_ours_and_the_servers_params() -> None:
    core = session()
    call = admitted(core)
    assert sent(core, call, asking("elicitation/create", FORM)) == {
        "jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": FORM,
    }  # fmt: skip
    assert sent(core, call, asking("roots/list", None, 71)) == {"jsonrpc": "2.0", "id": 2, "method": "roots/list"}
    assert core.asked == 2


@pytest.mark.parametrize(
    ("revision", "able", "method", "params", "passes"),
    [
        ("2025-11-25", {"elicitation": {}}, "elicitation/create", FORM, True),
        ("2025-11-25", {"elicitation": {}}, "elicitation/create", URL, False),
        ("2025-11-25", {"elicitation": {"url": {}}}, "elicitation/create", FORM, False),
        ("2025-11-25", {"elicitation": {"url": {}}}, "elicitation/create", URL, True),
        ("2025-11-25", {"elicitation": True}, "elicitation/create", FORM, False),
        ("2025-11-25", {"elicitation": None}, "elicitation/create", FORM, False),
        ("2025-11-25", {}, "elicitation/create", FORM, False),
        ("2025-06-18", EVERYTHING, "elicitation/create", FORM, True),
        ("2025-06-18", EVERYTHING, "elicitation/create", URL, False),
        ("2025-03-26", EVERYTHING, "elicitation/create", FORM, False),
        ("2024-11-05", EVERYTHING, "elicitation/create", FORM, False),
        ("2025-11-25", {"sampling": {}}, "sampling/createMessage", MODEL, True),
        ("2025-11-25", {"sampling": {}}, "sampling/createMessage", {**MODEL, "tools": []}, False),
        ("2025-11-25", {"sampling": {}}, "sampling/createMessage", {**MODEL, "toolChoice": {}}, False),
        ("2025-11-25", EVERYTHING, "sampling/createMessage", {**MODEL, "tools": []}, True),
        ("2025-06-18", EVERYTHING, "sampling/createMessage", {**MODEL, "tools": []}, False),
        ("2024-11-05", EVERYTHING, "sampling/createMessage", MODEL, True),
        ("2024-11-05", EVERYTHING, "roots/list", None, True),
        ("2025-11-25", {"sampling": {}}, "roots/list", None, False),
        ("2025-11-25", EVERYTHING, "tasks/get", None, False),
    ],
)
def test_a_client_is_asked_what_it_and_its_revision_can_do_and_nothing_else(
    revision: str, able: object, method: str, params: dict[str, Any] | None, passes: bool
) -> None:
    core = session(revision, able)
    call = admitted(core)
    if passes:
        message = sent(core, call, asking(method, params))
        schema = json.loads((Path(__file__).parents[1] / "schemas" / f"{revision}.json").read_text())
        table = "$defs" if "$defs" in schema else "definitions"
        jsonschema.validate(message, {**schema, "$ref": f"#/{table}/ServerRequest"})
        return
    refused = core.ask(call, asking(method, params))
    assert isinstance(refused, Failure)
    assert refused.code == -32601
    assert core.asked == 0


def test_an_answer_is_its_asks_once() -> None:
    core = session()
    first, second = admitted(core, 1), admitted(core, "1")
    sent(core, first, asking("elicitation/create", FORM, 70))
    sent(core, second, asking("elicitation/create", FORM, 71))
    accepted = Raw(b'{"action":"accept", "content":{"n":1.0}}')
    assert core.answered(Reply(2, result=accepted)) == Answered("1", 71, Result(accepted))
    assert core.answered(Reply(2, result=accepted)) == "late"
    assert core.answered(Reply(1, code=-1, message="no", data=Raw(b"1"))) == Answered(
        1, 70, Failure(-1, "no", Raw(b"1"))
    )
    for unknown in (3, 0, -1, "1", None):
        assert core.answered(Reply(unknown, result=accepted)) == "unknown_id"
    assert core.asked == 0


@pytest.mark.parametrize("garbage", [b"null", b"[]", b'"accept"', b"1", b"true"])
def test_an_answer_that_is_no_object_becomes_an_error(garbage: bytes) -> None:
    core = session()
    sent(core, admitted(core), asking("elicitation/create", FORM))
    assert core.answered(Reply(1, result=Raw(garbage))) == Answered(1, 70, GARBAGE)


def test_what_nobody_needs_any_more_is_cancelled_and_its_answer_meets_nothing() -> None:
    core = session()
    call, other = admitted(core, 1), admitted(core, 2)
    for number, owner in ((70, call), (71, call), (72, other)):
        sent(core, owner, asking("roots/list", None, number))
    (wire,) = core.withdraw(call, 70)
    assert json.loads(wire) == {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    assert core.withdraw(call, 70) == []
    assert core.answered(Reply(1, result=Raw(b"{}"))) == "late"
    assert len(core.withdraw(call)) == 1
    core.free(other)
    assert core.asked == 0
    assert core.answered(Reply(3, result=Raw(b"{}"))) == "late"


def test_the_end_of_an_elicitation_is_told_in_the_revision_that_has_it() -> None:
    done = Completed("e-1", raw({"elicitationId": "e-1"}))
    core = session()
    wire = core.encode(admitted(core), done)
    assert wire is not None
    assert json.loads(wire)["params"] == {"elicitationId": "e-1"}
    core = session("2025-06-18")
    assert core.encode(admitted(core), done) is None


class Interleavings(RuleBasedStateMachine):
    """Whatever the order of asks, answers and ends: each answer reaches its own ask, once."""

    @initialize()
    def begin(self) -> None:
        self.core = session()
        self.calls: dict[int, Admission] = {}
        self.open: dict[int, tuple[int, int]] = {}  # id on the wire -> request, ask
        self.asks = 0

    @rule(request=st.integers(0, 3))
    def a_call_begins(self, request: int) -> None:
        if request not in self.calls:
            self.calls[request] = admitted(self.core, request)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def it_asks(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.calls)))
        self.asks += 1
        wire = sent(self.core, self.calls[request], asking("roots/list", None, self.asks))
        assert wire["id"] not in self.open
        self.open[wire["id"]] = (request, self.asks)

    @rule(number=st.integers(-1, 30))
    def the_client_answers_something(self, number: int) -> None:
        found = self.core.answered(Reply(number, result=Raw(b"{}")))
        if number in self.open:
            request, ask = self.open.pop(number)
            assert found == Answered(request, ask, Result(Raw(b"{}")))
        else:
            assert isinstance(found, str)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), told=st.booleans())
    def a_call_ends(self, data: st.DataObject, told: bool) -> None:
        request = data.draw(st.sampled_from(sorted(self.calls)))
        void = {number for number, (of, _) in self.open.items() if of == request}
        if told:
            wires = self.core.withdraw(self.calls[request])
            assert {json.loads(wire)["params"]["requestId"] for wire in wires} == void
        self.core.free(self.calls.pop(request))
        for number in void:
            del self.open[number]

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "core"):
            assert self.core.asked == len(self.open)
            assert self.core.in_flight == len(self.calls)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100, deadline=None)


def test_a_reply_is_read_from_its_bytes() -> None:
    found = envelope.parse(b'{"jsonrpc":"2.0","id":1,"result":{"action":"decline"}}')
    assert found == Reply(1, result=Raw(b'{"action":"decline"}'))
