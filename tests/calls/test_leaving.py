"""A client of the modern era that goes while it is told what it is asked: nobody can come back to what was left.

Seen on real sockets: the client takes the head of the answer and not the rest, which is too long for what lies between.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from tests.calls.asker import ABLE, ACCEPTED, Asker, heard, person, requests
from tests.calls.upstream import WAIT, Json, Witness
from tests.faces import raw
from tests.faces.modern import PREFIX, asking
from tests.gateway_process import Gateway, running

LONG = 12_000_000  # bytes: more than the buffers of both ends hold
BUFFER = 4096
FORMS = {"json": "application/json, text/event-stream", "events": "text/event-stream, application/json"}


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Witness:
    return Witness("pooled", tmp_path_factory.mktemp("record"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, witness: Witness) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("leaving"), {"pooled": witness.section(isolation="pooled")}) as made:
        made.grant("MCP-pooled", "pooled")
        made.wait_for(lambda: made.logged("link_ready", server="pooled"), 30, "pooled")
        yield made


@pytest.fixture
def ana(gateway: Gateway) -> Asker:
    return person(gateway, "ana", "pooled")


@asynccontextmanager
async def answering(asker: Asker, tool: str, arguments: Json, form: str) -> AsyncIterator[asyncio.StreamReader]:
    """The answer to a call, of which the head was read, while it comes; in the end the client goes."""
    said = {"name": tool, "arguments": arguments}
    message = asking("tools/call", said, **{PREFIX + "clientCapabilities": ABLE})
    headers = [f"{name}: {value}" for name, value in asker.who.items()]
    headers += ["MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", f"Mcp-Name: {tool}"]
    wire = raw.post(json.dumps(message).encode(), *headers)
    parts = urlsplit(asker.gateway.url)
    assert parts.hostname is not None and parts.port is not None
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=BUFFER)
        try:
            async with asyncio.timeout(4 * WAIT):
                writer.write(wire.replace(FORMS["json"].encode(), FORMS[form].encode(), 1))
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            yield reader
        finally:
            writer.close()


def parked(gateway: Gateway) -> float:
    return gateway.metric("mcpmux_calls_parked", server="pooled")


@pytest.mark.parametrize("form", FORMS)
async def test_a_client_that_goes_before_it_knows_what_it_is_asked_leaves_no_call_behind(
    form: str, gateway: Gateway, witness: Witness, ana: Asker
) -> None:
    before = len(gateway.logged("parked_dropped"))
    cancelled = len(witness.heard("notifications/cancelled"))
    async with answering(ana, "pooled__tell", {"bytes": LONG}, form):
        await gateway.soon(lambda: parked(gateway) == 1, 4 * WAIT)
    await witness.hears("notifications/cancelled", count=cancelled + 1)
    await gateway.soon(lambda: parked(gateway) == 0)
    await gateway.soon(lambda: gateway.logged("parked_dropped")[before:])
    (line,) = gateway.logged("parked_dropped")[before:]
    assert line["reason"] == "the client closed the response"


@pytest.mark.parametrize("form", FORMS)
async def test_a_client_that_goes_when_it_knows_what_it_is_asked_may_come_back(form: str, ana: Asker) -> None:
    async with answering(ana, "pooled__talk", {}, form) as reader, asyncio.timeout(WAIT):
        line = b""
        while b'"requestState"' not in line:
            line = await reader.readline()
    asked = json.loads(line.removeprefix(b"data: "))["result"]
    answer = await ana.answered("pooled__talk", asked, dict.fromkeys(requests(asked), ACCEPTED))
    assert heard(answer)["result"] == ACCEPTED  # type: ignore[index]
