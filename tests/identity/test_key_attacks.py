"""Attacks on and by way of an issuer's keys: floods, poisoned documents, outages, withdrawn keys."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace

import pytest

from mcpmux.errors import ConfigInvalid, TokenRefused
from mcpmux.identity.issuers import Pace
from mcpmux.identity.verifier import Verifier
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound
from tests.identity.conftest import Clocks, accepted, cause_of, configured, running
from tests.simulators import oidc
from tests.simulators.oidc import OidcIssuer, b64, signing_key


async def test_attack_06_ten_thousand_unknown_kids_cost_one_fetch(
    verifier: Verifier, issuer: OidcIssuer, clocks: Clocks
) -> None:
    good = issuer.token()
    await accepted(verifier, good)
    assert issuer.fetches["keys"] == 1
    _, payload, tail = issuer.token(header={"kid": "KID"}).split(".")

    async def attempt(number: int) -> None:
        forged = b64(json.dumps(issuer.header(kid=f"unknown-{number}")).encode())
        with pytest.raises(TokenRefused) as refusal:
            await verifier.verify(f"{forged}.{payload}.{tail}")
        assert refusal.value.cause == "unknown_key"

    for start in range(0, 10_000, 500):
        async with asyncio.TaskGroup() as tasks:
            for number in range(start, start + 500):
                tasks.create_task(attempt(number))
    assert issuer.fetches["keys"] == 2
    assert await verifier.verify(good)
    clocks.ahead = 280
    await attempt(10_001)
    assert issuer.fetches["keys"] == 2
    clocks.ahead = 320
    await attempt(10_002)
    assert issuer.fetches["keys"] == 3


async def test_a_new_key_is_found_at_once(verifier: Verifier, issuer: OidcIssuer) -> None:
    await accepted(verifier, issuer.token())
    issuer.keys.insert(0, signing_key("k2"))
    await accepted(verifier, issuer.token())
    await accepted(verifier, issuer.token(key=issuer.keys[1]))
    assert issuer.fetches["keys"] == 2


async def test_attack_08_a_key_counts_for_its_own_issuer_only(pace: Pace) -> None:
    mine, theirs = signing_key("same", name="mine"), signing_key("same", name="theirs")
    async with (
        OidcIssuer([mine]) as a,
        OidcIssuer([theirs]) as b,
        running(configured(a), configured(b), pace=pace) as verifier,
    ):
        await accepted(verifier, a.token())
        await accepted(verifier, b.token())
        assert await cause_of(verifier, b.token(iss=a.url)) == "signature"
        assert await cause_of(verifier, a.token(iss=b.url)) == "signature"
        same_person = [(await verifier.verify(issuer.token())).principal.key for issuer in (a, b)]
        assert same_person[0] != same_person[1]


async def test_attack_30_a_verdict_ends_with_its_token(verifier: Verifier, issuer: OidcIssuer, clocks: Clocks) -> None:
    token = issuer.token(exp=issuer.claims()["iat"] + 60)
    await accepted(verifier, token)
    clocks.ahead = 89
    assert verifier.known(token) is not None
    clocks.ahead = 91
    assert verifier.known(token) is None
    assert await cause_of(verifier, token) == "expired"


async def test_attack_30_a_withdrawn_key_takes_its_verdicts_along(issuer: OidcIssuer, pace: Pace) -> None:
    old, new = issuer.keys[0], signing_key("k2")
    issuer.keys.append(new)
    async with running(configured(issuer), pace=replace(pace, renew=0.02)) as verifier:
        by_old, by_new = issuer.token(key=old), issuer.token(key=new)
        await accepted(verifier, by_old)
        await accepted(verifier, by_new)
        issuer.keys.remove(old)
        fetches = issuer.fetches["keys"]
        await issuer.until_fetched("keys", fetches + 2)
        await issuer.until_fetched("keys", fetches + 3)
        assert verifier.known(by_old) is None
        assert verifier.known(by_new) is not None
        assert await cause_of(verifier, by_old) == "unknown_key"


async def test_attack_30_another_key_under_the_same_kid_ends_the_verdicts_of_the_first(
    issuer: OidcIssuer, pace: Pace
) -> None:
    async with running(configured(issuer), pace=replace(pace, renew=0.02)) as verifier:
        first = issuer.token()
        await accepted(verifier, first)
        issuer.keys[0] = signing_key("k1", name="another")
        second = issuer.token()
        fetches = issuer.fetches["keys"]
        await issuer.until_fetched("keys", fetches + 3)
        assert verifier.known(first) is None
        await accepted(verifier, second)
        assert await cause_of(verifier, first) == "signature"


async def test_attack_30_verdicts_are_bounded(
    verifier: Verifier, issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpmux.identity.verifier.MOST_VERDICTS", 10)
    monkeypatch.setattr("mcpmux.identity.verifier.MOST_REFUSALS", 10)
    tokens = [issuer.token(sub=f"user-{number}") for number in range(15)]
    for token in tokens:
        await accepted(verifier, token)
        await cause_of(verifier, token[:-8] + "AAAAAAAA"[:7] + "A")
    assert [verifier.known(token) is not None for token in tokens] == [False] * 5 + [True] * 10
    assert len(verifier._refusals) <= 10


async def test_a_refused_token_is_refused_from_memory(verifier: Verifier, issuer: OidcIssuer, clocks: Clocks) -> None:
    early = issuer.token(nbf=issuer.claims()["iat"] + 40)
    assert await cause_of(verifier, early) == "not_yet_valid"
    clocks.ahead = 20
    await accepted(verifier, early)  # what passes with time is not remembered


ODD = [
    {"kty": "quantum", "kid": "odd"}, {"kty": "oct", "kid": "odd", "k": "c2VjcmV0"}, {}, [], 7, "key", None,
    {"kty": ["RSA"], "kid": "odd"}, {"kty": "RSA", "kid": "odd"}, {"kty": "RSA", "kid": "odd", "n": "!", "e": "AQAB"},
    {"kty": "RSA", "kid": "odd", "n": "\ud800", "e": "AQAB"}, {"kty": "RSA", "kid": "odd", "n": 7, "e": []},
    {"kty": "EC", "kid": "odd", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "EC", "kid": "odd", "crv": "secp256k1", "x": "AA", "y": "AA"},
    {"kty": "OKP", "kid": "odd", "crv": "X25519", "x": b64(bytes(32))},
    {"kty": "OKP", "kid": "odd", "crv": "Ed25519", "x": "AA"},
]  # fmt: skip


async def test_attack_31_strange_keys_spoil_nothing(issuer: OidcIssuer, pace: Pace) -> None:
    issuer.jwks = lambda: {"keys": [*ODD, issuer.keys[0].jwk(x5c=7, x5t=None, issuer="https://x"), *ODD]}
    async with running(configured(issuer), pace=pace) as verifier:
        await accepted(verifier, issuer.token())
        assert await cause_of(verifier, issuer.token(header={"kid": "odd"})) == "unknown_key"


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"}, {"use": 7}, {"key_ops": ["sign"]}, {"key_ops": "verify"}, {"alg": "RS512"}, {"alg": "RSA-OAEP"},
        {"alg": "HS256"}, {"alg": 7}, {"kid": ""}, {"kid": 7}, {"kid": None}, {"k": "c2VjcmV0"},
        {"e": b64(bytes([1] * 9))}, {"e": "AQ"}, {"n": "A" * 4096},
    ],
    ids=str,
)  # fmt: skip
async def test_attack_31_a_key_that_is_not_for_this_is_not_used(
    issuer: OidcIssuer, pace: Pace, changes: dict[str, object]
) -> None:
    good = signing_key("good")
    issuer.jwks = lambda: {"keys": [issuer.keys[0].jwk(**changes), good.jwk()]}
    async with running(configured(issuer), pace=pace) as verifier:
        await accepted(verifier, issuer.token(key=good))
        assert await cause_of(verifier, issuer.token()) in ("unknown_key", "signature")


async def test_attack_31_weak_and_private_keys_are_not_used(issuer: OidcIssuer, pace: Pace) -> None:
    weak, private, good = signing_key("weak", bits=1024), signing_key("private"), signing_key("good")
    issuer.jwks = lambda: {"keys": [weak.jwk(), private.jwk(private=True), good.jwk()]}
    async with running(configured(issuer), pace=pace) as verifier:
        await accepted(verifier, issuer.token(key=good))
        assert await cause_of(verifier, issuer.token(key=weak)) == "unknown_key"
        assert await cause_of(verifier, issuer.token(key=private)) == "unknown_key"


async def test_attack_31_of_two_keys_with_one_kid_neither_counts(issuer: OidcIssuer, pace: Pace) -> None:
    one, other, good = signing_key("same", name="one"), signing_key("same", name="other"), signing_key("good")
    issuer.jwks = lambda: {"keys": [one.jwk(), other.jwk(), good.jwk(), good.jwk()]}
    async with running(configured(issuer), pace=pace) as verifier:
        await accepted(verifier, issuer.token(key=good))
        assert await cause_of(verifier, issuer.token(key=one)) == "unknown_key"
        assert await cause_of(verifier, issuer.token(key=other)) == "unknown_key"


async def test_one_kid_may_name_keys_of_two_types(issuer: OidcIssuer, pace: Pace) -> None:
    curve = signing_key("k1", "ES256")
    issuer.keys.append(curve)
    async with running(configured(issuer, algorithms=("RS256", "ES256")), pace=pace) as verifier:
        await accepted(verifier, issuer.token())
        await accepted(verifier, issuer.token(key=curve))


BAD_ANSWERS = {
    "outage": oidc.status(503, {"Retry-After": "0"}),
    "not found": oidc.status(404),
    "html": oidc.html(),
    "empty": oidc.raw(b""),
    "truncated": oidc.truncated(b'{"keys":[]}' + b" " * 1000),
    "huge": oidc.huge(50 * 1024 * 1024),
    "bomb": oidc.raw(gzip.compress(b" " * 50_000_000), encoding="gzip"),
    "no keys": oidc.raw(b'{"keys":[]}'),
    "not a list": oidc.raw(b'{"keys":{}}'),
    "a list": oidc.raw(b"[]"),
    "twice": oidc.raw(b'{"keys":[],"keys":[]}'),
    "10,000 keys": oidc.raw(json.dumps({"keys": [{"kty": "RSA"}] * 10_000}).encode()),
    "redirect": oidc.status(302, {"Location": "http://localhost:1/keys"}),
    "redirect loop": oidc.status(302, {"Location": ""}),
}


@pytest.mark.parametrize("endpoint", ["keys", "metadata"])
@pytest.mark.parametrize("bad", BAD_ANSWERS)
async def test_attack_31_a_bad_answer_is_refused_and_outlived(
    issuer: OidcIssuer, pace: Pace, bad: str, endpoint: str
) -> None:
    issuer.answers[endpoint] = BAD_ANSWERS[bad]
    async with running(configured(issuer), pace=pace) as verifier:
        token = issuer.token()
        assert await cause_of(verifier, token) == "issuer_unavailable"
        del issuer.answers[endpoint]
        await issuer.until_fetched("keys", issuer.fetches["keys"] + 1)
        await accepted(verifier, token)


@pytest.mark.parametrize("bad", BAD_ANSWERS)
async def test_attack_31_the_last_good_keys_are_kept_for_a_day(
    issuer: OidcIssuer, pace: Pace, clocks: Clocks, bad: str
) -> None:
    async with running(configured(issuer), pace=pace) as verifier:
        await accepted(verifier, issuer.token())
        issuer.answers = {"keys": BAD_ANSWERS[bad], "metadata": BAD_ANSWERS[bad]}
        assert await cause_of(verifier, issuer.token(header={"kid": "new"})) == "unknown_key"
        clocks.ahead = 23 * 3600
        now = int(clocks.wall())
        late = issuer.token(iat=now, nbf=now, exp=now + 7200)
        await accepted(verifier, late)
        clocks.ahead = 24 * 3600 + 60
        assert verifier.known(late) is None
        assert await cause_of(verifier, late) == "issuer_unavailable"
        issuer.answers = {}
        await issuer.until_fetched("keys", issuer.fetches["keys"] + 1)
        await accepted(verifier, late)


async def test_an_issuer_that_is_down_at_the_start_is_found_when_it_comes(pace: Pace) -> None:
    issuer = OidcIssuer()
    async with issuer:
        await issuer.stop()
        async with running(configured(issuer), pace=pace) as verifier:
            token = issuer.token()
            assert await cause_of(verifier, token) == "issuer_unavailable"
            await issuer.start()
            await issuer.until_fetched("keys", 1)
            await accepted(verifier, token)


async def test_a_slow_issuer_delays_nobody_elses_callers(issuer: OidcIssuer, pace: Pace) -> None:
    async with OidcIssuer([signing_key("slow")]) as slow:
        gate = oidc.Gate(slow.jwks)
        slow.answers["keys"] = gate
        async with running(configured(slow), configured(issuer), pace=pace) as verifier:
            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(verifier.verify(slow.token(sub=f"user-{n}"))) for n in range(20)]
                await accepted(verifier, issuer.token())
                await slow.until_fetched("keys", 1)
                assert not any(task.done() for task in waiting)
                waiting.pop().cancel()  # a caller who leaves takes nothing along
                gate.open()
            assert [task.result().principal.object_id for task in waiting] == [f"user-{n}" for n in range(19)]
            assert slow.fetches["keys"] == 1


async def test_a_token_does_not_wait_longer_than_it_should(issuer: OidcIssuer, pace: Pace) -> None:
    issuer.answers["keys"] = oidc.Gate(issuer.jwks)
    async with running(configured(issuer), pace=replace(pace, wait=0.05)) as verifier:
        assert await cause_of(verifier, issuer.token()) == "issuer_unavailable"


async def test_the_loop_outlives_what_nobody_foresaw(issuer: OidcIssuer, pace: Pace) -> None:
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("no clock")
        return pace.clock()

    async with running(configured(issuer), pace=replace(pace, clock=clock)) as verifier:
        await issuer.until_fetched("keys", 1)
        await accepted(verifier, issuer.token())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("issuer", "https://elsewhere.example"), ("issuer", None), ("issuer", "SLASH"), ("jwks_uri", None),
        ("jwks_uri", "file:///etc/passwd"), ("jwks_uri", "http://example.com/keys"), ("jwks_uri", 7),
        ("jwks_uri", "http://ana:secret@127.0.0.1/keys"), ("jwks_uri", "//evil.example/keys"), ("jwks_uri", "/keys"),
        ("jwks_uri", "http://127.0.0.1.evil.example/keys"),
    ],
)  # fmt: skip
async def test_metadata_is_the_issuers_own_and_its_keys_are_fetched_securely(
    issuer: OidcIssuer, pace: Pace, member: str, value: object
) -> None:
    issuer.metadata[member] = f"{issuer.url}/" if value == "SLASH" else value
    async with running(configured(issuer), pace=pace) as verifier:
        assert await cause_of(verifier, issuer.token()) == "issuer_unavailable"
        assert issuer.fetches["keys"] == 0


async def test_keys_may_be_on_another_host_that_the_configured_metadata_names(issuer: OidcIssuer, pace: Pace) -> None:
    async with OidcIssuer() as elsewhere:
        issuer.metadata["jwks_uri"] = f"{elsewhere.url}/keys".replace("127.0.0.1", "localhost")
        async with running(configured(issuer), pace=pace) as verifier:
            await accepted(verifier, issuer.token())
            assert elsewhere.fetches["keys"] == 1


async def test_metadata_may_be_configured_at_another_place(issuer: OidcIssuer, pace: Pace) -> None:
    issuer.metadata["issuer"] = "https://login.example.com"
    place = f"{issuer.url}/.well-known/openid-configuration"
    async with running(configured(issuer, issuer="https://login.example.com", metadata=place), pace=pace) as verifier:
        await accepted(verifier, issuer.token(iss="https://login.example.com"))


@pytest.mark.parametrize("name", ["http://login.example.com", "urn:example", "ftp://login.example.com", "https://a@b/"])
async def test_an_issuer_whose_keys_anybody_could_change_is_not_started_with(issuer: OidcIssuer, name: str) -> None:
    async with Outbound() as outbound:
        with pytest.raises(ConfigInvalid, match="https"):
            Verifier([configured(issuer, issuer=name)], outbound, Metrics([]))
