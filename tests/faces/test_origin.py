"""`faces/origin.py`: `Host`, `Origin` and CORS, on loopback and off it. Attacks 51 to 53."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from mcpmux.errors import OriginRefused
from mcpmux.faces.origin import Origins, is_loopback

PAGE = "https://chat.example.com"


def checked(origins: Origins, *headers: tuple[str, str], method: str = "POST") -> Mapping[str, str] | None:
    """The CORS headers of the answer, None if the request is refused."""
    try:
        return origins.check(make_mocked_request(method, "/mcp", headers=CIMultiDict(headers)))
    except OriginRefused:
        return None


def local(listed: Sequence[str] = ()) -> Origins:
    """The rule of a listener on loopback."""
    return Origins("127.0.0.1", None, listed)


def public(listed: Sequence[str] = ()) -> Origins:
    """The rule of a listener that the network reaches, known as mcp.example.com."""
    return Origins("0.0.0.0", "https://mcp.example.com/tools", listed)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8090", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8090", "localhost:65535"]
)
def test_on_loopback_every_loopback_name_and_port_is_a_good_host(host: str) -> None:
    assert checked(local(), ("Host", host)) == {}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8090", "localhost.evil.example", "127.0.0.1.nip.io", "evil.example#localhost",
        "localhost@evil.example", "evil.example@localhost", "127.0.0.2", "0.0.0.0", "2130706433", "0x7f.1", "127.1",
        "[::ffff:127.0.0.1]", "[::1", "::1", "", " ", "localhost.", "localhost/evil.example", "admin",
        "xn--lcalhost-54a", "ⅼocalhost",
    ],
)  # fmt: skip
def test_on_loopback_every_other_host_is_refused(host: str) -> None:
    assert checked(local(), ("Host", host)) is None


def test_the_loopback_address_that_it_is_bound_to_is_a_good_host_as_well() -> None:
    bound = Origins("127.0.0.2", None, ())
    assert checked(bound, ("Host", "127.0.0.2:8090")) == {}
    assert checked(bound, ("Host", "127.0.0.3:8090")) is None


def test_a_bad_host_after_a_good_one_is_refused() -> None:
    rule = local()
    assert checked(rule, ("Host", "localhost")) == {}
    assert checked(rule, ("Host", "evil.example")) is None
    assert checked(rule, ("Host", "localhost")) == {}


def test_two_hosts_are_refused_everywhere() -> None:
    twice = (("Host", "localhost"), ("Host", "localhost"))
    assert checked(local(), *twice) is None
    assert checked(public(), *twice) is None


def test_the_public_name_is_a_good_host_also_where_a_proxy_reaches_us_on_loopback() -> None:
    behind = Origins("127.0.0.1", "https://mcp.example.com", ())
    assert checked(behind, ("Host", "mcp.example.com")) == {}
    assert checked(behind, ("Host", "other.example.com")) is None
    assert checked(behind, ("Host", "mcp.example.com"), ("Origin", "https://mcp.example.com")) is not None
    assert checked(behind, ("Host", "mcp.example.com"), ("Origin", "http://mcp.example.com")) is None


@pytest.mark.parametrize("host", ["mcp.example.com", "10.0.0.7:8090", "anything"])
def test_off_loopback_the_host_is_the_networks_business(host: str) -> None:
    assert checked(public(), ("Host", host)) == {}


ORIGINS = [
    "https://evil.example", "null", "NULL", "", "http://127.0.0.1.nip.io", "http://localhost.evil.example",
    "http://evil.example/http://localhost", "http://localhost@evil.example", "http://[::1", "http://[x]/", "http://",
    "localhost", "//localhost", "file://localhost", "chrome-extension://localhost", "ws://localhost",
    "http://127.0.0.1:80:80/", "https://mcp.example.com.evil.example", "https://mcp.example.com:8443",
    "http://mcp.example.com", "https://chat.example.com.evil.example", "https://chat.example.com/", "http://[::1]x",
    "http://localhost\u3002evil.example",
]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_strange_origin_is_refused_on_loopback_and_off_it(origin: str) -> None:
    for origins in (local(), local([PAGE]), public(), public([PAGE])):
        assert checked(origins, ("Host", "localhost"), ("Origin", origin)) is None


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "http://[::1]:9"]
)
def test_a_loopback_origin_is_good_on_loopback_and_only_there(origin: str) -> None:
    assert checked(local(), ("Host", "localhost"), ("Origin", origin)) == {"Vary": "Origin"}
    assert checked(public(), ("Host", "mcp.example.com"), ("Origin", origin)) is None


def test_no_origin_is_fine() -> None:
    assert checked(local(), ("Host", "localhost")) == {}
    assert checked(public(), ("Host", "x")) == {}


def test_two_origins_are_refused_even_if_both_are_good() -> None:
    good = ("Origin", "http://localhost")
    assert checked(local(), ("Host", "localhost"), good, good) is None
    assert checked(public([PAGE]), ("Origin", PAGE), ("Origin", PAGE)) is None


def test_only_a_listed_origin_is_told_that_it_may_read_the_answer_and_it_alone() -> None:
    origins = public([PAGE, "https://other.example.com/"])
    found = checked(origins, ("Host", "x"), ("Origin", PAGE))
    assert found is not None
    assert found["Access-Control-Allow-Origin"] == PAGE
    assert "Access-Control-Allow-Credentials" not in found
    assert "Mcp-Session-Id" in found["Access-Control-Expose-Headers"]
    assert found["Vary"] == "Origin"
    assert checked(origins, ("Host", "x"), ("Origin", "https://OTHER.example.com")) is not None
    own = checked(origins, ("Host", "x"), ("Origin", "https://mcp.example.com"))
    assert own == {"Vary": "Origin"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.1", False), ("example.com", False), ("", False),
    ],
)  # fmt: skip
def test_what_counts_as_a_listener_on_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def preflighted(origins: Origins, *headers: tuple[str, str]) -> tuple[int, Mapping[str, str]]:
    """The answer to a preflight that was let in."""
    request = make_mocked_request("OPTIONS", "/mcp", headers=CIMultiDict([("Host", "localhost"), *headers]))
    answer = origins.preflight(request, origins.check(request))
    return answer.status, answer.headers


def test_the_preflight_of_a_listed_page_says_what_it_may_send() -> None:
    asked = (("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization, x-evil"))
    status, headers = preflighted(local([PAGE]), ("Origin", PAGE), *asked)
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    assert "x-evil" not in headers["Access-Control-Allow-Headers"].lower()
    assert "DELETE" in headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Private-Network" not in headers


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "POST")],
        [("Access-Control-Request-Method", "POST")],
        [("Origin", PAGE)],
        [],
    ],
)
def test_every_other_preflight_is_told_nothing(headers: list[tuple[str, str]]) -> None:
    status, answered = preflighted(local([PAGE]), *headers, ("Access-Control-Request-Private-Network", "true"))
    assert status == 405
    assert not [name for name in answered if name.lower().startswith("access-control-allow-h")]
    assert "Access-Control-Allow-Methods" not in answered
