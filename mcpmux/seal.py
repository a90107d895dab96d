"""What we mint and get back, sealed; and secrets that cannot be shown by accident.

Owns the encryption of cursors, `requestState`, task ids and stored credentials: authenticated, bound to whom and what
they were made for, expiring, and rotatable. Owns the key file that is made when none is configured. It does not know
what is sealed, and it reads no clock: the time is an argument.

The theory. Each configured key is key material, never a key: HKDF gives every (material, purpose) a key of its own,
so that a cursor can never be opened as a task id. Sealing is AES-256-GCM under a key that HMAC makes of the purpose's
key and 12 random bytes of each text, with 12 more as its nonce (the construction of C2SP XAES-256-GCM): random nonces
under one long-lived key would have to stop after 2^32 texts, this is good for 2^80. What a text is bound to and for
is authenticated but not in it; the expiry is inside, encrypted. A text is
`base64url(version, key id, 24 random bytes, AES-GCM(expiry, payload))`.

Rotation: put the new material first and keep the old one behind it until what it sealed has expired. `digest` uses
the first one only, so whatever is looked up by a digest is made anew once after a rotation.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mcpmux.errors import SealBroken, StartRefused

KEY_FILE: Final = "seal.key"
LEAST_KEY: Final = 32  # bytes of key material

_VERSION: Final = b"\x01"
_KEY_ID: Final = 4  # bytes
_SALT: Final = 12
_NONCE: Final = 12
_HEAD: Final = len(_VERSION) + _KEY_ID + _SALT + _NONCE
_EXPIRY: Final = struct.Struct(">d")
_LEAST_TEXT: Final = _HEAD + _EXPIRY.size + 16  # the tag of AES-GCM is 16 bytes


class Secret:
    """A value that shows as `***` wherever it is printed, logged or put into a message; `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself: call it where it is used, at the last moment, and keep no copy."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        ours, theirs = (s.encode("utf-8", "surrogatepass") for s in (self._value, other._value))
        return hmac.compare_digest(ours, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not to be pickled")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self


class _Key:
    """One piece of key material and the keys that were derived from it; purposes are words of our code, so few."""

    __slots__ = ("_derived", "_material", "id")

    def __init__(self, material: bytes) -> None:
        if len(material) < LEAST_KEY:
            raise ValueError(f"key material of {len(material)} bytes: at least {LEAST_KEY} are needed")
        self._material = material
        self._derived: dict[str, bytes] = {}
        self.id = self.derive("mcpmux key id")[:_KEY_ID]

    def derive(self, label: str) -> bytes:
        """The 32 bytes that HKDF-SHA256 makes of the material for `label` (RFC 5869)."""
        if (known := self._derived.get(label)) is None:
            known = HKDF(SHA256(), length=32, salt=None, info=label.encode()).derive(self._material)
            self._derived[label] = known
        return known

    def cipher(self, purpose: str, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self.derive(f"mcpmux seal {purpose}"), salt, hashlib.sha256))


class Keyring:
    """Seals with its first key, opens with any of them."""

    __slots__ = ("_by_id", "_first")

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("a keyring needs at least one key")
        made = [_Key(material) for material in keys]
        self._first = made[0]
        # The first of two equal ids wins: 4 bytes are there to choose quickly, the tag is what decides.
        self._by_id = {key.id: key for key in reversed(made)}

    def seal(self, purpose: str, payload: bytes, *, bound: bytes, expires: float) -> str:
        """URL-safe text without padding that only `open` with the same purpose and `bound` turns back into `payload`.

        `expires` is Unix seconds; `math.inf` for what is kept until it is deleted.
        """
        if math.isnan(expires):
            raise ValueError("expires is not a number")
        head = _VERSION + self._first.id + secrets.token_bytes(_SALT + _NONCE)
        sealed = self._first.cipher(purpose, head[-_SALT - _NONCE : -_NONCE]).encrypt(
            head[-_NONCE:], _EXPIRY.pack(expires) + payload, head + bound
        )
        return base64.urlsafe_b64encode(head + sealed).rstrip(b"=").decode()

    def open(self, purpose: str, text: str, *, bound: bytes, now: float) -> bytes:
        """The payload that was sealed for this purpose and `bound`, unless it expired before `now` (Unix seconds).

        Raises: SealBroken, the same for whatever is wrong.
        """
        data = _decoded(text)
        key = self._by_id.get(data[len(_VERSION) : len(_VERSION) + _KEY_ID])
        if key is None or not data.startswith(_VERSION) or len(data) < _LEAST_TEXT:
            raise SealBroken
        head, sealed = data[:_HEAD], data[_HEAD:]
        try:
            plain = key.cipher(purpose, head[-_SALT - _NONCE : -_NONCE]).decrypt(head[-_NONCE:], sealed, head + bound)
        except InvalidTag:
            raise SealBroken from None
        (expires,) = _EXPIRY.unpack_from(plain)
        if not now < expires:
            raise SealBroken
        return plain[_EXPIRY.size :]

    def digest(self, purpose: str, payload: bytes) -> bytes:
        """HMAC-SHA256 of `payload` under the first key: 32 bytes, the same after a restart, unguessable elsewhere."""
        return hmac.digest(self._first.derive(f"mcpmux digest {purpose}"), payload, hashlib.sha256)


def keyring(data_dir: Path, configured: Sequence[Secret]) -> Keyring:
    """The keyring of the configured keys, or of the one in `data_dir`, which is made once if it is not there.

    A key is text of at least 32 bytes, the white space around it stripped: what stands in the file can be configured
    as it is when several processes are to share it.

    Raises: StartRefused with what to mend.
    """
    if not configured:
        return Keyring([_kept_key(data_dir)])
    keys = [secret.reveal().strip().encode("utf-8", "surrogatepass") for secret in configured]
    for place, key in enumerate(keys, 1):
        if len(key) < LEAST_KEY:
            raise StartRefused(
                f"gateway.keys: key {place} has {len(key)} bytes, at least {LEAST_KEY} are needed "
                "(for example from: openssl rand -base64 32)"
            )
    return Keyring(keys)


def _decoded(text: str) -> bytes:
    """The bytes of canonical, unpadded base64url: one text for the same bytes, or two could pass for different ones.

    Raises: SealBroken.
    """
    if "=" in text:
        raise SealBroken
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        data = base64.b64decode(padded, b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise SealBroken from None
    if base64.urlsafe_b64encode(data) != padded:
        raise SealBroken
    return data


def _kept_key(data_dir: Path) -> bytes:
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            _make_key(path)
        return _read_key(path)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise StartRefused(f"The sealing key {path} cannot be read or made ({problem}); set gateway.keys.") from error


def _make_key(path: Path) -> None:
    """Write a new key under another name, then link it: the second to come finds a whole key, the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.urlsafe_b64encode(secrets.token_bytes(LEAST_KEY)).rstrip(b"=") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure: a key that is lost takes all that it sealed with it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            os.fchmod(file.fileno(), 0o600)
        key = file.read(4096).strip()
    if len(key) < LEAST_KEY:
        raise StartRefused(
            f"The sealing key {path} is damaged ({len(key)} bytes): put back a copy of it, or delete it; "
            "what it has sealed is then lost and is made anew."
        )
    return key
