"""What a token's claims must say to be taken, and whom they name.

Owns every rule about claims, pure: the issuer's rules, the unverified or verified token and the time come in. `admit`
is asked before the signature is looked at, because refusing is then cheap; `principal_of` only after it.

At a plain OIDC issuer there is no sure sign of an access token (RFC 9068 is young), so what is known to mark the
others is refused: `at_hash`, `c_hash`, `s_hash` and `nonce` stand in ID tokens, `events` in logout tokens, and
`typ`, `token_use`, `token_type` say it in words at Keycloak, Cognito and others. An ID token without any of these
that was made for our audience cannot be told from an access token; give mcpmux an audience of its own.
Entra: what every token must have there; its own rules (versions, guests, applications, groups beyond 200) come on top.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from yarl import URL

from mcpmux.config.schema import Issuer
from mcpmux.identity.principal import Principal, Verified, normal_email
from mcpmux.identity.token import Cause, Json, Token, refused

LEEWAY: Final = 30.0  # seconds that an issuer's clock may be off
LONGEST_LIFETIME: Final = 28 * 3600.0  # seconds; Entra's longest, with continuous access evaluation
LONGEST_ID: Final = 255  # characters, OpenID Connect Core section 2
LONGEST_NAME: Final = 256  # characters of a group's name or a person's

ENTRA_HOSTS: Final = frozenset(
    {
        "login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn",
        "sts.windows.net", "sts.chinacloudapi.cn",
    }
)  # fmt: skip
GRAPH_AUDIENCES: Final = frozenset(
    {
        "00000003-0000-0000-c000-000000000000", "https://graph.microsoft.com", "https://graph.microsoft.com/",
        "https://graph.microsoft.us", "https://dod-graph.microsoft.us", "https://microsoftgraph.chinacloudapi.cn",
    }
)  # fmt: skip

_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KIND_CLAIMS: Final = ("typ", "token_use", "token_type")
_ACCESS_WORDS: Final = frozenset({"bearer", "jwt", "at+jwt", "access", "access_token"})
_ID_TOKEN_CLAIMS: Final = frozenset({"at_hash", "c_hash", "s_hash", "nonce"})


@dataclass(frozen=True, slots=True)
class Rules:
    """What one issuer's tokens must be, and how far its word goes. Times in seconds."""

    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    kind: Literal["oidc", "entra"] = "oidc"
    groups: Literal["names", "ids"] = "names"
    trust_email: bool = False
    leeway: float = LEEWAY
    longest: float = LONGEST_LIFETIME

    @classmethod
    def of(cls, issuer: Issuer) -> Self:
        """The rules of a configured issuer, its defaults filled in."""
        host = URL(issuer.issuer).host
        kind = issuer.kind or ("entra" if host in ENTRA_HOSTS else "oidc")
        algorithms = frozenset[str](issuer.algorithms)
        if "EdDSA" in algorithms:
            algorithms |= {"Ed25519"}  # the same signatures under their new name, RFC 9864
        return cls(
            issuer=issuer.issuer,
            audiences=frozenset(issuer.audiences),
            algorithms=algorithms,
            kind=kind,
            groups=issuer.groups or ("ids" if kind == "entra" else "names"),
            trust_email=issuer.trust_email,
        )


def is_for_graph(claims: Mapping[str, Json]) -> bool:
    """Whether the token was made for Microsoft Graph: what Open WebUI sends with its default scopes."""
    audience = claims.get("aud")
    return isinstance(audience, str) and audience in GRAPH_AUDIENCES


def admit(rules: Rules, token: Token, now: float) -> None:
    """Everything but the signature and the identity. `now` is Unix seconds.

    Raises: TokenRefused.
    """
    cause = _wrong_with(rules, token, now)
    if cause is not None:
        raise refused(cause)


def principal_of(rules: Rules, claims: Mapping[str, Json]) -> Verified:
    """The caller that verified claims name, and until when. To be asked after `admit` and the signature.

    Raises: TokenRefused.
    """
    identity = _entra_identity(rules, claims) if rules.kind == "entra" else _oidc_identity(rules, claims)
    if identity is None:
        raise refused("claims")
    name = claims.get("name")
    principal = Principal.of(
        identity,
        email=_email(rules, claims),
        groups=_groups(rules, claims.get("groups")),
        name=name if isinstance(name, str) and is_clean(name, LONGEST_NAME) else None,
    )
    expires = claims["exp"]
    assert isinstance(expires, int)
    return Verified(principal, expires + rules.leeway)


def _wrong_with(rules: Rules, token: Token, now: float) -> Cause | None:
    claims = token.claims
    if token.algorithm not in rules.algorithms:
        return "algorithm"
    if not _is_for_us(rules, claims.get("aud")):
        return "audience" if claims.get("aud") else "claims"
    return _wrong_times(rules, claims, now) or ("token_kind" if _is_other_kind(token) else None)


def _is_for_us(rules: Rules, audience: Json) -> bool:
    """Whether all that the token was made for is us: who else it names could use it here."""
    if isinstance(audience, list):
        return bool(audience) and all(isinstance(one, str) and one in rules.audiences for one in audience)
    return isinstance(audience, str) and audience in rules.audiences


def _wrong_times(rules: Rules, claims: Mapping[str, Json], now: float) -> Cause | None:
    """RFC 7519 sections 4.1.4 to 4.1.6, with whole numbers only: NaN compares as never expired, True as 1."""
    for name in ("exp", "nbf", "iat"):
        if (name in claims or name == "exp") and type(claims.get(name)) is not int:
            return "claims"
    expires, begins, issued = claims["exp"], claims.get("nbf"), claims.get("iat")
    assert isinstance(expires, int)
    if expires + rules.leeway <= now:
        return "expired"
    if any(isinstance(start, int) and start > now + rules.leeway for start in (begins, issued)):
        return "not_yet_valid"
    if expires - now > rules.longest + rules.leeway:
        return "lifetime"
    return "lifetime" if isinstance(issued, int) and expires - issued > rules.longest else None


def _is_other_kind(token: Token) -> bool:
    """Whether something says that this is no access token."""
    if "events" in token.claims:
        return True
    said = [token.claims[name] for name in _KIND_CLAIMS if name in token.claims]
    if any(not isinstance(word, str) or word.lower() not in _ACCESS_WORDS for word in said):
        return True
    # Older Keycloaks put the nonce into access tokens as well, but say so in words.
    return not said and token.typ != "at+jwt" and not _ID_TOKEN_CLAIMS.isdisjoint(token.claims)


def _oidc_identity(rules: Rules, claims: Mapping[str, Json]) -> tuple[str, str, str] | None:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not is_clean(subject, LONGEST_ID):
        return None
    return rules.issuer, "", subject


def _entra_identity(rules: Rules, claims: Mapping[str, Json]) -> tuple[str, str, str] | None:
    """Directory and object id of a *person's access token* for one directory; never `sub`, which differs by app.

    `scp` is in no ID token and in no application's own token.
    """
    directory, object_id, scope = claims.get("tid"), claims.get("oid"), claims.get("scp")
    if not isinstance(directory, str) or not isinstance(object_id, str) or not isinstance(scope, str) or not scope:
        return None
    if _GUID.fullmatch(directory) is None or _GUID.fullmatch(object_id) is None or claims.get("idtyp") == "app":
        return None
    if directory not in URL(rules.issuer).parts:
        return None
    return rules.issuer, directory, object_id


def _email(rules: Rules, claims: Mapping[str, Json]) -> str | None:
    """The address, if the issuer's word counts for addresses and it does not itself say that nobody checked this."""
    address = claims.get("email")
    if not rules.trust_email or not isinstance(address, str):
        return None
    if any(name in claims and not _says_yes(claims[name]) for name in ("email_verified", "xms_edov")):
        return None
    if rules.kind == "entra" and ("idp" in claims or claims.get("acct", 0) != 0):
        return None  # a guest: another directory chose the address
    return normal_email(address)


def _says_yes(value: Json) -> bool:
    """Both claims are Booleans by their documentation, and texts or numbers in the wild."""
    return value is True or value in ("true", "1") or (type(value) is int and value == 1)


def _groups(rules: Rules, value: Json) -> tuple[str, ...]:
    """The groups of a well-formed claim; of anything else none at all, so that what needs a group is denied."""
    if not isinstance(value, list):
        return ()
    # Interned: thousands of remembered tokens name the same groups.
    groups = [sys.intern(group) for group in value if isinstance(group, str) and is_clean(group, LONGEST_NAME)]
    if len(groups) != len(value):
        return ()
    if rules.groups == "ids":
        # A name among ids is not believed: at Entra anybody may call a group MCP-Admin.
        return tuple(group for group in groups if _GUID.fullmatch(group))
    return tuple(groups)


def is_clean(text: str, longest: int = LONGEST_NAME) -> bool:
    """Whether a text can be stored, compared and shown: not empty, not too long, no controls, no lone surrogates."""
    if not 0 < len(text) <= longest:
        return False
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
