"""Attacks on the form of a token: header, encoding, signature. The numbers are those of the project's attack list."""

from __future__ import annotations

import json
import zlib

import pytest
from cryptography.hazmat.primitives import serialization

from mcpmux.identity.verifier import Verifier
from tests.identity.conftest import accepted, cause_of, configured, running
from tests.simulators.oidc import OidcIssuer, b64, compact, hmac_sha256, signing_key


async def test_a_good_token_is_taken_and_remembered(verifier: Verifier, issuer: OidcIssuer) -> None:
    token = issuer.token()
    assert verifier.known(token) is None
    verified = await accepted(verifier, token)
    who = verified.principal
    assert (who.issuer, who.directory, who.object_id) == (issuer.url, "", "user-1")
    assert (who.email, who.groups, who.name, who.label) == (
        "ana@example.com", ("MCP-GitHub",), "Ana", "ana@example.com",
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", None, 0, ["RS256"], {"alg": "RS256"}, True])
async def test_attack_01_no_algorithm_is_no_signature(
    verifier: Verifier, issuer: OidcIssuer, algorithm: object
) -> None:
    header = issuer.header(alg=algorithm)
    unsigned = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(issuer.claims()).encode())}."
    assert await cause_of(verifier, unsigned) == "malformed"
    assert await cause_of(verifier, unsigned + "AA") == "algorithm"
    assert await cause_of(verifier, compact(header, issuer.claims(), issuer.keys[0])) == "algorithm"


@pytest.mark.parametrize("form", ["pem", "pkcs1", "der", "jwk", "modulus", "x5c"])
async def test_attack_02_a_public_key_is_no_secret(verifier: Verifier, issuer: OidcIssuer, form: str) -> None:
    public = issuer.keys[0].private.public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, info),
        "pkcs1": public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "jwk": json.dumps(issuer.keys[0].jwk()).encode(),
        "modulus": str(issuer.keys[0].jwk()["n"]).encode(),
        "x5c": b64(public.public_bytes(serialization.Encoding.DER, info)).encode(),
    }[form]
    for algorithm in ("HS256", "RS256"):
        token = compact(issuer.header(alg=algorithm), issuer.claims(), hmac_sha256(secret))
        assert await cause_of(verifier, token) == ("algorithm" if algorithm == "HS256" else "signature")


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "ES256", "EdDSA"])
async def test_attack_03_algorithms_count_only_where_they_are_configured(issuer: OidcIssuer, algorithm: str) -> None:
    other = signing_key("other", algorithm)
    issuer.keys.append(other)
    async with running(configured(issuer)) as strict:
        assert await cause_of(strict, issuer.token(key=other)) == "algorithm"
    async with running(configured(issuer, algorithms=("RS256", algorithm))) as lenient:
        await accepted(lenient, issuer.token(key=other))


async def test_attack_03_a_key_signs_only_with_the_algorithm_it_was_published_for(issuer: OidcIssuer) -> None:
    key = issuer.keys[0]
    async with running(configured(issuer, algorithms=("RS256", "PS256", "RS512"))) as verifier:
        for algorithm in ("PS256", "RS512"):
            token = compact(issuer.header(alg=algorithm), issuer.claims(), key)
            assert await cause_of(verifier, token) == "signature"
        await accepted(verifier, issuer.token())


async def test_attack_03_a_curve_belongs_to_its_algorithm(issuer: OidcIssuer) -> None:
    key = signing_key("curve", "ES384")
    issuer.jwks = lambda: {"keys": [key.jwk(alg=None)]}
    async with running(configured(issuer, algorithms=("ES256", "ES384"))) as verifier:
        await accepted(verifier, issuer.token(key=key))
        assert (
            await cause_of(verifier, compact(issuer.header(alg="ES256", kid="curve"), issuer.claims(), key))
            == "signature"
        )


@pytest.mark.parametrize(
    "kid",
    [
        "../../etc/passwd",
        "/dev/null",
        "' OR 1=1--",
        "http://evil.example/k",
        "\u0000",
        "k1\u0000",
        "K1",
        " k1",
        "\ud800",
    ],
)
async def test_attack_04_a_kid_is_only_looked_up(verifier: Verifier, issuer: OidcIssuer, kid: str) -> None:
    await accepted(verifier, issuer.token())
    assert await cause_of(verifier, issuer.token(header={"kid": kid})) == "unknown_key"
    assert issuer.fetches["other"] == 0


@pytest.mark.parametrize("kid", ["k" * 10_000, "", 1, ["k1"], {"kid": "k1"}, True])
async def test_attack_04_a_kid_is_a_short_text(verifier: Verifier, issuer: OidcIssuer, kid: object) -> None:
    assert await cause_of(verifier, issuer.token(header={"kid": kid})) == "key_id"


@pytest.mark.parametrize("member", ["jku", "x5u", "jwk", "x5c"])
async def test_attack_05_a_token_brings_no_key_along(verifier: Verifier, issuer: OidcIssuer, member: str) -> None:
    await accepted(verifier, issuer.token())
    before = dict(issuer.fetches)
    mine = signing_key("k1", name="attacker")
    values = {"jku": f"{issuer.url}/mine", "x5u": f"{issuer.url}/mine", "jwk": mine.jwk(), "x5c": ["MIIB"]}
    assert await cause_of(verifier, issuer.token(key=mine, header={member: values[member]})) == "header"
    assert await cause_of(verifier, issuer.token(header={member: values[member]})) == "header"
    assert issuer.fetches == before


@pytest.mark.parametrize("keys", [1, 2])
async def test_attack_07_a_token_names_its_key(issuer: OidcIssuer, keys: int) -> None:
    issuer.keys += [signing_key("k2")][: keys - 1]
    async with running(configured(issuer)) as verifier:
        assert await cause_of(verifier, issuer.token(header={"kid": None})) == "key_id"


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"RS256","kid":"k1","kid":"k1"}',
        '{"alg":"none","kid":"k1","alg":"RS256"}',
        '{"alg":"RS256","kid":"k1","k\\u0069d":"k1"}',
        '{"alg":"RS256","kid":"k1","x":{"a":1,"a":2}}',
    ],
)
async def test_attack_17_no_header_member_comes_twice(verifier: Verifier, issuer: OidcIssuer, header: str) -> None:
    assert await cause_of(verifier, compact(header.encode(), issuer.claims(), issuer.keys[0])) == "malformed"


@pytest.mark.parametrize(
    "member", ['"sub":"victim"', '"s\\u0075b":"victim"', '"x":[{"a":1,"a":1}]', '"exp":99999999999']
)
async def test_attack_17_no_claim_comes_twice(verifier: Verifier, issuer: OidcIssuer, member: str) -> None:
    claims = json.dumps(issuer.claims())
    for payload in (f"{{{member},{claims[1:]}", f"{claims[:-1]},{member}}}"):
        cause = await cause_of(verifier, compact(issuer.header(), payload.encode(), issuer.keys[0]))
        assert cause == "malformed"


@pytest.mark.parametrize(
    "payload",
    [
        b"[]", b'"text"', b"null", b"7", b"", b"{", b"{}x", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b'{"sub":"\xff"}',
        '{"sub":"ana"}'.encode("utf-16"), b"[" * 12_000, b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        b'{"a":' + b"9" * 5_000 + b"}",
    ],
    ids=lambda payload: repr(payload[:12]),
)  # fmt: skip
async def test_attack_18_a_payload_is_one_object_of_json_in_utf8(
    verifier: Verifier, issuer: OidcIssuer, payload: bytes
) -> None:
    token = compact(issuer.header(), payload, issuer.keys[0])
    assert await cause_of(verifier, token) in ("malformed", "too_large")


async def test_attack_19_a_huge_token_is_refused_by_its_length(verifier: Verifier, issuer: OidcIssuer) -> None:
    assert await cause_of(verifier, issuer.token(x="x" * 17_000)) == "too_large"
    assert await cause_of(verifier, "x" * 1_000_000) == "too_large"


async def test_attack_19_a_token_with_200_groups_is_taken(verifier: Verifier, issuer: OidcIssuer) -> None:
    groups = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(200)]
    token = issuer.token(groups=groups)
    assert len(token) > 10_000
    assert len((await accepted(verifier, token)).principal.groups) == 200


async def test_attack_20_nothing_is_unwrapped_or_unpacked(verifier: Verifier, issuer: OidcIssuer) -> None:
    inner = issuer.token()
    header = issuer.header(cty="JWT")
    assert await cause_of(verifier, compact(header, inner.encode(), issuer.keys[0])) == "header"
    bomb = zlib.compress(b" " * 1_000_000)
    assert await cause_of(verifier, compact(issuer.header(zip="DEF"), bomb, issuer.keys[0])) == "header"
    jwe = ".".join([b64(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), *["AAAA"] * 4])
    assert await cause_of(verifier, jwe) == "malformed"
    assert await cause_of(verifier, compact(issuer.header(enc="A256GCM"), issuer.claims(), issuer.keys[0])) == "header"
    assert await cause_of(verifier, "a.b.c.d.e.f.g") == "malformed"
    head, payload, tail = inner.split(".")
    flattened = json.dumps({"protected": head, "payload": payload, "signature": tail})
    assert await cause_of(verifier, flattened) == "malformed"


@pytest.mark.parametrize("member", [{"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"b64": True}, {"crit": None}])
async def test_attack_21_nothing_critical_is_ignored(
    verifier: Verifier, issuer: OidcIssuer, member: dict[str, object]
) -> None:
    header = {**issuer.header(), **member}
    assert await cause_of(verifier, compact(header, issuer.claims(), issuer.keys[0])) == "header"


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "refresh", "id_token+jwt", "secevent+jwt", "", 1, ["JWT"]])
async def test_attack_23_other_kinds_of_tokens_are_refused(verifier: Verifier, issuer: OidcIssuer, typ: object) -> None:
    assert await cause_of(verifier, issuer.token(header={"typ": typ})) == "type"


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", None])
async def test_attack_23_access_tokens_by_any_of_their_names_are_taken(
    verifier: Verifier, issuer: OidcIssuer, typ: object
) -> None:
    await accepted(verifier, issuer.token(header={"typ": typ}))


async def test_attack_24_a_graph_token_is_named_in_the_log(
    verifier: Verifier, issuer: OidcIssuer, capsys: pytest.CaptureFixture[str]
) -> None:
    for audience in ("https://graph.microsoft.com", "00000003-0000-0000-c000-000000000000"):
        with_nonce = issuer.token(header={"nonce": "n"}, aud=audience)
        without = issuer.token(aud=audience, iss="https://sts.windows.net/aaaabbbb-0000-cccc-1111-dddd2222eeee/")
        assert await cause_of(verifier, with_nonce) == "graph_token"
        assert await cause_of(verifier, without) == "graph_token"
    assert "MICROSOFT_OAUTH_SCOPE" in capsys.readouterr().err


def _other_last_character(part: str) -> str:
    """The same bytes in another text: the unused bits of the last character changed."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]


async def test_attack_29_one_token_has_one_text(verifier: Verifier, issuer: OidcIssuer) -> None:
    token = issuer.token()
    head, payload, tail = token.split(".")
    assert len(tail) % 4 == 2
    variants = [
        f"{head}.{payload}.{_other_last_character(tail)}",
        f"{head}.{payload}.{tail}==",
        f"{head}.{payload}.{tail}=",
        f"{token}.",
        f".{token}",
        f"{token}\n",
        f" {token}",
        f"{head}.\n{payload}.{tail}",
        f"{head}.{payload}.{tail[:-1]}",
        f"{head}.{payload}.{tail}A",
        f"{head}.{payload}.{tail}AAA",
        token.replace("-", "+").replace("_", "/"),
        f"{head}.{payload}.{tail[:100]}é{tail[101:]}",
        f"{head}.{payload}.{tail[:100]}\udc80{tail[101:]}",
    ]
    await accepted(verifier, token)
    for variant in variants:
        if variant != token:
            assert await cause_of(verifier, variant) in ("malformed", "signature")


async def test_attack_29_a_changed_byte_anywhere_is_no_token(verifier: Verifier, issuer: OidcIssuer) -> None:
    token = issuer.token()
    head, payload, tail = token.split(".")
    other = compact(issuer.header(), issuer.claims(sub="victim"), issuer.keys[0]).split(".")[1]
    assert await cause_of(verifier, f"{head}.{other}.{tail}") == "signature"
    assert await cause_of(verifier, f"{head}.{payload}.{b64(bytes(256))}") == "signature"
    assert await cause_of(verifier, f"{head}.{payload}.{b64(b'short')}") == "signature"


async def test_attack_33_open_webuis_own_session_token_is_refused(verifier: Verifier) -> None:
    session = compact({"alg": "HS256", "typ": "JWT"}, {"id": "user", "exp": 1795434000}, hmac_sha256(b"secret"))
    assert await cause_of(verifier, session) == "algorithm"
    forwarded = {"iss": "open-webui", "email": "ana@example.com", "groups": ["MCP-Admin"]}
    assert await cause_of(verifier, compact({"alg": "HS256"}, forwarded, hmac_sha256(b"secret"))) == "algorithm"
