"""`faces/reply.py`: the short way of a small answer says what aiohttp's own way says, and its bytes are counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from mcpmux.faces import reply
from mcpmux.faces.reply import WireReply
from mcpmux.faces.server import Handle, HttpServer
from mcpmux.observe.metrics import Metrics
from tests.calls.upstream import until
from tests.faces.client import ACCEPT, SESSION, Session, calling
from tests.faces.conftest import Place, Who

Http = aiohttp.ClientSession


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    return await Session.opened(http, f"{place.url}/mcp", ana)


async def test_the_short_answer_has_the_headers_of_every_other_one(
    place: Place, http: Http, ana: Who, session: Session
) -> None:
    headers = {**ana, **ACCEPT, SESSION: session.id}
    body = calling("alpha__echo", {"text": "hi"}, 7)
    async with http.post(f"{place.url}/mcp", json=body, headers=headers) as short:
        answer = await short.json()
    # A connection that closes takes the long way.
    async with http.post(f"{place.url}/mcp", json=body, headers={**headers, "Connection": "close"}) as long:
        assert await long.json() == answer
    assert answer["id"] == 7
    assert {name.lower() for name in short.headers} == {name.lower() for name in long.headers} - {"connection"}
    for name in ("Content-Type", "Cache-Control", "Server", "Content-Length"):
        assert short.headers[name] == long.headers[name]


async def test_answers_on_one_connection_come_in_the_order_of_their_requests(
    place: Place, ana: Who, session: Session
) -> None:
    host, port = urlsplit(place.url).hostname, urlsplit(place.url).port
    reader, writer = await asyncio.open_connection(host, port)
    body = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"alpha__echo","arguments":{"text":"%d"}}}'
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nAuthorization: {ana['Authorization']}\r\n{SESSION}: {session.id}\r\n"
        f"Accept: {ACCEPT['Accept']}\r\nContent-Type: application/json\r\n"
    ).encode()
    for number in range(20):
        wire = body % (number, number)
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(wire) + wire)
    async with asyncio.timeout(5):
        for number in range(20):
            answer_head = await reader.readuntil(b"\r\n\r\n")
            length = int(answer_head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert b'"id":%d,' % number in await reader.readexactly(length)
    writer.close()


async def test_the_bytes_of_messages_are_counted_in_both_directions(
    place: Place, http: Http, ana: Who, session: Session
) -> None:
    before = {way: place.gateway.metric("mcpmux_http_bytes_total", direction=way) for way in ("received", "sent")}
    text = "x" * 1000
    headers = {**ana, **ACCEPT, SESSION: session.id}
    async with http.post(f"{place.url}/mcp", json=calling("alpha__echo", {"text": text}), headers=headers) as answer:
        assert text in await answer.text()
    for way, count in before.items():
        assert place.gateway.metric("mcpmux_http_bytes_total", direction=way) >= count + 1000


async def test_a_path_or_method_that_is_not_there_is_counted_and_logged(place: Place, http: Http, ana: Who) -> None:
    for status, method, path in ((404, "GET", "/nothing/here"), (405, "PUT", "/mcp")):
        before = place.gateway.metric("mcpmux_http_refused_total", status=str(status))
        async with http.request(method, f"{place.url}{path}", headers=dict(ana)) as answer:
            assert answer.status == status
        assert place.gateway.metric("mcpmux_http_refused_total", status=str(status)) == before + 1
        correlation = answer.headers["X-Request-Id"]
        place.gateway.wait_for(
            lambda correlation=correlation: place.gateway.logged("request_refused", request_id=correlation), 5, path
        )


# Clients that do not read --------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[int]:
    """The port of an HTTP server with this handler."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(handle, Metrics(()), 1000)
    await server.start([bound])
    try:
        yield bound.getsockname()[1]
    finally:
        await server.close(0)


@pytest.mark.parametrize(("size", "requests"), [(16 * 1024 * 1024, 1), (reply.LARGEST, 1000)])
async def test_a_client_that_takes_no_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, size: int, requests: int
) -> None:
    monkeypatch.setattr(reply, "PATIENCE", 0.2)
    monkeypatch.setattr(reply, "LEAST_RATE", 1024**3)
    served: list[web.BaseRequest] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        served.append(request)
        body = bytes(size)
        return WireReply("one", body) if reply.fits(request, body) else web.Response(body=body)

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with serving(handle) as port:
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
            await until(lambda: served, "the request")
            protocol = served[0].protocol
            await until(lambda: protocol.transport is None, "the end of the connection")
            assert len(served) < 1000


async def test_a_long_answer_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "PATIENCE", 0.0)
    size = 16 * 1024 * 1024

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(size))

    async with serving(handle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in head
        assert len(await reader.read(-1)) == size
        writer.close()
