"""HTTP as bytes, for tests in which the form of a request matters more than its meaning.

Every message in an answer must be as the schema has it, whatever the request was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.schemas import MODERN
from tests.schemas.watched import NEWEST, check_body
from tests.schemas.wire import Wire

WAIT = 5.0


@dataclass(frozen=True)
class RawAnswer:
    """One answer as it came; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bytes


def get(path: str = "/mcp", *headers: str, method: str = "GET", host: str | None = "localhost") -> bytes:
    """A request without a body, after which the server is to close; `headers` are whole lines."""
    named = [] if host is None else [f"Host: {host}"]
    lines = [f"{method} {path} HTTP/1.1", *named, "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def post(body: bytes, *headers: str, path: str = "/mcp") -> bytes:
    """A POST of JSON, after which the server is to close."""
    lines = [
        f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json",
        "Accept: application/json, text/event-stream", f"Content-Length: {len(body)}", *headers, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + body


async def exchange(url: str, *pieces: bytes) -> bytes:
    """Everything that comes back until the server closes, within 5 s; each piece is sent on its own."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_read(reader))
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            except ConnectionError:
                pass  # refused before all was sent
        return reading.result()
    finally:
        writer.close()


async def first_answer(url: str, *pieces: bytes) -> RawAnswer:
    """The first answer, without waiting for the server to close the connection."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(WAIT):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
            return parsed(head + await reader.readexactly(int(length[1]) if length else 0), _wire(pieces))
    finally:
        writer.close()


async def answer_to(url: str, *pieces: bytes) -> RawAnswer:
    """The one answer to these bytes."""
    return parsed(await exchange(url, *pieces), _wire(pieces))


def parsed(whole: bytes, wire: Wire | None = None) -> RawAnswer:
    """One answer; what came after it is an error of the test. `wire` knows what was asked."""
    head, mark, body = whole.partition(b"\r\n\r\n")
    assert mark, whole
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" in headers:
        assert len(body) == int(headers["content-length"]), whole
    check_body(body, headers.get("content-type", ""), wire=wire)
    return RawAnswer(int(first.split(" ")[1]), headers, body, whole)


def _wire(pieces: tuple[bytes, ...]) -> Wire:
    """A connection on which these requests were made."""
    whole = b"".join(pieces)
    wire = Wire(MODERN if MODERN.encode() in whole else NEWEST, "Server")
    with contextlib.suppress(ValueError, RecursionError):  # nobody can read it
        wire.heard(json.loads(whole.rpartition(b"\r\n\r\n")[2]))
    return wire


async def _read(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while chunk := await reader.read(65536):
            found += chunk
    except ConnectionError:
        pass
    return found
