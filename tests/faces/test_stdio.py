"""`faces/stdio.py`: the pipes of one client, whatever they are and however they are used."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from aiohttp import web

from mcpmux.config.bearer import Bearer
from mcpmux.faces.endpoint import Endpoint
from mcpmux.faces.stdio import bridged
from mcpmux.outbound import Outbound
from mcpmux.seal import Secret
from tests.faces.client import greeting, notification, request
from tests.faces.stdio_client import WAIT, at, desk
from tests.links.servers.http_server import Json, begun, reply, say, streamable_server

CALL = {"name": "slow", "arguments": {}}


@pytest.mark.parametrize("pair", [False, True], ids=["pipes", "sockets"])
async def test_pipes_and_sockets_serve_alike(pair: bool) -> None:
    async with streamable_server() as server, desk(server.url, pair=pair) as client:
        assert "result" in await client.greet()
        assert "result" in await client.ask("ping", None, 2)
        client.leave()
        assert await client.line() == b""


async def test_lines_over_the_limit_are_refused_and_never_sent() -> None:
    async with streamable_server() as server, desk(server.url, limit=1000) as client:
        await client.greet()
        for id_ in (7, "x-7"):
            long = request("tools/call", {"name": "x" * 2000}, id_)
            for line in (long, dict(reversed(long.items()))):
                client.say(line)
                answer = await client.hear()
                assert (answer["id"], answer["error"]["code"]) == (id_, -32600)  # type: ignore[index]
        client.say(notification("x" * 2000))
        assert "result" in await client.ask("ping", None, 2)
        assert server.count("POST", "tools/call") == 0


async def test_lines_that_are_no_messages_end_nothing() -> None:
    async with streamable_server() as server, desk(server.url) as client:
        client.say(b"", b"  ", b"hello", b"{}", b"\xff", b"[]", b'{"jsonrpc":"2.0","id":null,"method":"ping"}')
        client.say(b'{"jsonrpc":"2.0","id":3,"method":"initialize","params":[1]}')
        answer = await client.hear()
        assert (answer["id"], answer["error"]["code"]) == (3, -32600)  # type: ignore[index]
        assert "result" in await client.greet()


async def test_a_slow_reader_gets_everything_and_is_waited_for() -> None:
    count, size = 64, 64 * 1024
    sent: list[int] = []

    async with streamable_server() as server:

        async def loud(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            for number in range(count):
                params = {"level": "info", "data": f"{number} " + "x" * size}
                await say(stream, {"jsonrpc": "2.0", "method": "notifications/message", "params": params})
                sent.append(number)
                server.changed.set()
            await say(stream, reply(message, {"content": []}))
            return stream

        server.tools["slow"] = loud
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            heard = [await client.hear() for _ in range(count + 1)]
            numbers = [int(str(one["params"]["data"]).split()[0]) for one in heard[:-1]]  # type: ignore[index]
            assert numbers == list(range(count))
            assert heard[-1]["id"] == 5


async def test_a_client_that_no_longer_reads_ends_it() -> None:
    async with streamable_server() as server:
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        stop = asyncio.Event()
        async with Outbound({}) as outbound:
            endpoint = Endpoint(outbound, at(server.url), Bearer(Secret("t")), 0.1)
            async with asyncio.timeout(WAIT), asyncio.TaskGroup() as tasks:
                tasks.create_task(bridged(endpoint, (their_in, their_out), 4096, stop))
                os.close(our_in)
        os.close(our_out)
        os.close(their_in)


async def test_a_file_as_input_is_carried_to_its_end(tmp_path: Path) -> None:
    file, out = tmp_path / "in", tmp_path / "out"
    file.write_bytes(b"".join(json.dumps(request("ping", None, number)).encode() + b"\n" for number in range(3)))
    async with streamable_server() as server:
        server.sessions.add("")
        endpoint_sees = server.seen
        async with Outbound({}) as outbound:
            endpoint = Endpoint(outbound, at(server.url), Bearer(Secret("t")), 0.1)
            source, drain = os.open(file, os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT)
            async with asyncio.timeout(WAIT):
                await bridged(endpoint, (source, drain), 4096, asyncio.Event())
            os.close(source)
        assert [rpc for _, rpc, _ in endpoint_sees] == ["ping"] * 3
    assert {json.loads(line)["id"] for line in out.read_bytes().splitlines()} == {0, 1, 2}


async def test_what_hangs_at_the_end_is_cut_off_within_moments() -> None:
    async with streamable_server() as server:

        async def hanging(http: web.Request, message: Json) -> web.StreamResponse:
            await server.gate.wait()
            return web.Response()

        server.tools["slow"] = hanging
        async with desk(server.url) as client:
            client.say(request("initialize", greeting(), 0))
            await client.hear()
            client.say(request("tools/call", CALL, 5))
            async with asyncio.timeout(WAIT):
                while not server.count("POST", "tools/call"):
                    server.changed.clear()
                    await server.changed.wait()
            begun_at = asyncio.get_running_loop().time()
            client.stop.set()
            assert await client.line() == b""
            assert asyncio.get_running_loop().time() - begun_at < 1.9  # the SDKs kill after two seconds
        assert server.seen[-1][0] == "DELETE"
