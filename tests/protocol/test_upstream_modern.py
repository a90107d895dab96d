"""ModernCore: bytes in, values out. What goes up in every request, and whose is all that a modern server may say?"""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.protocol.abilities import OF_NOBODY
from mcpmux.protocol.events import (
    Ask,
    Changed,
    Event,
    Failure,
    Log,
    Offered,
    Opening,
    Progress,
    Result,
    Updated,
    Withdrawn,
)
from mcpmux.protocol.upstream import ModernCore
from mcpmux.protocol.upstream.asking import ROUNDS
from mcpmux.protocol.upstream.received import (
    Broken,
    Deliver,
    Greeted,
    Later,
    Outdated,
    Received,
    Resend,
    Send,
    Stray,
    Unread,
    Unwelcome,
)
from tests.schemas.wire import Wire

Json = dict[str, object]
PREFIX = "io.modelcontextprotocol/"
REVISION = "2026-07-28"
CAPABILITIES: Json = {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}}
TOLD: Json = {"toolsListChanged": True}
FORM: Json = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}, "mode": "form"}}
SAMPLE: Json = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
ACCEPTED = Result(Raw(b'{"action":"accept","content":{}}'))
ABLE = {**OF_NOBODY, "roots": Raw(b'{"listChanged":true}'), "extensions": Raw(b'{"x/y":{}}')}


def wire(message: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode()  # type: ignore[dict-item]


def answer(request: int, result: Json) -> bytes:
    return wire({"id": request, "result": {"resultType": "complete", **result}})


def error(request: int, code: int, **data: object) -> bytes:
    return wire({"id": request, "error": {"code": code, "message": "no", **({"data": data} if data else {})}})


def required(request: int, state: str | None = "s", **asked: Json) -> bytes:
    """An answer that asks first."""
    more = {} if state is None else {"requestState": state}
    return answer(request, {"resultType": "input_required", "inputRequests": asked, **more})


def note(method: str, subscription: int | None = None, **params: object) -> bytes:
    meta = {} if subscription is None else {"_meta": {PREFIX + "subscriptionId": subscription}}
    return wire({"method": "notifications/" + method, "params": {**params, **meta}})


def discovered(**more: object) -> Json:
    return {"supportedVersions": [REVISION], "capabilities": CAPABILITIES, "ttlMs": 0, "cacheScope": "public", **more}


def sent(data: bytes) -> Json:
    """A message of ours, as the schema has it."""
    message: Json = json.loads(data)
    Wire(REVISION, "Client").sent(message)
    return message


def params(data: bytes) -> Json:
    found = sent(data)["params"]
    assert isinstance(found, dict)
    return found


def greeted(core: ModernCore[str], capabilities: Json | None = None) -> int:
    """It knows its server; the id of its subscription, 0 if there is none."""
    request, *_ = core.greet()
    found = core.receive(answer(request, discovered(capabilities=capabilities or {"tools": {}})), None, 0.0)
    assert isinstance(found[0], Greeted)
    begun = [one.request for one in found if isinstance(one, Send)]
    return begun[0] or 0 if begun else 0


def ready(**options: bool) -> ModernCore[str]:
    core = ModernCore[str](**{"streamed": False, "version": "1", **options})  # type: ignore[arg-type]
    greeted(core)
    return core


def opened(core: ModernCore[str], owner: str, caller: str = "ana", **more: object) -> int:
    opening = Opening("tools/call", {"name": Raw(b'"t"')}, caller, **more)  # type: ignore[arg-type]
    request, data, _ = core.open(opening, owner)
    sent(data)
    return request


# The greeting ----------------------------------------------------------------------------------------------------


def test_the_greeting_says_who_we_are_and_nothing_of_anybody() -> None:
    core = ModernCore[str](streamed=True, version="1.2")
    request, data, headers = core.greet()
    meta = params(data)["_meta"]
    assert meta == {
        PREFIX + "protocolVersion": REVISION,
        PREFIX + "clientInfo": {"name": "mcpmux", "version": "1.2"},
        PREFIX + "clientCapabilities": {},
    }
    assert headers == {"MCP-Protocol-Version": REVISION, "Mcp-Method": "server/discover"}
    info = {"name": "n", "version": "2"}
    result = discovered(instructions="Ask.", _meta={PREFIX + "serverInfo": info})
    (found, *_) = core.receive(answer(request, result), request, 0.0)
    assert isinstance(found, Greeted)
    assert (found.greeting.protocol_version, found.greeting.instructions) == (REVISION, "Ask.")
    assert json.loads(bytes(found.greeting.server_info)) == info
    assert not core.leftovers


@pytest.mark.parametrize("code", [-32601, -32602, -32600, -32000, -32021, -32022])
def test_an_error_that_is_not_the_eras_own_is_an_older_servers(code: int) -> None:
    core = ModernCore[str](streamed=False, version="1")
    assert core.receive(error(core.greet()[0], code), None, 0.0) == [Outdated()]


@pytest.mark.parametrize("result", [{}, {"supportedVersions": ["2025-11-25"]}, {"protocolVersion": "2025-06-18"}])
def test_an_answer_without_this_revision_is_an_older_servers(result: Json) -> None:
    core = ModernCore[str](streamed=False, version="1")
    assert core.receive(wire({"id": core.greet()[0], "result": result}), None, 0.0) == [Outdated()]


def test_a_server_that_names_what_it_speaks_is_believed() -> None:
    core = ModernCore[str](streamed=False, version="1")
    data = error(core.greet()[0], -32022, supported=["2099-01-01"], requested=REVISION)
    (found,) = core.receive(data, None, 0.0)
    assert isinstance(found, Unwelcome) and "2099-01-01" in found.problem
    data = error(core.greet()[0], -32022, supported=["2099-01-01", "2025-11-25"], requested=REVISION)
    assert core.receive(data, None, 0.0) == [Outdated()]


# Requests ----------------------------------------------------------------------------------------------------------


def test_a_request_says_what_its_own_client_can_do_and_wants() -> None:
    core = ready()
    meta = Raw(b'{"traceparent":"t","progressToken":"theirs","io.modelcontextprotocol/clientCapabilities":{"x":1}}')
    opening = Opening("tools/call", {"name": Raw(b'"t"'), "_meta": meta}, "ana", True, client=ABLE, log_level="info")
    request, data, headers = core.open(opening, "a")
    assert headers is None
    said = params(data)["_meta"]
    assert isinstance(said, dict)
    assert said["traceparent"] == "t" and said["progressToken"] == request
    assert said[PREFIX + "logLevel"] == "info"
    assert said[PREFIX + "clientCapabilities"] == {
        "elicitation": {"form": {}, "url": {}},
        "sampling": {"tools": {}},
        "roots": {},
        "extensions": {"x/y": {}},
    }
    other = params(core.open(Opening("tools/call", {"name": Raw(b'"t"')}, "ben"), "b")[1])["_meta"]
    assert isinstance(other, dict) and other[PREFIX + "clientCapabilities"] == {}


def test_a_request_over_http_has_its_headers() -> None:
    core = ready(streamed=True)
    opening = Opening("tools/call", {"name": Raw('"é"'.encode())}, "ana", mirrored={"Mcp-Param-Region": "eu"})
    _, _, headers = core.open(opening, "a")
    assert headers is not None
    assert (headers["Mcp-Name"], headers["Mcp-Param-Region"]) == ("=?base64?w6k=?=", "eu")


def test_what_this_era_does_not_have_is_not_asked() -> None:
    core = ready()
    assert not core.serves("logging/setLevel") and not core.serves("prompts/list")
    assert core.serves("tools/list") and not core.serves("resources/subscribe")


def test_a_sign_of_life_is_any_answer() -> None:
    core = ready()
    request, data, _ = core.open(Opening("ping", None, ""), "check")
    assert sent(data)["method"] == "server/discover"
    assert core.receive(error(request, -32603), None, 0.0) == [Deliver("check", Result(Raw(b"{}")))]


# Answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_keeps_all_that_the_server_said() -> None:
    core = ready()
    request = opened(core, "a")
    body = b'{"resultType":"complete","content":[],"ttlMs":5,"cacheScope":"private"}'
    found = core.receive(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (request, body), None, 0.0)
    assert found == [Deliver("a", Result(Raw(body)))]
    assert core.receive(answer(request, {}), None, 0.0) == [Stray("duplicate", str(request))]
    assert core.receive(answer(7, {}), None, 0.0) == [Stray("unknown_id", "7")]


def test_an_answer_of_an_unknown_type_is_none() -> None:
    core = ready()
    for said in ("strange", "task", "\\u0073"):
        (found,) = core.receive(answer(opened(core, "a"), {"resultType": said}), None, 0.0)
        assert isinstance(found, Broken)
    tasks = {"extensions": Raw(b'{"io.modelcontextprotocol/tasks":{}}')}
    (found,) = core.receive(answer(opened(core, "a", client=tasks), {"resultType": "task"}), None, 0.0)
    assert isinstance(found, Deliver)


def test_errors_of_the_era_come_to_their_call_as_they_are() -> None:
    core = ready()
    for code in (-32020, -32021, -32022):
        (found,) = core.receive(error(opened(core, "a"), code, x=1), None, 0.0)
        assert found == Deliver("a", Failure(code, "no", Raw(b'{"x": 1}')))


def test_progress_goes_to_the_call_that_wants_it() -> None:
    core = ready()
    wanting, other = opened(core, "a", wants_progress=True), opened(core, "b")
    (found,) = core.receive(note("progress", progressToken=wanting, progress=1), None, 0.0)
    assert found == Deliver("a", Progress({"progress": Raw(b"1")}))
    (found,) = core.receive(note("progress", progressToken=other, progress=1), None, 0.0)
    assert isinstance(found, Stray)


def test_a_log_message_goes_to_the_only_call_it_can_belong_to_and_only_if_wanted() -> None:
    said = note("message", level="info", data="x")
    core = ready()
    silent = opened(core, "a")
    assert isinstance(core.receive(said, None, 0.0)[0], Stray)
    core.receive(answer(silent, {}), None, 0.0)
    opened(core, "b", log_level="info")
    (found,) = core.receive(said, None, 0.0)
    assert isinstance(found, Deliver) and isinstance(found.event, Log) and found.owner == "b"
    opened(core, "c", "ben", log_level="info")
    assert isinstance(core.receive(said, None, 0.0)[0], Stray)
    streamed = ready(streamed=True)
    first, second = opened(streamed, "a", log_level="info"), opened(streamed, "b", "ben")
    assert isinstance(streamed.receive(said, first, 0.0)[0], Deliver)
    assert isinstance(streamed.receive(said, second, 0.0)[0], Stray)


def test_a_server_that_asks_as_older_ones_do_is_not_answered() -> None:
    core = ready()
    opened(core, "a", client=ABLE)
    (found,) = core.receive(wire({"id": 1, "method": "elicitation/create", "params": {}}), None, 0.0)
    assert found == Stray("unknown_request", "elicitation/create")


def test_a_pipe_is_told_of_a_cancelled_call_and_a_stream_is_closed() -> None:
    core = ready()
    request = opened(core, "a")
    said = core.cancel(request, "enough", 0.0)
    assert said is not None and params(said)["requestId"] == request
    assert core.ghosts == 1
    assert core.receive(answer(request, {}), None, 0.0) == [Stray("late")]
    streamed = ready(streamed=True)
    assert streamed.cancel(opened(streamed, "a"), "enough", 0.0) is None
    assert not core.leftovers and not streamed.leftovers


# Rounds ------------------------------------------------------------------------------------------------------------


def test_what_is_asked_reaches_the_client_and_the_request_goes_up_again() -> None:
    core = ready()
    first = opened(core, "a", client=ABLE, wants_progress=True)
    asked = core.receive(required(first, one=FORM, two=SAMPLE), None, 0.0)
    events = [found.event for found in asked if isinstance(found, Deliver)]
    one, two = [event for event in events if isinstance(event, Ask)]
    assert (one.key, one.method, two.key, two.method) == ("one", "elicitation/create", "two", "sampling/createMessage")
    assert not core.waits_for(first) and core.in_flight == 1
    assert core.answer(first, one.id, ACCEPTED) == []
    assert core.answer(first, one.id, ACCEPTED) == []  # nobody waits for it any more
    (again,) = core.answer(first, two.id, Result(Raw(b'{"role":"assistant","content":{},"model":"m"}')))
    assert isinstance(again, Resend) and again.owner == "a" and again.request != first
    said = json.loads(again.wire)["params"]
    assert said["requestState"] == "s" and list(said["inputResponses"]) == ["one", "two"]
    assert said["_meta"]["progressToken"] == again.request
    assert core.receive(answer(first, {}), None, 0.0) == [Stray("duplicate", str(first))]
    assert core.receive(answer(again.request, {}), None, 0.0)[0] == Deliver(
        "a", Result(Raw(b'{"resultType": "complete"}'))
    )
    assert not core.leftovers


def test_a_state_of_one_round_does_not_go_into_the_next() -> None:
    core = ready()
    request = opened(core, "a", client=ABLE)
    (asked,) = core.receive(required(request, one=FORM), None, 0.0)
    assert isinstance(asked, Deliver) and isinstance(asked.event, Ask)
    (again,) = core.answer(request, asked.event.id, ACCEPTED)
    assert isinstance(again, Resend)
    (asked,) = core.receive(required(again.request, None, three=FORM), None, 0.0)
    assert isinstance(asked, Deliver) and isinstance(asked.event, Ask)
    (last,) = core.answer(again.request, asked.event.id, ACCEPTED)
    assert isinstance(last, Resend)
    said = json.loads(last.wire)["params"]
    assert "requestState" not in said and list(said["inputResponses"]) == ["three"]


def test_who_understands_rounds_gets_them() -> None:
    core = ready()
    (found,) = core.receive(required(opened(core, "a", client=ABLE, resumes=True), one=FORM), None, 0.0)
    assert isinstance(found, Deliver) and isinstance(found.event, Result)
    assert not core.leftovers


def test_a_refusal_to_answer_is_told_where_that_can_be_said_and_fails_the_call_elsewhere() -> None:
    core = ready()
    request = opened(core, "a", client=ABLE)
    asked = core.receive(required(request, one=FORM), None, 0.0)
    (again,) = core.answer(request, _ask(asked[0]), Failure(-1, "nobody there"))
    assert isinstance(again, Resend)
    assert json.loads(again.wire)["params"]["inputResponses"] == {"one": {"action": "cancel"}}
    asked = core.receive(required(again.request, one=SAMPLE, two=FORM), None, 0.0)
    found = core.answer(again.request, _ask(asked[0]), Failure(-1, "I would rather not"))
    assert found[0] == Deliver("a", Withdrawn(_ask(asked[1])))
    assert isinstance(found[1], Deliver) and isinstance(found[1].event, Failure)
    assert "I would rather not" in found[1].event.message
    assert not core.leftovers


def test_a_server_cannot_ask_for_ever() -> None:
    core = ready()
    request = opened(core, "a", client=ABLE)
    for _ in range(ROUNDS):
        (again,) = core.receive(required(request), None, 0.0)
        assert isinstance(again, Resend)
        request = again.request
    assert isinstance(core.receive(required(request), None, 0.0)[0], Broken)
    assert not core.leftovers


@pytest.mark.parametrize(
    "asked",
    [
        {"one": FORM},  # the client has not said that it can
        {"one": {"method": "tools/call", "params": {}}},
        {"one": {"method": "ping"}},
        {"one": 1},
        {str(number): FORM for number in range(17)},
    ],
)
def test_what_nobody_may_be_asked_breaks_the_call(asked: Json) -> None:
    core = ready()
    client = {} if asked == {"one": FORM} else ABLE
    (found,) = core.receive(required(opened(core, "a", client=client), **asked), None, 0.0)  # type: ignore[arg-type]
    assert isinstance(found, Broken)
    assert not core.leftovers


def test_a_list_cannot_ask() -> None:
    core = ready()
    request, *_ = core.open(Opening("tools/list", None, "", resumes=True), "a")
    assert isinstance(core.receive(required(request, one=FORM), None, 0.0)[0], Broken)


# Subscriptions -----------------------------------------------------------------------------------------------------


def test_what_the_server_announces_is_listened_to() -> None:
    core = ModernCore[str](streamed=False, version="1")
    first = greeted(core, CAPABILITIES)
    assert first and core.waits_for(first) and not core.in_flight
    assert isinstance(core.receive(note("tools/list_changed", first), None, 0.0)[0], Stray)  # not acknowledged yet
    assert core.receive(note("subscriptions/acknowledged", first, notifications=TOLD), None, 0.0) == []
    assert core.receive(note("tools/list_changed", first), None, 0.0) == [Changed(Offered.TOOLS)]
    assert isinstance(core.receive(note("tools/list_changed", first + 1), None, 0.0)[0], Stray)


def test_another_set_of_resources_is_another_subscription() -> None:
    core = ModernCore[str](streamed=False, version="1")
    first = greeted(core, CAPABILITIES)
    core.receive(note("subscriptions/acknowledged", first, notifications={"toolsListChanged": True}), None, 0.0)
    second = subscribed(core, "a", "u:1")
    agreed = {"toolsListChanged": True, "resourceSubscriptions": ["u:1"]}
    found = core.receive(note("subscriptions/acknowledged", second, notifications=agreed), None, 0.0)
    assert found[0] == Deliver("a", Result(Raw(b"{}")))
    assert isinstance(found[1], Send) and params(found[1].wire)["requestId"] == first
    (updated,) = core.receive(note("resources/updated", second, uri="u:1"), None, 0.0)
    assert updated == Updated("u:1", Raw(b'{"uri":"u:1"}'))
    assert isinstance(core.receive(note("resources/updated", first, uri="u:1"), None, 0.0)[0], Stray)
    core.open(Opening("resources/unsubscribe", {"uri": Raw(b'"u:1"')}, ""), "b")
    done, third = core.due()
    assert done == Deliver("b", Result(Raw(b"{}")))
    assert isinstance(third, Send) and "resourceSubscriptions" not in params(third.wire)["notifications"]  # type: ignore[operator]


def test_who_subscribes_while_a_subscription_begins_waits_for_the_next() -> None:
    core = ModernCore[str](streamed=True, version="1")
    greeted(core, {"resources": {"subscribe": True}})
    first = subscribed(core, "a", "u:1")
    core.open(Opening("resources/subscribe", {"uri": Raw(b'"u:2"')}, ""), "b")
    assert core.due() == []
    found = core.receive(
        note("subscriptions/acknowledged", first, notifications={"resourceSubscriptions": ["u:1"]}), first, 0.0
    )
    assert found[0] == Deliver("a", Result(Raw(b"{}")))
    second = found[1]
    assert isinstance(second, Send) and second.request
    agreed = {"resourceSubscriptions": ["u:1", "u:2"]}
    found = core.receive(note("subscriptions/acknowledged", second.request, notifications=agreed), second.request, 0.0)
    assert found == [Deliver("b", Result(Raw(b"{}"))), Unread(first)]


def test_a_resource_that_the_server_does_not_agree_to_is_a_failure_for_its_caller() -> None:
    core = ModernCore[str](streamed=False, version="1")
    greeted(core, {"resources": {"subscribe": True}})
    request = subscribed(core, "a", "u:1")
    found, ended = core.receive(note("subscriptions/acknowledged", request, notifications={}), None, 0.0)
    assert isinstance(found, Deliver) and isinstance(found.event, Failure)
    assert isinstance(ended, Send) and ended.request is None  # nothing is left to be listened to
    (found,) = core.receive(error(subscribed(core, "b", "u:2"), -32602), None, 0.0)
    assert isinstance(found, Deliver) and found.event == Failure(-32602, "no")


def test_a_subscription_that_ends_is_begun_again_after_a_pause() -> None:
    core = ModernCore[str](streamed=False, version="1")
    request = greeted(core, CAPABILITIES)
    pauses = []
    for _ in range(3):
        core.receive(note("subscriptions/acknowledged", request, notifications=TOLD), None, 0.0)
        (later,) = core.receive(answer(request, {}), None, 1.0)
        assert isinstance(later, Later)
        pauses.append(later.seconds)
        (again,) = core.resume()
        assert isinstance(again, Send) and again.request
        request = again.request
    assert pauses == [1.0, 2.0, 4.0]
    found = core.receive(note("subscriptions/acknowledged", request, notifications=TOLD), None, 2.0)
    assert found == [Changed(Offered.TOOLS)]  # nobody knows what was missed
    assert core.drop(request, 3.0) is None
    assert isinstance(core.due()[0], Later)


def test_a_server_without_subscriptions_is_left_alone() -> None:
    core = ModernCore[str](streamed=False, version="1")
    request = greeted(core, CAPABILITIES)
    assert core.receive(error(request, -32601), None, 0.0) == [Changed(Offered.TOOLS)]
    assert core.resume() == []
    core.open(Opening("resources/subscribe", {"uri": Raw(b'"u:1"')}, ""), "a")
    (found,) = core.due()
    assert isinstance(found, Deliver) and isinstance(found.event, Failure)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [({}, True), ({"listChanged": False}, True), ({"listChanged": True}, False), ([], True), (None, False)],
)
def test_which_lists_grow_old(tools: object, expected: bool) -> None:
    core = ModernCore[str](streamed=False, version="1")
    assert not core.ages(Offered.TOOLS)
    greeted(core, {"logging": {}} if tools is None else {"tools": tools})
    assert core.ages(Offered.TOOLS) is expected


def test_a_list_whose_changes_are_announced_and_not_told_grows_old_like_any_other() -> None:
    core = ModernCore[str](streamed=False, version="1")
    request = greeted(core, {**CAPABILITIES, "prompts": {"listChanged": True}})
    assert not core.ages(Offered.TOOLS)
    less = note("subscriptions/acknowledged", request, notifications={"promptsListChanged": True})
    # What changed until then, nobody knows.
    assert core.receive(less, None, 0.0) == [Changed(Offered.TOOLS)]
    assert core.ages(Offered.TOOLS)
    assert not core.ages(Offered.PROMPTS)


def test_a_refused_subscription_is_no_word_of_changes_until_another_is_agreed_to() -> None:
    core = ModernCore[str](streamed=False, version="1")
    request = greeted(core, CAPABILITIES)
    changed, later = core.receive(error(request, -32603), None, 0.0)
    assert changed == Changed(Offered.TOOLS) and isinstance(later, Later)
    assert core.ages(Offered.TOOLS)
    (again,) = core.resume()
    assert isinstance(again, Send) and again.request
    (later,) = core.receive(error(again.request, -32603), None, 0.0)  # that it changed is said once
    assert isinstance(later, Later)
    (again,) = core.resume()
    assert isinstance(again, Send)
    found = core.receive(note("subscriptions/acknowledged", again.request, notifications=TOLD), None, 0.0)
    assert found == [Changed(Offered.TOOLS)]
    assert not core.ages(Offered.TOOLS)


def test_a_resource_that_is_refused_says_nothing_about_the_lists() -> None:
    core = ModernCore[str](streamed=False, version="1")
    first = greeted(core, CAPABILITIES)
    core.receive(note("subscriptions/acknowledged", first, notifications=TOLD), None, 0.0)
    (found,) = core.receive(error(subscribed(core, "a", "u:1"), -32602), None, 0.0)
    assert isinstance(found, Deliver)
    assert not core.ages(Offered.TOOLS)


def subscribed(core: ModernCore[str], owner: str, uri: str) -> int:
    """The subscription that is begun because somebody wants this resource."""
    _, data, _ = core.open(Opening("resources/subscribe", {"uri": Raw(json.dumps(uri).encode())}, ""), owner)
    assert data == b""
    (begun,) = core.due()
    assert isinstance(begun, Send) and begun.request
    sent(begun.wire)
    return begun.request


def _ask(found: Received[str]) -> int:
    assert isinstance(found, Deliver) and isinstance(found.event, Ask)
    return found.event.id


# Any interleaving --------------------------------------------------------------------------------------------------


class Anything(RuleBasedStateMachine):
    """Calls, progress, cancellations, rounds, late and unknown ids in any order, beside a model of who gets what."""

    @initialize(streamed=st.booleans())
    def begin(self, streamed: bool) -> None:
        self.streamed = streamed
        self.core = ready(streamed=streamed)
        self.calls: dict[str, int] = {}  # in flight at the server: owner -> id
        self.asked: dict[str, tuple[int, list[int]]] = {}  # asked just now: owner -> id and open asks
        self.dead: list[int] = []
        self.number = 0

    def get(self, data: bytes, request: int) -> list[tuple[str, Event]]:
        """What one message gave to whom; what is to be sent counts as sent."""
        found = self.core.receive(data, request if self.streamed else None, 0.0)
        for one in found:
            if isinstance(one, Resend):
                self.resent(one)
        return [(one.owner, one.event) for one in found if isinstance(one, Deliver)]

    def resent(self, again: Resend[str]) -> None:
        former = self.calls.pop(again.owner, 0) or self.asked.pop(again.owner)[0]
        self.dead.append(former)
        self.calls[again.owner] = again.request

    @rule(progress=st.booleans(), resumes=st.booleans())
    def a_call(self, progress: bool, resumes: bool) -> None:
        self.number += 1
        owner = f"{'r' if resumes else 'a'}{self.number}"
        self.calls[owner] = opened(self.core, owner, owner, wants_progress=progress, client=ABLE, resumes=resumes)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def an_answer(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.calls)))
        request = self.calls.pop(owner)
        ((to, event),) = self.get(answer(request, {"n": owner}), request)
        assert to == owner and isinstance(event, Result) and owner.encode() in bytes(event.result)
        self.dead.append(request)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        owner, request = data.draw(st.sampled_from(sorted(self.calls.items())))
        assert all(to == owner for to, _ in self.get(note("progress", progressToken=request, progress=1), request))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), count=st.integers(0, 3))
    def a_question(self, data: st.DataObject, count: int) -> None:
        owner, request = data.draw(st.sampled_from(sorted(self.calls.items())))
        found = self.get(required(request, **{str(number): FORM for number in range(count)}), request)
        assert all(to == owner for to, _ in found)
        asks = [event.id for _, event in found if isinstance(event, Ask)]
        if asks:
            del self.calls[owner]
            self.asked[owner] = (request, asks)
        elif self.calls.get(owner) == request:
            # It understands rounds itself, or was asked too often.
            assert not self.core.waits_for(request)
            del self.calls[owner]
            self.dead.append(request)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), declined=st.booleans())
    def an_answer_of_a_client(self, data: st.DataObject, declined: bool) -> None:
        owner = data.draw(st.sampled_from(sorted(self.asked)))
        request, asks = self.asked[owner]
        ask = asks.pop()
        found = self.core.answer(request, ask, Failure(-1, "no") if declined else ACCEPTED)
        assert bool(found) == (not asks)
        for one in found:
            assert isinstance(one, Resend) and one.owner == owner
            self.resent(one)

    @precondition(lambda self: self.calls or self.asked)
    @rule(data=st.data())
    def a_cancellation(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted([*self.calls, *self.asked])))
        request = self.calls.pop(owner, 0) or self.asked.pop(owner)[0]
        self.core.cancel(request, "enough", 0.0)
        self.dead.append(request)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def what_is_over_said_again(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.dead))
        said = data.draw(
            st.sampled_from(
                [answer(request, {}), required(request, one=FORM), note("progress", progressToken=request, progress=1)]
            )
        )
        assert self.get(said, request) == []

    @rule(request=st.sampled_from([0, 1, 7, 10**9]))
    def an_unknown_id(self, request: int) -> None:
        assert self.get(answer(request, {}), request) == []

    @invariant()
    def all_are_known(self) -> None:
        if hasattr(self, "core"):
            assert self.core.in_flight == len(self.calls) + len(self.asked)
            assert all(self.core.waits_for(request) for request in self.calls.values())

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for owner in sorted(self.calls):
            request = self.calls.pop(owner)
            assert [to for to, _ in self.get(answer(request, {}), request)] == [owner]
        assert sorted(self.core.lose()) == sorted(self.asked)
        assert not self.core.leftovers


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# A server that has changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tools/call", "ping"])
def test_a_server_that_does_not_speak_this_revision_any_more_is_to_be_greeted_anew(method: str) -> None:
    core = ready()
    request, *_ = core.open(Opening(method, None, "ana"), "call")
    broken, unwelcome = core.receive(error(request, -32022, supported=["2025-11-25"]), None, 0.0)
    assert isinstance(broken, Broken) and broken.owner == "call"
    assert isinstance(unwelcome, Unwelcome) and "2025-11-25" in unwelcome.problem
    assert not core.leftovers


@pytest.mark.parametrize("data", [{}, {"supported": [REVISION]}, {"supported": "2025-11-25"}])
def test_that_error_without_what_the_server_speaks_is_the_answer_of_its_call_alone(data: Json) -> None:
    core = ready()
    (found,) = core.receive(error(opened(core, "call"), -32022, **data), None, 0.0)
    assert isinstance(found, Deliver) and isinstance(found.event, Failure)
