"""`protocol/bridge.py`: where lines belong, and what a new session must be told; bytes in, bytes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Raw

from mcpmux.errors import InvalidRequest
from mcpmux.protocol import bridge, headers
from mcpmux.protocol.bridge import BridgeCore, Pending

VERSION = "io.modelcontextprotocol/protocolVersion"


def wire(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode()


def greeted(session_id: str | None = "s-1", **capabilities: object) -> BridgeCore:
    """One whose client has its session."""
    core = BridgeCore()
    pending = Pending(bridge.read(wire(id=0, method="initialize", params={"protocolVersion": "2025-11-25"})))
    pending.session_id = session_id
    result = {"protocolVersion": "2025-11-25", "capabilities": capabilities}
    assert core.receive(wire(id=0, result=result), pending) is not None
    return core


def answered(core: BridgeCore, method: str, id_: int = 5, error: bool = False, **params: object) -> bytes | None:
    pending = Pending(bridge.read(wire(id=id_, method=method, params=params)))
    outcome = {"error": {"code": 1, "message": "no"}} if error else {"result": {}}
    return core.receive(wire(id=id_, **outcome), pending)


def test_a_modern_line_has_its_headers_and_no_session() -> None:
    core = greeted()
    line = bridge.read(wire(id=1, method="resources/read", params={"uri": "a:ü", "_meta": {VERSION: "2026-07-28"}}))
    assert core.session_of(line) is None
    assert core.headers(line) == {
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "resources/read",
        "Mcp-Name": "=?base64?YTrDvA==?=",
    }
    legacy = bridge.read(wire(id=1, method="resources/read", params={"uri": "a:b", "_meta": {"x": 1}}))
    assert core.headers(legacy) == {"Mcp-Session-Id": "s-1", "MCP-Protocol-Version": "2025-11-25"}


@pytest.mark.parametrize(("method", "revision"), [("a\nb", "2026-07-28"), ("ping", "2026\r\nX: y"), ("", "1")])
def test_what_cannot_stand_in_a_header_is_refused(method: str, revision: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bridge.read(wire(id="a", method=method, params={"_meta": {VERSION: revision}}))
    assert refused.value.request_id == "a"


def test_a_session_id_that_is_no_header_value_is_none() -> None:
    assert [headers.session_id(text) for text in ("ok", "", "a b", "ü", "a\n", "x" * 2000, None)] == ["ok"] + [None] * 6


def test_an_answer_is_passed_on_once_and_only_where_it_is_awaited() -> None:
    core = greeted()
    pending = Pending(bridge.read(wire(id=1, method="ping")))
    assert core.receive(wire(id="1", result={}), pending) is None
    assert core.receive(wire(id=1, result={}), None) is None
    assert core.receive(wire(id=1, result={}), pending) is not None
    assert core.receive(wire(id=1, result={}), pending) is None


def test_a_batch_waits_for_each_of_its_answers() -> None:
    core = greeted()
    both = [{"jsonrpc": "2.0", "id": id_, "method": "ping"} for id_ in (1, "b")]
    pending = Pending(bridge.read(json.dumps(both).encode()))
    assert pending.line.method is None
    assert core.receive(wire(id="b", result={}), pending) is not None
    rest = json.dumps([{"jsonrpc": "2.0", "id": 1, "result": {}}], indent=1).encode()
    assert json.loads(core.receive(rest, pending) or b"") == [{"jsonrpc": "2.0", "id": 1, "result": {}}]
    assert pending.awaited == set()


def test_what_was_said_to_the_session_is_said_again_to_the_next() -> None:
    core = greeted()
    assert core.restoring() == []
    initialized = wire(method="notifications/initialized")
    assert core.sends(bridge.read(initialized)) == initialized
    answered(core, "logging/setLevel", level="debug")
    answered(core, "logging/setLevel", level="error")
    answered(core, "logging/setLevel", error=True, level="nonsense")
    for uri in ("a:1", "a:2"):
        answered(core, "resources/subscribe", uri=uri)
    answered(core, "resources/unsubscribe", uri="a:1")
    said = [json.loads(one) for one in core.restoring()]
    assert [one["method"] for one in said] == ["notifications/initialized", "logging/setLevel", "resources/subscribe"]
    assert said[1]["params"] == {"level": "error"} and said[2]["params"] == {"uri": "a:2"}
    assert core.greeting is not None and core.greeting.method == "initialize"


def test_the_client_is_told_of_the_changes_that_its_server_announced() -> None:
    core = greeted(tools={"listChanged": True}, prompts={"listChanged": False}, resources={})
    assert core.session is not None and core.session.changes == ("notifications/tools/list_changed",)
    told = core.renewed(bridge.opened(Raw(b'{"protocolVersion":"2025-11-25","capabilities":{"prompts":{}}}'), "s-2"))
    assert told == []
    told = core.renewed(bridge.opened(Raw(b'{"capabilities":{"prompts":{"listChanged":true}}}'), "s-3"))
    assert [json.loads(one)["method"] for one in told] == ["notifications/prompts/list_changed"]


def test_a_question_taken_back_is_named_as_the_client_knows_it() -> None:
    core = greeted()
    core.receive(wire(id=1, method="ping"), None)
    core.renewed(bridge.opened(Raw(b"{}"), "s-2"))
    assert json.loads(core.receive(wire(id=1, method="roots/list"), None) or b"")["id"] == "mcpmux-1"
    back = core.receive(wire(method="notifications/cancelled", params={"requestId": 1, "reason": "r"}), None)
    assert json.loads(back or b"")["params"] == {"requestId": "mcpmux-1", "reason": "r"}
    assert core.receive(wire(method="notifications/cancelled", params={"requestId": 1}), None) is None


@pytest.mark.parametrize("id_", [7, "x-7"])
def test_the_id_of_a_line_that_is_too_long_is_found_at_either_end(id_: object) -> None:
    long = {"jsonrpc": "2.0", "id": id_, "method": "tools/call", "params": {"a": "x" * 2000}}
    for message in (long, dict(reversed(long.items())), {**long, "method": "m"}):
        data = json.dumps(message).encode()
        assert bridge.asked_in(data[:512], data[-512:]) == id_
    assert bridge.asked_in(b'{"method":"x","params":{"id":1,', b"}}") is None


class Questions(RuleBasedStateMachine):
    """However sessions come and go: an answer reaches the very question it was given to, or nobody, and only once."""

    def __init__(self) -> None:
        super().__init__()
        self.core = greeted()
        self.session = 1
        self.number = 0
        self.open: dict[str | int, tuple[int, int]] = {}  # as shown -> its session and number there
        self.void: set[str | int] = set()

    @rule()
    def ask(self) -> None:
        self.number += 1
        shown = json.loads(self.core.receive(wire(id=self.number, method="ping"), None) or b"")["id"]
        assert shown not in self.open and shown not in self.void
        self.open[shown] = (self.session, self.number)

    @rule()
    def lose(self) -> None:
        self.session, self.number = self.session + 1, 0
        told = self.core.renewed(bridge.opened(Raw(b"{}"), f"s-{self.session}"))
        assert {json.loads(one)["params"]["requestId"] for one in told} == set(self.open)
        self.void |= set(self.open)
        self.open.clear()

    @rule(pick=st.integers(0, 50))
    def answer(self, pick: int) -> None:
        if not self.open:
            return
        shown = sorted(self.open, key=str)[pick % len(self.open)]
        session, number = self.open.pop(shown)
        sent = self.core.sends(bridge.read(wire(id=shown, result={"n": 1})))
        assert session == self.session and json.loads(sent or b"")["id"] == number
        assert self.core.sends(bridge.read(wire(id=shown, result={}))) is None

    @rule(pick=st.integers(0, 50))
    def answer_late(self, pick: int) -> None:
        if self.void:
            shown = sorted(self.void, key=str)[pick % len(self.void)]
            self.void.discard(shown)
            assert self.core.sends(bridge.read(wire(id=shown, result={}))) is None

    @invariant()
    def nothing_else_is_kept(self) -> None:
        assert set(self.core._asked) == set(self.open) | self.void


TestQuestions = Questions.TestCase
TestQuestions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
