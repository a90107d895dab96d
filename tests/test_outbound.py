"""HTTP that we start: limits, redirects, proxies, certificates, and the guard around the private network."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from mcpmux.errors import OutboundFailed
from mcpmux.outbound import PROBLEMS, Fetched, Outbound, Proxies, is_loopback, is_public, is_secure, retry_after

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, *, trust: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on a free port of 127.0.0.1 that answers everything with `handler`; its URL without a path."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust).start()
        yield f"{'https' if trust else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with Outbound() as opened:
        yield opened


async def fetch(outbound: Outbound, url: str, *, limit: int = 1000, timeout: float = 5, guard: bool = False) -> Fetched:
    return await outbound.get_json_bytes(url, limit=limit, timeout=timeout, guard=guard)


async def problem_of(
    outbound: Outbound, url: str, *, limit: int = 1000, timeout: float = 5, guard: bool = False
) -> str:
    with pytest.raises(OutboundFailed) as failure:
        await fetch(outbound, url, limit=limit, timeout=timeout, guard=guard)
    assert failure.value.problem in PROBLEMS
    assert "127.0.0.1" not in str(failure.value)
    return failure.value.problem


async def test_an_answer_comes_whole_with_its_status(outbound: Outbound) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert (request.headers["Accept"], request.headers["Accept-Encoding"]) == ("application/json", "identity")
        assert "Cookie" not in request.headers
        return web.Response(status=429, body=b"x" * 1000, headers={"Retry-After": "7", "Set-Cookie": "a=b"})

    async with serving(handler) as url:
        for _ in range(2):
            answer = await fetch(outbound, f"{url}/a?b=c")
            assert (answer.status, answer.body, answer.retry_after) == (429, b"x" * 1000, 7.0)
            assert answer.url == f"{url}/a?b=c"


async def test_a_body_over_the_limit_is_not_read_to_its_end(outbound: Outbound) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            sent += 65536

    async with serving(endless) as url:
        assert await problem_of(outbound, url) == "too_large"
        assert sent < 50 * 1024 * 1024


async def test_a_declared_length_over_the_limit_is_enough(outbound: Outbound) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1001"})
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async with serving(handler) as url:
        assert await problem_of(outbound, url) == "too_large"


async def test_a_small_body_that_unpacks_to_a_large_one_is_over_the_limit(outbound: Outbound) -> None:
    bomb = gzip.compress(b" " * 100_000_000)

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with serving(handler) as url:
        assert await problem_of(outbound, url, limit=1_000_000) == "too_large"


async def test_a_silent_server_costs_the_timeout(outbound: Outbound) -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handler) as url:
        assert await problem_of(outbound, url, timeout=0.1) == "timeout"


async def test_what_is_no_answer_has_a_word(outbound: Outbound) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(cut) as url:
        assert await problem_of(outbound, url) == "broken"
    assert await problem_of(outbound, url) == "unreachable"
    assert await problem_of(outbound, "https://no-such-host.invalid/") == "unreachable"


@pytest.mark.parametrize(
    "url",
    ["", "/path", "//host/", "ftp://host/", "file:///etc/passwd", "http://", "http://a@host/", "https://a:b@host/",
     "gopher://host/", "http://[::1", "http://host:99999/", "https://ho st/", "javascript:alert(1)"],
)  # fmt: skip
async def test_only_plain_http_urls_are_fetched(outbound: Outbound, url: str) -> None:
    assert await problem_of(outbound, url) in ("url", "unreachable")


# Redirects -----------------------------------------------------------------------------------------------------


def _redirecting(to: str, *, status: int = 302) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/there":
            return web.json_response({"key": request.headers.get("X-Key")})
        return web.Response(status=status, headers={"Location": to})

    return handler


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_on_the_same_origin_is_followed(outbound: Outbound, status: int) -> None:
    async with serving(_redirecting("/there", status=status)) as url:
        answer = await fetch(outbound, f"{url}/here")
        assert (answer.status, answer.url) == (200, f"{url}/there")


async def test_no_redirect_leads_to_another_origin(outbound: Outbound) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response()

    async with serving(elsewhere) as other:
        port = URL(other).port
        for to in (
            f"{other}/x",
            f"//127.0.0.1:{port}/x",
            f"http://localhost:{port}/x",
            "https://127.0.0.1/x",
            "file:///x",
        ):
            async with serving(_redirecting(to)) as url:
                assert await problem_of(outbound, url) == "redirect"
                with pytest.raises(aiohttp.ClientError):
                    await outbound.session.post(url, headers={"X-Api-Key": "secret"}, data=b"x")
    assert asked == []


async def test_redirects_come_to_an_end(outbound: Outbound) -> None:
    async with serving(_redirecting("/again")) as url:
        assert await problem_of(outbound, url) == "redirect"


async def test_links_may_follow_redirects_at_home(outbound: Outbound) -> None:
    async with serving(_redirecting("/there")) as url, outbound.session.get(url, headers={"X-Key": "k"}) as answer:
        assert await answer.json() == {"key": "k"}


# The guard -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "198.18.0.1", "192.0.2.1", "::", "::1", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "2001:0:a00:1::", "2001:db8::1", "100::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_public_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2a00:1450:4001::8a"]
)
def test_addresses_of_the_public_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "0x7f.1", "2130706433", "0177.0.0.1"]
)
async def test_attack_94_the_guard_lets_nothing_into_the_private_network(outbound: Outbound, host: str) -> None:
    reached = False

    async def handler(_request: web.Request) -> web.StreamResponse:
        nonlocal reached
        reached = True
        return web.Response()

    async with serving(handler) as url:
        inside = f"http://{host}:{URL(url).port}/"
        assert await problem_of(outbound, inside, guard=True) in ("private_address", "url", "unreachable")
        assert not reached
        await fetch(outbound, url)
        assert reached


async def test_attack_94_the_guard_looks_at_the_address_that_is_connected_to(
    outbound: Outbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when asked first and private when connected to (DNS rebinding)."""
    loop = asyncio.get_running_loop()
    asked: list[str] = []

    async def rebinding(host: str, port: int, **_options: object) -> list[object]:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(2, 1, 6, "", (address, port))]

    async with serving(_redirecting("/there")) as url:
        monkeypatch.setattr(loop, "getaddrinfo", rebinding)
        assert not await outbound.is_private("rebind.example")
        inside = f"http://rebind.example:{URL(url).port}/there"
        assert await problem_of(outbound, inside, guard=True) == "private_address"
    assert len(asked) == 2


async def test_a_host_is_private_if_any_of_its_addresses_is(outbound: Outbound) -> None:
    assert await outbound.is_private("localhost")
    assert await outbound.is_private("10.0.0.1")
    assert not await outbound.is_private("8.8.8.8")
    assert not await outbound.is_private("no-such-host.invalid")


def test_secure_urls() -> None:
    for good in ("https://login.example.com/x", "http://localhost:8080/x", "http://127.0.0.1/x", "http://[::1]:80/"):
        assert is_secure(good)
    for bad in ("http://example.com/", "http://localhost.example.com/", "https://a@b/", "ftp://localhost/", "x", "",
                "http://10.0.0.1/", "http://127.0.0.1.example.com/", "urn:x"):  # fmt: skip
        assert not is_secure(bad)
    assert is_loopback("LOCALHOST.") and not is_loopback("localhost.evil")


# Proxies and certificates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, "https://example.com/", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://example.com/", "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "https://example.com/", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://example.com/", None),
        ({"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:1"}, "https://example.com/", "http://low:1"),
        ({"ALL_PROXY": "http://p:1"}, "http://example.com/", "http://p:1"),
        ({"HTTPS_PROXY": "socks5://p:1"}, "https://example.com/", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://localhost/", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://[::1]/", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://example.com/", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.test, example.com"}, "https://login.EXAMPLE.com/", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example.com"}, "https://login.example.com/", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*.example.com"}, "https://login.example.com/", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com"}, "https://notexample.com/", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3/", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8,,"}, "https://11.1.2.3/", "http://p:1"),
    ],
    ids=str,
)
def test_the_proxy_of_a_url(environ: dict[str, str], url: str, proxy: str | None) -> None:
    found = Proxies.of(environ).for_url(URL(url))
    assert (None if found is None else str(found)) == proxy


async def test_requests_go_through_the_proxy_with_its_password() -> None:
    seen: list[tuple[str, str | None]] = []

    async def proxy(request: web.Request) -> web.StreamResponse:
        seen.append((str(request.url), request.headers.get("Proxy-Authorization")))
        return web.json_response({})

    async with serving(proxy) as address:
        environ = {"HTTP_PROXY": address.replace("://", "://ana:secret@")}
        async with Outbound(environ) as outbound:
            await fetch(outbound, "http://service.invalid/keys")
            await outbound.session.get("http://service.invalid/mcp")
            # Only the proxy can resolve the name, so its rules decide; an address needs no name.
            await fetch(outbound, "http://service.invalid/guarded", guard=True)
            assert await problem_of(outbound, "http://10.0.0.1/", guard=True) == "private_address"
    assert [url for url, _ in seen] == [f"http://service.invalid/{path}" for path in ("keys", "mcp", "guarded")]
    assert {password for _, password in seen} == {"Basic YW5hOnNlY3JldA=="}


async def test_the_netrc_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ana password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"seen": request.headers.get("Authorization")})

    async with serving(handler) as url, Outbound({"HTTPS_PROXY": "http://p:1"}) as outbound:
        assert (await fetch(outbound, url)).body == b'{"seen": null}'
        async with outbound.session.get(url, headers={"Authorization": "Bearer x"}) as answer:
            assert (await answer.json())["seen"] == "Bearer x"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A TLS server context for 127.0.0.1, and the file of the certificate that vouches for it."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "company")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context, folder / "ca.pem"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"])
async def test_a_companys_certificates_are_trusted(authority: tuple[ssl.SSLContext, Path], variable: str) -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    context, file = authority
    async with serving(handler, trust=context) as url:
        async with Outbound({variable: str(file)}) as outbound:
            assert (await fetch(outbound, url)).status == 200
        for environ in ({}, {variable: str(file) + ".missing"}):
            async with Outbound(environ) as outbound:
                assert await problem_of(outbound, url) == "tls"


# Retry-After ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("7", 7.0), (" 7 ", 7.0), ("0", 0.0), ("-1", None), ("1.5", None), ("x", None),
        ("9" * 50, 3600.0), ("\u0667", None), ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0), ("1e3", None),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0), ("Tue, 23 Nov 2027 12:00:00 GMT", 3600.0),
        ("Mon, 99 Nov 2026 12:00:30 GMT", None), ("Mon, 23 Nov 99999 12:00:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_in_both_forms(value: str | None, seconds: float | None) -> None:
    now = datetime.datetime(2026, 11, 23, 12, 0, 0, tzinfo=datetime.UTC)
    assert retry_after(value, now) == seconds


async def test_everything_is_closed_at_the_end(outbound: Outbound) -> None:
    async with Outbound() as other:
        session = other.session
    assert session.closed
