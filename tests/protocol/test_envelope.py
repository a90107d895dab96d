"""`protocol/envelope.py`: bytes to messages and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope
from mcpmux.protocol.envelope import Notification, Reply, Request

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
IDS = st.integers(min_value=-(10**17), max_value=10**17) | st.text(max_size=256)
# JSON cannot say what a lone surrogate is: such text is refused, and tested apart.
SAYABLE = st.text(st.characters(exclude_categories=["Cs"]))


def test_a_request_is_read_with_its_params_raw() -> None:
    found = envelope.parse(
        b'{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","arguments":{"n": 1}}}'
    )
    assert isinstance(found, Request)
    assert (found.id, found.method) == ("a", "tools/call")
    assert found.params is not None
    assert bytes(found.params["arguments"]) == b'{"n": 1}'


@given(IDS.filter(lambda i: isinstance(i, int) or i.isprintable()), SAYABLE, st.dictionaries(SAYABLE, JSON_VALUES))
def test_what_is_encoded_is_read_back(request_id: int | str, method: str, params: dict[str, object]) -> None:
    raw = {name: Raw(json.dumps(value).encode()) for name, value in params.items()}
    body = json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode()
    found = envelope.parse(body)
    assert isinstance(found, Request)
    assert (found.id, found.method) == (request_id, method)
    assert {name: json.loads(bytes(value)) for name, value in (found.params or {}).items()} == params
    again = envelope.parse(envelope.request(request_id, "m", raw))
    assert isinstance(again, Request)
    assert {name: json.loads(bytes(value)) for name, value in (again.params or {}).items()} == params


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_clear_refusal(data: bytes) -> None:
    try:
        found = envelope.parse(data)
    except (MalformedMessage, InvalidRequest) as error:
        assert str(error)
    else:
        assert isinstance(found, Request | Notification | Reply | list)


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}',
        '{"jsonrpc": "2.0", "id": 1, "method": "a", "method": "b"}',
        '{"jsonrpc":"2.0","id":1,"meth\\u006fd":"a","method":"b"}',
        '{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}',
        '{"jsonrpc":"2.0","id":1,"method":"a","params":{"name":"x"},"params":{"name":"y"}}',
        '{"jsonrpc":"2.0","id":1,"method":"a","params":{"name":"x","name":"y"}}',
        '{"jsonrpc":"2.0","id":1,"method":"a","params":{ "n\\u0061me":"x","name":"y"}}',
    ],
)
def test_a_name_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage, match="twice"):
        envelope.parse(text.encode())


@given(st.lists(st.sampled_from(["a", "b", "é", "n\\u0061", "na", '\\"', "c d"]), max_size=5), st.booleans())
def test_a_name_twice_is_found_however_the_text_is_spaced(names: list[str], spaced: bool) -> None:
    separator = " : " if spaced else ":"
    body = "{" + ",".join(f'"{name}"{separator}1' for name in names) + "}"
    meant = [json.loads(f'"{name}"') for name in names]
    if len(set(meant)) == len(meant):
        assert set(envelope.members(body.encode())) == set(meant)
    else:
        with pytest.raises(MalformedMessage):
            envelope.members(body.encode())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "empty"),
        (b"{", "JSON"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', "UTF-8"),
        ('{"jsonrpc":"2.0"}'.encode("utf-16"), "UTF-8"),
        (b'{"a":NaN}', "JSON"),
        (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', "JSON"),
        (b"[" * 100_000, "deep"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "deep"),
        (b'{"jsonrpc":"2.0","id":1,"method":"a" ,"params":{"x":' + b'{"a":' * 100_000 + b"}" * 100_000 + b"}}", "deep"),
    ],
)
def test_broken_text_is_malformed(text: bytes, why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        envelope.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        b'"x"',
        b"1",
        b"[]",
        b"{}",
        b'{"id":1,"method":"a"}',
        b'{"jsonrpc":"1.0","id":1,"method":"a"}',
        b'{"jsonrpc":"2.0","id":null,"method":"a"}',
        b'{"jsonrpc":"2.0","id":1.0,"method":"a"}',
        b'{"jsonrpc":"2.0","id":true,"method":"a"}',
        b'{"jsonrpc":"2.0","id":[1],"method":"a"}',
        b'{"jsonrpc":"2.0","id":99999999999999999999,"method":"a"}',
        b'{"jsonrpc":"2.0","id":"' + b"x" * 257 + b'","method":"a"}',
        b'{"jsonrpc":"2.0","id":1,"method":7}',
        b'{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}',
        b'{"jsonrpc":"2.0","id":1,"method":"a","params":"x"}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"x","message":"x"}}',
        b"[" + b",".join([b'{"jsonrpc":"2.0","method":"a"}'] * 65) + b"]",
    ],
)
def test_json_that_is_no_message_is_an_invalid_request(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        envelope.parse(text)


@pytest.mark.parametrize(
    "rest", [b'"method":"a","params":[]', b'"error":"no"', b'"error":{"code":"x"}', b'"result":{},"error":{}']
)
def test_the_id_of_a_refused_message_is_known_where_it_could_be_read(rest: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        envelope.parse(b'{"jsonrpc":"2.0","id":"mine",%b}' % rest)
    assert caught.value.request_id == "mine"


def test_a_batch_keeps_its_bad_entries_in_their_places() -> None:
    found = envelope.parse(
        b'[{"jsonrpc":"2.0","id":1,"method":"a"},1,{"jsonrpc":"2.0","method":"n"},{"jsonrpc":"2.0"}]'
    )
    assert isinstance(found, list)
    assert [type(entry) for entry in found] == [Request, InvalidRequest, Notification, InvalidRequest]


def test_a_reply_is_read_with_its_result_or_its_error() -> None:
    good = envelope.parse(b'{"jsonrpc":"2.0","id":7,"result":{"a":1}}')
    bad = envelope.parse(b'{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no","data":[1]}}')
    assert isinstance(good, Reply)
    assert isinstance(bad, Reply)
    assert good.result is not None
    assert bytes(good.result) == b'{"a":1}'
    assert bad.data is not None
    assert (bad.code, bad.message, bytes(bad.data), bad.result) == (-32601, "no", b"[1]", None)


def test_huge_numbers_are_carried_and_never_read() -> None:
    body = b'{"jsonrpc":"2.0", "id":1,"method":"a","params":{"x":1e999,"y":%b}}' % (b"9" * 1_000_000)
    found = envelope.parse(body)
    assert isinstance(found, Request)
    assert len(bytes((found.params or {})["y"])) == 1_000_000


def test_one_line_takes_out_line_ends_and_changes_nothing_else() -> None:
    raw = Raw(b'{\r\n "a": "x\\ny"\n}')
    wire = envelope.one_line(envelope.request(1, "m", {"p": raw}))
    assert b"\n" not in wire
    assert b"\r" not in wire
    assert json.loads(wire)["params"] == {"p": {"a": "x\ny"}}


def test_every_encoder_writes_what_json_readers_read() -> None:
    assert json.loads(envelope.result("x", b"{}")) == {"jsonrpc": "2.0", "id": "x", "result": {}}
    assert json.loads(envelope.notification("n", None)) == {"jsonrpc": "2.0", "method": "n"}
    failed = json.loads(envelope.error(None, -32700, 'say "no"\n', b"[1]"))
    assert failed == {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": 'say "no"\n', "data": [1]}}
