"""What others wrote never shows a credential and never moves a cursor, in the log as on the console."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.observe.redaction import LONGEST, Screen, escaped_json, presentable, redact, suspicious, visible
from mcpmux.seal import Secret

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbmEifQ.c2lnbmF0dXJl"
SHOWN_NEVER = "hunter2"

TEXTS = [
    f"Authorization: Bearer {SHOWN_NEVER}",
    f"authorization: basic {SHOWN_NEVER}==",
    f"AUTHORIZATION=token {SHOWN_NEVER}",
    f"Proxy-Authorization: Negotiate {SHOWN_NEVER}",
    f"got bearer {SHOWN_NEVER} from peer",
    f"BEARER\t{SHOWN_NEVER}",
    f"GET /mcp?access_token={SHOWN_NEVER}&x=1",
    f"{{'Authorization': 'Bearer {SHOWN_NEVER}', 'Accept': '*/*'}}",
    json.dumps({"headers": {"authorization": f"Basic {SHOWN_NEVER}"}}),
    json.dumps(json.dumps({"Authorization": f"Token {SHOWN_NEVER}"})),
    f"(b'Authorization', b'Bearer {SHOWN_NEVER}')",
    f"[('authorization', 'Basic {SHOWN_NEVER}')]",
    f"GITHUB_TOKEN={SHOWN_NEVER} npx server",
    f"DATABASE_PASSWORD: {SHOWN_NEVER}",
    f"X-Api-Key: {SHOWN_NEVER}",
    f"DD-API-KEY={SHOWN_NEVER}",
    f"aws_secret_access_key = {SHOWN_NEVER}",
    f'"client_secret": "{SHOWN_NEVER}"',
    f"Set-Cookie: {SHOWN_NEVER}=1",
    f"connect to postgresql://mcpmux:{SHOWN_NEVER}@db.example.com/mcpmux failed",
    f"proxy http://:{SHOWN_NEVER}@proxy:3128",
    f"code_verifier={SHOWN_NEVER}&grant_type=authorization_code",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_credential_is_hidden_however_it_is_written(text: str) -> None:
    shown = redact(text)
    assert SHOWN_NEVER not in shown
    assert "***" in shown
    assert suspicious(text)


@pytest.mark.parametrize("text", [JWT, f"token {JWT} refused", f"a={JWT};", JWT[:30], f"x{JWT}", f"{JWT}.{JWT}"])
def test_a_jwt_is_hidden_whole_or_cut(text: str) -> None:
    shown = redact(text)
    assert "eyJ" not in shown
    assert "c2lnbmF0" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "listening on http://127.0.0.1:8090/mcp",
        "ana@example.com called github__create_issue",
        'WWW-Authenticate: Bearer error="invalid_token"',
        "authorization server metadata fetched",
        "basic usage: git clone ssh://git@github.com/x",
        "max_tokens was 5, 3 tokens left",
        "C:\\Users\\ana",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_what_stands_around_a_credential_stays_readable() -> None:
    assert redact("POST https://u:pw@h/p?api_key=k&page=2 401") == "POST https://***@h/p?api_key=***&page=2 401"
    assert redact("Authorization: Bearer x\nAccept: */*") == "Authorization: ***\nAccept: */*"


def test_known_secrets_are_hidden_wherever_they_stand_unless_they_are_words() -> None:
    secrets = [Secret("s3cr3t-value"), Secret("on")]
    assert redact("login on s3cr3t-value failed", secrets) == "login on *** failed"


@given(st.text(max_size=200))
def test_text_that_is_not_suspicious_has_nothing_to_hide(text: str) -> None:
    """The screen in front of the rules may pass only what the rules would leave alone."""
    if not suspicious(text):
        assert redact(text) == text


@given(st.text(st.sampled_from("eyJabc.:=/@ ?&\"'\\BEARERbearertoknpwdsc_-kiAuthz"), max_size=60))
def test_text_of_suspicious_letters_is_screened_by_the_same_rule(text: str) -> None:
    if not suspicious(text):
        assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            word * 40_000
            for word in ("a", "token", "token = ", "://", "eyJ", "Bearer ", "authorization ", "\x1b", "_-")
        ),
        "token" + " " * 300_000,
        "://" + "a" * 300_000,
        "Bearer" + " " * 300_000,
    ],
    ids=lambda text: repr(text[:16]),
)
def test_hostile_text_costs_time_in_proportion_to_its_length(text: str) -> None:
    start = time.process_time()
    redact(text)
    visible(text)
    assert time.process_time() - start < 3


# Characters ----------------------------------------------------------------------------------------------------

OBEYED = "\x00\x07\x08\t\n\r\x1b\x7f\x85\x9b\u00ad\u200b\u200d\u200e\u2028\u2029\u202e\u2066\ufeff\U000e0041\ud800"


@pytest.mark.parametrize("character", list(OBEYED))
def test_a_character_that_is_obeyed_is_shown_as_an_escape(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


def test_letters_of_every_script_are_shown_as_they_are() -> None:
    assert visible("Жанна José 東京 ❤ \U0001f600") == "Жанна José 東京 ❤ \U0001f600"


@given(st.text(st.characters(codec="utf-8")))
def test_escaped_json_means_the_same_and_is_one_line_for_every_reader(text: str) -> None:
    line = escaped_json(json.dumps({"text": text}, ensure_ascii=False))
    assert json.loads(line) == {"text": text}
    assert len(line.splitlines()) == 1


# Values --------------------------------------------------------------------------------------------------------


def test_values_of_any_kind_become_plain_json_without_secrets() -> None:
    class Odd:
        def __str__(self) -> str:
            return f"Odd(password={SHOWN_NEVER})"

    value = {
        "Authorization": f"Basic {SHOWN_NEVER}",
        "env": {"API_KEY": SHOWN_NEVER, "PATH": "/bin", "apiToken": SHOWN_NEVER, "ttl": 5},
        "secret": Secret(SHOWN_NEVER),
        "list": [Secret(SHOWN_NEVER), f"Bearer {SHOWN_NEVER}".encode(), {1, 2}, (None, True, 1.5)],
        "error": ValueError(f"token={SHOWN_NEVER}"),
        "odd": Odd(),
        5: 2**70,
        "surrogate": "\ud800",
    }
    shown = presentable(value)
    text = json.dumps(shown)
    assert SHOWN_NEVER not in text
    assert json.loads(text)["env"] == {"API_KEY": "***", "PATH": "/bin", "apiToken": "***", "ttl": 5}
    text.encode()


def test_long_wide_and_deep_values_are_cut() -> None:
    assert len(str(presentable("x" * 1_000_000))) < LONGEST + 100
    assert len(str(presentable(["x"] * 1_000_000))) < 5000
    ring: list[object] = []
    ring.append(ring)
    assert len(json.dumps(presentable(ring))) < 100
    assert str(presentable("a" * 9000 + "the end")).endswith("the end")


def test_the_screen_passes_harmless_lines_and_stops_all_others() -> None:
    screen = Screen()
    for _ in range(2):  # the second time from memory
        assert screen.passes({"event": "call_finished", "server": "github", "ms": 1.5, "ok": True, "none": None})
        for odd in ("Bearer x", JWT, "https://u:p@h", "\x1b[31m", "\u202e", "x" * (LONGEST + 1)):
            assert not screen.passes({"event": odd})
        assert not screen.passes({"api_key": "k"})
        assert not screen.passes({"Authorization": "x"})
        assert not screen.passes({"headers": {}})
        assert not screen.passes({"secret": Secret("x")})


def test_the_screen_forgets_rather_than_grows() -> None:
    screen = Screen()
    for number in range(20_000):
        assert screen.passes({"event": f"request {number}"})
    assert len(screen._texts) <= 4096
