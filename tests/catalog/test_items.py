"""Items and offers: one careless entry harms nobody's list, and a hint to read only is believed only word for word."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.catalog.items import Offer, is_read_only, read_items, without_headers_amiss
from mcpmux.catalog.names import name_table, public_name
from mcpmux.protocol.events import Offered

SCHEMA = {"type": "object"}


def wire(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def tool(name: str, **more: object) -> bytes:
    return wire({"name": name, "inputSchema": SCHEMA, **more})


def offer(*entries: bytes, what: Offered = Offered.TOOLS, **greeting: Raw) -> Offer:
    return Offer("s", {what: read_items(what, "s", entries, 56).items}, greeting, None, None, 1)


@given(names=st.lists(st.text(st.characters(codec="utf-8"), max_size=80), max_size=8))
def test_every_tool_of_a_list_is_an_item_under_both_of_its_names(names: list[str]) -> None:
    entries = [tool(name, description="d") for name in names]
    reading = read_items(Offered.TOOLS, "s", entries, 56)
    assert [item.native for item in reading.items] == list(dict.fromkeys(names))
    assert {item.public: item.native for item in reading.items} == name_table("s", names, 56)
    for item in reading.items:
        assert item.raw == tool(item.native, description="d")
        assert json.loads(item.shown) == {**json.loads(item.raw), "name": item.public}


@pytest.mark.parametrize(
    ("what", "entry", "native", "public"),
    [
        (Offered.PROMPTS, {"name": "greet", "arguments": [{"name": "who", "required": True}]}, "greet", "s__greet"),
        (Offered.RESOURCES, {"uri": "a://b", "name": "b", "size": 5, "mimeType": "x/y"}, "a://b", "s+a://b"),
        (Offered.TEMPLATES, {"uriTemplate": "a://{b}", "name": "b"}, "a://{b}", "s+a://{b}"),
    ],
)
def test_the_other_kinds_are_items_as_well(what: Offered, entry: object, native: str, public: str) -> None:
    (item,) = read_items(what, "s", [wire(entry)], 56).items
    assert (item.native, item.public, item.read_only) == (native, public, False)
    assert item.raw == wire(entry)


@pytest.mark.parametrize(
    ("what", "entry"),
    [
        (Offered.TOOLS, b"7"),
        (Offered.TOOLS, b"[]"),
        (Offered.TOOLS, b"null"),
        (Offered.TOOLS, b"{}"),
        (Offered.TOOLS, b'{"name":"x"}'),
        (Offered.TOOLS, b'{"name":"x","inputSchema":null}'),
        (Offered.TOOLS, b'{"name":7,"inputSchema":{}}'),
        (Offered.TOOLS, b'{"name":"x","name":"y","inputSchema":{}}'),
        (Offered.TOOLS, b'{"name":"x","inputSchema":{},"description":["a"]}'),
        (Offered.TOOLS, b'{"name":"x","inputSchema":{},"annotations":"read"}'),
        (Offered.TOOLS, b'{"name":"x","inputSchema":{},"outputSchema":"any"}'),
        (Offered.TOOLS, b'{"name":"x","inputSchema":{},"_meta":[]}'),
        (Offered.TOOLS, b'{"name":"x","inputSchema":{},"_meta":{"ui":{},"ui":{"resourceUri":"ui://a"}}}'),
        (Offered.PROMPTS, b'{"name":"x","arguments":{"a":1}}'),
        (Offered.PROMPTS, b'{"name":"x","arguments":[{"required":true}]}'),
        (Offered.RESOURCES, b'{"name":"x"}'),
        (Offered.RESOURCES, b'{"uri":"a://b"}'),
        (Offered.RESOURCES, b'{"uri":"a://b","name":"b","size":"big"}'),
        (Offered.TEMPLATES, b'{"uri":"a://b","name":"b"}'),
    ],
)
def test_an_entry_that_would_spoil_the_list_for_clients_is_left_out_alone(what: Offered, entry: bytes) -> None:
    good = {
        Offered.TOOLS: tool("good"),
        Offered.PROMPTS: b'{"name":"good"}',
        Offered.RESOURCES: b'{"uri":"a://good","name":"good"}',
        Offered.TEMPLATES: b'{"uriTemplate":"a://{good}","name":"good"}',
    }[what]
    reading = read_items(what, "s", [entry, good], 56)
    assert [item.raw for item in reading.items] == [good]
    assert len(reading.unfit) == 1


def test_tools_whose_headers_nobody_may_send_are_left_out_with_the_reason() -> None:
    def annotated(name: str, **argument: object) -> bytes:
        return wire({"name": name, "inputSchema": {"type": "object", "properties": {"a": argument}}})

    entries = [
        annotated("good", type="string", **{"x-mcp-header": "Region"}),
        annotated("number", type="number", **{"x-mcp-header": "Weight"}),
        annotated("spaced", type="string", **{"x-mcp-header": "a b"}),
        tool("plain"),
    ]
    reading = without_headers_amiss(read_items(Offered.TOOLS, "s", entries, 56))
    assert [item.native for item in reading.items] == ["good", "plain"]
    assert [line.partition(":")[0] for line in reading.unfit] == ["number", "spaced"]


def test_the_first_of_two_entries_with_one_name_counts() -> None:
    reading = read_items(Offered.TOOLS, "s", [tool("a", title="1"), tool("b"), tool("a", title="2")], 56)
    assert [item.raw for item in reading.items] == [tool("a", title="1"), tool("b")]
    assert reading.twice == ("a",)


def test_who_is_displaced_by_a_crafted_name_is_told() -> None:
    odd = "x.y"
    crafted = public_name("s", odd, 56).removeprefix("s__")
    reading = read_items(Offered.TOOLS, "s", [tool(odd), tool(crafted)], 56)
    assert reading.displaced == (odd,)
    assert len({item.public for item in reading.items}) == 2


@pytest.mark.parametrize(
    ("annotations", "read_only"),
    [
        (b'{"readOnlyHint":true}', True),
        (b'{ "title":"x", "readOnlyHint" : true }', True),
        (b'{"readOnlyHint":false}', False),
        (b'{"readOnlyHint":"true"}', False),
        (b'{"readOnlyHint":1}', False),
        (b'{"readOnlyHint":null}', False),
        (b'{"readonlyhint":true}', False),
        (b'{"readOnlyHint":true,"readOnlyHint":false}', False),
        (b'{"x":{"readOnlyHint":true}}', False),
        (b"[true]", False),
        (b"true", False),
        (b"null", False),
    ],
)
def test_only_the_literal_hint_makes_a_tool_read_only(annotations: bytes, read_only: bool) -> None:
    assert is_read_only({"name": Raw(b'"x"'), "annotations": Raw(annotations)}) is read_only


def test_a_tool_without_annotations_may_write() -> None:
    assert not is_read_only({"name": Raw(b'"x"'), "readOnlyHint": Raw(b"true")})


def test_nulls_that_strict_clients_refuse_are_not_shown() -> None:
    entry = b'{"name":"x","title":null,"inputSchema":{"default":null},"annotations":null}'
    (item,) = read_items(Offered.TOOLS, "s", [entry], 56).items
    assert item.shown == b'{"name":"s__x","inputSchema":{"default":null}}'
    assert item.raw == entry


def test_a_pretty_printed_entry_is_kept_on_one_line() -> None:
    (item,) = read_items(Offered.TOOLS, "s", [b'{\n "name":"x",\r\n "inputSchema":{}\n}'], 56).items
    assert b"\n" not in item.raw + item.shown
    assert b"\r" not in item.raw + item.shown


def test_an_offer_finds_its_items_by_either_name() -> None:
    one = offer(tool("a.b"), tool("c"))
    item = one.native(Offered.TOOLS, "a.b")
    assert item is not None
    assert one.public(Offered.TOOLS, item.public) is item
    assert one.public(Offered.TOOLS, "a.b") is None
    assert one.native(Offered.PROMPTS, "c") is None


def test_shuffled_entries_are_no_change_and_everything_else_is_one() -> None:
    one = offer(tool("a"), tool("b"), tools=Raw(b"{}"))
    assert one.same_as(offer(tool("b"), tool("a"), tools=Raw(b"{}")))
    assert not one.same_as(offer(tool("a"), tools=Raw(b"{}")))
    assert not one.same_as(offer(tool("a"), tool("b", title="B"), tools=Raw(b"{}")))
    assert not one.same_as(offer(tool("a"), tool("b"), tools=Raw(b"{}"), prompts=Raw(b"{}")))
    assert not one.same_as(Offer("s", {**one.items, Offered.PROMPTS: ()}, one.capabilities, None, None, 1))
    assert not one.same_as(Offer("s", one.items, one.capabilities, "Be kind.", None, 1))
    assert not one.same_as(Offer("s", one.items, one.capabilities, None, Raw(b"{}"), 1))
