"""Who a verified caller is.

Owns the two values that the rooms above get, and the only form in which an e-mail address is compared anywhere: what
`normal_email` gives. A grant made for another form would never match, so whoever stores or looks one up calls it too.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from typing import Final, Self

import orjson
from msgspec import Struct

LONGEST_EMAIL: Final = 254  # characters, RFC 3696 erratum 1690


class Principal(Struct, frozen=True):
    """A verified caller. Two of them are the same person or program if and only if their `key` is the same."""

    issuer: str
    directory: str  # Entra's tid; "" at a plain OIDC issuer
    object_id: str  # Entra's oid; `sub` at a plain OIDC issuer
    email: str | None  # only if this issuer is trusted for e-mail; as `normal_email` gives it
    groups: tuple[str, ...]  # names or ids, as the issuer is configured; sorted, each once
    name: str | None  # for people to read, decides nothing
    key: str  # digest of (issuer, directory, object_id): what sessions and stored things are bound to
    rights: str  # digest of key, email and groups: what grants depend on
    label: str  # what the log calls this caller

    @classmethod
    def of(
        cls, identity: tuple[str, str, str], *, email: str | None, groups: tuple[str, ...], name: str | None = None
    ) -> Self:
        """The principal of (issuer, directory, object id), its digests made."""
        groups = tuple(sorted(set(groups)))
        key = _digest(*identity)
        # As lists inside a JSON array: no group name can pass for an e-mail, or two for one.
        rights = _digest(key, email, groups)
        return cls(*identity, email, groups, name, key, rights, email or identity[2])


class Verified(Struct, frozen=True):
    """What a good token says."""

    principal: Principal
    expires: float  # Unix seconds from which on mcpmux takes the token no more, leeway included


def normal_email(text: str) -> str | None:
    """The form in which an e-mail address is compared: NFC, ASCII letters lowered, nothing else folded.

    None for what is no address or could pass for another one: over 254 characters, not exactly one `@`, an empty half,
    white space, control and invisible characters, lone surrogates, and characters that NFC would turn into ASCII (the
    Kelvin sign becomes `K`).
    """
    if text.isascii():
        normal = text
    elif any(unicodedata.normalize("NFC", char).isascii() for char in text if not char.isascii()):
        return None
    else:
        normal = unicodedata.normalize("NFC", text)
    # Categories C* and Z*: controls, formats such as ZWJ, surrogates, unassigned, private use, separators.
    if len(normal) > LONGEST_EMAIL or any(unicodedata.category(char)[0] in "CZ" for char in normal):
        return None
    local, _, domain = normal.partition("@")
    if not local or not domain or "@" in domain:
        return None
    return "".join(char.lower() if char.isascii() else char for char in normal)


def _digest(*parts: object) -> str:
    """43 characters; the parts as one JSON array, so that ("a", "bc") and ("ab", "c") differ."""
    return base64.urlsafe_b64encode(hashlib.sha256(orjson.dumps(parts)).digest()).rstrip(b"=").decode()
