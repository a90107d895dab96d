"""An OpenID Connect issuer on a real port: metadata, keys, tokens; and every way in which these can be bad.

It signs with `cryptography` alone and writes JSON byte by byte where asked to, so that it can make what a library
would refuse to, and shares nothing with the code that it tests. By itself it behaves; a test changes `metadata`,
`keys`, or what an endpoint `answers`.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AUDIENCE = "mcpmux-test"
_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
_CURVE_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def b64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, length: int | None = None) -> str:
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


@functools.lru_cache(maxsize=64)
def _rsa(name: str, bits: int) -> rsa.RSAPrivateKey:
    """One key per name for the whole test run: making one takes a tenth of a second."""
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class SigningKey:
    """A private key with the id under which its public half is published."""

    kid: str
    algorithm: str
    private: _PrivateKey

    def sign(self, data: bytes, algorithm: str | None = None) -> bytes:
        """A JWS signature (RFC 7518 section 3), also by an algorithm that this key was not made for."""
        algorithm = algorithm or self.algorithm
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(data)
        digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm[2:]]
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(digest)))
            length = (self.private.curve.key_size + 7) // 8
            return r.to_bytes(length, "big") + s.to_bytes(length, "big")
        if algorithm.startswith("PS"):
            return self.private.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return self.private.sign(data, padding.PKCS1v15(), digest)

    def jwk(self, *, private: bool = False, **changes: object) -> dict[str, object]:
        """The key as published; a change to None leaves the member out."""
        members: dict[str, object] = {"kid": self.kid, "use": "sig", "alg": self.algorithm, **self._material()}
        if private and isinstance(self.private, rsa.RSAPrivateKey):
            members["d"] = _number(self.private.private_numbers().d)
        members.update(changes)
        return {name: value for name, value in members.items() if value is not None}

    def _material(self) -> dict[str, object]:
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return {"kty": "OKP", "crv": "Ed25519", "x": b64(self.private.public_key().public_bytes_raw())}
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            point, length = self.private.public_key().public_numbers(), (self.private.curve.key_size + 7) // 8
            curve = _CURVE_NAMES[self.private.curve.name]
            return {"kty": "EC", "crv": curve, "x": _number(point.x, length), "y": _number(point.y, length)}
        public = self.private.public_key().public_numbers()
        return {"kty": "RSA", "n": _number(public.n), "e": _number(public.e)}


def signing_key(kid: str = "k1", algorithm: str = "RS256", *, name: str = "", bits: int = 2048) -> SigningKey:
    """A key; two of one `name` (by default the kid) and size are the same RSA key under the ids asked for."""
    if algorithm in _CURVES:
        return SigningKey(kid, algorithm, ec.generate_private_key(_CURVES[algorithm]))
    if algorithm.startswith("Ed"):
        return SigningKey(kid, algorithm, ed25519.Ed25519PrivateKey.generate())
    return SigningKey(kid, algorithm, _rsa(name or kid, bits))


def compact(
    header: Mapping[str, object] | bytes,
    payload: object,
    sign: SigningKey | Callable[[bytes], bytes],
) -> str:
    """A compact JWS of any header and payload (bytes go in as they are) with any signature."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(b64(part) for part in parts).encode()
    if isinstance(sign, SigningKey):
        algorithm = header.get("alg") if isinstance(header, Mapping) else None
        usable = algorithm if isinstance(algorithm, str) and algorithm[:2] in ("RS", "PS", "ES") else None
        return f"{signed.decode()}.{b64(sign.sign(signed, usable))}"
    return f"{signed.decode()}.{b64(sign(signed))}"


def hmac_sha256(secret: bytes) -> Callable[[bytes], bytes]:
    """A signer for HS256, as somebody would use it who has only our public keys."""

    def sign(data: bytes) -> bytes:
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(data)
        return mac.finalize()

    return sign


class OidcIssuer:
    """`async with OidcIssuer() as issuer`: listens on a free port of 127.0.0.1; `issuer.url` is its `iss`."""

    def __init__(self, keys: Sequence[SigningKey] | None = None, *, path: str = "/realms/test") -> None:
        self.keys: list[SigningKey] = list(keys) if keys is not None else [signing_key()]
        self.jwks: Callable[[], object] = lambda: {"keys": [key.jwk() for key in self.keys]}
        self.metadata: dict[str, object] = {}
        self.answers: dict[str, Answer] = {}  # "metadata" and "keys": what is answered instead
        self.fetches = {"metadata": 0, "keys": 0, "other": 0}
        self.url = ""
        self._path = path
        self._port = 0
        self._fetched = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        self.metadata = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        app = web.Application()
        app.router.add_get(f"{self._path}/.well-known/openid-configuration", self._metadata)
        app.router.add_get(f"{self._path}/keys", self._keys)
        app.router.add_route("*", "/{anything:.*}", self._other)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}{self._path}"

    async def stop(self) -> None:
        """Refuse every connection from now on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def until_fetched(self, endpoint: str, times: int) -> None:
        """Wait until an endpoint was asked at least that often, at most 5 s."""
        async with asyncio.timeout(5), self._fetched:
            await self._fetched.wait_for(lambda: self.fetches[endpoint] >= times)

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims of a good access token; a change to None leaves the claim out."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self.url, "sub": "user-1", "aud": AUDIENCE, "exp": now + 3600, "iat": now, "nbf": now,
            "email": "ana@example.com", "email_verified": True, "name": "Ana", "groups": ["MCP-GitHub"],
        }  # fmt: skip
        claims.update(changes)
        return {name: value for name, value in claims.items() if value is not None}

    def header(self, **changes: object) -> dict[str, object]:
        """The header of a good access token; a change to None leaves the member out."""
        header: dict[str, object] = {"alg": self.keys[0].algorithm, "typ": "JWT", "kid": self.keys[0].kid}
        header.update(changes)
        return {name: value for name, value in header.items() if value is not None}

    def token(
        self, *, key: SigningKey | None = None, header: Mapping[str, object] | None = None, **claims: object
    ) -> str:
        """A token signed by the first key or the given one, with changes to the good header and claims."""
        key = key or self.keys[0]
        return compact(
            self.header(**{"kid": key.kid, "alg": key.algorithm, **(header or {})}), self.claims(**claims), key
        )

    async def _metadata(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("metadata", request, self.metadata)

    async def _keys(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("keys", request, self.jwks())

    async def _other(self, request: web.Request) -> web.StreamResponse:
        return await self._answer("other", request, {})

    async def _answer(self, endpoint: str, request: web.Request, good: object) -> web.StreamResponse:
        async with self._fetched:
            self.fetches[endpoint] += 1
            self._fetched.notify_all()
        if (answer := self.answers.get(endpoint)) is not None:
            return await answer(request)
        return web.json_response(good)


# What an endpoint may answer instead ---------------------------------------------------------------------------


def status(code: int, headers: Mapping[str, str] | None = None, body: str = "") -> Answer:
    """A status, such as 503 with `Retry-After`, or a redirect."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers, text=body)

    return answer


def html() -> Answer:
    """200 and a web page, as a captive portal has it."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="<!doctype html><title>Sign in</title>", content_type="text/html")

    return answer


def raw(body: bytes, *, encoding: str | None = None) -> Answer:
    """200 and these bytes."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        headers = {"Content-Encoding": encoding} if encoding else {}
        return web.Response(body=body, headers=headers, content_type="application/json")

    return answer


def truncated(whole: bytes) -> Answer:
    """Half of what `Content-Length` promises, then the end of the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(whole)), "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(whole[: len(whole) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def huge(size: int) -> Answer:
    """A body without end in sight, sent in chunks."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for _ in range(size // 65536):
            await response.write(b" " * 65536)
        return response

    return answer


class Gate:
    """An answer that begins, and then waits to be opened: a slow issuer, without a sleep."""

    def __init__(self, body: Callable[[], object]) -> None:
        self._body = body
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, _request: web.Request) -> web.StreamResponse:
        await self._open.wait()
        return web.json_response(self._body())
