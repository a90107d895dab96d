"""Principals and e-mail addresses. Attacks 36, 38 and 112 of the list."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.identity import Principal, normal_email


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("Ana@Example.COM", "ana@example.com"),
        ("ana+tag@example.com", "ana+tag@example.com"),
        ("ana@example.com.", "ana@example.com."),
        ("ana@xn--bcher-kva.example", "ana@xn--bcher-kva.example"),
        ("ana@b\u00fccher.example", "ana@b\u00fccher.example"),
        ("ana@bu\u0308cher.example", "ana@b\u00fccher.example"),  # NFD
        ("\u00c9va@example.com", "\u00c9va@example.com"),  # only ASCII is lowered
        ('"ana"@example.com', '"ana"@example.com'),
    ],
)
def test_addresses_are_compared_in_one_form(address: str, normal: str) -> None:
    assert normal_email(address) == normal
    assert normal_email(normal) == normal


@pytest.mark.parametrize(
    "address",
    [
        "\u0430na@example.com",  # Cyrillic а
        "\uff41na@example.com", "ana\uff20example.com", "an\u0251@example.com",
        "\u0131ris@example.com", "\u0130ris@example.com", "\u017fam@example.com", "\u212aim@example.com",
        "a\u200dna@example.com", "a\u200bna@example.com", "an\u0061\u0301@example.com", "ana@example.com\u202e",
        "ana@exa\u00admple.com",
    ],
)  # fmt: skip
def test_attack_36_nothing_that_looks_like_an_ascii_address_becomes_it(address: str) -> None:
    normal = normal_email(address)
    assert normal is None or not normal.isascii()


@pytest.mark.parametrize(
    "address",
    [
        "", "@", "ana", "ana@", "@example.com", "a@b@c", '"a@b"@c', "ana @example.com", "ana@example.com ", "\tana@b",
        "ana@example.com\n", "a\u0000@example.com", "\ud800@example.com", "\u212aim@example.com",
        "a\u200dna@example.com", "ana@example.com\u00a0", "a" * 243 + "@example.com", "\ue000@example.com",
        "\u037ea@example.com",
    ],
)  # fmt: skip
def test_attack_36_what_is_no_address_is_refused(address: str) -> None:
    assert normal_email(address) is None


def test_an_address_may_have_254_characters() -> None:
    assert normal_email("a" * 242 + "@example.com") is not None


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_form_is_stable_storable_and_keeps_ascii_apart(local: str, domain: str) -> None:
    address = f"{local}@{domain}"
    normal = normal_email(address)
    if normal is None:
        return
    assert normal_email(normal) == normal == unicodedata.normalize("NFC", normal)
    assert normal.isascii() == address.isascii()
    assert "\0" not in normal and normal.encode("utf-8").decode() == normal


def _principal(*identity: str, email: str | None = None, groups: tuple[str, ...] = ()) -> Principal:
    issuer, directory, object_id = identity
    return Principal.of((issuer, directory, object_id), email=email, groups=groups)


def test_attack_38_an_identity_is_all_three_parts() -> None:
    same = {_principal("i", "d", "o").key, _principal("i", "d", "o", email="a@b", groups=("g",)).key}
    assert len(same) == 1
    others = [("j", "d", "o"), ("i", "e", "o"), ("i", "d", "p"), ("id", "", "o"), ("i", "do", ""), ("i", "", "do")]
    assert len({_principal(*identity).key for identity in others} | same) == 7


def test_attack_112_parts_never_run_into_each_other() -> None:
    assert _principal("a:b", "", "c").key != _principal("a", "b", "c").key
    assert _principal('a","b', "", "c").key != _principal("a", "b", "c").key


def test_rights_change_with_address_and_groups_but_not_with_their_order() -> None:
    one = _principal("i", "", "o", groups=("a", "b"))
    assert one.rights == _principal("i", "", "o", groups=("b", "a", "a")).rights
    assert one.groups == ("a", "b")
    others = [
        _principal("i", "", "o"), _principal("i", "", "o", groups=("ab",)), _principal("i", "", "p", groups=("a", "b")),
        _principal("i", "", "o", email="a@b", groups=("a", "b")), _principal("i", "", "o", groups=("a", "b", "a@b")),
    ]  # fmt: skip
    assert len({who.rights for who in [one, *others]}) == 6


def test_the_log_calls_a_caller_by_the_trusted_address_or_the_object_id() -> None:
    assert _principal("i", "", "o", email="a@b").label == "a@b"
    assert _principal("i", "", "o").label == "o"
