"""`faces/endpoint.py`, `faces/mirror.py`: where the token goes, and which headers a call needs."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from tests.faces.client import request
from tests.faces.stdio_client import desk, modern, serving
from tests.links.servers.http_server import Json, reply, streamable_server

TOOL: Json = {
    "name": "sql",
    "inputSchema": {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
}


class Modern:
    """A modern endpoint that insists on `Mcp-Param-Region`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.pages: list[Json] = [{"tools": [], "nextCursor": "2"}, {"tools": [TOOL]}]

    async def handle(self, http: web.Request) -> web.StreamResponse:
        message = await http.json()
        params = message["params"]
        region = http.headers.get("Mcp-Param-Region")
        self.seen.append((message["method"], region))
        if message["method"] == "tools/list":
            assert params["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
            assert http.headers["Mcp-Method"] == "tools/list"
            return web.json_response(reply(message, self.pages[1 if params.get("cursor") == "2" else 0]))
        if region != params["arguments"]["region"]:
            error = {"code": -32020, "message": "Header mismatch"}
            return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error}, status=400)
        return web.json_response(reply(message, {"content": []}))


async def test_a_refused_token_is_read_anew_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    async with streamable_server() as server:
        good = "Bearer old"
        server.refuse = lambda method, rpc: (
            None if server.headers[-1]["Authorization"] == good else web.Response(status=401)
        )
        async with desk(server.url, file) as client:
            await client.greet()
            good = "Bearer new"
            assert "renew it" in (await client.ask("ping"))["error"]["message"]  # type: ignore[index]
            file.write_text("new\nand more")
            assert "renew it" in (await client.ask("ping"))["error"]["message"]  # type: ignore[index]
            file.write_text("new\n")
            client.say(*(request("ping", None, number) for number in range(5)))
            answers = [await client.hear() for _ in range(5)]
            assert all("result" in answer for answer in answers)
            assert server.made == 1


async def test_no_redirect_is_followed_with_the_token() -> None:
    there: list[web.Request] = []

    async def elsewhere(http: web.Request) -> web.StreamResponse:
        there.append(http)
        return web.Response()

    async with serving(elsewhere) as other:

        async def moved(http: web.Request) -> web.StreamResponse:
            return web.Response(status=308, headers={"Location": other})

        async with serving(moved) as url, desk(url) as client:
            assert "redirects" in (await client.ask("tools/list"))["error"]["message"]  # type: ignore[index]
    assert not there


async def test_an_argument_that_goes_in_a_header_too_is_looked_up_once() -> None:
    endpoint = Modern()
    async with serving(endpoint.handle) as url, desk(url) as client:
        for number, region in enumerate(("eu", "us")):
            client.say(modern("tools/call", {"name": "sql", "arguments": {"region": region}}, number))
            assert "result" in await client.hear()
        assert endpoint.seen == [
            ("tools/call", None),
            ("tools/list", None),
            ("tools/list", None),
            ("tools/call", "eu"),
            ("tools/call", "us"),
        ]


async def test_a_call_whose_headers_cannot_be_mended_is_refused_as_the_endpoint_does() -> None:
    endpoint = Modern()
    endpoint.pages[1] = {"tools": []}
    async with serving(endpoint.handle) as url, desk(url) as client:
        client.say(modern("tools/call", {"name": "sql", "arguments": {"region": "eu"}}, 1))
        assert (await client.hear())["error"] == {"code": -32020, "message": "Header mismatch"}
