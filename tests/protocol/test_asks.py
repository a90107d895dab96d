"""What a server asks of a client, on its way through `LinkCore`: whose it is, how it is answered, what is left."""

from __future__ import annotations

import json
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.events import Ask, Completed, Failure, Opening, Result, Withdrawn
from mcpmux.protocol.upstream import LinkCore
from mcpmux.protocol.upstream.asks import PER_CALL, VOID
from mcpmux.protocol.upstream.attribution import AFTERMATH, OURSELVES
from mcpmux.protocol.upstream.received import Deliver, Greeted, Received, Send, Stray

FORM: Final = {"message": "Name?", "requestedSchema": {"type": "object", "properties": {}}}
URL: Final = {"mode": "url", "message": "Go", "url": "https://x.example", "elicitationId": "e-1"}
MODEL: Final = {"messages": [], "maxTokens": 1}
ROOTS: Final[Capabilities] = {"roots": Raw(b'{"listChanged":true}')}


def wire(message: object) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def asking(method: str = "elicitation/create", params: object = FORM, request: object = "s-1") -> bytes:
    return wire({"jsonrpc": "2.0", "id": request, "method": method, "params": params})


def note(method: str, **params: object) -> bytes:
    return wire({"jsonrpc": "2.0", "method": method, "params": params})


def answer(request: int) -> bytes:
    return wire({"jsonrpc": "2.0", "id": request, "result": {}})


def greeted(core: LinkCore[str], revision: str = "2025-11-25") -> LinkCore[str]:
    request, *_ = core.greet()
    result = {"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    (found,) = core.receive(wire({"jsonrpc": "2.0", "id": request, "result": result}), None, 0.0)
    assert isinstance(found, Greeted)
    return core


def shared(revision: str = "2025-11-25", *, streamed: bool = False) -> LinkCore[str]:
    return greeted(LinkCore[str](streamed=streamed, version="1"), revision)


def opened(core: LinkCore[str], owner: str = "a", caller: str = "ana") -> int:
    return core.open(Opening("tools/call", {"name": Raw(b'"x"')}, caller), owner)[0]


def asked(found: list[Received[str]], owner: str = "a") -> Ask:
    assert len(found) == 1, found
    assert isinstance(found[0], Deliver), found
    assert found[0].owner == owner
    assert isinstance(found[0].event, Ask)
    return found[0].event


def refusal(found: list[Received[str]], reason: str) -> tuple[int, str]:
    sent, stray = found
    assert isinstance(sent, Send), found
    assert isinstance(stray, Stray)
    assert stray.reason == reason
    error = json.loads(sent.wire)["error"]
    return error["code"], error["message"]


# Whose it is -----------------------------------------------------------------------------------------------------


def test_it_goes_to_the_only_call_in_flight_with_its_params_as_they_came() -> None:
    core = shared()
    opened(core)
    raw = b'{"message":"N\\u00e9?", "requestedSchema":{ "n":1e400 },"vendor":[1.0]}'
    ask = asked(core.receive(b'{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":%b}' % raw, None, 0.0))
    assert ask.method == "elicitation/create"
    assert ask.params == {
        "message": Raw(b'"N\\u00e9?"'), "requestedSchema": Raw(b'{ "n":1e400 }'), "vendor": Raw(b"[1.0]"),
    }  # fmt: skip


def test_among_two_calls_it_is_nobodys_and_the_server_is_told_why() -> None:
    core = shared()
    opened(core), opened(core, "b")
    code, text = refusal(core.receive(asking(), None, 0.0), "ask_unattributed")
    assert code == -32600
    assert "shared by several clients" in text
    assert len(core.asks) == 0


def test_without_a_call_and_in_a_call_of_our_own_it_is_nobodys() -> None:
    core = shared()
    refusal(core.receive(asking(), None, 0.0), "ask_idle")
    opened(core, "list", OURSELVES)
    refusal(core.receive(asking(), None, 0.0), "ask_idle")


def test_calls_of_our_own_stand_in_nobodys_way() -> None:
    core = shared()
    opened(core, "list", OURSELVES), opened(core, "a", "ana"), opened(core, "another list", OURSELVES)
    asked(core.receive(asking(), None, 0.0), "a")


@pytest.mark.parametrize(("seconds", "delivered"), [(0.0, False), (AFTERMATH - 0.1, False), (AFTERMATH, True)])
def test_after_another_callers_call_it_is_nobodys_for_a_while(seconds: float, delivered: bool) -> None:
    core = shared()
    core.receive(answer(opened(core, "b", "ben")), None, 100.0)
    opened(core)
    found = core.receive(asking(), None, 100.0 + seconds)
    assert isinstance(found[0], Deliver) is delivered


def test_on_a_lent_link_it_is_the_borrowers_whoever_had_it_before() -> None:
    core = greeted(LinkCore[str](streamed=False, version="1", lent=True))
    core.receive(answer(opened(core, "b", "ben")), None, 100.0)
    opened(core)
    asked(core.receive(asking(), None, 100.0))


def test_on_a_lent_link_a_cancelled_call_of_another_makes_it_nobodys() -> None:
    core = greeted(LinkCore[str](streamed=False, version="1", lent=True))
    core.cancel(opened(core, "b", "ben"), "enough", 100.0)
    opened(core)
    refusal(core.receive(asking(), None, 100.0), "ask_unattributed")


def test_on_a_link_of_one_client_it_goes_to_the_newest_of_its_calls() -> None:
    core = greeted(LinkCore[str](streamed=False, version="1", own=True))
    opened(core, "a"), opened(core, "b"), opened(core, "list", OURSELVES)
    asked(core.receive(asking(), None, 0.0), "b")


def test_with_streams_it_goes_where_it_came() -> None:
    core = shared(streamed=True)
    first, second = opened(core, "a"), opened(core, "b", "ben")
    asked(core.receive(asking(request=1), first, 0.0), "a")
    asked(core.receive(asking(request=2), second, 0.0), "b")
    refusal(core.receive(asking(request=3), None, 0.0), "ask_unattributed")
    core.receive(answer(first), first, 0.0)
    # A stream may outlive its answer; what comes then is about nobody else's call.
    refusal(core.receive(asking(request=4), first, 0.0), "ask_unattributed")


def test_beside_the_streams_it_belongs_to_the_only_call_as_on_a_pipe() -> None:
    """Servers that don't say which request theirs belongs to send it on the GET stream."""
    core = shared(streamed=True)
    opened(core)
    asked(core.receive(asking(), None, 0.0))


# What may be asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "method", "params", "passes"),
    [
        ("2025-11-25", "elicitation/create", URL, True),
        ("2025-06-18", "elicitation/create", URL, False),
        ("2025-06-18", "elicitation/create", FORM, True),
        ("2025-03-26", "elicitation/create", FORM, False),
        ("2025-11-25", "elicitation/create", {**FORM, "mode": "telepathy"}, False),
        ("2025-11-25", "elicitation/create", {**FORM, "mode": 5}, False),
        ("2024-11-05", "sampling/createMessage", MODEL, True),
        ("2025-11-25", "sampling/createMessage", {**MODEL, "tools": []}, True),
        ("2025-06-18", "sampling/createMessage", {**MODEL, "toolChoice": {}}, False),
        ("2025-11-25", "roots/list", None, False),
    ],
)
def test_only_what_was_announced_in_this_revision_may_be_asked(
    revision: str, method: str, params: object, passes: bool
) -> None:
    core = shared(revision)
    opened(core)
    found = core.receive(asking(method, params), None, 0.0)
    if passes:
        asked(found)
    else:
        assert refusal(found, "ask_unannounced")[0] == -32601


def test_roots_are_asked_of_a_client_that_announced_them() -> None:
    core = greeted(LinkCore[str](streamed=False, version="1", own=True, capabilities=ROOTS))
    assert core.announces("roots")
    assert not core.announces("sampling")
    opened(core)
    assert asked(core.receive(b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}', None, 0.0)).params is None
    assert refusal(core.receive(asking(request=2), None, 0.0), "ask_unannounced")[1] == (
        "The client does not support elicitation"
    )


def test_a_progress_token_and_a_task_of_the_server_do_not_go_on() -> None:
    core = shared()
    opened(core)
    meta = {"progressToken": "secret", "vendor/key": 1}
    params = asked(core.receive(asking(params={**FORM, "task": {"ttl": 1}, "_meta": meta}), None, 0.0)).params
    assert params is not None
    assert json.loads(bytes(params["_meta"])) == {"vendor/key": 1}
    assert "task" not in params
    params = asked(core.receive(asking(params={**FORM, "_meta": {"progressToken": 1}}, request=2), None, 0.0)).params
    assert params is not None
    assert params.keys() == FORM.keys()


def test_a_call_asks_only_so_much_at_once() -> None:
    core = shared()
    call = opened(core)
    asks = [asked(core.receive(asking(request=number), None, 0.0)) for number in range(PER_CALL)]
    refusal(core.receive(asking(request="one more"), None, 0.0), "ask_excess")
    core.asks.answer(call, asks[0].id, Result(Raw(b"{}")))
    asked(core.receive(asking(request="one more"), None, 0.0))


# Answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [0, 1, -7, "1", "", "é\n"])
def test_the_answer_carries_the_servers_own_id_and_the_clients_bytes_once(request_id: object) -> None:
    core = shared()
    call = opened(core)
    ask = asked(core.receive(asking(request=request_id), None, 0.0))
    sent = core.asks.answer(call, ask.id, Result(Raw(b'{"action":"accept", "n":1.0}')))
    assert sent is not None
    assert json.loads(sent)["id"] == request_id
    assert b'{"action":"accept", "n":1.0}' in sent
    assert core.asks.answer(call, ask.id, Result(Raw(b"{}"))) is None
    assert len(core.asks) == 0


def test_an_error_of_the_client_is_passed_on_with_its_words() -> None:
    core = shared()
    call = opened(core)
    ask = asked(core.receive(asking(), None, 0.0))
    sent = core.asks.answer(call, ask.id, Failure(-1, "User rejected", Raw(b'{"a":1}')))
    assert sent is not None
    assert json.loads(sent)["error"] == {"code": -1, "message": "User rejected", "data": {"a": 1}}


def test_only_the_call_that_was_asked_can_answer() -> None:
    core = shared(streamed=True)
    first, second = opened(core, "a"), opened(core, "b", "ben")
    ask = asked(core.receive(asking(), first, 0.0))
    assert core.asks.answer(second, ask.id, Result(Raw(b"{}"))) is None
    assert core.asks.answer(first, ask.id, Result(Raw(b"{}"))) is not None


def test_an_id_that_waits_already_is_not_answered_twice() -> None:
    core = shared()
    opened(core)
    asked(core.receive(asking(request=5), None, 0.0))
    assert core.receive(asking(request=5), None, 0.0) == [Stray("ask_repeated", "elicitation/create")]
    asked(core.receive(asking(request="5"), None, 0.0))


def test_what_the_server_takes_back_is_withdrawn_and_its_late_answer_meets_nothing() -> None:
    core = shared()
    call = opened(core)
    ask = asked(core.receive(asking(request=5), None, 0.0))
    assert core.receive(note("notifications/cancelled", requestId="5"), None, 0.0) == []
    assert core.receive(note("notifications/cancelled", requestId=5), None, 0.0) == [Deliver("a", Withdrawn(ask.id))]
    assert core.receive(note("notifications/cancelled", requestId=5), None, 0.0) == []
    again = asked(core.receive(asking(request=5), None, 0.0))
    assert core.asks.answer(call, ask.id, Result(Raw(b"{}"))) is None
    assert core.asks.answer(call, again.id, Result(Raw(b"{}"))) is not None


@pytest.mark.parametrize("ending", ["answered", "cancelled", "dropped"])
def test_what_is_open_when_its_call_ends_gets_an_error(ending: str) -> None:
    core = shared()
    call = opened(core)
    asked(core.receive(asking(request=5), None, 0.0))
    assert core.orphaned() == []
    match ending:
        case "answered":
            core.receive(answer(call), None, 0.0)
        case "cancelled":
            core.cancel(call, "enough", 0.0)
        case "dropped":
            core.drop(call, 0.0)
    (sent,) = core.orphaned()
    assert json.loads(sent) == {"jsonrpc": "2.0", "id": 5, "error": {"code": -32603, "message": VOID}}
    assert core.leftovers == 0


def test_with_the_link_everything_is_forgotten() -> None:
    core = shared()
    opened(core)
    asked(core.receive(asking(), None, 0.0))
    core.lose()
    assert core.leftovers == 0


# The end of an elicitation ---------------------------------------------------------------------------------------


def test_its_end_goes_to_the_call_that_began_it_also_after_the_answer() -> None:
    core = shared()
    call = opened(core)
    ask = asked(core.receive(asking(params=URL), None, 0.0))
    core.asks.answer(call, ask.id, Result(Raw(b'{"action":"accept"}')))
    done = Completed("e-1", {"elicitationId": Raw(b'"e-1"')})
    said = note("notifications/elicitation/complete", elicitationId="e-1")
    assert core.receive(said, None, 0.0) == [Deliver("a", done)]
    core.receive(answer(call), None, 0.0)
    assert core.orphaned() == []
    assert core.receive(said, None, 0.0) == [done]
    assert core.leftovers == 0


def test_an_end_without_an_id_is_nobodys() -> None:
    found = shared().receive(note("notifications/elicitation/complete"), None, 0.0)
    assert found == [Stray("invalid", "notifications/elicitation/complete")]


# Any interleaving ------------------------------------------------------------------------------------------------


class Asking(RuleBasedStateMachine):
    """A server with a stream per call that asks, takes back and answers at any time."""

    @initialize()
    def begin(self) -> None:
        self.core = shared(streamed=True)
        self.calls: dict[int, str] = {}
        self.open: dict[int, tuple[int, int]] = {}  # our number -> call, the server's id
        self.over: list[tuple[int, int]] = []
        self.count = 0

    @rule()
    def a_call_begins(self) -> None:
        self.count += 1
        owner = f"call-{self.count}"
        self.calls[opened(self.core, owner, f"caller-{self.count % 3}")] = owner

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), request=st.integers(0, 5))
    def it_asks(self, data: st.DataObject, request: int) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        found = self.core.receive(asking(request=request), call, 0.0)
        if request in {id_ for _, id_ in self.open.values()}:
            assert isinstance(found[0], Stray)
            return
        ask = asked(found, self.calls[call])
        assert ask.id not in self.open
        self.open[ask.id] = (call, request)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def the_client_answers(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        call, request = self.open.pop(number)
        sent = self.core.asks.answer(call, number, Result(Raw(b"{}")))
        assert sent is not None
        assert json.loads(sent)["id"] == request
        self.over.append((call, number))

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def a_client_answers_again(self, data: st.DataObject) -> None:
        call, number = data.draw(st.sampled_from(self.over))
        assert self.core.asks.answer(call, number, Result(Raw(b"{}"))) is None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def it_takes_one_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        call, request = self.open.pop(number)
        found = self.core.receive(note("notifications/cancelled", requestId=request), None, 0.0)
        assert found == [Deliver(self.calls[call], Withdrawn(number))]
        self.over.append((call, number))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), cancelled=st.booleans())
    def a_call_ends(self, data: st.DataObject, cancelled: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        del self.calls[call]
        if cancelled:
            self.core.cancel(call, "enough", 0.0)
        else:
            self.core.receive(answer(call), call, 0.0)
        void = {number: request for number, (of, request) in self.open.items() if of == call}
        assert sorted(json.loads(sent)["id"] for sent in self.core.orphaned()) == sorted(void.values())
        for number in void:
            del self.open[number]
            self.over.append((call, number))

    @invariant()
    def nothing_is_left_but_what_is_open(self) -> None:
        if hasattr(self, "core"):
            assert set(self.core.asks) == set(self.open)


TestAsking = Asking.TestCase
TestAsking.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
