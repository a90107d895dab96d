"""Sealing: only the right purpose, binding and time open a text; keys rotate; the key file is made once."""

from __future__ import annotations

import base64
import copy
import json
import math
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.errors import SealBroken, StartRefused
from mcpmux.seal import KEY_FILE, Keyring, Secret, keyring

KEY, OTHER = b"k" * 32, b"o" * 40
NOW = 1_800_000_000.0


@pytest.fixture
def ring() -> Keyring:
    return Keyring([KEY])


@given(payload=st.binary(max_size=300), bound=st.binary(max_size=60), purpose=st.text(min_size=1, max_size=20))
def test_what_was_sealed_opens_again(payload: bytes, bound: bytes, purpose: str) -> None:
    ring = Keyring([KEY])
    text = ring.seal(purpose, payload, bound=bound, expires=NOW + 1)
    assert ring.open(purpose, text, bound=bound, now=NOW) == payload
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    ("purpose", "bound", "now"),
    [("task", b"ana", NOW), ("cursor", b"ben", NOW), ("cursor", b"", NOW), ("cursor", b"ana", NOW + 60)],
    ids=["another purpose", "another principal", "no principal", "expired"],
)
def test_another_purpose_binding_or_time_does_not_open_it(
    ring: Keyring, purpose: str, bound: bytes, now: float
) -> None:
    text = ring.seal("cursor", b"page 2", bound=b"ana", expires=NOW + 60)
    with pytest.raises(SealBroken):
        ring.open(purpose, text, bound=bound, now=now)


def test_every_changed_bit_is_noticed(ring: Keyring) -> None:
    data = base64.urlsafe_b64decode(ring.seal("cursor", b"x", bound=b"ana", expires=NOW + 60) + "==")
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        text = base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
        with pytest.raises(SealBroken):
            ring.open("cursor", text, bound=b"ana", now=NOW)


def test_binding_and_header_cannot_be_shifted_into_each_other(ring: Keyring) -> None:
    text = ring.seal("cursor", b"abcdef", bound=b"12", expires=NOW + 60)
    for bound in (b"1", b"123", b"2", b"12\0"):
        with pytest.raises(SealBroken):
            ring.open("cursor", text, bound=bound, now=NOW)


def odd_texts() -> list[str]:
    good = Keyring([KEY]).seal("cursor", b"x", bound=b"ana", expires=NOW + 60)
    forged = [json.dumps({"offset": 100}), base64.b64encode(b"{}").decode(), good.replace("-", "+") + "+"]
    cut = ["", "A", "AA", "AAAA", good[:-1], good[:40]]
    padded = [good + "=", good + "A", good + "\n", " " + good]
    return [*cut, *padded, *forged, "é" + good, "\ud800", "A" * 1_000_000]


@pytest.mark.parametrize("text", odd_texts(), ids=range(len(odd_texts())))
def test_whatever_else_is_sent_gets_the_same_answer(ring: Keyring, text: str) -> None:
    with pytest.raises(SealBroken) as caught:
        ring.open("cursor", text, bound=b"ana", now=NOW)
    assert str(caught.value) == "Invalid or expired reference"


def test_a_text_with_altered_unused_bits_is_not_a_second_name_for_the_same_bytes(ring: Keyring) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = next(t for n in range(3) if len(t := ring.seal("p", b"x" * n, bound=b"", expires=NOW + 1)) % 4 == 2)
    twin = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
    with pytest.raises(SealBroken):
        ring.open("p", twin, bound=b"", now=NOW)


def test_the_same_payload_never_seals_to_the_same_text(ring: Keyring) -> None:
    assert len({ring.seal("p", b"same", bound=b"", expires=NOW) for _ in range(200)}) == 200


def test_the_payload_and_the_expiry_are_not_readable(ring: Keyring) -> None:
    data = base64.urlsafe_b64decode(ring.seal("p", b"refresh-token", bound=b"", expires=NOW) + "===")
    assert b"refresh" not in data
    assert msgspec.json.encode(NOW) not in data


def test_old_keys_open_and_the_first_one_seals() -> None:
    old, both, new = Keyring([KEY]), Keyring([OTHER, KEY]), Keyring([OTHER])
    assert both.open("p", old.seal("p", b"x", bound=b"", expires=NOW + 1), bound=b"", now=NOW) == b"x"
    text = both.seal("p", b"y", bound=b"", expires=NOW + 1)
    assert new.open("p", text, bound=b"", now=NOW) == b"y"
    with pytest.raises(SealBroken):
        old.open("p", text, bound=b"", now=NOW)


def test_what_never_expires_opens_at_any_time_and_a_senseless_expiry_is_refused(ring: Keyring) -> None:
    assert ring.open("p", ring.seal("p", b"x", bound=b"", expires=math.inf), bound=b"", now=1e12) == b"x"
    with pytest.raises(ValueError, match="not a number"):
        ring.seal("p", b"x", bound=b"", expires=math.nan)


def test_digests_differ_by_key_purpose_and_payload_and_stay_the_same_otherwise(ring: Keyring) -> None:
    digest = ring.digest("offers", b"section")
    assert len(digest) == 32
    assert digest == Keyring([KEY, OTHER]).digest("offers", b"section")
    others = [ring.digest("offers", b"s"), ring.digest("o", b"section"), Keyring([OTHER]).digest("offers", b"section")]
    assert len({digest, *others}) == 4


def test_short_or_missing_key_material_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        Keyring([KEY, b"short"])
    with pytest.raises(ValueError, match="at least one"):
        Keyring([])


# The key file --------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    text = keyring(folder, []).seal("p", b"x", bound=b"", expires=math.inf)
    assert keyring(folder, []).open("p", text, bound=b"", now=NOW) == b"x"
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert os.listdir(folder) == [KEY_FILE]


def test_processes_that_start_together_end_up_with_one_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from mcpmux.seal import keyring\n"
        "sys.stdin.read(); print(keyring(pathlib.Path(sys.argv[1]), []).digest('p', b'x').hex())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "d")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    digests = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert len(set(digests)) == 1
    assert len(digests[0]) == 64
    assert os.listdir(tmp_path / "d") == [KEY_FILE]


def test_a_key_file_that_others_could_read_is_closed_again(tmp_path: Path) -> None:
    keyring(tmp_path, [])
    (tmp_path / KEY_FILE).chmod(0o644)
    keyring(tmp_path, [])
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_a_damaged_key_file_stops_the_start_and_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("half a k")
    with pytest.raises(StartRefused, match="damaged"):
        keyring(tmp_path, [])
    assert (tmp_path / KEY_FILE).read_text() == "half a k"


def test_a_data_directory_that_cannot_be_used_is_a_clear_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match=r"gateway\.keys"):
        keyring(tmp_path / "file", [])


def test_the_kept_key_can_be_configured_as_it_is(tmp_path: Path) -> None:
    text = keyring(tmp_path, []).seal("p", b"x", bound=b"", expires=math.inf)
    configured = keyring(tmp_path / "elsewhere", [Secret((tmp_path / KEY_FILE).read_text())])
    assert configured.open("p", text, bound=b"", now=NOW) == b"x"
    assert not (tmp_path / "elsewhere").exists()


def test_a_configured_key_that_is_too_short_is_named_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="key 2 has 5 bytes") as caught:
        keyring(tmp_path, [Secret("x" * 32), Secret("hunt5")])
    assert "hunt5" not in str(caught.value)


# Secret --------------------------------------------------------------------------------------------------------


def test_a_secret_never_shows_its_value() -> None:
    secret = Secret("hunter2")
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>9}",
        repr([secret]),
        repr({"k": secret}),
    ]
    assert not any("hunter2" in text for text in shown)
    assert repr(secret) == "***"
    assert secret.reveal() == "hunter2"
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_secrets_are_equal_by_value_and_hash_alike() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("\ud800")}) == 2
    assert copy.deepcopy(Secret("a")) == Secret("a")
    assert not Secret("")


def test_msgspec_reads_a_secret_with_a_hook() -> None:
    class Section(msgspec.Struct):
        key: Secret

    section = msgspec.convert({"key": "hunter2"}, Section, dec_hook=lambda kind, value: kind(value))
    assert section.key.reveal() == "hunter2"
    assert "hunter2" not in repr(section)
