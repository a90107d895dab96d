"""The `Authorization` header. Attacks 19 and 32 of the list; RFC 6750 sections 2.1 and 3.1."""

from __future__ import annotations

import pytest

from mcpmux.errors import AuthorizationMalformed, TokenMissing, TokenRefused
from mcpmux.identity import bearer

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"


@pytest.mark.parametrize("value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} ", f"\tBeArEr {TOKEN}\t"])
def test_the_scheme_may_be_in_any_case(value: str) -> None:
    assert bearer([value]) == TOKEN


@pytest.mark.parametrize(
    "values",
    [[], [""], ["Bearer"], ["Bearer "], ["bearer   "], ["Basic YTpi"], [TOKEN], [f"Bearer{TOKEN}"], [f"Token {TOKEN}"],
     [f"Bearer\u00a0{TOKEN}"], [f"Bearer\t{TOKEN}"]],
)  # fmt: skip
def test_no_bearer_token_is_no_token(values: list[str]) -> None:
    with pytest.raises(TokenMissing):
        bearer(values)


@pytest.mark.parametrize(
    "values",
    [
        [f"Bearer {TOKEN}", f"Bearer {TOKEN}"], [f"Bearer {TOKEN}", "Basic YTpi"], ["", f"Bearer {TOKEN}"],
        [f"Bearer {TOKEN}, Bearer {TOKEN}"], [f"Bearer {TOKEN},Basic YTpi"],
    ],
)  # fmt: skip
def test_two_credentials_are_one_too_many(values: list[str]) -> None:
    with pytest.raises(AuthorizationMalformed):
        bearer(values)


@pytest.mark.parametrize(
    "token",
    [
        f"{TOKEN} x",
        f"{TOKEN}\n",
        f"{TOKEN}\x00",
        f'"{TOKEN}"',
        f"{TOKEN}é",
        f"{TOKEN}\udcff",
        "=",
        f"{TOKEN}=x",
        "\u0661",
    ],
)
def test_what_cannot_be_a_token_is_refused(token: str) -> None:
    with pytest.raises(TokenRefused) as refusal:
        bearer([f"Bearer {token}"])
    assert refusal.value.cause == "malformed"


def test_attack_19_a_token_over_16_kib_is_refused_by_its_length() -> None:
    assert len(bearer([f"Bearer {'a' * 16_384}"])) == 16_384
    for size in (16_385, 1_000_000):
        with pytest.raises(TokenRefused) as refusal:
            bearer([f"Bearer {'a' * size}"])
        assert refusal.value.cause == "too_large"
        assert "aaa" not in str(refusal.value)
