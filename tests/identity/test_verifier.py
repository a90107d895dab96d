"""What the verifier says and keeps to itself, and what it costs."""

from __future__ import annotations

import ast
import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcpmux.identity
from mcpmux.errors import TokenRefused
from mcpmux.identity.keys import read_keys
from mcpmux.identity.token import read
from mcpmux.identity.verifier import CAUSES, LINES, Verifier
from mcpmux.observe.log import configure
from tests.identity.conftest import Clocks, accepted, cause_of
from tests.simulators.oidc import OidcIssuer, b64, compact, signing_key


class Written:
    """All that was logged, down to debug."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.output = configure(console=False, level="debug", stream=self._stream)

    def text(self) -> str:
        self.output.flush()
        return self._stream.getvalue()

    def lines(self, event: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    yield made
    made.output.close()


async def test_no_part_of_a_token_is_ever_logged(written: Written, verifier: Verifier, issuer: OidcIssuer) -> None:
    tokens = [
        issuer.token(), issuer.token(exp=1), issuer.token(aud="other"), issuer.token(header={"kid": "unknown"}),
        issuer.token(iss="https://elsewhere.example", sub="very-secret-subject"), issuer.token()[:-12] + "AAAAAAAAAAAA",
        compact(issuer.header(), b'{"sub":"very-secret-subject","sub":1}', issuer.keys[0]),
        issuer.token(x="x" * 17_000),
    ]  # fmt: skip
    for token in tokens:
        try:
            await verifier.verify(token)
        except TokenRefused as refusal:
            assert refusal.args == ("The access token is invalid or expired",)
    text = written.text()
    assert len(written.lines("token_refused")) == 7
    for token in tokens:
        for part in token.split("."):
            assert part[:24] not in text
    assert "very-secret-subject" not in text and "elsewhere.example" not in text


async def test_a_kid_is_logged_escaped_and_cut(written: Written, verifier: Verifier, issuer: OidcIssuer) -> None:
    await cause_of(verifier, issuer.token(header={"kid": "\x1b[31m\r\n\u202e" + "k" * 500}))
    (line,) = written.lines("token_refused")
    assert line["kid"] == ("\\x1b[31m\\r\\n\\u202e" + "k" * 64)[:64]
    assert (line["cause"], line["issuer"]) == ("unknown_key", issuer.url)


async def test_a_flood_of_refusals_is_a_few_lines(
    written: Written, verifier: Verifier, issuer: OidcIssuer, clocks: Clocks
) -> None:
    await accepted(verifier, issuer.token())
    for number in range(200):
        await cause_of(verifier, issuer.token(aud=f"other-{number}"))
    same = issuer.token(aud="other")
    for _ in range(200):
        await cause_of(verifier, same)
    await cause_of(verifier, issuer.token(exp=1))
    lines = written.lines("token_refused")
    assert [line["cause"] for line in lines] == ["audience"] * LINES + ["expired"]
    clocks.ahead = 60
    await cause_of(verifier, same)
    assert written.lines("token_refused")[-1]["suppressed"] == 400 - LINES


def test_every_cause_that_is_raised_is_one_of_the_closed_list() -> None:
    raised = set()
    for file in Path(mcpmux.identity.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "refused":
                raised |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    assert raised and raised <= set(CAUSES)


async def test_a_remembered_token_costs_next_to_nothing(verifier: Verifier, issuer: OidcIssuer) -> None:
    groups = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(200)]
    token = issuer.token(groups=groups)
    verified = await accepted(verifier, token)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(1000):
        assert verifier.known(token) is verified
    assert (loop.time() - started) / 1000 < 0.0005  # 12 µs on a quiet machine


async def test_people_in_the_same_groups_share_their_names(verifier: Verifier, issuer: OidcIssuer) -> None:
    one = await accepted(verifier, issuer.token(sub="one", groups=["a-group-of-its-own"]))
    two = await accepted(verifier, issuer.token(sub="two", groups=["a-group-of-its-own"]))
    assert one.principal.groups[0] is two.principal.groups[0]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_NAMES = ["kty", "kid", "n", "e", "crv", "x", "y", "alg", "use", "key_ops", "d"]
_KEY = signing_key().jwk()


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON | st.sampled_from(["RSA", "EC", "OKP", "P-256", "AQAB"])))
def test_no_key_however_strange_raises(changes: dict[str, object]) -> None:
    for key in (changes, {**_KEY, **changes}):
        found = read_keys(json.dumps({"keys": [key, {**_KEY, "kid": "good"}]}).encode())
        if found is not None:  # NaN is no JSON
            assert found.find("good", "RS256") is not None


@given(st.binary(max_size=64))
def test_no_document_however_strange_raises(document: bytes) -> None:
    read_keys(document)


@given(_JSON, _JSON, st.text(max_size=8))
def test_no_token_however_strange_raises_but_a_refusal(header: object, payload: object, tail: str) -> None:
    texts = [".".join([b64(json.dumps(part).encode()) for part in (header, payload)] + [tail]), tail]
    if isinstance(header, dict):
        header = {"alg": "RS256", "kid": "k1", **header}
        texts.append(".".join([b64(json.dumps(part).encode()) for part in (header, payload)] + ["AAAA"]))
    for text in texts:
        try:
            read(text)
        except TokenRefused as refusal:
            assert refusal.cause in CAUSES
