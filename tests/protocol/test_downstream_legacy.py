"""`protocol/downstream/legacy.py`: one legacy session, bytes in, bytes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from msgspec import Raw

from mcpmux.errors import InvalidParams, InvalidRequest, MethodUnknown, NotInitialized
from mcpmux.protocol import envelope
from mcpmux.protocol.downstream import legacy
from mcpmux.protocol.downstream.legacy import Admission, SessionCore
from mcpmux.protocol.envelope import Notification, Request
from mcpmux.protocol.events import Failure, Log, Offered, Progress, Quiet, Result


def request(method: str, params: dict[str, Any] | None = None, request_id: int | str = 1) -> Request:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id, "method": method}
    if params is not None:
        body["params"] = params
    found = envelope.parse(json.dumps(body).encode())
    assert isinstance(found, Request)
    return found


def greeted(revision: str = "2025-11-25") -> SessionCore:
    params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    return SessionCore(legacy.greeted(request("initialize", params)))


@pytest.mark.parametrize(
    ("asked", "agreed"),
    [
        ("2025-11-25", "2025-11-25"),
        ("2025-06-18", "2025-06-18"),
        ("2025-03-26", "2025-03-26"),
        ("2024-11-05", "2024-11-05"),
        ("1999-01-01", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
    ],
)
def test_the_revision_is_the_one_asked_for_or_our_newest(asked: str, agreed: str) -> None:
    assert greeted(asked).revision == agreed


@pytest.mark.parametrize("params", [{}, {"protocolVersion": 1}, {"protocolVersion": "x", "capabilities": []}])
def test_a_bad_initialize_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidParams):
        legacy.greeted(request("initialize", params))


def test_the_progress_token_is_taken_out_and_comes_back_typed() -> None:
    core = greeted()
    asked = request("tools/call", {"name": "x", "_meta": {"progressToken": "7", "other": [1]}})
    admitted = core.admit(asked)
    assert json.loads(bytes(admitted.params["_meta"])) == {"other": [1]}
    wire = core.encode(admitted, Progress({"progress": Raw(b"1"), "total": Raw(b"2")}))
    assert wire is not None
    assert json.loads(wire)["params"] == {"progressToken": "7", "progress": 1, "total": 2}
    lone = core.admit(request("tools/call", {"name": "x", "_meta": {"progressToken": 7}}, 2))
    assert "_meta" not in lone.params
    wire = core.encode(lone, Progress({"progress": Raw(b"1")}))
    assert wire is not None
    assert json.loads(wire)["params"]["progressToken"] == 7


def test_who_asked_for_no_progress_gets_none() -> None:
    core = greeted()
    assert core.encode(core.admit(request("tools/call", {"name": "x"})), Progress({"progress": Raw(b"1")})) is None


@pytest.mark.parametrize("token", [{}, [], 1.5, None, True])
def test_a_progress_token_of_another_type_is_refused(token: object) -> None:
    core = greeted()
    asked = request("tools/call", {"name": "x", "_meta": {"progressToken": token}})
    with pytest.raises(InvalidParams):
        core.admit(asked)
    assert core.in_flight == 0


def test_an_id_in_flight_is_refused_and_the_first_call_stays() -> None:
    core = greeted()
    first = core.admit(request("ping", request_id=1))
    with pytest.raises(InvalidRequest) as caught:
        core.admit(request("ping", request_id=1))
    assert caught.value.request_id == 1
    core.admit(request("ping", request_id="1"))
    assert core.in_flight == 2
    core.free(first)
    core.admit(request("ping", request_id=1))


@pytest.mark.parametrize("method", ["Tools/Call", "tools/call ", "tools//call", "server/discover", "__proto__", "x/y"])
def test_a_method_that_is_not_in_the_table_does_not_exist(method: str) -> None:
    with pytest.raises(MethodUnknown):
        greeted().admit(request(method))


def test_initialize_comes_first_and_once() -> None:
    core = SessionCore()
    with pytest.raises(NotInitialized):
        core.admit(request("tools/list"))
    core.admit(request("ping"))
    core.greet(legacy.greeted(request("initialize", {"protocolVersion": "2025-06-18"})))
    with pytest.raises(InvalidRequest):
        core.admit(request("initialize", {"protocolVersion": "2025-06-18"}, 2))
    with pytest.raises(InvalidRequest):
        core.greet(legacy.greeted(request("initialize", {"protocolVersion": "2025-06-18"})))


def test_a_log_message_passes_from_the_level_that_was_set() -> None:
    core = greeted()
    admitted = core.admit(request("tools/call", {"name": "x"}))
    quiet = Log("info", Raw(b'{"level":"info","data":1}'))
    assert core.encode(admitted, quiet) is not None
    core.admit(request("logging/setLevel", {"level": "warning"}, 2))
    assert core.encode(admitted, quiet) is None
    wire = core.encode(admitted, Log("error", Raw(b'{"level":"error","data":1}')))
    assert wire is not None
    assert json.loads(wire) == {
        "jsonrpc": "2.0",
        "method": "notifications/message",
        "params": {"level": "error", "data": 1},
    }
    with pytest.raises(InvalidParams):
        core.admit(request("logging/setLevel", {"level": "loud"}, 3))


def test_only_an_id_in_flight_can_be_cancelled() -> None:
    core = greeted()
    core.admit(request("tools/call", {"name": "x"}, 5))

    def cancel(raw: bytes) -> int | str | None:
        return core.cancels(Notification("notifications/cancelled", {"requestId": Raw(raw)}))

    assert cancel(b"5") == 5
    assert cancel(b'"5"') is None
    assert cancel(b"5.0") is None
    assert cancel(b"6") is None
    assert core.cancels(Notification("notifications/cancelled", None)) is None
    assert core.cancels(Notification("notifications/initialized", {"requestId": Raw(b"5")})) is None


def test_ends_are_encoded_with_the_clients_own_id() -> None:
    core = greeted()
    admitted = core.admit(request("tools/call", {"name": "x"}, "é"))
    done = core.encode(admitted, Result(Raw(b'{"content":[]}')))
    failed = core.encode(admitted, Failure(-32000, "no", Raw(b"[1]")))
    assert done is not None
    assert failed is not None
    assert json.loads(done) == {"jsonrpc": "2.0", "id": "é", "result": {"content": []}}
    assert json.loads(failed)["error"] == {"code": -32000, "message": "no", "data": [1]}
    assert core.encode(admitted, Quiet()) is None


def test_what_belongs_to_no_call_is_encoded_without_one() -> None:
    assert json.loads(legacy.changed(Offered.TEMPLATES))["method"] == "notifications/resources/list_changed"
    assert json.loads(legacy.updated("a+b://c"))["params"] == {"uri": "a+b://c"}


class Interleavings(RuleBasedStateMachine):
    """Whatever the order of requests, ends and cancels: each id is in flight exactly from admission to its end."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.core = greeted()
        self.model: set[int | str] = set()

    @rule(target=calls, request_id=st.integers(0, 3) | st.sampled_from(["0", "1"]))
    def ask(self, request_id: int | str) -> Admission | None:
        if request_id in self.model:
            with pytest.raises(InvalidRequest):
                self.core.admit(request("ping", request_id=request_id))
            return None
        self.model.add(request_id)
        return self.core.admit(request("ping", request_id=request_id))

    @rule(call=consumes(calls))
    def end(self, call: Admission | None) -> None:
        if call is not None:
            self.core.free(call)
            self.model.discard(call.id)

    @rule(request_id=st.integers(0, 3) | st.sampled_from(["0", "1"]))
    def cancel(self, request_id: int | str) -> None:
        params = {"requestId": Raw(json.dumps(request_id).encode())}
        found = self.core.cancels(Notification("notifications/cancelled", params))
        assert found == (request_id if request_id in self.model else None)

    @invariant()
    def counted(self) -> None:
        assert self.core.in_flight == len(self.model)


TestInterleavings = Interleavings.TestCase
