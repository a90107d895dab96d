"""`protocol/rounds.py`: results that ask, and requests that are made again; bytes in, bytes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import rounds
from mcpmux.protocol.events import Ask

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def raw(value: object) -> Raw:
    return Raw(json.dumps(value).encode())


def test_only_a_result_that_says_so_asks_also_behind_escapes() -> None:
    assert rounds.asked(raw({"content": []})) is None
    assert rounds.asked(raw({"content": ["input_required"]})) is None
    assert rounds.asked(raw({"resultType": "complete", "x": "input_required"})) is None
    assert rounds.asked(Raw(b'{"resultType":"input_requir\\u0065d","requestState":"s"}')) == {
        "requestState": Raw(b'"s"')
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"requestState": 7},
        {"inputRequests": 7},
        {"inputRequests": {"a": 7}},
        {"inputRequests": {"a": {}}},
        {"inputRequests": {"a": {"method": "roots/list"}}, "requestState": 7},
    ],
)
def test_what_asks_wrongly_is_broken(wrong: dict[str, object]) -> None:
    found = rounds.asked(raw({"resultType": "input_required", **wrong}))
    assert found is not None
    with pytest.raises((InvalidRequest, MalformedMessage)):
        rounds.questions(found)


def test_what_is_asked_of_a_client_has_no_id_that_the_era_does_not_know() -> None:
    ask = Ask(7, "elicitation/create", {"mode": raw("url"), "elicitationId": raw("e-1")})
    assert json.loads(bytes(rounds.asking({"1": ask, "2": Ask(8, "roots/list", None)}, "state"))) == {
        "inputRequests": {
            "1": {"method": "elicitation/create", "params": {"mode": "url"}},
            "2": {"method": "roots/list", "params": {}},
        },
        "requestState": "state",
    }


@pytest.mark.parametrize(
    ("method", "response", "fits"),
    [
        ("elicitation/create", {"action": "decline"}, True),
        ("elicitation/create", {"action": "maybe"}, False),
        ("elicitation/create", {}, False),
        ("sampling/createMessage", {"role": "assistant", "model": "m", "content": {}}, True),
        ("sampling/createMessage", {"role": "assistant", "model": "m", "content": []}, True),
        ("sampling/createMessage", {"role": "assistant", "model": "m", "content": "x"}, False),
        ("sampling/createMessage", {"role": "robot", "model": "m", "content": {}}, False),
        ("roots/list", {"roots": []}, True),
        ("roots/list", {"roots": {}}, False),
        ("no/such", {}, False),
        ("elicitation/create", [], False),
    ],
)
def test_an_answer_fits_its_question(method: str, response: object, fits: bool) -> None:
    assert rounds.answers(method, raw(response)) is fits


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_a_request_is_the_same_however_it_is_written_and_whatever_the_round(params: dict[str, object]) -> None:
    one = {name: raw(value) for name, value in params.items()}
    turned = {name: Raw(json.dumps(value, indent=1, sort_keys=True).encode()) for name, value in params.items()}
    passing = {"_meta": raw({"progressToken": 1}), "inputResponses": raw({}), "requestState": raw("s")}
    assert rounds.digest(one) == rounds.digest(dict(reversed((turned | passing).items())))


@given(JSON, JSON)
def test_other_params_are_another_request(one: object, other: object) -> None:
    same = rounds.digest({"arguments": raw(one)}) == rounds.digest({"arguments": raw(other)})
    assert same == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


def test_the_pages_of_an_older_refusal_are_questions_of_this_era() -> None:
    page = {"mode": "url", "elicitationId": "e", "url": "https://x.example/", "message": "Go"}
    (one,) = rounds.visits(raw({"elicitations": [page]})).values()
    assert (one.method, one.params) == (
        "elicitation/create",
        {"mode": Raw(b'"url"'), "message": Raw(b'"Go"'), "url": Raw(b'"https://x.example/"')},
    )
    assert list(rounds.visits(raw({"elicitations": [page] * 99}))) == [str(number) for number in range(1, 17)]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"elicitations": 1},
        {"elicitations": [{"mode": "form", "message": "m", "url": "u"}]},
        {"elicitations": [{}]},
        7,
    ],
)
def test_a_refusal_that_names_no_page_asks_nothing(data: object) -> None:
    assert rounds.visits(raw(data)) == {}
    assert rounds.visits(None) == {}
