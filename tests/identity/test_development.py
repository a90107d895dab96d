"""The development issuer: its key file, and tokens that go the way of all tokens. Attack 110 of the list."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcpmux.errors import SigningRefused, StartRefused
from mcpmux.identity import DevelopmentIssuer, Verifier, development_issuer
from mcpmux.identity.development import KEY_FILE
from mcpmux.identity.issuers import Pace
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound
from tests.identity.conftest import Clocks, accepted, cause_of, configured, running
from tests.simulators.oidc import OidcIssuer, b64, compact, hmac_sha256


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentIssuer:
    return development_issuer(tmp_path_factory.mktemp("data"))


async def test_its_token_names_the_person_and_the_groups(local: DevelopmentIssuer) -> None:
    async with running(development=local) as verifier:
        verified = await accepted(verifier, local.sign("Ana@Example.com", ["MCP-GitHub", "Équipe"], 60))
        who = verified.principal
        assert (who.issuer, who.directory, who.email) == ("urn:mcpmux:development", "", "ana@example.com")
        assert who.groups == ("MCP-GitHub", "Équipe")
        again = (await accepted(verifier, local.sign("ana@EXAMPLE.com", [], 60))).principal
        ben = (await accepted(verifier, local.sign("ben@example.com", [], 60))).principal
        assert again.key == who.key != ben.key


async def test_its_token_ends_on_the_second(local: DevelopmentIssuer, clocks: Clocks, pace: Pace) -> None:
    async with running(development=local, pace=pace) as verifier:
        token = local.sign("ana@example.com", [], 60)
        verified = await accepted(verifier, token)
        clocks.ahead = verified.expires - clocks.wall() + 0.01
        assert clocks.ahead < 61
        assert verifier.known(token) is None
        assert await cause_of(verifier, token) == "expired"


async def test_its_token_is_an_access_token_for_mcpmux(local: DevelopmentIssuer) -> None:
    head, payload, _ = local.sign("ana@example.com").split(".")
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, payload))
    assert (header["typ"], header["alg"], claims["aud"]) == ("at+jwt", "RS256", "mcpmux")
    assert claims["exp"] - claims["iat"] == 3600


async def test_attack_110_it_is_not_believed_beside_a_real_issuer(
    issuer: OidcIssuer, local: DevelopmentIssuer, pace: Pace
) -> None:
    async with running(configured(issuer), pace=pace) as verifier:
        assert await cause_of(verifier, local.sign("ana@example.com", ["MCP-Admin"])) == "issuer"
    async with Outbound() as outbound:
        with pytest.raises(ValueError, match="only while"):
            Verifier([configured(issuer)], outbound, Metrics([]), development=local)


async def test_attack_110_its_key_file_is_no_secret_for_signatures(tmp_path: Path) -> None:
    local = development_issuer(tmp_path)
    async with running(development=local) as verifier:
        _, payload, _ = local.sign("ana@example.com").split(".")
        kid = next(iter(local.keys.keys))[0]
        header = {"alg": "HS256", "typ": "at+jwt", "kid": kid}
        claims = base64.urlsafe_b64decode(payload + "==")
        forged = compact(header, claims, hmac_sha256((tmp_path / KEY_FILE).read_bytes()))
        assert await cause_of(verifier, forged) == "algorithm"
        unsigned = f"{b64(json.dumps({**header, 'alg': 'RS256'}).encode())}.{payload}.{b64(bytes(256))}"
        assert await cause_of(verifier, unsigned) == "signature"


async def test_another_data_directory_is_another_issuer(tmp_path: Path) -> None:
    here, there = development_issuer(tmp_path / "here"), development_issuer(tmp_path / "there")
    async with running(development=here) as verifier:
        assert await cause_of(verifier, there.sign("ana@example.com")) == "unknown_key"


@pytest.mark.parametrize("email", ["", "ana", "a@b@c", "a\u0000@b", "ana@example.com\n"])
def test_it_signs_for_addresses_only(local: DevelopmentIssuer, email: str) -> None:
    with pytest.raises(SigningRefused, match="e-mail"):
        local.sign(email)


@pytest.mark.parametrize("ttl", [0, -1, 0.5, 32 * 86400, float("nan"), float("inf")])
def test_it_signs_for_a_sensible_time(local: DevelopmentIssuer, ttl: float) -> None:
    with pytest.raises(SigningRefused, match="good for"):
        local.sign("ana@example.com", [], ttl)


def test_it_signs_for_groups_that_could_come_from_anywhere_else(local: DevelopmentIssuer) -> None:
    for group in ("", "a\nb", "\ud800", "x" * 257):
        with pytest.raises(SigningRefused, match="group"):
            local.sign("ana@example.com", [group])
    with pytest.raises(SigningRefused, match="too many"):
        local.sign("ana@example.com", [f"{number:0200d}" for number in range(100)])


def test_its_key_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data" / KEY_FILE
    first = development_issuer(path.parent)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [KEY_FILE]
    assert development_issuer(path.parent).keys == first.keys


def test_its_key_is_closed_to_others_when_it_was_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    development_issuer(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    development_issuer(tmp_path)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert "development_key_exposed" in capsys.readouterr().err


def test_processes_that_start_together_have_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mcpmux.identity import development_issuer\n"
        "print(*(kid for kid, _ in development_issuer(Path(sys.argv[1])).keys.keys))"
    )

    def start(_: int) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "data")]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    with ThreadPoolExecutor(4) as pool:
        kids = set(pool.map(start, range(4)))
    assert len(kids) == 1 and kids != {"\n"}
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(StartRefused, match="damaged"):
        development_issuer(tmp_path)


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartRefused, match="cannot be read or made"):
        development_issuer(tmp_path / "data")
