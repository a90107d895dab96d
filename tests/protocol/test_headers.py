"""`protocol/headers.py`: what a modern request's headers repeat of its body, written and checked."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.errors import AnnotationInvalid, HeaderMismatch, InvalidParams
from mcpmux.protocol import headers

Json = dict[str, Any]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
REGION = {"type": "string", "x-mcp-header": "Region"}


def raw(value: object) -> Raw:
    return Raw(json.dumps(value).encode())


def tool(**properties: object) -> bytes:
    return json.dumps({"name": "t", "inputSchema": {"type": "object", "properties": properties}}).encode()


def lines(said: Mapping[str, str], *more: tuple[str, str]) -> headers.Values:
    given = [*said.items(), *more]
    return lambda name: [value for header, value in given if header.lower() == name.lower()]


# Values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("us-west1", "us-west1"),
        ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
        (" padded ", "=?base64?IHBhZGRlZCA=?="),
        ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
        ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        ("", ""),
        ("a\tb", "=?base64?YQli?="),
        ("=?base64?SGVsbG8=", "=?base64?SGVsbG8="),
    ],
)
def test_a_text_is_written_as_the_specification_has_it(text: str, value: str) -> None:
    assert headers.encoded(text) == value
    assert headers.decoded(value) == text


@given(TEXTS)
def test_every_text_comes_back_from_a_header_that_any_server_takes(text: str) -> None:
    value = headers.encoded(text)
    assert value.isascii()
    assert value == value.strip()
    assert all(char == "\t" or " " <= char <= "~" for char in value)
    assert headers.decoded(value) == text


@given(st.text() | st.from_regex(r"=\?base64\?[A-Za-z0-9+/=!]*\?=", fullmatch=True))
def test_a_base64_text_is_taken_in_one_spelling_alone(value: str) -> None:
    found = headers.decoded(value)
    if found is not None and value.startswith("=?base64?") and value.endswith("?="):
        assert value == f"=?base64?{base64.b64encode(found.encode()).decode()}?="


@pytest.mark.parametrize(
    "value",
    [
        "=?base64?SGVsbG8?=",  # no padding
        "=?base64?SGVs!!!bG8=?=",  # not of the alphabet
        "=?base64?SGVsbG9=?=",  # bits that mean nothing
        "=?base64?/w==?=",  # not UTF-8
        "=?base64?SGVs\nbG8=?=",
        "na\u00efve",
        "a\x00b",
        "a\x7fb",
        "\udce4",
    ],
)
def test_what_can_stand_for_no_text_is_no_text(value: str) -> None:
    assert headers.decoded(value) is None


# What stands in every request ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "get_weather"}, "get_weather"),
        ("prompts/get", {"name": "grüße"}, "=?base64?Z3LDvMOfZQ==?="),
        ("resources/read", {"uri": "file:///a b"}, "file:///a b"),
        ("tools/list", {"name": "x"}, None),
        ("completion/complete", {"ref": {"name": "x"}}, None),
        ("tools/call", {"name": 7}, None),
        ("server/discover", None, None),
    ],
)
def test_a_request_says_its_version_method_and_name(method: str, params: Json | None, name: str | None) -> None:
    members = None if params is None else {key: raw(value) for key, value in params.items()}
    said = headers.standard(method, members, "2026-07-28")
    more = {} if name is None else {"Mcp-Name": name}
    assert said == {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method, **more}
    headers.check("2026-07-28", method, members or {}, lines(said))


CALL = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "x"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"MCP-Protocol-Version": "2025-11-25"}, "MCP-Protocol-Version"),
        ({"MCP-Protocol-Version": None}, "MCP-Protocol-Version"),
        ({"Mcp-Method": "tools/list"}, "Mcp-Method"),
        ({"Mcp-Method": "TOOLS/CALL"}, "Mcp-Method"),
        ({"Mcp-Method": None}, "Mcp-Method"),
        ({"Mcp-Name": "y"}, "Mcp-Name"),
        ({"Mcp-Name": "X"}, "Mcp-Name"),
        ({"Mcp-Name": ""}, "Mcp-Name"),
        ({"Mcp-Name": None}, "Mcp-Name"),
        ({"Mcp-Name": "=?base64?eA?="}, "Mcp-Name"),
        ({"Mcp-Name": "\u0445"}, "Mcp-Name"),
    ],
)
def test_a_header_that_says_something_else_is_refused(wrong: Mapping[str, str | None], named: str) -> None:
    said = {name: value for name, value in {**CALL, **wrong}.items() if value is not None}
    with pytest.raises(HeaderMismatch, match=rf"^Header mismatch: {named} "):
        headers.check("2026-07-28", "tools/call", {"name": raw("x")}, lines(said))


@pytest.mark.parametrize("header", list(CALL))
def test_a_header_that_stands_twice_is_refused_even_if_both_say_the_same(header: str) -> None:
    with pytest.raises(HeaderMismatch, match="stands twice"):
        headers.check("2026-07-28", "tools/call", {"name": raw("x")}, lines(CALL, (header.lower(), CALL[header])))


def test_an_encoded_name_is_the_name() -> None:
    said = {**CALL, "Mcp-Name": "=?base64?eA==?="}
    headers.check("2026-07-28", "tools/call", {"name": raw("x")}, lines(said))


def test_a_refusal_repeats_no_value() -> None:
    with pytest.raises(HeaderMismatch) as caught:
        headers.check("2026-07-28", "tools/call", {"name": raw("secret1")}, lines({**CALL, "Mcp-Name": "secret2"}))
    assert "secret" not in str(caught.value)


# What a tool asks for ------------------------------------------------------------------------------------------


def test_arguments_go_in_headers_wherever_properties_alone_lead() -> None:
    nested = {"type": "object", "properties": {"deep": {"type": "integer", "x-mcp-header": "Deep"}}}
    found = headers.mirrored(tool(region=REGION, nested=nested, other={"type": "string"}))
    assert {(one.header, one.path, one.kind) for one in found} == {
        ("Mcp-Param-Region", ("region",), "string"),
        ("Mcp-Param-Deep", ("nested", "deep"), "integer"),
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"x-mcp-header": "Root", "type": "string"},
        {"properties": {"a": {"type": "array", "items": REGION}}},
        {"properties": {"a": {"type": "array", "prefixItems": [REGION]}}},
        {"oneOf": [{"properties": {"a": REGION}}]},
        {"allOf": [{"properties": {"a": REGION}}]},
        {"not": {"properties": {"a": REGION}}},
        {"if": {"properties": {"a": REGION}}},
        {"then": {"properties": {"a": REGION}}},
        {"$defs": {"a": REGION}},
        {"properties": {"a": {"anyOf": [REGION]}}},
        {"properties": {"a": {"additionalProperties": REGION}}},
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "object", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": ["string", "null"], "x-mcp-header": "A"}}},
        {"properties": {"a": {"x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": ""}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A B"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A\r\nB"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A\n"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "Ä"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": 7}}},
        {"properties": {"a": REGION, "b": {"type": "string", "x-mcp-header": "REGION"}}},
    ],
)
def test_an_annotation_anywhere_else_makes_the_tool_invalid(schema: Json) -> None:
    entry = json.dumps({"name": "t", "inputSchema": schema}).encode()
    with pytest.raises(AnnotationInvalid):
        headers.mirrored(entry)
    headers.check_mirrored(entry, raw({"a": "x"}), lines({"Mcp-Param-Region": "y"}))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x-mcp-header": {"type": "string"}}},
        {"properties": {"a": {"type": "string", "default": {"x-mcp-header": "A"}, "enum": [{"x-mcp-header": ""}]}}},
        {"description": "says x-mcp-header"},
        {"$ref": "#/x-mcp-header"},
        True,
        None,
    ],
)
def test_what_only_looks_like_an_annotation_is_none(schema: object) -> None:
    assert headers.mirrored(json.dumps({"name": "x-mcp-header", "inputSchema": schema}).encode()) == ()


def test_an_annotation_with_escapes_in_its_name_is_one() -> None:
    entry = tool(region=REGION).replace(b"x-mcp-header", b"x-mcp-h\\u0065ader")
    assert [one.header for one in headers.mirrored(entry)] == ["Mcp-Param-Region"]


ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXTS | st.none(),
        "count": st.integers(-(2**53) + 1, 2**53 - 1) | st.none(),
        "flag": st.booleans() | st.none(),
        "inner": st.fixed_dictionaries({}, optional={"text": TEXTS}) | st.none(),
        "free": st.integers(),
    },
)
MIRRORING = tool(
    text={"type": "string", "x-mcp-header": "Text"},
    count={"type": "integer", "x-mcp-header": "Count"},
    flag={"type": "boolean", "x-mcp-header": "Flag"},
    inner={"type": "object", "properties": {"text": {"type": "string", "x-mcp-header": "Inner"}}},
    free={"type": "integer"},
)


@given(ARGUMENTS)
def test_what_we_send_passes_our_own_check(arguments: Json) -> None:
    said = headers.mirrored_headers(MIRRORING, raw(arguments))
    headers.check_mirrored(MIRRORING, raw(arguments), lines(said))
    inner = (arguments.get("inner") or {}).get("text")
    wanted = {"Text": arguments.get("text"), "Count": arguments.get("count"), "Inner": inner}
    for name, value in wanted.items():
        header = said.get(f"Mcp-Param-{name}")
        assert (None if header is None else headers.decoded(header)) == (None if value is None else str(value))
    assert set(said) <= {f"Mcp-Param-{name}" for name in (*wanted, "Flag")}


@given(ARGUMENTS, st.sampled_from(["Text", "Count", "Flag", "Inner"]))
def test_what_is_missing_or_too_much_is_refused(arguments: Json, name: str) -> None:
    said = headers.mirrored_headers(MIRRORING, raw(arguments))
    header = f"Mcp-Param-{name}"
    wrong = {key: value for key, value in said.items() if key != header} if header in said else {**said, header: "x"}
    with pytest.raises(HeaderMismatch, match=header):
        headers.check_mirrored(MIRRORING, raw(arguments), lines(wrong))


@pytest.mark.parametrize(
    ("argument", "header", "passes"),
    [
        ("42", "42", True),
        ("42", "42.0", True),
        ("42.0", "42", True),
        ("4.2e1", "42", True),
        ("-7", "-7", True),
        ("42", "43", False),
        ("42", "4.2e1", False),
        ("42", "0x2a", False),
        ("42", " 42", False),
        ("1e400", "1", False),
        ("9007199254740993", "9007199254740992", False),
        ("true", "true", True),
        ('"42"', "42", True),
        ("[42]", "42", False),
    ],
)
def test_integers_are_compared_as_numbers_and_whatever_else_as_text(argument: str, header: str, passes: bool) -> None:
    entry = tool(n={"type": "integer", "x-mcp-header": "N"})
    arguments = Raw(b'{"n":%b}' % argument.encode())
    if passes:
        headers.check_mirrored(entry, arguments, lines({"mcp-param-n": header}))
        return
    with pytest.raises(HeaderMismatch):
        headers.check_mirrored(entry, arguments, lines({"mcp-param-n": header}))


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_that_a_reader_of_the_header_may_not_hold_is_refused(sign: str) -> None:
    entry = tool(inner={"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}})
    for number in ("9007199254740992", "1e16", "9e400"):
        arguments, said = Raw(b'{"inner":{"n":%b%b}}' % (sign.encode(), number.encode())), f"{sign}{number}"
        with pytest.raises(InvalidParams, match=r"inner\.n goes in a header"):
            headers.mirrored_headers(entry, arguments)
        shown = str(int(float(said))) if number != "9e400" else said
        with pytest.raises(InvalidParams, match=r"inner\.n goes in a header"):
            headers.check_mirrored(entry, arguments, lines({"Mcp-Param-N": shown}))
    text = tool(inner={"type": "object", "properties": {"n": {"type": "string", "x-mcp-header": "N"}}})
    assert headers.mirrored_headers(text, Raw(b'{"inner":{"n":9007199254740992}}'))


def test_text_is_never_compared_as_a_number() -> None:
    with pytest.raises(HeaderMismatch):
        headers.check_mirrored(tool(region=REGION), raw({"region": "42"}), lines({"Mcp-Param-Region": "42.0"}))


@pytest.mark.parametrize("arguments", [None, raw({}), raw({"region": None}), raw([1]), raw("x")])
def test_without_a_value_there_must_be_no_header(arguments: Raw | None) -> None:
    entry = tool(region=REGION)
    headers.check_mirrored(entry, arguments, lines({}))
    assert headers.mirrored_headers(entry, arguments) == {}
    with pytest.raises(HeaderMismatch):
        headers.check_mirrored(entry, arguments, lines({"Mcp-Param-Region": ""}))


def test_an_argument_that_stands_twice_is_refused() -> None:
    """One reader would take the first, the other the last, and the header only matches one of them."""
    with pytest.raises(InvalidParams):
        headers.check_mirrored(
            tool(region=REGION), Raw(b'{"region":"a","region":"b"}'), lines({"Mcp-Param-Region": "b"})
        )


def test_a_header_that_stands_twice_or_that_nobody_asked_for() -> None:
    entry, arguments = tool(region=REGION), raw({"region": "a"})
    with pytest.raises(HeaderMismatch, match="stands twice"):
        headers.check_mirrored(entry, arguments, lines({"Mcp-Param-Region": "a"}, ("mcp-param-region", "a")))
    headers.check_mirrored(entry, arguments, lines({"Mcp-Param-Region": "a", "Mcp-Param-Other": "\x00"}))


def test_a_tool_without_annotations_is_not_even_read() -> None:
    headers.check_mirrored(b"no JSON", raw({}), lines({"Mcp-Param-Region": "a"}))
