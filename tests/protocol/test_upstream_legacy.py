"""LinkCore: bytes in, values out. Whose is every message that a server may send?"""

from __future__ import annotations

import json
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.protocol.events import Changed, Failure, Log, Offered, Opening, Progress, Result, Updated
from mcpmux.protocol.upstream import LinkCore
from mcpmux.protocol.upstream.attribution import AFTERMATH, GHOST_LIFE, MAX_GHOSTS
from mcpmux.protocol.upstream.received import Broken, Deliver, Greeted, Send, Stray, Unwelcome

EVERYTHING: Final = {
    "tools": {},
    "prompts": {},
    "resources": {"subscribe": True},
    "logging": {},
    "completions": {},
}


def wire(message: object) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def answer(request: int, result: object) -> bytes:
    return wire({"jsonrpc": "2.0", "id": request, "result": result})


def refusal(request: int | None, code: int, message: str, data: object = None) -> bytes:
    return wire({"jsonrpc": "2.0", "id": request, "error": {"code": code, "message": message, "data": data}})


def note(method: str, **params: object) -> bytes:
    return wire({"jsonrpc": "2.0", "method": method, "params": params})


def welcome(request: int, revision: str = "2025-11-25", capabilities: object = EVERYTHING) -> bytes:
    info = {"name": "x", "version": "1"}
    return answer(request, {"protocolVersion": revision, "capabilities": capabilities, "serverInfo": info})


def greeted(
    *, streamed: bool = False, revision: str = "2025-11-25", capabilities: object = EVERYTHING
) -> LinkCore[str]:
    core = LinkCore[str](streamed=streamed, version="1")
    request, *_ = core.greet()
    (found,) = core.receive(welcome(request, revision, capabilities), request if streamed else None, 0.0)
    assert isinstance(found, Greeted)
    return core


def opened(core: LinkCore[str], owner: str, caller: str = "ana", *, progress: bool = False) -> int:
    params = {"name": Raw(b'"echo"')}
    request, *_ = core.open(Opening("tools/call", params, caller, wants_progress=progress), owner)
    return request


def call(core: LinkCore[str], owner: str, now: float, caller: str = "ana") -> None:
    """A whole call, from its opening to its answer."""
    core.receive(answer(opened(core, owner, caller), {}), None, now)


# Greeting --------------------------------------------------------------------------------------------------------


def test_the_newest_revision_is_asked_for_and_what_clients_can_be_asked_is_announced() -> None:
    core = LinkCore[str](streamed=False, version="1.2")
    request, sent, _ = core.greet()
    assert json.loads(sent) == {
        "jsonrpc": "2.0",
        "id": request,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {"sampling": {"tools": {}}, "elicitation": {"form": {}, "url": {}}},
            "clientInfo": {"name": "mcpmux", "version": "1.2"},
        },
    }


def test_extensions_of_the_one_client_behind_a_link_are_announced_but_not_tasks() -> None:
    said = {"com.example/panels": {"deep": [1]}, "io.modelcontextprotocol/tasks": {}}
    core = LinkCore[str](
        streamed=False, version="1", own=True, capabilities={"extensions": Raw(json.dumps(said).encode())}
    )
    announced = json.loads(core.greet()[1])["params"]["capabilities"]
    assert announced == {"extensions": {"com.example/panels": {"deep": [1]}}}


@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
def test_whatever_revision_of_ours_the_server_answers_is_taken(revision: str) -> None:
    core = LinkCore[str](streamed=False, version="1")
    (found,) = core.receive(welcome(core.greet()[0], revision), None, 0.0)
    assert isinstance(found, Greeted)
    assert found.greeting.protocol_version == revision
    assert json.loads(found.wire) == {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert core.leftovers == 0


@pytest.mark.parametrize("revision", ["2026-07-28", "1999-01-01", None, 5])
def test_a_revision_that_is_not_ours_ends_the_greeting_with_a_reason(revision: object) -> None:
    core = LinkCore[str](streamed=False, version="1")
    (found,) = core.receive(answer(core.greet()[0], {"protocolVersion": revision}), None, 0.0)
    assert isinstance(found, Unwelcome)
    assert "protocol version" in found.problem


def test_a_server_that_refuses_a_revision_is_asked_for_the_next_older_one() -> None:
    core = LinkCore[str](streamed=False, version="1")
    request, *_ = core.greet()
    asked = []
    announced = []
    while True:
        (found,) = core.receive(refusal(request, -32602, "Unsupported protocol version"), None, 0.0)
        if not isinstance(found, Send):
            break
        message = json.loads(found.wire)
        asked.append(message["params"]["protocolVersion"])
        announced.append(message["params"]["capabilities"])
        request = message["id"]
        assert found.request == request
    assert asked == ["2025-06-18", "2025-03-26", "2024-11-05"]
    assert announced == [{"sampling": {}, "elicitation": {}}, {"sampling": {}}, {"sampling": {}}]
    assert isinstance(found, Unwelcome)
    assert "Unsupported protocol version" in found.problem


def test_a_server_that_names_its_revisions_is_asked_for_the_newest_of_them() -> None:
    core = LinkCore[str](streamed=False, version="1")
    data = {"supported": ["2024-11-05", "2025-03-26"], "requested": "2025-11-25"}
    (found,) = core.receive(refusal(core.greet()[0], -32602, "Unsupported protocol version", data), None, 0.0)
    assert isinstance(found, Send)
    assert json.loads(found.wire)["params"]["protocolVersion"] == "2025-03-26"


@pytest.mark.parametrize(
    "broken", [b'{"jsonrpc":"2.0","id":%d,"result":[]}', b'{"jsonrpc":"2.0","id":%d,"result":{"a":}}']
)
def test_a_greeting_that_cannot_be_read_ends_with_a_reason_instead_of_silence(broken: bytes) -> None:
    core = LinkCore[str](streamed=False, version="1")
    found = core.receive(broken % core.greet()[0], None, 0.0)
    assert isinstance(found[-1], Unwelcome)
    assert core.leftovers == 0


def test_only_what_the_server_announced_is_asked() -> None:
    core = greeted(capabilities={"tools": {}, "resources": {}, "prompts": None})
    asked = ["tools/list", "tools/call", "resources/read", "ping"]
    not_asked = ["prompts/list", "completion/complete", "logging/setLevel", "resources/subscribe"]
    assert [core.serves(method) for method in asked] == [True] * 4
    assert [core.serves(method) for method in not_asked] == [False] * 4


def test_completion_needs_no_capability_in_the_revision_that_had_none_for_it() -> None:
    assert greeted(revision="2024-11-05", capabilities={}).serves("completion/complete")
    assert not greeted(revision="2025-03-26", capabilities={}).serves("completion/complete")


# Calls -----------------------------------------------------------------------------------------------------------


def test_our_progress_token_is_our_id_beside_the_other_members_of_meta() -> None:
    core = greeted()
    params = {"name": Raw(b'"echo"'), "_meta": Raw(b'{"com.example/trace":"7"}')}
    request, sent, _ = core.open(Opening("tools/call", params, "ana", wants_progress=True), "a")
    assert json.loads(sent)["params"]["_meta"] == {"com.example/trace": "7", "progressToken": request}


def test_a_call_without_interest_in_progress_carries_no_token_and_gets_none() -> None:
    core = greeted()
    request, sent, _ = core.open(Opening("tools/call", {"name": Raw(b'"echo"')}, "ana"), "a")
    assert json.loads(sent)["params"] == {"name": "echo"}
    (found,) = core.receive(note("notifications/progress", progressToken=request, progress=1), None, 0.0)
    assert found == Stray("unknown_token", str(request))


def test_results_keep_their_bytes_and_errors_their_words() -> None:
    core = greeted()
    first, second = opened(core, "a"), opened(core, "b")
    raw = b'{"content":[ {"type":"text","text":"\\u00e9"} ],"n":1e400}'
    (found,) = core.receive(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (first, raw), None, 0.0)
    assert found == Deliver("a", Result(Raw(raw)))
    (found,) = core.receive(refusal(second, -32050, "no", {"why": 1}), None, 0.0)
    assert found == Deliver("b", Failure(-32050, "no", Raw(b'{"why":1}')))
    assert core.leftovers == 0


def test_late_repeated_and_unknown_answers_find_nobody() -> None:
    core = greeted()
    request, cancelled = opened(core, "a"), opened(core, "b")
    core.receive(answer(request, {}), None, 0.0)
    assert core.receive(answer(request, {}), None, 0.0) == [Stray("duplicate", str(request))]
    assert core.cancel(cancelled, "enough", 0.0) is not None
    assert core.receive(answer(cancelled, {}), None, 0.0) == [Stray("late")]
    assert core.receive(answer(cancelled, {}), None, 0.0) == [Stray("duplicate", str(cancelled))]
    assert core.receive(answer(10_000, {}), None, 0.0) == [Stray("unknown_id", "10000")]
    assert core.receive(wire({"jsonrpc": "2.0", "id": "x", "result": {}}), None, 0.0)[0] == Stray("unknown_id", "")


def test_a_cancellation_names_our_id_and_happens_once() -> None:
    core = greeted()
    request = opened(core, "a")
    sent = core.cancel(request, 'said "no"', 0.0)
    assert sent is not None
    assert json.loads(sent) == {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": request, "reason": 'said "no"'},
    }
    assert core.cancel(request, "again", 0.0) is None


def test_an_error_for_an_unreadable_request_ends_the_only_call_that_can_be_meant() -> None:
    core = greeted()
    opened(core, "a")
    assert core.receive(refusal(None, -32700, "Parse error"), None, 0.0) == [
        Deliver("a", Failure(-32700, "Parse error", Raw(b"null")))
    ]
    opened(core, "b"), opened(core, "c")
    (found,) = core.receive(refusal(None, -32700, "Parse error"), None, 0.0)
    assert isinstance(found, Stray)
    assert core.in_flight == 2


def test_when_the_link_is_lost_everybody_who_waited_is_named_and_nothing_is_left() -> None:
    core = greeted()
    opened(core, "a"), opened(core, "b")
    core.open(Opening("ping", None, ""), "ping")
    assert core.lose() == ["a", "b", "ping"]
    assert core.leftovers == 0


# Whose is a message without an address ---------------------------------------------------------------------------


LOG: Final = note("notifications/message", level="info", data="secret of whoever")


def test_a_log_message_belongs_to_the_only_call_in_flight() -> None:
    core = greeted()
    opened(core, "a")
    (found,) = core.receive(LOG, None, 0.0)
    assert isinstance(found, Deliver)
    assert isinstance(found.event, Log)
    assert found.owner == "a"


def test_a_log_message_among_two_calls_of_one_caller_is_nobodys() -> None:
    core = greeted()
    opened(core, "a"), opened(core, "b")
    assert isinstance(core.receive(LOG, None, 0.0)[0], Stray)


@pytest.mark.parametrize(("seconds", "delivered"), [(0.0, False), (AFTERMATH - 0.1, False), (AFTERMATH, True)])
def test_a_log_message_after_another_callers_call_is_nobodys_for_a_while(seconds: float, delivered: bool) -> None:
    core = greeted()
    call(core, "b", 100.0, "ben")
    opened(core, "a", "ana")
    assert isinstance(core.receive(LOG, None, 100.0 + seconds)[0], Deliver) is delivered


def test_the_call_before_ones_own_last_one_counts_as_well() -> None:
    core = greeted()
    call(core, "b", 100.0, "ben")
    call(core, "a", 101.0, "ana")
    call(core, "a", 102.0, "ana")
    opened(core, "a", "ana")
    assert isinstance(core.receive(LOG, None, 120.0)[0], Stray)


def test_what_mcpmux_asks_itself_stands_in_nobodys_way() -> None:
    core = greeted()
    call(core, "list", 100.0, "")
    opened(core, "list", "")
    opened(core, "a", "ana")
    opened(core, "another list", "")
    (found,) = core.receive(LOG, None, 100.0)
    assert isinstance(found, Deliver)
    assert found.owner == "a"
    opened(core, "b", "ben")
    assert isinstance(core.receive(LOG, None, 100.0)[0], Stray)


def test_a_ping_disturbs_nothing_and_any_answer_to_it_is_life() -> None:
    core = greeted()
    opened(core, "a", "ana")
    request, sent, _ = core.open(Opening("ping", None, ""), "ping")
    assert json.loads(sent) == {"jsonrpc": "2.0", "id": request, "method": "ping"}
    assert isinstance(core.receive(LOG, None, 0.0)[0], Deliver)
    assert core.receive(refusal(request, -32601, "what?"), None, 0.0) == [Deliver("ping", Result(Raw(b"{}")))]


def test_a_cancelled_call_of_another_is_remembered_until_it_is_answered() -> None:
    core = greeted()
    request = opened(core, "b", "ben")
    core.cancel(request, "enough", 0.0)
    opened(core, "a", "ana")
    # Long after, the tool may still be running: nothing says that it stopped.
    assert isinstance(core.receive(LOG, None, 4 * AFTERMATH)[0], Stray)
    core.receive(answer(request, {}), None, 4 * AFTERMATH)
    assert isinstance(core.receive(LOG, None, 4.5 * AFTERMATH)[0], Stray)
    assert isinstance(core.receive(LOG, None, 5 * AFTERMATH)[0], Deliver)


def test_a_cancelled_call_that_is_never_answered_is_forgotten_in_the_end() -> None:
    core = greeted()
    core.cancel(opened(core, "b", "ben"), "enough", 0.0)
    opened(core, "a", "ana")
    assert isinstance(core.receive(LOG, None, GHOST_LIFE)[0], Deliver)


def test_a_forgotten_call_that_is_answered_after_all_makes_everybody_uncertain_again() -> None:
    core = greeted()
    request = opened(core, "b", "ben")
    core.cancel(request, "enough", 0.0)
    opened(core, "a", "ana")
    assert isinstance(core.receive(LOG, None, GHOST_LIFE)[0], Deliver)
    core.receive(answer(request, {}), None, GHOST_LIFE)
    assert isinstance(core.receive(LOG, None, GHOST_LIFE + 1)[0], Stray)
    assert isinstance(core.receive(LOG, None, GHOST_LIFE + AFTERMATH)[0], Deliver)


def test_with_streams_of_their_own_log_messages_go_where_they_came() -> None:
    core = greeted(streamed=True)
    first, second = opened(core, "a", "ana"), opened(core, "b", "ben")
    assert [core.receive(LOG, stream, 0.0)[0] for stream in (first, second)] == [
        Deliver("a", Log("info", Raw(b'{"level":"info","data":"secret of whoever"}'))),
        Deliver("b", Log("info", Raw(b'{"level":"info","data":"secret of whoever"}'))),
    ]
    assert isinstance(core.receive(LOG, None, 0.0)[0], Stray)
    core.receive(answer(first, {}), first, 0.0)
    assert isinstance(core.receive(LOG, first, 0.0)[0], Stray)


# What belongs to no call -----------------------------------------------------------------------------------------


def test_changes_come_out_as_values() -> None:
    core = greeted()
    assert core.receive(note("notifications/tools/list_changed"), None, 0.0) == [Changed(Offered.TOOLS)]
    assert core.receive(note("notifications/resources/list_changed"), None, 0.0) == [
        Changed(Offered.RESOURCES),
        Changed(Offered.TEMPLATES),
    ]
    assert core.receive(note("notifications/resources/updated", uri="a://b", title="x"), None, 0.0) == [
        Updated("a://b", Raw(b'{"uri":"a://b","title":"x"}'))
    ]


def test_what_a_server_asks_is_answered_and_never_dropped() -> None:
    core = greeted()

    def asked(method: str, request: object = 7) -> object:
        found = core.receive(wire({"jsonrpc": "2.0", "id": request, "method": method, "params": {}}), None, 0.0)
        assert isinstance(found[0], Send)
        return json.loads(found[0].wire)

    assert asked("ping", "p-1") == {"jsonrpc": "2.0", "id": "p-1", "result": {}}
    reply = asked("vendor/strange")
    assert isinstance(reply, dict)
    assert reply["error"] == {"code": -32601, "message": "Method not found: vendor/strange"}


def test_a_batch_is_taken_entry_by_entry() -> None:
    core = greeted(revision="2025-03-26")
    first, second = opened(core, "a", progress=True), opened(core, "b")
    batch = [
        json.loads(note("notifications/progress", progressToken=first, progress=1)),
        json.loads(answer(second, {})),
        {"jsonrpc": "2.0", "id": 3, "method": "ping"},
        5,
        json.loads(answer(first, {"x": 1})),
    ]
    found = core.receive(wire(batch), None, 0.0)
    assert [type(each) for each in found] == [Deliver, Deliver, Send, Stray, Deliver]
    assert found[4] == Deliver("a", Result(Raw(b'{"x":1}')))


# Wreckage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chatter",
    [b"npm warn deprecated", b"Listening on 8080", b"\xff\xfe", b"123", b'"text"', b'{"level":"info","id":%d}'],
)
def test_chatter_on_stdout_is_logged_and_harms_nobody(chatter: bytes) -> None:
    core = greeted()
    request = opened(core, "a")
    found = core.receive(chatter.replace(b"%d", b"%d" % request), None, 0.0)
    assert [type(each) for each in found] == [Stray]
    assert core.in_flight == 1


@pytest.mark.parametrize(
    "broken",
    [
        b'{"jsonrpc":"2.0","id":%d,"result":{"a":}}',
        b'{"jsonrpc": "2.0", "id": %d, "result": {"text": "half of',
        b'{"jsonrpc":"2.0","id":%d,"result":{"text":"\xff"}}',
        b'{"result":{"a":},"jsonrpc":"2.0","id":%d}',
        b'{"result":{"a":},"id":%d,"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":%d,"id":%d,"result":{}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{},"error":{"code":1,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":%d}',
        b'{"jsonrpc":"2.0","id":%d,"result":null}',
        b'{"jsonrpc":"2.0","id":%d,"result":[]}',
        b'{"jsonrpc":"2.0","id":%d,"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_a_broken_answer_fails_the_call_that_it_belongs_to_and_no_other(broken: bytes) -> None:
    core = greeted()
    request = opened(core, "a")
    opened(core, "b")
    found = core.receive(broken.replace(b"%d", b"%d" % request), None, 0.0)
    assert isinstance(found[-1], Broken)
    assert found[-1].owner == "a"
    assert core.in_flight == 1


def test_an_id_inside_a_broken_answer_is_not_mistaken_for_its_own() -> None:
    core = greeted()
    first, second = opened(core, "a"), opened(core, "b")
    inside = b'{"jsonrpc":"2.0","id":"?","result":{"id":%d},"x":}' % first
    assert [type(each) for each in core.receive(inside, None, 0.0)] == [Stray]
    inside = b'{"result":{"a":[{"x":1,"id":%d}]},"jsonrpc":"2.0","id":"?",}' % second
    assert [type(each) for each in core.receive(inside, None, 0.0)] == [Stray]
    assert core.in_flight == 2


def test_an_oversized_answer_fails_its_call() -> None:
    core = greeted()
    first, second = opened(core, "a"), opened(core, "b")
    found = core.oversized(b'{"jsonrpc":"2.0","id":%d,"result":{"content":"xx' % first, b'xx"}}', None, 0.0)
    assert found[-1] == Broken("a", "it is too large")
    found = core.oversized(b'{"result":{"content":"xx', b'xx"},"jsonrpc":"2.0","id":%d}' % second, None, 0.0)
    assert found[-1] == Broken("b", "it is too large")
    opened(core, "c")
    assert len(core.oversized(b"noise noise", b"noise", None, 0.0)) == 1
    assert len(core.oversized(b'{"jsonrpc":"2.0","method":"notifications/message","params":{', b"}}", None, 0.0)) == 1
    assert core.in_flight == 1


def test_lone_surrogates_are_replaced_and_real_pairs_and_escaped_backslashes_are_not() -> None:
    core = greeted()
    request = opened(core, "a")
    raw = rb'{"t":"\ud83d\ude00 \ud800 \\ud800 \udc00\ud800 \uD83D"}'
    (found,) = core.receive(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (request, raw), None, 0.0)
    assert isinstance(found, Deliver)
    assert isinstance(found.event, Result)
    assert json.loads(bytes(found.event.result))["t"] == "\U0001f600 \ufffd \\ud800 \ufffd\ufffd \ufffd"


def test_a_null_beside_the_answer_is_forgiven() -> None:
    core = greeted()
    first, second = opened(core, "a"), opened(core, "b")
    found = core.receive(b'{"jsonrpc":"2.0","id":%d,"result":{},"error":null}' % first, None, 0.0)
    assert found == [Deliver("a", Result(Raw(b"{}")))]
    broken = wire({"jsonrpc": "2.0", "id": second, "result": None, "error": {"code": 1, "message": "x"}})
    assert core.receive(broken, None, 0.0) == [Deliver("b", Failure(1, "x"))]


@pytest.mark.parametrize(
    "unusual",
    [
        b'{"result":{"a":1},"jsonrpc":"2.0","id":%d}',
        b'{"jsonrpc": "2.0", "id": %d, "result": {"a":1}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{"a":1}}\r',
        b'{"jsonrpc":"2.0","id":%d,"result":{"a":1},"extra":null}',
        b'{"jsonrpc":"\\u0032.0","id":%d,"result":{"a":1}}',
    ],
)
def test_an_answer_written_in_an_unusual_way_is_the_same_answer(unusual: bytes) -> None:
    core = greeted()
    found = core.receive(unusual % opened(core, "a"), None, 0.0)
    if b"u0032" in unusual:
        assert isinstance(found[-1], Broken)  # the version has one spelling
    else:
        assert found == [Deliver("a", Result(Raw(b'{"a":1}')))]


# Any interleaving ------------------------------------------------------------------------------------------------


class Link(RuleBasedStateMachine):
    """A server that says anything at any time, beside a model of who may be told what."""

    @initialize()
    def begin(self) -> None:
        self.core = greeted()
        self.now = 1000.0
        self.open: dict[int, tuple[str, str]] = {}  # id -> owner, caller
        self.over: dict[int, str] = {}
        self.last_seen: dict[str, float] = {}
        self.haunting: dict[int, tuple[str, float]] = {}
        self.number = 0

    @rule(caller=st.sampled_from(["ana", "ben", "cleo", ""]), progress=st.booleans())
    def a_call_begins(self, caller: str, progress: bool) -> None:
        self.number += 1
        owner = f"{caller}-{self.number}"
        request = opened(self.core, owner, caller, progress=progress)
        assert request not in self.open
        assert request not in self.over
        self.open[request] = (owner, caller)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def it_is_answered(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        owner, _ = self.ended(request)
        result = {"for": owner}
        assert self.core.receive(answer(request, result), None, self.now) == [Deliver(owner, Result(Raw(wire(result))))]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def it_is_cancelled(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        _, caller = self.ended(request)
        self.haunting[request] = (caller, self.now + GHOST_LIFE)
        assert self.core.cancel(request, "enough", self.now) is not None

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def its_answer_is_broken(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        owner, _ = self.ended(request)
        found = self.core.receive(b'{"jsonrpc":"2.0","id":%d,"result":{' % request, None, self.now)
        assert [each.owner for each in found if isinstance(each, Broken | Deliver)] == [owner]

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def it_is_answered_once_more(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.over)))
        ghost = self.haunting.pop(request, None)
        if ghost is not None and ghost[0]:
            self.last_seen[ghost[0]] = self.now
        (found,) = self.core.receive(answer(request, {}), None, self.now)
        assert isinstance(found, Stray)

    @rule(request=st.integers(-5, 10**18))
    def an_id_is_answered_that_was_never_given(self, request: int) -> None:
        if request not in self.open and request not in self.over:
            (found,) = self.core.receive(answer(request, {}), None, self.now)
            assert isinstance(found, Stray)

    @precondition(lambda self: self.open or self.over)
    @rule(data=st.data())
    def progress_comes(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted({**self.open, **self.over})))
        (found,) = self.core.receive(note("notifications/progress", progressToken=token, progress=1), None, self.now)
        if isinstance(found, Deliver):
            assert found == Deliver(self.open[token][0], Progress({"progress": Raw(b"1")}))
        else:
            assert isinstance(found, Stray)

    @rule()
    def a_log_message_comes(self) -> None:
        (found,) = self.core.receive(LOG, None, self.now)
        if not isinstance(found, Deliver):
            assert isinstance(found, Stray)
            return
        # Certainty: one call of a caller's, nobody else lately, nobody else's cancelled call that may go on.
        theirs = [each for each in self.open.values() if each[1]] or list(self.open.values())
        assert len(theirs) == 1
        ((owner, caller),) = theirs
        assert found.owner == owner
        others = [seen for who, seen in self.last_seen.items() if who != caller]
        assert not caller or all(self.now - seen >= AFTERMATH for seen in others)
        ghosts = [who for who, until in self.haunting.values() if until > self.now and who not in (caller, "")]
        assert not caller or not ghosts

    @rule(seconds=st.sampled_from([0.1, 5.0, 29.0, 31.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(junk=st.binary(max_size=40))
    def junk_comes(self, junk: bytes) -> None:
        for found in self.core.receive(junk, None, self.now):
            assert isinstance(found, Stray | Send)

    @invariant()
    def nothing_is_left_but_what_is_open(self) -> None:
        if hasattr(self, "core"):
            assert self.core.leftovers == self.core.in_flight == len(self.open)

    def ended(self, request: int) -> tuple[str, str]:
        owner, caller = self.open.pop(request)
        self.over[request] = owner
        if caller:
            self.last_seen[caller] = self.now
        return owner, caller

    def teardown(self) -> None:
        if hasattr(self, "core"):
            assert sorted(self.core.lose()) == sorted(owner for owner, _ in self.open.values())
            assert self.core.leftovers == 0


TestAnyInterleaving = Link.TestCase
TestAnyInterleaving.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_ghosts_are_bounded() -> None:
    core = greeted()
    for _ in range(3 * MAX_GHOSTS):
        core.cancel(opened(core, "a"), "enough", 0.0)
    assert core.ghosts == MAX_GHOSTS
