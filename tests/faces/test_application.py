"""`faces/application.py` and `faces/server.py`: who gets in, through which paths, and what is answered to the rest.

Attacks 19, 32, 45, 51 to 54, 57 and 111. What the parser refuses is answered and logged with a fixed text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from mcpmux.errors import BodyTooLarge, InvalidRequest
from mcpmux.faces import entry
from tests.calls.upstream import until
from tests.faces.client import ACCEPT, SESSION, Session, bearer, calling, error_of, greeting, read, request
from tests.faces.conftest import Place, Who
from tests.faces.raw import answer_to, exchange, first_answer, get, parsed, post

Http = aiohttp.ClientSession
PING = json.dumps(request("ping")).encode()
SECRET = "SECRET0123456789"


def lines(who: Mapping[str, str]) -> tuple[str, ...]:
    """Headers as whole lines."""
    return tuple(f"{name}: {value}" for name, value in who.items())


def challenged(answer: object) -> str:
    """The challenge of a 401."""
    return str(answer.headers["www-authenticate"])  # type: ignore[attr-defined]


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's."""
    return await Session.opened(http, f"{place.url}/mcp", ana)


# Tokens -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/mcp",
        "/sse",
        "/messages",
        "/servers/alpha/mcp",
        "/servers/alpha/sse",
        "/servers/nobody/mcp",
        "/servers/off/mcp",
    ],
)
async def test_without_a_token_every_endpoint_says_where_its_metadata_is(path: str, place: Place) -> None:
    answer = await answer_to(place.url, get(path))
    assert answer.status == 401
    challenge = challenged(answer)
    where = path.removesuffix("/messages").removesuffix("messages") if path.endswith("messages") else path
    assert challenge == f'Bearer resource_metadata="{place.url}/.well-known/oauth-protected-resource{where}"'
    assert answer.body == b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"Authentication required"}}'
    metadata = urlsplit(challenge.split('"')[1])
    document = await answer_to(place.url, get(metadata.path))
    assert json.loads(document.body)["resource"] == place.url + where


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer ", "Basic YTpi", "Digest x", "Token t", "", "Negotiate", "bearer\t"]
)
async def test_no_bearer_token_in_the_header_is_the_same_as_no_header(value: str, place: Place) -> None:
    answer = await answer_to(place.url, get("/mcp", f"Authorization: {value}"))
    assert answer.status == 401
    assert "error" not in challenged(answer)


@pytest.mark.parametrize(
    "value", ["Bearer x", "Bearer a.b.c", "Bearer \xff\xfe", "Bearer a b", 'Bearer "x"', "bearer x"]
)
async def test_a_bad_token_is_an_invalid_token_and_says_nothing_more(value: str, place: Place) -> None:
    answer = await answer_to(place.url, get("/mcp", f"Authorization: {value}"))
    assert answer.status == 401
    assert challenged(answer).startswith(
        'Bearer error="invalid_token", error_description="The access token is invalid or expired", resource_metadata='
    )


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer  ", " Bearer"])
async def test_the_scheme_has_no_case_and_white_space_does_not_count(scheme: str, place: Place, ana: Who) -> None:
    token = ana["Authorization"].removeprefix("Bearer ")
    hello = json.dumps(request("initialize", greeting())).encode()
    assert (await answer_to(place.url, post(hello, f"Authorization: {scheme} {token} "))).status == 200


async def test_two_authorization_headers_are_a_malformed_request(place: Place, ana: Who, dan: Who) -> None:
    for other in (dan["Authorization"], "Basic YTpi", ana["Authorization"], ""):
        answer = await answer_to(place.url, post(PING, *lines(ana), f"Authorization: {other}"))
        assert answer.status == 400
        assert 'error="invalid_request"' in answer.headers["www-authenticate"]
    token = ana["Authorization"]
    assert (await answer_to(place.url, post(PING, f"Authorization: {token}, {token}"))).status == 400


async def test_a_token_anywhere_else_is_no_token(place: Place, ana: Who) -> None:
    token = ana["Authorization"].removeprefix("Bearer ")
    tries = [
        get(f"/mcp?access_token={token}"), get(f"/sse?access_token={token}&token={token}"),
        get("/mcp", f"Cookie: access_token={token}; Authorization=Bearer {token}"),
        get("/mcp", f"X-Authorization: Bearer {token}", f"Proxy-Authorization: Bearer {token}"),
        get("/mcp", f"X-Forwarded-Authorization: Bearer {token}", f"X-Access-Token: {token}"),
        post(f"access_token={token}".encode()), post(json.dumps({**request("ping"), "access_token": token}).encode()),
    ]  # fmt: skip
    for data in tries:
        answer = await answer_to(place.url, data)
        assert answer.status == 401
        assert "error" not in challenged(answer)
        assert token not in answer.whole.decode("latin-1")
    place.gateway.events()
    assert token not in place.gateway.log.read_text()


SPOOFED = {
    "X-Auth-Source": "entra", "X-OpenWebUI-User-Email": "ben@example.com", "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-User-Id": "1", "X-MS-CLIENT-PRINCIPAL": "e30=", "X-MS-CLIENT-PRINCIPAL-NAME": "ben@example.com",
    "X-Forwarded-User": "ben", "X-Forwarded-Email": "ben@example.com", "X-Forwarded-Groups": "MCP-Admin,MCP-Both",
    "Remote-User": "ben", "REMOTE_USER": "ben", "X_FORWARDED_USER": "ben", "X-User": "ben", "X-Roles": "MCP-Admin",
    "X-MCP-Tenant": "beta", "X-OpenWebUI-User-Jwt": "a.b.c", "X-Forwarded-For": "127.0.0.1",
    "Forwarded": "for=127.0.0.1",
    "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Original-URL": "/healthz",
    "X-Rewrite-URL": "/servers/beta/mcp", "X-HTTP-Method-Override": "DELETE",
}  # fmt: skip


async def test_headers_that_claim_to_know_the_caller_change_nothing(place: Place, http: Http, ana: Who) -> None:
    bare = await answer_to(place.url, get("/mcp", *lines(SPOOFED)))
    assert bare.status == 401
    assert "evil.example" not in bare.whole.decode()
    honest = await Session.opened(http, f"{place.url}/mcp", ana)
    spoofed = await Session.opened(http, f"{place.url}/mcp", {**SPOOFED, **ana})
    listed = [await one.ask("tools/list") for one in (honest, spoofed)]
    assert listed[0]["result"] == listed[1]["result"]
    assert error_of(await spoofed.ask("tools/call", {"name": "beta__echo", "arguments": {"text": "x"}}))[0] == -32602
    answer = await spoofed.post(calling("alpha__echo", {"text": "x"}))
    assert answer.status == 200
    logged: list[Mapping[str, object]] = []
    await place.gateway.soon(
        lambda: (
            logged.extend(place.gateway.logged("call_finished", request_id=answer.headers["X-Request-Id"])) or logged
        )
    )
    assert logged[0]["principal"] == "ana@example.com"
    for server in ("beta", "off"):
        blocked = Session(http, f"{place.url}/servers/{server}/mcp", {**ACCEPT, **SPOOFED, **ana})
        assert (await blocked.post(request("initialize", greeting()))).status == 403


# Sizes --------------------------------------------------------------------------------------------------------------


async def test_a_token_with_two_hundred_groups_passes(place: Place, http: Http) -> None:
    groups = [f"{n:08x}-1111-2222-3333-444444444444" for n in range(220)]
    who = bearer(place.gateway, "many@example.com", "MCP-Alpha", *groups)
    assert len(who["Authorization"]) > 11_500
    session = await Session.opened(http, f"{place.url}/mcp", who)
    assert await session.call("alpha__echo", text="large") == "large"


@pytest.mark.parametrize("form", ["Authorization: Bearer {}", "Cookie: {}", "X-Anything: {}", "{}: x"])
async def test_a_header_over_the_limit_is_431_and_nothing_of_it_comes_back(form: str, place: Place) -> None:
    long = SECRET * 2500
    answer = await answer_to(place.url, get("/mcp", form.format(long)))
    assert answer.status == 431
    assert answer.body == b"Request Header Fields Too Large\n"
    assert SECRET[:8] not in answer.whole.decode("latin-1")


async def test_a_megabyte_of_header_or_a_hundred_thousand_of_them_are_refused(place: Place, session: Session) -> None:
    for data in (get("/mcp", "X-A: " + SECRET * 65536), get("/mcp", *(f"X-{n}: {SECRET}" for n in range(100_000))),
                 get("/" + SECRET * 1000), get("/mcp?q=" + SECRET * 1000)):  # fmt: skip
        answer = await answer_to(place.url, data)
        assert answer.status in (400, 431)
        assert SECRET[:8] not in answer.whole.decode("latin-1")
    assert await session.call("alpha__echo", text="unharmed") == "unharmed"


# What is no HTTP request --------------------------------------------------------------------------------------------

HEAD = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SMUGGLED = f"GET /{SECRET} HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNREADABLE = {
    "no request line": f"{SECRET}\r\n\r\n",
    "a TLS greeting": "\x16\x03\x01\x02\x00" * 8 + SECRET + "\r\n\r\n",
    "HTTP/2": f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SECRET}",
    "another version": f"GET /{SECRET} HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "no host": f"GET /mcp HTTP/1.1\r\nX-A: {SECRET}\r\n\r\n",
    "two hosts": f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nHost: {SECRET}\r\n\r\n",
    "a NUL in a header": f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nX-A: {SECRET}\0\r\n\r\n",
    "a NUL in the path": f"GET /mcp\0{SECRET} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes that are no text in the path": f"GET /mcp?\xff{SECRET} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a name with a space": f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nX A: {SECRET}\r\n\r\n",
    "a space before the colon": f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nX-A : {SECRET}\r\n\r\n",
    "a folded header": f"GET /mcp HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n {SECRET}\r\n\r\n",
    "line ends without a return": f"GET /mcp HTTP/1.1\nHost: localhost\nX-A: {SECRET}\n\n",
    "a length and chunks": f"{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunks and a length": f"{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "two lengths": f"{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde{SMUGGLED}",
    "a list of lengths": f"{HEAD}Content-Length: 5, 6\r\n\r\nabcde{SMUGGLED}",
    "a negative length": f"{HEAD}Content-Length: -5\r\n\r\n{SMUGGLED}",
    "a length with a sign": f"{HEAD}Content-Length: +5\r\n\r\nabcde{SMUGGLED}",
    "a hexadecimal length": f"{HEAD}Content-Length: 0x5\r\n\r\nabcde{SMUGGLED}",
    "an unknown coding": f"{HEAD}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a coding behind chunked": f"{HEAD}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "a chunk that has no size": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
    "a chunk that is longer than it says": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde{SECRET}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("form", UNREADABLE)
async def test_what_the_parser_refuses_is_answered_with_a_fixed_text_and_a_closed_connection(
    form: str, place: Place
) -> None:
    whole = await exchange(place.url, UNREADABLE[form].encode("latin-1"))
    answer = parsed(whole)
    assert (answer.status, answer.body) == (400, b"Bad Request\n")
    assert whole.count(b"HTTP/1.") == 1, "what was smuggled in was answered as well"
    assert SECRET[:8].encode() not in whole


async def test_of_all_that_the_log_has_the_word_and_not_a_byte(place: Place, session: Session) -> None:
    await exchange(place.url, f"{SECRET} {SECRET}\r\n\r\n".encode())
    await place.gateway.soon(lambda: place.gateway.logged("request_unreadable", status=400))
    await exchange(place.url, get("/mcp", f"Authorization: Bearer {SECRET * 2500}"))
    await place.gateway.soon(lambda: place.gateway.logged("request_unreadable", status=431))
    assert place.gateway.metric("mcpmux_http_refused_total", status="431") >= 1
    for name in ("request_failed", "connection_failed"):
        assert place.gateway.logged(name) == []
    assert SECRET[:8] not in place.gateway.log.read_text()
    assert await session.call("alpha__echo", text="unharmed") == "unharmed"


async def test_requests_on_one_connection_are_answered_in_order_until_one_ends_it(place: Place, ana: Who) -> None:
    health = get("/healthz").replace(b"Connection: close\r\n", b"")
    # Nothing after the last: in one segment with it, it would be a parser error, and that is all that is answered.
    whole = await exchange(place.url, health, health, get("/mcp", *lines(ana)))
    assert whole.count(b"HTTP/1.1 200") == 2
    assert whole.count(b"HTTP/1.") == 3


async def test_a_body_that_is_announced_and_never_comes_holds_up_nobody_else(
    place: Place, session: Session, ana: Who
) -> None:
    parts = urlsplit(place.url)
    waiting = []
    for _ in range(20):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(post(PING, *lines(ana))[:-5])
        waiting.append((reader, writer))
    assert await session.call("alpha__echo", text="meanwhile") == "meanwhile"
    for _, writer in waiting:
        writer.close()


async def test_a_body_that_comes_too_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "BODY_TIME", 0.2)
    told: list[str] = []

    async def handler(asked: web.BaseRequest) -> web.StreamResponse:
        try:
            await entry.read_body(asked, 100)
        except (InvalidRequest, BodyTooLarge) as error:
            told.append(str(error))
        return web.Response(status=400)

    async with RawTestServer(handler) as server:
        url = str(server.make_url("/"))
        assert (await first_answer(url, post(PING)[:-5])).status == 400
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        await first_answer(url, head + b"Transfer-Encoding: chunked\r\n\r\n", b"4\r\nabcd\r\n")
        await first_answer(url, post(b"x" * 101))
    late = "Invalid request: the body did not come in time"
    assert told == [late, late, "Request body too large: at most 100 bytes"]


# Paths --------------------------------------------------------------------------------------------------------------

PATHS = [
    "//mcp", "/mcp/", "/MCP", "/Mcp", "/mcp;x=1", "/mcp%00", "/%6dcp", "/mcp%2f", "/./mcp", "/x/../mcp", "/%2e/mcp",
    "/mcp/..;/mcp", "/servers//mcp", "/servers/alpha/mcp/", "/servers/alpha//mcp", "/servers/alpha", "/servers",
    "/tenants//mcp", "/servers/alpha/mcp/x", "/mcp.json", "/mcp\\", "/servers/alpha/sse/", "/healthz/", "/metrics/",
    "/",
    "/admin", "/api/v1/servers", "/servers/alpha/healthz", "/healthz/../mcp", "/.well-known", "/mcp%0d%0a",
]  # fmt: skip
SERVER_PATHS = [
    "/servers/beta/mcp", "/servers/off/mcp", "/servers/nobody/mcp", "/servers/ALPHA/mcp", "/servers/Alpha/mcp",
    "/servers/alpha%00/mcp", "/servers/%61lpha/mcp", "/servers/alpha;x/mcp", "/servers/../mcp", "/servers/./mcp",
    "/servers/%2e%2e/mcp", "/servers/alpha%2f..%2fbeta/mcp", "/tenants/alpha/mcp", "/tenants/%00/mcp", "/tenants/x/mcp",
    "/servers/a__b/mcp", "/servers/-/mcp", "/servers/alpha*/mcp", "/servers/aaaaaaaaaaaaaaaaaaaaaaaaa/mcp",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_that_is_no_endpoint_to_the_letter_is_404_with_and_without_a_token(
    path: str, place: Place, ana: Who
) -> None:
    for headers in ((), lines(ana)):
        answer = await answer_to(place.url, get(path, *headers))
        assert (answer.status, answer.body) == (404, b"Not Found\n")


async def test_unknown_disabled_ungranted_and_impossible_endpoints_are_one_answer(
    place: Place, ana: Who, dan: Who
) -> None:
    seen = set()
    hello = json.dumps(request("initialize", greeting())).encode()
    for who in (ana, dan):
        for path in (*SERVER_PATHS, "/servers/beta/sse", "/servers/off/sse", "/tenants/alpha/sse"):
            asked = get(path, *lines(who)) if path.endswith("sse") else post(hello, *lines(who), path=path)
            answer = await answer_to(place.url, asked)
            request_id = answer.headers["x-request-id"].encode()
            date = answer.headers["date"].encode()
            seen.add(answer.whole.replace(request_id, b"ID").replace(date, b"DATE"))
    assert len(seen) == 1, seen
    assert b"HTTP/1.1 403 Forbidden" in seen.pop()


async def test_without_a_token_nobody_learns_which_endpoints_there_are(place: Place) -> None:
    seen = set()
    for path in ("/servers/alpha/mcp", "/servers/beta/mcp", "/servers/off/mcp", "/servers/nobody/mcp"):
        for method in ("GET", "POST", "DELETE", "PUT"):
            answer = await answer_to(place.url, get(path, method=method))
            challenge = challenged(answer).replace(path.split("/")[2], "SERVER")
            seen.add((answer.status, answer.body, challenge))
    assert len(seen) == 1


async def test_a_session_of_a_server_is_gone_with_its_endpoint(place: Place, http: Http, ana: Who, dan: Who) -> None:
    session = await Session.opened(http, f"{place.url}/servers/alpha/mcp", ana)
    stranger = Session(http, session.url, {**ACCEPT, **dan, SESSION: session.id})
    assert (await stranger.post(request("ping"))).status == 403
    assert (await stranger.delete()).status == 403
    assert (await session.ask("ping"))["result"] == {}


async def test_a_bad_host_or_origin_is_refused_before_the_token_and_the_body(place: Place, ana: Who) -> None:
    for headers in ((), lines(ana), ("Authorization: Bearer nonsense",)):
        for data in (
            get("/mcp", *headers, host="evil.example"), get("/healthz", *headers, host="evil.example"),
            get("/mcp", *headers, "Origin: https://evil.example"), post(b"{", *headers, "Origin: null"),
            get("/mcp", *headers, "Origin: http://[::1"), get("/nowhere", *headers, "Origin: http://127.0.0.1.nip.io"),
        ):  # fmt: skip
            answer = await answer_to(place.url, data)
            assert answer.status == 403
            assert json.loads(answer.body)["error"]["message"] == "Forbidden: Host or Origin not allowed"
            assert "access-control-allow-origin" not in answer.headers
    before = place.gateway.metric("mcpmux_tokens_refused_total")
    await answer_to(place.url, get("/mcp", "Authorization: Bearer nonsense", host="evil.example"))
    assert place.gateway.metric("mcpmux_tokens_refused_total") == before


async def test_a_page_on_loopback_may_call_and_an_unlisted_one_is_never_reflected(place: Place, ana: Who) -> None:
    hello = json.dumps(request("initialize", greeting())).encode()
    answer = await answer_to(place.url, post(hello, *lines(ana), "Origin: http://localhost:3000"))
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")
    for origin, status in (("http://localhost:3000", 405), ("https://evil.example", 403), ("null", 403)):
        answer = await answer_to(place.url, get("/mcp", f"Origin: {origin}", *asked, method="OPTIONS"))
        assert answer.status == status
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_client_that_goes_in_the_middle_of_a_call_leaves_nothing_behind(
    place: Place, session: Session, ana: Who, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    body = json.dumps(calling("alpha__slow", {"gate": str(gate)})).encode()
    parts = urlsplit(place.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(post(body, *lines(ana), f"{SESSION}: {session.id}"))
    await until((tmp_path / "gate.entered").exists, "the call at its server")
    writer.transport.abort()
    assert await session.call("alpha__echo", text="still served") == "still served"
    gate.touch()
    assert (await session.delete()).status == 204
    assert place.gateway.logged("request_failed") == []
    del reader


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(place: Place, http: Http, ana: Who) -> None:
    hello = json.dumps(calling("alpha__echo", {"text": "x" * 100_000}))
    session = await Session.opened(http, f"{place.url}/mcp", ana)
    headers = {**session.headers, "Content-Type": "application/json"}
    async with asyncio.timeout(5), http.post(session.url, data=hello, headers=headers, expect100=True) as answer:
        assert (await read(answer)).status == 200
