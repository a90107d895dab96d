"""The public keys of one issuer, as a value: read from a JWKS document, looked up, used.

Owns which keys are good enough and how a signature is verified (by joserfc). Pure: where the document came from and
how old it is are `issuers.py`'s.

Rules of the file:
* keys are imported one by one and only the members that make the key are shown to joserfc: one strange key makes its
  import of a whole set fail.
* a key is found by its id *and* its type, which follows from the token's algorithm; so an algorithm can never be
  used with a key of another type, and a set may have one id for an RSA and an EC key (RFC 7517 section 4.5).
* a `kid` is never more than a key of a dictionary.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import base64_to_int

from mcpmux.identity.token import ALGORITHMS, LONGEST_KEY_ID, Json, read_object

MOST_KEYS: Final = 200  # reading an RSA key takes 0.15 ms of everybody's time
LEAST_RSA: Final = 2048  # bits
MOST_RSA: Final = 8192  # bits; the cost of verifying grows with their square
_LONGEST_EXPONENT: Final = 11  # characters: 64 bits
_LONGEST_MEMBER: Final = 2048  # characters of base64url: more than the largest modulus

KeyType = Literal["RSA", "EC", "OKP"]
Flaw = Literal["form", "type", "key_id", "use", "private", "algorithm", "size", "ambiguous"]

_TYPE_OF: Final[Mapping[str, KeyType]] = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_MATERIAL: Final[Mapping[str, tuple[str, ...]]] = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_CURVES: Final[Mapping[str, frozenset[str]]] = {
    "EC": frozenset({"P-256", "P-384", "P-521"}),
    "OKP": frozenset({"Ed25519"}),
}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_PublicKey = RSAKey | ECKey | OKPKey
_IMPORT: Final[Mapping[KeyType, Callable[[dict[str, str]], _PublicKey]]] = {
    "RSA": lambda material: RSAKey.import_key({**material}),
    "EC": lambda material: ECKey.import_key({**material}),
    "OKP": lambda material: OKPKey.import_key({**material}),
}


@dataclass(frozen=True, slots=True)
class Key:
    """One public key. Equal when id, type, algorithm and material are; `public` does not count."""

    key_id: str
    type: KeyType
    algorithm: str | None  # the one that the issuer made it for, if it says so
    digest: bytes
    public: _PublicKey = field(compare=False, repr=False)

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether this key made the signature with this algorithm. The caller has checked that the issuer uses it."""
        if self.algorithm is not None and self.algorithm != algorithm:
            return False
        # By name, never by a list of allowed ones: for an empty list joserfc falls back to its own, which has HS256.
        model = JWSRegistry.algorithms[algorithm]
        try:
            model.check_key(self.public)
            return model.verify(signed, signature, self.public)
        except (JoseError, ValueError):
            return False


@dataclass(frozen=True, slots=True)
class KeySet:
    """What one JWKS document has that can be used; `skipped` counts the rest by flaw."""

    keys: Mapping[tuple[str, KeyType], Key]
    skipped: Mapping[Flaw, int] = field(default_factory=dict, compare=False)

    def find(self, key_id: str, algorithm: str) -> Key | None:
        """The key of that id which can have made such a signature."""
        return self.keys.get((key_id, _TYPE_OF[algorithm[:2]]))

    def has(self, key: Key) -> bool:
        """Whether this very key, with the same material, is still published."""
        return self.keys.get((key.key_id, key.type)) == key


def read_keys(document: bytes) -> KeySet | None:
    """The usable keys of a JWKS document (RFC 7517 section 5), None if it is none or has over `MOST_KEYS` keys."""
    members = read_object(document)
    entries = None if members is None else members.get("keys")
    if not isinstance(entries, list) or len(entries) > MOST_KEYS:
        return None
    return key_set(_read_key(entry) for entry in entries)


def key_set(found: Iterable[Key | Flaw]) -> KeySet:
    """A set of what could be read. Two different keys of one id and type are both left out: neither can be meant."""
    keys: dict[tuple[str, KeyType], Key] = {}
    ambiguous: set[tuple[str, KeyType]] = set()
    skipped: Counter[Flaw] = Counter()
    for key in found:
        if not isinstance(key, Key):
            skipped[key] += 1
            continue
        place = (key.key_id, key.type)
        if keys.setdefault(place, key) != key:
            ambiguous.add(place)
    for place in ambiguous:
        del keys[place]
        skipped["ambiguous"] += 1
    return KeySet(keys, skipped)


def public_key(key_id: str, algorithm: str, public: _PublicKey) -> Key:
    """A key that we have already, for signatures with this one algorithm."""
    return Key(key_id, _TYPE_OF[algorithm[:2]], algorithm, public.thumbprint().encode(), public)


def _read_key(entry: Json) -> Key | Flaw:
    """One JWK that is there to verify signatures of tokens, or what is wrong with it."""
    if not isinstance(entry, dict):
        return "form"
    match entry.get("kty"):
        case "RSA" | "EC" | "OKP" as kind:
            pass
        case _:  # oct too: who verifies with a shared secret could sign with it
            return "type"
    if not _PRIVATE.isdisjoint(entry):
        return "private"  # whoever can read it could sign
    key_id, algorithm = entry.get("kid"), entry.get("alg")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= LONGEST_KEY_ID:
        return "key_id"
    if not _is_for_signatures(entry):
        return "use"
    if algorithm is not None and not (
        isinstance(algorithm, str) and algorithm in ALGORITHMS and _TYPE_OF[algorithm[:2]] == kind
    ):
        return "algorithm"
    public = _imported(kind, entry)
    if not isinstance(public, _PublicKey):
        return public
    return Key(key_id, kind, algorithm, public.thumbprint().encode(), public)


def _is_for_signatures(entry: Mapping[str, Json]) -> bool:
    operations = entry.get("key_ops")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return False
    return entry.get("use", "sig") == "sig"


def _imported(kind: KeyType, entry: Mapping[str, Json]) -> _PublicKey | Flaw:
    """The key itself, made from its own members only."""
    material: dict[str, str] = {"kty": kind}
    for name in _MATERIAL[kind]:
        value = entry.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_MEMBER:
            return "form"
        material[name] = value
    if kind in _CURVES and material["crv"] not in _CURVES[kind]:
        return "type"
    if kind == "RSA" and len(material["e"]) > _LONGEST_EXPONENT:
        return "size"
    try:
        return _IMPORT[kind](material) if _is_right_size(kind, material) else "size"
    except (JoseError, ValueError, TypeError, LookupError, struct.error, UnsupportedAlgorithm):
        return "form"


def _is_right_size(kind: KeyType, material: Mapping[str, str]) -> bool:
    """Whether an RSA modulus is neither weak nor a burden. Before the import: there joserfc only warns."""
    return kind != "RSA" or LEAST_RSA <= base64_to_int(material["n"]).bit_length() <= MOST_RSA
