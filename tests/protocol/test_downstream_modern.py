"""`protocol/downstream/modern.py` and the era of a request: one stateless request, bytes in, bytes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.errors import (
    HeaderMismatch,
    InvalidParams,
    MetaInvalid,
    MethodUnknown,
    StateRefused,
    VersionUnsupported,
)
from mcpmux.protocol import envelope, headers, revisions
from mcpmux.protocol.downstream import modern
from mcpmux.protocol.downstream.modern import RequestCore, Signature, Wanted
from mcpmux.protocol.envelope import Request
from mcpmux.protocol.events import Failure, InputRequired, Log, Offered, Progress, Quiet, Result, TaskMade
from tests import schemas

Json = dict[str, Any]
META: Json = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
}
LEVEL = "io.modelcontextprotocol/logLevel"


def request(method: str, params: Json | None = None, request_id: int | str = 1) -> Request:
    body: Json = {"jsonrpc": "2.0", "id": request_id, "method": method}
    found = envelope.parse(json.dumps(body | ({} if params is None else {"params": params})).encode())
    assert isinstance(found, Request)
    return found


def values(asked: Request, revision: str = "2026-07-28") -> headers.Values:
    said = headers.standard(asked.method, asked.params, revision)
    return lambda name: [value for header, value in said.items() if header == name]


def admitted(
    method: str, params: Json | None = None, request_id: int | str = 1, by: Signature | None = None, **meta: object
) -> RequestCore:
    asked = request(method, {**(params or {}), "_meta": {**META, **meta}}, request_id)
    return modern.admit(asked, values(asked), by)


def sent(core: RequestCore, wire: bytes | None) -> Json:
    """The message, which the schema of the era must know."""
    assert wire is not None
    found = json.loads(wire)
    assert isinstance(found, dict)
    schemas.check_modern(found, core.admission.method.name)
    return found


def without(name: str) -> Json:
    return {key: value for key, value in META.items() if not key.endswith(name)}


# Which era -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "meta", "header", "in_session", "is_modern"),
    [
        ("tools/list", True, "2026-07-28", False, True),
        ("tools/list", True, "2026-07-28", True, True),  # a session id means nothing there
        ("tools/list", True, None, False, True),  # to be told that the header is missing
        ("tools/list", True, "2025-11-25", False, True),  # to be told that they differ
        ("tools/list", False, "2026-07-28", False, True),  # to be told that `_meta` is missing
        ("tools/list", False, "2099-01-01", False, True),  # to be told what is served
        ("initialize", True, "2026-07-28", False, True),  # there is no such method
        ("initialize", False, "2026-07-28", False, False),  # a client that falls back, and forgot its header
        ("initialize", False, None, False, False),
        ("server/discover", False, None, False, True),
        ("subscriptions/listen", False, None, False, True),
        ("tools/list", False, None, True, False),
        ("tools/list", False, "2025-11-25", True, False),
        ("tools/list", True, "2025-11-25", True, False),  # the session knows its revision
        ("tools/list", False, "2099-01-01", True, False),
        ("tools/list", False, None, False, False),
        ("tools/list", False, "2025-06-18", False, False),
    ],
)
def test_the_era_is_decided_for_each_request(
    method: str, meta: bool, header: str | None, in_session: bool, is_modern: bool
) -> None:
    asked = request(method, {"_meta": META} if meta else {"x": 1})
    assert revisions.is_modern(asked, header, in_session=in_session) is is_modern


def test_a_revision_that_is_only_talked_about_decides_nothing() -> None:
    asked = request("tools/list", {"_meta": {"x": revisions.SAYS_REVISION}})
    assert not revisions.is_modern(asked, None, in_session=False)


@pytest.mark.parametrize("wire", [b'{"jsonrpc":"2.0","id":1,"result":{}}', b'[{"jsonrpc":"2.0","method":"x"}]'])
def test_what_is_no_request_is_of_the_era_that_its_header_says(wire: bytes) -> None:
    message = envelope.parse(wire)
    assert revisions.is_modern(message, "2026-07-28", in_session=False)
    assert not revisions.is_modern(message, None, in_session=False)


# Letting in ----------------------------------------------------------------------------------------------------


def test_what_was_said_to_us_does_not_go_on_and_the_rest_does_as_it_came() -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", "com.example/x": [1.0]}
    core = admitted("tools/call", {"name": "x", "arguments": {"a": 1}}, progressToken="7", **{LEVEL: "info"}, **trace)
    params = {name: json.loads(bytes(raw)) for name, raw in core.admission.params.items()}
    assert params == {"name": "x", "arguments": {"a": 1}, "_meta": trace}
    assert core.admission.token == "7"
    assert core.client == "t/1"
    assert core.log_level == "info"
    assert set(core.capabilities) == {"elicitation"}


def test_nothing_is_left_of_a_meta_that_was_all_for_us() -> None:
    assert admitted("tools/list").admission.params == {}


@pytest.mark.parametrize(
    "meta",
    [
        None,
        7,
        {},
        without("protocolVersion"),
        without("clientCapabilities"),
        {**META, "io.modelcontextprotocol/protocolVersion": 7},
        {**META, "io.modelcontextprotocol/protocolVersion": "x" * 65},
        {**META, "io.modelcontextprotocol/clientCapabilities": None},
        {**META, "io.modelcontextprotocol/clientCapabilities": []},
        {**META, "io.modelcontextprotocol/clientInfo": "me"},
        {**META, LEVEL: "loud"},
        {**META, LEVEL: None},
        {**META, "progressToken": 1.5},
        {**META, "progressToken": None},
    ],
)
def test_a_request_that_does_not_say_what_it_must_is_malformed(meta: object) -> None:
    asked = request("tools/list", {} if meta is None else {"_meta": meta})
    with pytest.raises(MetaInvalid):
        modern.admit(asked, values(asked))


def test_a_member_that_stands_twice_is_malformed() -> None:
    body = json.dumps(META).replace("{", '{"progressToken":1,"progressToken":2,', 1)
    asked = Request(1, "tools/list", {"_meta": Raw(body.encode())})
    with pytest.raises(MetaInvalid):
        modern.admit(asked, values(asked))


def test_a_client_need_not_say_who_it_is() -> None:
    asked = request("server/discover", {"_meta": without("clientInfo")})
    assert modern.admit(asked, values(asked)).client == "?/?"


@pytest.mark.parametrize("revision", ["2025-11-25", "1900-01-01", "v999.0.0", ""])
def test_another_revision_is_refused_with_those_that_are_served(revision: str) -> None:
    asked = request("server/discover", {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": revision}})
    with pytest.raises(VersionUnsupported) as caught:
        modern.admit(asked, values(asked, revision))
    assert (caught.value.requested, caught.value.supported[0]) == (revision, "2026-07-28")


def test_headers_are_looked_at_before_the_revision_and_that_before_the_method() -> None:
    asked = request("no/such", {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "v9"}})
    with pytest.raises(HeaderMismatch):
        modern.admit(asked, values(asked))
    with pytest.raises(VersionUnsupported):
        modern.admit(asked, values(asked, "v9"))


@pytest.mark.parametrize(
    "method",
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "no/such", "Tools/list"],
)
def test_methods_that_the_era_has_not_are_unknown(method: str) -> None:
    with pytest.raises(MethodUnknown):
        admitted(method)


def test_a_request_that_is_made_again_says_so_apart_from_its_params() -> None:
    core = admitted("tools/call", {"name": "x", "inputResponses": {"a": {"b": 1}}, "requestState": "sealed"})
    assert set(core.admission.params) == {"name"}
    assert core.responses is not None
    assert json.loads(bytes(core.responses["a"])) == {"b": 1}
    assert core.state == "sealed"


@pytest.mark.parametrize("method", ["tools/list", "completion/complete", "server/discover"])
def test_where_nothing_can_be_asked_no_state_can_be_ours(method: str) -> None:
    with pytest.raises(StateRefused):
        admitted(method, {"requestState": "made up"})


@pytest.mark.parametrize(
    "wrong",
    [
        ("inputResponses", 7),
        ("inputResponses", None),
        ("inputResponses", {"a": 7}),
        ("inputResponses", {"a": []}),
        ("requestState", 7),
        ("requestState", None),
    ],
)
def test_what_cannot_be_an_answer_is_refused(wrong: tuple[str, object]) -> None:
    with pytest.raises(InvalidParams):
        admitted("tools/call", {"name": "x", wrong[0]: wrong[1]})


def test_what_a_client_is_asked_is_a_result_of_its_own_type() -> None:
    core = admitted("tools/call", {"name": "x"}, "c-1")
    wire = core.encode(InputRequired(Raw(b'{"inputRequests":{"1":{"method":"roots/list"}},"requestState":"s"}')))
    assert sent(core, wire)["result"] == {
        "resultType": "input_required",
        "inputRequests": {"1": {"method": "roots/list"}},
        "requestState": "s",
    }


# Answers -------------------------------------------------------------------------------------------------------

CALLED = {"content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize(
    ("method", "params", "result", "added"),
    [
        ("tools/call", {"name": "x"}, CALLED, {}),
        ("prompts/get", {"name": "x"}, {"messages": []}, {}),
        ("completion/complete", {"ref": {}}, {"completion": {"values": []}}, {}),
        ("resources/read", {"uri": "a:b"}, {"contents": []}, {"ttlMs": 0, "cacheScope": "private"}),
        ("tools/list", {}, {"tools": [], "nextCursor": "c"}, {"ttlMs": modern.FRESH, "cacheScope": "private"}),
    ],
)
def test_a_result_says_that_it_is_complete_and_how_long_it_may_be_kept(
    method: str, params: Json, result: Json, added: Json
) -> None:
    core = admitted(method, params, "r-1")
    message = sent(core, core.encode(Result(Raw(json.dumps(result).encode()))))
    assert message == {"jsonrpc": "2.0", "id": "r-1", "result": {"resultType": "complete", **added, **result}}


@pytest.mark.parametrize("raw", [b"{}", b"{ }", b"{\n}"])
def test_an_empty_result_gets_its_members_too(raw: bytes) -> None:
    core = admitted("tools/call", {"name": "x"})
    wire = core.encode(Result(Raw(raw)))
    assert wire is not None
    assert json.loads(wire)["result"] == {"resultType": "complete"}


@pytest.mark.parametrize("name", ["resultType", "r\\u0065sultType", "\\u0072esultType"])
def test_a_servers_own_member_of_that_name_cannot_make_two(name: str) -> None:
    core = admitted("tools/call", {"name": "x"})
    body = b'{"%b":"input_required","content":[]}' % name.encode()
    wire = core.encode(Result(Raw(body)))
    assert wire is not None
    pairs = json.loads(wire, object_pairs_hook=lambda found: found)
    assert dict(pairs)["result"] == [("resultType", "complete"), ("content", [])]


def test_a_servers_own_word_on_caching_gives_way_to_ours() -> None:
    core = admitted("resources/read", {"uri": "a:b"})
    body = {"contents": [], "cacheScope": "public", "ttlMs": 10**9}
    message = sent(core, core.encode(Result(Raw(json.dumps(body).encode()))))
    assert message["result"] == {"contents": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


def test_a_result_that_cannot_be_read_becomes_an_error() -> None:
    core = admitted("tools/call", {"name": "x"})
    message = sent(core, core.encode(Result(Raw(b'{"resultType":"a","resultType":"b","content":[]}'))))
    assert message["error"]["code"] == -32603


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["content", "resultType", "ttlMs", "cacheScope", "_meta", "é", "\n", ""])


US: Json = {"name": "us", "version": "1"}
OURS = Signature(Raw(json.dumps(US).encode()), replaces=True)
THEIRS = Signature(OURS.identity, replaces=False)


@pytest.mark.parametrize(
    ("by", "meta", "shown"),
    [
        (OURS, None, {modern.SERVER: US}),
        (OURS, {}, {modern.SERVER: US}),
        (OURS, {"a/b": [1]}, {"a/b": [1], modern.SERVER: US}),
        (OURS, {modern.SERVER: {"name": "x", "version": "2"}}, {modern.SERVER: US}),
        (THEIRS, {modern.SERVER: {"name": "x", "version": "2"}}, {modern.SERVER: {"name": "x", "version": "2"}}),
        (THEIRS, {"a/b": [1]}, {"a/b": [1], modern.SERVER: US}),
        (OURS, "no object", "no object"),
        (None, {"a/b": [1]}, {"a/b": [1]}),
    ],
)
@pytest.mark.parametrize("kind", [Result, InputRequired, TaskMade])
def test_a_result_says_who_answers_and_keeps_what_else_its_meta_says(
    kind: type[Result], by: Signature | None, meta: object, shown: object
) -> None:
    body = {"content": [{"type": "text", "text": "_meta"}]} | ({} if meta is None else {"_meta": meta})
    wire = admitted("tools/call", {"name": "x"}, by=by).encode(kind(Raw(json.dumps(body).encode())))
    assert wire is not None
    found = json.loads(wire, object_pairs_hook=_once)["result"]
    assert found["_meta"] == shown
    assert found["content"] == body["content"]


def test_what_we_answer_ourselves_says_who_we_are_once() -> None:
    core = admitted("tools/list", by=OURS)
    listed = sent(core, core.encode(Result(Raw(b'{"tools":[]}'))))
    assert listed["result"]["_meta"] == {modern.SERVER: US}
    at_length = {modern.SERVER: {**US, "title": "Us"}}
    body = {"supportedVersions": [], "capabilities": {}, "_meta": at_length}
    wire = admitted("server/discover", by=OURS).encode(Result(Raw(json.dumps(body).encode())))
    assert wire is not None
    assert json.loads(wire, object_pairs_hook=_once)["result"]["_meta"] == at_length
    closed = json.loads(admitted("subscriptions/listen", {"notifications": {}}, by=OURS).closed())
    assert closed["result"]["_meta"] == {modern.SUBSCRIPTION: 1, modern.SERVER: US}


def test_a_result_that_names_a_member_twice_is_the_servers_own_business_where_we_add_nothing() -> None:
    body = b'{"content":[],"content":[],"_meta":{}}'
    wire = admitted("tools/call", {"name": "x"}, by=OURS).encode(Result(Raw(body)))
    assert wire is not None and body[1:] in wire


@given(st.dictionaries(NAMES, JSON, max_size=6), st.booleans(), st.sampled_from(["tools/call", "resources/read"]))
def test_every_result_of_a_server_keeps_what_is_its_own(result: Json, escaped: bool, method: str) -> None:
    core = admitted(method, {"name": "x", "uri": "a:b"})
    wire = core.encode(Result(Raw(json.dumps(result, ensure_ascii=escaped).encode())))
    assert wire is not None
    found = json.loads(wire, object_pairs_hook=_once)["result"]
    ours = {"resultType": "complete"} | ({} if method == "tools/call" else {"ttlMs": 0, "cacheScope": "private"})
    assert {name: found.pop(name) for name in ours} == ours
    assert found == {name: value for name, value in result.items() if name not in ours}


def _once(pairs: list[tuple[str, Any]]) -> Json:
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (-32002, -32602),
        (-32042, -32603),
        (-32050, -32603),
        (-32099, -32603),
        (-32601, -32601),
        (-32000, -32000),
        (7, 7),
    ],
)
def test_an_error_has_the_code_that_the_era_has_for_it(code: int, shown: int) -> None:
    core = admitted("resources/read", {"uri": "a:b"})
    message = sent(core, core.encode(Failure(code, "no", Raw(b'{"uri":"a:b"}'))))
    assert message["error"] == {"code": shown, "message": "no", "data": {"uri": "a:b"}}


def test_progress_comes_with_the_clients_own_token_and_only_if_it_gave_one() -> None:
    progress = Progress({"progress": Raw(b"1")})
    core = admitted("tools/call", {"name": "x"}, progressToken="7")
    assert sent(core, core.encode(progress))["params"] == {"progressToken": "7", "progress": 1}
    assert admitted("tools/call", {"name": "x"}).encode(progress) is None


@pytest.mark.parametrize(("wanted", "heard"), [(None, []), ("debug", ["debug", "error"]), ("warning", ["error"])])
def test_log_messages_come_only_if_they_were_asked_for(wanted: str | None, heard: list[str]) -> None:
    core = admitted("tools/call", {"name": "x"}, **({} if wanted is None else {LEVEL: wanted}))
    logs = [Log(level, Raw(b'{"level":"%b","data":1}' % level.encode())) for level in ("debug", "error")]
    wires = [wire for log in logs if (wire := core.encode(log)) is not None]
    assert [sent(core, wire)["params"]["level"] for wire in wires] == heard


def test_silence_is_nothing_on_the_wire() -> None:
    assert admitted("tools/call", {"name": "x"}).encode(Quiet()) is None


# A subscription ------------------------------------------------------------------------------------------------


def listening(notifications: object, request_id: int | str = 1) -> RequestCore:
    return admitted("subscriptions/listen", {"notifications": notifications}, request_id)


@pytest.mark.parametrize(
    ("notifications", "lists", "uris", "offers"),
    [
        ({}, (), (), set()),
        ({"toolsListChanged": True, "promptsListChanged": False}, ("toolsListChanged",), (), {Offered.TOOLS}),
        ({"resourcesListChanged": True}, ("resourcesListChanged",), (), {Offered.RESOURCES, Offered.TEMPLATES}),
        ({"resourceSubscriptions": ["a:b", "a:c", "a:b"], "later": 7}, (), ("a:b", "a:c"), set()),
    ],
)
def test_only_what_is_asked_for_is_wanted(
    notifications: Mapping[str, object], lists: tuple[str, ...], uris: tuple[str, ...], offers: set[Offered]
) -> None:
    wanted = listening(notifications).wanted()
    assert (wanted.lists, wanted.uris, wanted.offers) == (lists, uris, offers)


@pytest.mark.parametrize(
    "notifications",
    [
        None, [], "all", {"toolsListChanged": 1}, {"resourceSubscriptions": "a:b"}, {"resourceSubscriptions": [7]},
        {"resourceSubscriptions": [f"a:{n}" for n in range(1025)]},
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_right_is_refused(notifications: object) -> None:
    with pytest.raises(InvalidParams):
        listening(notifications).wanted()
    with pytest.raises(InvalidParams):
        admitted("subscriptions/listen").wanted()


@pytest.mark.parametrize("request_id", [7, "listen-1"])
def test_everything_on_the_stream_carries_the_id_of_the_request(request_id: int | str) -> None:
    core = listening({"toolsListChanged": True}, request_id)
    first = sent(core, core.acknowledged(Wanted(("toolsListChanged",), ("a:b",), ("t",))))
    assert first["method"] == "notifications/subscriptions/acknowledged"
    assert first["params"]["notifications"] == {
        "toolsListChanged": True,
        "resourceSubscriptions": ["a:b"],
        "taskIds": ["t"],
    }
    told = [first, sent(core, core.changed(Offered.TEMPLATES)), sent(core, core.updated("a:b"))]
    assert [one["method"] for one in told[1:]] == [
        "notifications/resources/list_changed", "notifications/resources/updated",
    ]  # fmt: skip
    last = sent(core, core.closed())
    assert last["id"] == request_id
    assert [one["params"]["_meta"] for one in told] == [{"io.modelcontextprotocol/subscriptionId": request_id}] * 3
    assert last["result"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": request_id}


def test_nothing_that_was_not_promised_is_in_the_acknowledgement() -> None:
    core = listening({})
    assert sent(core, core.acknowledged(Wanted((), ())))["params"]["notifications"] == {}
