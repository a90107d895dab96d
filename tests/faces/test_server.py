"""`faces/server.py`: one connection's requests, one after the other, whatever each of them was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.faces.client import Session, calling, request
from tests.faces.conftest import Place, Who
from tests.faces.raw import WAIT, RawAnswer, answer_to, exchange, get, parsed, post

Http = aiohttp.ClientSession


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Connection]:
    """One connection of bytes."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(WAIT):
            yield Connection(reader, writer)
    finally:
        writer.close()


class Connection:
    """Send bytes, read one answer after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        """More of a request."""
        self._writer.write(data)

    async def answer(self) -> RawAnswer:
        """The next answer, whose length its head tells."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(parsed_head(head)["content-length"])
        return parsed(head + await self.reader.readexactly(length))


def parsed_head(head: bytes) -> dict[str, str]:
    """The headers, names in lower case."""
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def kept(raw: bytes) -> bytes:
    """The request, after which the connection is not to close."""
    return raw.replace(b"Connection: close\r\n", b"")


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's."""
    return await Session.opened(http, f"{place.url}/mcp", ana)


def echo(session: Session, *lines: str, text: str, number: int = 1) -> bytes:
    """A call of that session as bytes."""
    body = json.dumps(calling("alpha__echo", {"text": text}, number)).encode()
    return kept(post(body, *(f"{name}: {value}" for name, value in session.headers.items()), *lines))


async def test_a_body_that_nobody_wanted_is_read_and_the_next_request_is_answered(
    place: Place, session: Session
) -> None:
    body = json.dumps(request("ping")).encode()
    async with connection(place.url) as raw:
        refused = kept(post(body))
        raw.send(refused[: -len(body)])
        assert (await raw.answer()).status == 401
        raw.send(body[:5])
        raw.send(body[5:] + echo(session, text="after it"))
        answer = await raw.answer()
        assert answer.status == 200
        assert b"after it" in answer.body


async def test_many_requests_in_one_piece_are_answered_in_order(place: Place, session: Session) -> None:
    async with connection(place.url) as raw:
        raw.send(b"".join(echo(session, text=f"call {number}", number=number) for number in range(200)))
        for number in range(200):
            answer = json.loads((await raw.answer()).body)
            assert answer["id"] == number
            assert answer["result"]["content"][0]["text"] == f"call {number}"


async def test_an_upgrade_that_we_do_not_know_is_ignored(place: Place, session: Session) -> None:
    async with connection(place.url) as raw:
        raw.send(echo(session, "Connection: Upgrade", "Upgrade: h2c", text="upgraded"))
        assert b"upgraded" in (await raw.answer()).body
        raw.send(echo(session, text="again"))
        assert b"again" in (await raw.answer()).body


async def test_a_request_target_may_be_a_whole_url(place: Place, ana: Who) -> None:
    """RFC 9112 section 3.2.2."""
    lines = tuple(f"{name}: {value}" for name, value in ana.items())
    assert (await answer_to(place.url, get("http://localhost/mcp?x=1", *lines))).status == 400  # no session
    assert (await answer_to(place.url, get("http://localhost/healthz"))).status == 200
    assert (await answer_to(place.url, get("http://localhost"))).status == 404
    assert (await answer_to(place.url, get("http://localhost/mcp"))).status == 401


async def test_what_the_parser_refuses_has_an_id_that_the_log_has(place: Place) -> None:
    whole = await exchange(place.url, b"NONSENSE\r\n\r\n")
    request_id = parsed(whole).headers["x-request-id"]
    await place.gateway.soon(lambda: place.gateway.logged("request_unreadable", request_id=request_id))


async def test_a_client_that_leaves_in_the_middle_of_a_request_harms_nobody(place: Place, session: Session) -> None:
    for cut in (10, 80, -30, -1):
        async with connection(place.url) as raw:
            raw.send(echo(session, text="never whole")[:cut])
    assert await session.call("alpha__echo", text="unharmed") == "unharmed"
    for name in ("request_failed", "connection_failed"):
        assert place.gateway.logged(name) == []
