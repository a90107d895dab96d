"""Text that may be written down: without secrets, and without characters that a terminal or a reader obeys.

Owns what counts as a secret in text that others wrote (tokens, credentials in headers, URLs and queries) and which
characters are shown as escapes. Pure, and linear in the length of the text: it is given whatever a server prints.
It would rather hide a harmless word than show a secret, and it knows nothing of levels, fields or streams.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from mcpmux.seal import Secret

HIDDEN: Final = "***"
LONGEST: Final = 8192  # characters of one text in a log line; the end of a trace says more than its middle

_DEPTH: Final = 8
_WIDTH: Final = 256  # entries of one list or mapping

# Base64url of `{"`: the beginning of a JWT, also of one that was cut.
_JWT: Final = re.compile(r"eyJ[\w=-]{6,}(?:\.[\w=-]*)*", re.ASCII)
# A challenge (`Bearer error="…"`) has parameters behind the scheme, not a credential.
_BEARER: Final = re.compile(
    r"\b(bearer)((?:\s|%20)+)(?!(?:realm|error|error_description|scope|resource_metadata|authorization_uri)=)[^\s\"',;\\]+",
    re.IGNORECASE,
)
# `Authorization: Basic x`, `"authorization": "token x"`, `(b'Authorization', b'x')`: everything up to the quote.
_AUTHORIZATION: Final = re.compile(
    r"(authorization(?:\\?[\"']\s*[:=,]|\s*[:=])\s*(?:b(?=[\"']))?\\?[\"']?)[^\"'\\\r\n]+", re.IGNORECASE
)
_NAMED: Final = re.compile(
    r"((?:passwords?|passwd|pwd|secret|token|cookie|credentials?|assertion|code_verifier"
    r"|(?:api|access|private|auth|secret)[_-]?key)"
    r"(?:\\?[\"']\s*[:=,]|\s*[:=])\s*(?:b(?=[\"']))?\\?[\"']?)[^\s\"'\\&,;]+",
    re.IGNORECASE,
)
_URL_PASSWORD: Final = re.compile(r"(?<=://)[^\s/?#@:\"'<>]*:[^\s/?#\"'<>]*@")
_SECRET_NAME: Final = re.compile(
    r"(?i:(?:^|[._-])(?:authorization|cookies?|passwords?|passwd|pwd|secrets?|token|credentials?"
    r"|(?:api|access|private|auth|secret)[_-]?key)$)|(?<=[a-z])(?:Token|Secret|Password|ApiKey)$"
)

# What a terminal, `str.splitlines()` or a reader's eye obeys: C0, DEL, C1, soft hyphen, zero-width and bidirectional
# marks, line and paragraph separators, tags; and lone surrogates, which UTF-8 does not have.
_OBEYED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# One of these stands in every text that a rule above could change; all in lower case.
_SIGNS: Final = (
    "eyj", "bearer", "authorization", "token", "secret", "passw", "pwd", "cookie", "credential", "_key", "-key",
    "apikey", "accesskey", "privatekey", "authkey", "assertion", "code_verifier",
)  # fmt: skip

# Texts that only we make, each another one: remembering them would drive out those that come again.
_MINTED: Final = frozenset({"request_id"})

_SHORT_TEXT: Final = 200  # characters of a text that is worth remembering
_MANY: Final = 4096
_NUMBERS: Final = frozenset({int, float, bool, type(None), datetime})


def redact(text: str, secrets: Iterable[Secret] = ()) -> str:
    """`text` with `***` in the place of credentials, and of the given secrets wherever they stand in it.

    Secrets of fewer than 6 characters are not looked for: they would take half of the text with them.
    """
    for secret in secrets:
        value = secret.reveal()
        if len(value) >= 6 and value in text:
            text = text.replace(value, HIDDEN)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1\2{HIDDEN}", text)
    text = _JWT.sub(HIDDEN, text)
    text = _NAMED.sub(rf"\1{HIDDEN}", text)
    return _URL_PASSWORD.sub(f"{HIDDEN}@", text)


def suspicious(text: str) -> bool:
    """Whether `redact` could find anything in the text: plain searches, which cost less than one expression."""
    low = text.lower()
    for sign in _SIGNS:
        if sign in low:
            return True
    return "://" in low and "@" in low


class Screen:
    """Tells in about a microsecond whether a line may be written as it is.

    The same servers, tools and people come again and again, so a text that was found harmless is remembered, and
    forgotten with all the others when they are many.
    """

    __slots__ = ("_names", "_texts")

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._texts: set[str] = set()

    def passes(self, fields: Mapping[str, object]) -> bool:
        """Whether every name and value is plainly harmless; False means only: look closer."""
        for name, value in fields.items():
            if name not in self._names and not self._harmless_name(name):
                return False
            kind = value.__class__
            if kind is str:
                if name in _MINTED:
                    continue
                if value not in self._texts and not self._harmless_text(value):  # type: ignore[arg-type]
                    return False
            elif kind not in _NUMBERS:
                return False
        return True

    def _harmless_name(self, name: str) -> bool:
        harmless = _SECRET_NAME.search(name) is None and _OBEYED.search(name) is None
        if harmless:
            _remember(self._names, name)
        return harmless

    def _harmless_text(self, text: str) -> bool:
        if len(text) > LONGEST or suspicious(text) or _OBEYED.search(text) is not None:
            return False
        if len(text) <= _SHORT_TEXT:
            _remember(self._texts, text)
        return True


def visible(text: str) -> str:
    """`text` with every character that is not plainly seen as an escape, such as `\\x1b` or `\\u202e`."""
    return _OBEYED.sub(_escape, text)


def escaped_json(line: str) -> str:
    """A line of JSON in which such characters are JSON's own escapes: the same values, plainly seen."""
    return _OBEYED.sub(_escape_json, line)


def presentable(value: object, name: str = "", depth: int = 0) -> object:
    """The value of a field as plain JSON types: redacted, cut, never deeper or wider than a log line needs."""
    if isinstance(value, Secret) or (_SECRET_NAME.search(name) and not isinstance(value, bool | int | None)):
        return HIDDEN
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else f"<integer of {value.bit_length()} bits>"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _text(bytes(value[:LONGEST]).decode(errors="backslashreplace"))
    if depth == _DEPTH:
        return "…"
    if isinstance(value, Mapping):
        pairs = [(str(key), entry) for key, entry in list(value.items())[:_WIDTH]]
        return {_text(key): presentable(entry, key, depth + 1) for key, entry in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [presentable(entry, "", depth + 1) for entry in list(value)[:_WIDTH]]
    return _text(_described(value))


def _text(text: str) -> str:
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} … {len(text) - LONGEST} characters left out … {text[-half:]}"
    # A lone surrogate is what `os.fsdecode` makes of a byte that is not UTF-8.
    return (redact(text) if suspicious(text) else text).encode("utf-8", "backslashreplace").decode()


def _remember(known: set[str], text: str) -> None:
    if len(known) >= _MANY:
        known.clear()
    known.add(text)


def _described(value: object) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return str(value)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if code < 0x100:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape_json(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in (0x0A, 0x0D):  # only ever the end of the line: inside a string JSON has escaped it already
        return match[0]
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
