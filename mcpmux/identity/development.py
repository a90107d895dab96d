"""The local issuer that makes tokens for a first try, while no real one is configured.

Owns its key, a file in the data directory, and what its tokens say. They are verified by the same code as any
issuer's, with the key in memory. Whoever can read the file can be anybody, so it exists only while
`identity.issuers` is empty, and `serve` refuses it on an address that others can reach.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from joserfc.jws import serialize_compact

from mcpmux.errors import SigningRefused, StartRefused
from mcpmux.identity.claims import Rules, is_clean
from mcpmux.identity.keys import KeySet, key_set, public_key
from mcpmux.identity.principal import normal_email
from mcpmux.identity.token import LONGEST_TOKEN
from mcpmux.observe.log import logger

ISSUER: Final = "urn:mcpmux:development"
AUDIENCE: Final = "mcpmux"
ALGORITHM: Final = "RS256"
KEY_FILE: Final = "development-issuer.pem"
LONGEST_TTL: Final = 31 * 86400.0  # seconds: a token to paste into a client on one's own machine

log = logger("identity")


class DevelopmentIssuer:
    """Signs tokens for anybody and any group."""

    __slots__ = ("_key", "keys", "rules")

    rules: Rules
    keys: KeySet

    def __init__(self, key: RSAKey) -> None:
        self._key = key
        self.keys = key_set([public_key(key.thumbprint(), ALGORITHM, RSAKey.import_key(key.as_dict(private=False)))])
        self.rules = Rules(
            issuer=ISSUER,
            audiences=frozenset({AUDIENCE}),
            algorithms=frozenset({ALGORITHM}),
            trust_email=True,
            leeway=0.0,  # one machine, one clock
            longest=LONGEST_TTL,
        )

    def sign(self, email: str, groups: Sequence[str] = (), ttl: float = 3600.0) -> str:
        """An access token for this person in these groups, good for `ttl` seconds (whole ones).

        The same address is the same principal, whatever its case, also with another key.

        Raises: SigningRefused.
        """
        address = normal_email(email)
        if address is None:
            raise SigningRefused("that is not an e-mail address that could be granted anything")
        if not 1 <= ttl <= LONGEST_TTL:
            raise SigningRefused(f"it can be good for 1 second to {LONGEST_TTL / 86400:g} days")
        if not all(is_clean(group) for group in groups):
            raise SigningRefused("a group's name has 1 to 256 characters and no control characters")
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": hashlib.sha256(f"{ISSUER}\0{address}".encode()).hexdigest()[:32],
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + int(ttl),
            "jti": uuid.uuid4().hex,
            "email": address,
            "email_verified": True,
            "name": address,
            "groups": sorted(set(groups)),
        }
        header = {"alg": ALGORITHM, "typ": "at+jwt", "kid": self._key.thumbprint()}
        token = serialize_compact(header, orjson.dumps(claims), self._key, algorithms=[ALGORITHM])
        if len(token) > LONGEST_TOKEN:
            raise SigningRefused("too many groups")
        return token


def development_issuer(data_dir: Path) -> DevelopmentIssuer:
    """The issuer of this data directory; its key is made once, by whichever process comes first.

    Raises: StartRefused with what to mend.
    """
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
        pem = _read_key(path)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise StartRefused(f"The development issuer's key {path} cannot be read or made ({problem}).") from error
    try:
        key = RSAKey.import_key(pem)
        usable = key.is_private and key.raw_value.key_size >= 2048
    except (JoseError, ValueError, TypeError):
        usable = False
    if not usable:
        raise StartRefused(f"The development issuer's key {path} is damaged: delete it, tokens are then made anew.")
    return DevelopmentIssuer(key)


def _make_key(path: Path) -> None:
    """Write a new key under another name, then link it: the second to come finds a whole key, the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = RSAKey.generate_key(2048).as_pem(private=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        log.info("development_key_made", path=str(path))
    finally:
        draft.unlink(missing_ok=True)


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            os.fchmod(file.fileno(), 0o600)
            log.warning("development_key_exposed", path=str(path), hint="others could read it: delete it for a new one")
        return file.read(64 * 1024)
