"""Rewriting: names and URIs change where MCP has them, and every other byte stays as it came."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.catalog import rewrite
from mcpmux.catalog.names import public_uri
from mcpmux.errors import InvalidParams, MalformedMessage, UpstreamBroken
from mcpmux.protocol.envelope import encode, members
from mcpmux.protocol.events import Offered
from mcpmux.protocol.methods import REQUESTS, Subject

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
URIS = st.from_regex(r"(ui|file|repo|github\+x)://[a-z/%+]{0,12}", fullmatch=True)
PLAIN = st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "audio"]), "text": st.text(max_size=20)})
LINK = st.fixed_dictionaries({"type": st.just("resource_link"), "uri": URIS, "name": st.text(max_size=5)})
EMBEDDED = st.fixed_dictionaries(
    {"type": st.just("resource"), "resource": st.fixed_dictionaries({"uri": URIS, "text": st.text(max_size=9)})}
)
BLOCKS = st.lists(PLAIN | LINK | EMBEDDED, max_size=5)


def raw(value: object) -> Raw:
    return Raw(json.dumps(value, separators=(",", ":")).encode())


def fields(**values: object) -> dict[str, Raw]:
    return {name: raw(value) for name, value in values.items()}


def expected(block: dict[str, object], server: str) -> dict[str, object]:
    """What a block has to become, said a second time in the plainest words."""
    if block["type"] == "resource_link":
        return {**block, "uri": public_uri(server, str(block["uri"]))}
    if block["type"] == "resource":
        resource = block["resource"]
        assert isinstance(resource, dict)
        return {**block, "resource": {**resource, "uri": public_uri(server, resource["uri"])}}
    return block


# Lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "member"),
    [
        (Offered.TOOLS, "name"),
        (Offered.PROMPTS, "name"),
        (Offered.RESOURCES, "uri"),
        (Offered.TEMPLATES, "uriTemplate"),
    ],
)
@given(rest=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_a_list_item_changes_its_name_and_nothing_else(what: Offered, member: str, rest: dict[str, object]) -> None:
    rest.pop("_meta", None)
    item = fields(**{**rest, member: "native"})
    shown = members(rewrite.listed(what, item, "github", "public"))
    assert bytes(shown.pop(member)) == b'"public"'
    assert {name: bytes(value) for name, value in shown.items()} == {
        name: bytes(value) for name, value in item.items() if name != member
    }


def test_the_page_of_an_app_follows_its_tool_and_other_meta_stays() -> None:
    item = fields(name="t", _meta={"ui": {"resourceUri": "ui://board/1", "visibility": ["model"]}, "x/y": "ui://no"})
    shown = json.loads(rewrite.listed(Offered.TOOLS, item, "github", "github__t"))
    assert shown == {
        "name": "github__t",
        "_meta": {"ui": {"resourceUri": "ui://github+board/1", "visibility": ["model"]}, "x/y": "ui://no"},
    }


@pytest.mark.parametrize("meta", [b"null", b"7", b'{"ui":null}', b'{"ui":[1]}', b'{ "ui" : { "resourceUri" : 5 } }'])
def test_meta_without_a_page_keeps_its_bytes(meta: bytes) -> None:
    item = {"name": Raw(b'"t"'), "_meta": Raw(meta)}
    assert rewrite.listed(Offered.TOOLS, item, "github", "p") == b'{"name":"p","_meta":' + meta + b"}"


def test_meta_that_says_two_things_is_refused() -> None:
    item = {"name": Raw(b'"t"'), "_meta": Raw(b'{"ui":{"resourceUri":"ui://a","resourceUri":"ui://b"}}')}
    with pytest.raises(MalformedMessage):
        rewrite.listed(Offered.TOOLS, item, "github", "p")


def test_a_pretty_printed_item_becomes_one_line() -> None:
    item = members(b'{\n "name": "t",\r\n "inputSchema": {\n  "type": "object"}}')
    shown = rewrite.listed(Offered.TOOLS, item, "s", "s__t")
    assert b"\n" not in shown
    assert b"\r" not in shown
    assert json.loads(shown) == {"name": "s__t", "inputSchema": {"type": "object"}}


# Params -------------------------------------------------------------------------------------------------------


@given(arguments=JSON, name=st.text(max_size=20))
def test_params_keep_their_bytes_but_for_the_name(arguments: object, name: str) -> None:
    sent = fields(name="github__t", arguments=arguments, _meta={"a": 1})
    up = rewrite.params(REQUESTS["tools/call"], sent, name)
    assert json.loads(bytes(up["name"])) == name
    assert list(up) == list(sent)
    assert up["arguments"] is sent["arguments"]
    assert up["_meta"] is sent["_meta"]


@pytest.mark.parametrize("method", ["resources/read", "resources/subscribe", "resources/unsubscribe"])
def test_a_uri_goes_up_as_the_server_spells_it(method: str) -> None:
    up = rewrite.params(REQUESTS[method], fields(uri="github+file:///a%2Fb"), "file:///a%2Fb")
    assert bytes(up["uri"]) == b'"file:///a%2Fb"'


@pytest.mark.parametrize(
    ("ref", "subject", "name", "up"),
    [
        (
            {"type": "ref/prompt", "name": "github__p", "title": "P"},
            Subject.PROMPT,
            "github__p",
            {"type": "ref/prompt", "name": "native", "title": "P"},
        ),
        (
            {"type": "ref/resource", "uri": "github+x://{y}"},
            Subject.RESOURCE,
            "github+x://{y}",
            {"type": "ref/resource", "uri": "native"},
        ),
        (
            {"type": "ref/prompt", "name": "github__p", "uri": "other+secret://x"},
            Subject.PROMPT,
            "github__p",
            {"type": "ref/prompt", "name": "native"},
        ),
    ],
)
def test_a_reference_is_what_was_decided_on(
    ref: dict[str, str], subject: Subject, name: str, up: dict[str, str]
) -> None:
    sent = fields(ref=ref, argument={"name": "owner", "value": "a"})
    assert rewrite.reference(sent) == (subject, name)
    changed = rewrite.params(REQUESTS["completion/complete"], sent, "native")
    assert json.loads(bytes(changed["ref"])) == up
    assert changed["argument"] is sent["argument"]


@pytest.mark.parametrize(
    "ref",
    [
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'{"type":"ref/tool","name":"x"}',
        b'{"type":"ref/prompt"}',
        b'{"type":"ref/prompt","name":7}',
        b'{"type":"ref/resource","name":"x"}',
        b'{"type":"ref/prompt","name":"a","name":"b"}',
    ],
)
def test_a_reference_that_is_none_is_refused(ref: bytes) -> None:
    with pytest.raises(InvalidParams):
        rewrite.reference({"ref": Raw(ref)})


def test_no_reference_is_refused() -> None:
    with pytest.raises(InvalidParams):
        rewrite.reference({})


# Results ------------------------------------------------------------------------------------------------------


@given(blocks=BLOCKS, structured=JSON)
def test_links_and_embedded_resources_of_a_tool_result_get_the_prefix_of_its_server(
    blocks: list[dict[str, object]], structured: object
) -> None:
    came = {"content": blocks, "structuredContent": structured, "isError": False}
    got = json.loads(bytes(rewrite.result("tools/call", raw(came), "github")))
    assert got == {**came, "content": [expected(block, "github") for block in blocks]}


@given(blocks=st.lists(PLAIN, max_size=5), structured=JSON)
def test_a_result_without_resources_is_the_same_object(blocks: list[dict[str, object]], structured: object) -> None:
    came = raw({"content": blocks, "structuredContent": structured})
    assert rewrite.result("tools/call", came, "github") is came


@given(blocks=st.lists(PLAIN, max_size=3))
def test_a_text_that_only_speaks_of_resources_stays_as_it_is(blocks: list[dict[str, object]]) -> None:
    spoken = {"type": "text", "text": '{"type": "resource_link", "uri": "x://y"}'}
    came = raw({"content": [*blocks, spoken], "structuredContent": {"resource": {"uri": "x://y"}}})
    assert rewrite.result("tools/call", came, "github") is came


def test_blocks_beside_a_link_keep_their_bytes() -> None:
    text = b'{ "type":"text",  "text":"\\u00e9\\/" }'
    link = b'{"type":"resource_link","uri":"x://y","name":"n"}'
    came = Raw(b'{"content":[' + text + b"," + link + b'],"structuredContent": { "a" : 1.0 }}')
    got = bytes(rewrite.result("tools/call", came, "s"))
    assert got == b'{"content":[' + text + b"," + link.replace(b"x://y", b"s+x://y") + (
        b'],"structuredContent":{ "a" : 1.0 }}'
    )


def test_a_server_cannot_pass_its_resource_off_as_anothers() -> None:
    came = raw({"content": [{"type": "resource_link", "uri": "admin+x://y", "name": "n"}]})
    assert b'"github+admin+x://y"' in bytes(rewrite.result("tools/call", came, "github"))


@pytest.mark.parametrize(
    "block",
    [
        b'{"type":"\\u0072esource_link","uri":"admin+x://y"}',
        b'{"type":"resourc\\u0065\\u005flink","uri":"admin+x://y"}',
        b'{"\\u0074ype":"resource_link","\\u0075ri":"admin+x://y"}',
        b'{"type":"\\u0072esource","\\u0072esource":{"\\u0075ri":"admin+x://y"}}',
    ],
)
def test_escapes_hide_no_link(block: bytes) -> None:
    got = bytes(rewrite.result("tools/call", Raw(b'{"content":[' + block + b"]}"), "github"))
    assert b"github+admin+x://y" in got


@pytest.mark.parametrize(
    "body",
    [
        b'{"content":[{"type":"resource_link","uri":"x://a","uri":"admin+x://b"}]}',
        b'{"content":[{"type":"text","type":"resource_link","uri":"admin+x://b"}]}',
        b'{"content":[],"content":[{"type":"resource_link","uri":"admin+x://b"}]}',
        b'{"content":[{"type":"resource","resource":{"uri":"x://a","uri":"admin+x://b"}}]}',
    ],
)
def test_a_result_that_says_two_things_is_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        rewrite.result("tools/call", Raw(body), "github")


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b'"resource"',
        b'{"content":null,"x":"resource"}',
        b'{"content":["resource",7,null,[]]}',
        b'{"content":[{"type":"resource","resource":null}]}',
        b'{"content":[{"type":"resource_link","uri":7}]}',
        b'{"content":[{"type":"resource_link"}]}',
    ],
)
def test_a_result_of_another_shape_passes_as_it_came(body: bytes) -> None:
    came = Raw(body)
    assert rewrite.result("tools/call", came, "github") is came


@given(blocks=BLOCKS)
def test_messages_of_a_prompt_are_rewritten_like_results(blocks: list[dict[str, object]]) -> None:
    came = {"description": "d", "messages": [{"role": "user", "content": block} for block in blocks]}
    got = json.loads(bytes(rewrite.result("prompts/get", raw(came), "github")))
    assert [message["content"] for message in got["messages"]] == [expected(block, "github") for block in blocks]
    several = {"messages": [{"role": "user", "content": blocks}]}
    got = json.loads(bytes(rewrite.result("prompts/get", raw(several), "github")))
    assert got["messages"][0]["content"] == [expected(block, "github") for block in blocks]


@given(uris=st.lists(URIS, max_size=4))
def test_what_was_read_is_named_as_it_was_asked_for(uris: list[str]) -> None:
    came = {"contents": [{"uri": uri, "mimeType": "a/b", "text": "uri"} for uri in uris]}
    got = json.loads(bytes(rewrite.result("resources/read", raw(came), "github")))
    assert got == {"contents": [{**one, "uri": public_uri("github", one["uri"])} for one in came["contents"]]}


@pytest.mark.parametrize("method", ["completion/complete", "ping", "tools/list", "resources/subscribe", "unheard/of"])
def test_results_that_hold_no_uri_are_not_touched(method: str) -> None:
    came = raw({"content": [{"type": "resource_link", "uri": "x://y"}], "contents": [{"uri": "x://y"}]})
    assert rewrite.result(method, came, "github") is came


@pytest.mark.parametrize(
    ("body", "failed"),
    [
        (b'{"content":[],"isError":true}', True),
        (b'{"content":[],"isError":false}', False),
        (b'{"content":[],"isError":"true"}', False),
        (b'{"content":[{"isError":true}]}', False),
        (b'{"isError":true,"isError":false}', False),
        (b"[]", False),
    ],
)
def test_only_a_result_that_says_so_is_an_error(body: bytes, failed: bool) -> None:
    assert rewrite.is_error(Raw(body)) is failed


def test_a_large_text_is_searched_not_parsed() -> None:
    came = Raw(encode({"content": [{"type": "text", "text": "é<>&" * 500_000}]}))
    assert rewrite.result("tools/call", came, "s") is came
