"""Attacks on what a token says: issuer, audience, times, kinds of tokens, names. Numbers as in the attack list."""

from __future__ import annotations

import json
import time

import pytest

from mcpmux.identity.verifier import Verifier
from tests.identity.conftest import accepted, cause_of, configured, running
from tests.simulators.oidc import AUDIENCE, OidcIssuer, compact

NOW = int(time.time())


async def test_attack_10_only_the_very_issuer_is_believed(verifier: Verifier, issuer: OidcIssuer) -> None:
    await accepted(verifier, issuer.token())
    fetches = dict(issuer.fetches)
    for name in (
        "https://elsewhere.example", f"{issuer.url}/", issuer.url.upper(), issuer.url.replace("127.0.0.1", "localhost"),
        f"{issuer.url}.evil", f"{issuer.url}@evil.example", issuer.url.replace("/", "%2f"), f" {issuer.url}",
        issuer.url[:-1], "urn:mcpmux:development",
    ):  # fmt: skip
        assert await cause_of(verifier, issuer.token(iss=name)) == "issuer"
    for name in ("", 7, True, [issuer.url], {"iss": issuer.url}):
        assert await cause_of(verifier, issuer.token(iss=name)) == "claims"
    assert issuer.fetches == fetches


@pytest.mark.parametrize(
    "audience",
    [
        "other", f"{AUDIENCE}x", f"x{AUDIENCE}", AUDIENCE.upper(), f" {AUDIENCE}", [AUDIENCE, "other"], ["other"],
        [AUDIENCE, 7], [AUDIENCE, None], [[AUDIENCE]], {"aud": AUDIENCE}, 7, True,
    ],
)  # fmt: skip
async def test_attack_13_a_token_for_somebody_else_is_refused(
    verifier: Verifier, issuer: OidcIssuer, audience: object
) -> None:
    assert await cause_of(verifier, issuer.token(aud=audience)) == "audience"


@pytest.mark.parametrize("audience", [None, "", []])
async def test_attack_13_a_token_for_nobody_is_refused(
    verifier: Verifier, issuer: OidcIssuer, audience: object
) -> None:
    assert await cause_of(verifier, issuer.token(aud=audience)) == "claims"


async def test_attack_13_a_list_counts_when_all_in_it_is_configured(issuer: OidcIssuer) -> None:
    async with running(configured(issuer, audiences=("one", "two"))) as verifier:
        for audience in ("one", ["two"], ["two", "one"]):
            await accepted(verifier, issuer.token(aud=audience))
        assert await cause_of(verifier, issuer.token(aud=["one", "three"])) == "audience"


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({"exp": NOW - 3600}, "expired"),
        ({"exp": NOW - 31}, "expired"),
        ({"exp": -1}, "expired"),
        ({"exp": 0}, "expired"),
        ({"nbf": NOW + 3600}, "not_yet_valid"),
        ({"iat": NOW + 3600}, "not_yet_valid"),
        ({"exp": 4_070_908_800}, "lifetime"),
        ({"exp": 10**300}, "lifetime"),
        ({"exp": NOW + 29 * 3600, "iat": None, "nbf": None}, "lifetime"),
        ({"exp": NOW + 3600, "iat": NOW - 28 * 3600}, "lifetime"),
    ],
)
async def test_attack_14_a_token_counts_in_its_time_and_not_for_long(
    verifier: Verifier, issuer: OidcIssuer, claims: dict[str, object], cause: str
) -> None:
    assert await cause_of(verifier, issuer.token(**claims)) == cause


async def test_attack_14_clocks_may_differ_a_little(verifier: Verifier, issuer: OidcIssuer) -> None:
    now = int(time.time())
    verified = await accepted(verifier, issuer.token(exp=now - 5))
    assert verified.expires == now + 25
    await accepted(verifier, issuer.token(nbf=now + 20, iat=now + 20))
    await accepted(verifier, issuer.token(exp=now + 27 * 3600))


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e400", "1.5", "true", '"9999999999"', "null", "[]"]
)
async def test_attack_15_times_are_whole_numbers(verifier: Verifier, issuer: OidcIssuer, name: str, value: str) -> None:
    claims = issuer.claims()
    del claims[name]
    payload = f'{json.dumps(claims)[:-1]},"{name}":{value}}}'.encode()
    assert await cause_of(verifier, compact(issuer.header(), payload, issuer.keys[0])) in ("claims", "malformed")


async def test_attack_15_a_time_that_is_missing_is_no_time(verifier: Verifier, issuer: OidcIssuer) -> None:
    assert await cause_of(verifier, issuer.token(exp=None)) == "claims"
    await accepted(verifier, issuer.token(nbf=None, iat=None))


@pytest.mark.parametrize("name", ["iss", "aud", "exp", "sub"])
@pytest.mark.parametrize("gone", ["missing", "null", "empty"])
async def test_attack_16_nothing_that_is_needed_may_be_missing(
    verifier: Verifier, issuer: OidcIssuer, name: str, gone: str
) -> None:
    claims = issuer.claims()
    del claims[name]
    if gone != "missing":
        claims[name] = None if gone == "null" else ""
    assert await cause_of(verifier, compact(issuer.header(), claims, issuer.keys[0])) == "claims"


@pytest.mark.parametrize(
    "subject", [7, True, ["user-1"], {"sub": "user-1"}, "a\u0000b", "\ud800", "a\nb", "x" * 256, "\x7f", "\u0085"]
)
async def test_attack_18_an_identity_is_a_clean_text(verifier: Verifier, issuer: OidcIssuer, subject: object) -> None:
    assert await cause_of(verifier, issuer.token(sub=subject)) == "claims"


@pytest.mark.parametrize(
    "groups",
    [
        "MCP-Admin", {"MCP-Admin": True}, [1, 2], ["MCP-GitHub", 7], ["MCP-GitHub", None], 7, True, [["MCP-Admin"]],
        ["MCP-GitHub", ""], ["MCP-GitHub", "a\u0000b"], ["\ud800"], ["x" * 257], ["a\nb"],
    ],
)  # fmt: skip
async def test_attack_18_malformed_groups_are_no_groups(verifier: Verifier, issuer: OidcIssuer, groups: object) -> None:
    assert (await accepted(verifier, issuer.token(groups=groups))).principal.groups == ()


async def test_attack_18_other_claims_of_the_wrong_type_do_no_harm(verifier: Verifier, issuer: OidcIssuer) -> None:
    token = issuer.token(email=["ana@example.com"], name={"a": 1}, scp=7, azp=[], groups=None, extra="\ud800")
    who = (await accepted(verifier, token)).principal
    assert (who.email, who.name, who.groups, who.label) == (None, None, (), "user-1")


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "n-1"}, {"at_hash": "x"}, {"c_hash": "x"}, {"s_hash": "x"},
        {"typ": "ID"}, {"typ": "Refresh"}, {"typ": "Offline"}, {"typ": "Logout"}, {"typ": ["Bearer"]}, {"typ": ""},
        {"token_use": "id"}, {"token_type": "refresh"}, {"token_use": 7},
        {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    ],
    ids=str,
)  # fmt: skip
async def test_attack_22_other_tokens_of_the_same_issuer_are_no_access_tokens(
    verifier: Verifier, issuer: OidcIssuer, claims: dict[str, object]
) -> None:
    assert await cause_of(verifier, issuer.token(**claims)) == "token_kind"


async def test_attack_22_an_access_token_that_says_so_may_have_a_nonce(verifier: Verifier, issuer: OidcIssuer) -> None:
    await accepted(verifier, issuer.token(typ="Bearer", nonce="n-1"))
    await accepted(verifier, issuer.token(token_use="access", nonce="n-2"))
    await accepted(verifier, issuer.token(header={"typ": "at+jwt"}, nonce="n-3"))


async def test_attack_39_a_name_among_ids_is_not_believed(issuer: OidcIssuer) -> None:
    ids = ["00000000-0000-4000-8000-000000000001", "MCP-Admin", "00000000-0000-4000-8000-00000000000G"]
    async with running(configured(issuer, groups="ids")) as verifier:
        assert (await accepted(verifier, issuer.token(groups=ids))).principal.groups == (ids[0],)


async def test_groups_are_taken_exactly_and_once(verifier: Verifier, issuer: OidcIssuer) -> None:
    groups = ["MCP-GitHub ", "mcp-github", "MCP-GitHub", "MCP-GitHub", "Équipe"]
    found = (await accepted(verifier, issuer.token(groups=groups))).principal.groups
    assert found == ("MCP-GitHub", "MCP-GitHub ", "mcp-github", "Équipe")


@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email": "Ana@Example.COM"}, "ana@example.com"),
        ({"email_verified": None}, "ana@example.com"),
        ({"email_verified": "true"}, "ana@example.com"),
        ({"email_verified": False}, None),
        ({"email_verified": "false"}, None),
        ({"email_verified": []}, None),
        ({"email_verified": 2}, None),
        ({"xms_edov": False}, None),
        ({"email": None, "preferred_username": "ceo@example.com", "upn": "ceo@example.com"}, None),
        ({"email": "a@b@c"}, None),
        ({"email": "a\u0000@example.com"}, None),
        ({"email": "\ud800@example.com"}, None),
    ],
    ids=str,
)
async def test_attacks_34_to_36_an_address_counts_when_nothing_speaks_against_it(
    verifier: Verifier, issuer: OidcIssuer, claims: dict[str, object], email: str | None
) -> None:
    assert (await accepted(verifier, issuer.token(**claims))).principal.email == email


async def test_attack_34_an_address_counts_only_from_an_issuer_trusted_for_it(issuer: OidcIssuer) -> None:
    async with running(configured(issuer)) as verifier:
        who = (await accepted(verifier, issuer.token())).principal
        assert (who.email, who.label) == (None, "user-1")


TID = "aaaabbbb-0000-4ccc-8111-dddd2222eeee"
OID = "11112222-0000-4ccc-8111-dddd2222eeee"


async def test_at_entra_a_person_is_directory_and_object_never_the_subject() -> None:
    async with (
        OidcIssuer(path=f"/{TID}/v2.0") as issuer,
        running(configured(issuer, kind="entra", trust_email=True)) as verifier,
    ):
        good = {"tid": TID, "oid": OID, "scp": "mcp.access", "groups": [OID, "MCP-Admin"]}
        who = (await accepted(verifier, issuer.token(**good))).principal
        assert (who.directory, who.object_id, who.groups) == (TID, OID, (OID,))
        for changes in (
            {"oid": None}, {"tid": None}, {"tid": OID}, {"tid": TID.upper()}, {"oid": "user-1"}, {"oid": [OID]},
            {"scp": None}, {"scp": ["mcp.access"]}, {"scp": ""}, {"idtyp": "app"}, {"tid": 7},
        ):  # fmt: skip
            assert await cause_of(verifier, issuer.token(**{**good, **changes})) == "claims"
        for guest in ({"idp": "https://sts.windows.net/elsewhere/"}, {"acct": 1}):
            assert (await accepted(verifier, issuer.token(**good, **guest))).principal.email is None
