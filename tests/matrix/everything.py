"""The matrix's own server: every feature that a legacy revision has, and nothing that it does not have.

The counter with more tools, on pipes, or with a session of its own for each client on Streamable HTTP or HTTP+SSE. It
speaks one revision, whatever it is asked for, and notes every message in both directions, so that the matrix can look
at what mcpmux sends to servers:

    python everything.py stdio|http|sse REVISION [--wires FOLDER]

The HTTP kinds print one JSON line `{"url": …}` on stdout when they listen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))

from counter import GATE_POLL, REVISIONS, Ask, Counter, Json, Steps, described, said

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
ICONS = [{"src": "https://example.com/icon.png", "mimeType": "image/png", "sizes": ["48x48"]}]
PAGE = 7  # entries of a list: small, so that every list of tools has pages

NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
FORM: Json = {
    "message": "Your name?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
PAGE_TO_SEE: Json = {
    "mode": "url", "message": "Please look", "url": "https://example.com/look", "elicitationId": "look-1"
}  # fmt: skip
SAY: Json = {
    "messages": [{"role": "user", "content": {"type": "text", "text": "Say a number"}}],
    "maxTokens": 10,
}
USE: Json = {
    **SAY,
    "tools": [{"name": "dice", "description": "Throws.", "inputSchema": {"type": "object"}}],
    "toolChoice": {"mode": "auto"},
}
PANEL = "ui://counter/panel"  # a page as MCP Apps have them
PAGE_TYPE = "text/html;profile=mcp-app"
PAGE_META: Json = {"ui": {"csp": {"connectDomains": ["https://example.com"]}}}
BLOCKS: dict[str, tuple[str, Json]] = {
    "text": ("2024-11-05", {"type": "text", "text": "text", "annotations": {"audience": ["user"], "priority": 1}}),
    "image": ("2024-11-05", {"type": "image", "data": PIXEL, "mimeType": "image/png"}),
    "resource": (
        "2024-11-05",
        {"type": "resource", "resource": {"uri": "counter://value", "mimeType": "text/plain", "text": "0"}},
    ),
    "audio": ("2025-03-26", {"type": "audio", "data": SILENCE, "mimeType": "audio/wav"}),
    "resource_link": ("2025-06-18", {"type": "resource_link", "uri": "counter://note/1", "name": "note 1"}),
}
ASKED: dict[str, tuple[str, Json]] = {
    "form": ("elicitation/create", FORM),
    "url": ("elicitation/create", PAGE_TO_SEE),
    "sampling": ("sampling/createMessage", SAY),
    "sampling tools": ("sampling/createMessage", USE),
    "roots": ("roots/list", {}),
}


class Everything(Counter):
    """One client's server."""

    DESCRIBED = (
        *(one for one in Counter.DESCRIBED
          if one["name"] in ("echo", "slow", "progress", "log", "fail", "refuse", "touch", "offer", "withdraw")),
        described("structured", "Answers structured content.", True, number="integer"),
        described("contents", "Answers a block of this kind.", True, kind="string"),
        described("meta", "Says which `_meta` it got.", True),
        described("inquire", "Asks the client and says what it answered.", False, what="string"),
        described("revision", "Says which revision it speaks.", True),
        described("panel", "Has a page of its own.", True),
    )  # fmt: skip

    def __init__(self, revision: str, wires: str | None) -> None:
        options = argparse.Namespace(name="everything", tools=0, description=0, page=PAGE)
        super().__init__(options)
        self.revision = revision
        self.wire = Path(wires) / f"{revision}-{secrets.token_hex(8)}" if wires else None

    def note(self, direction: str, message: Json) -> None:
        """Keep one message for the matrix."""
        if self.wire is not None:
            with self.wire.open("a") as file:
                file.write(json.dumps([direction, message]) + "\n")

    def receive(self, message: Json) -> None:
        self.note("in", message)
        super().receive(message)

    def send(self, message: Json) -> None:
        self.note("out", message)
        super().send(message)

    def since(self, revision: str, **members: object) -> Json:
        """Members that exist from a revision on."""
        return members if self.revision >= revision else {}

    def adorned(self, entry: Json) -> Json:
        """An entry of a list with all that this revision can say of it beside."""
        more: Json = {
            **self.since("2025-06-18", title=f"The {entry['name']}"), **self.since("2025-11-25", icons=ICONS)
        }  # fmt: skip
        if self.revision < "2025-03-26":
            entry = {key: value for key, value in entry.items() if key != "annotations" or "uri" in entry}
        return {**entry, **more}

    def initialize(self, params: Json) -> Json:
        answer = super().initialize(params)
        capabilities = answer["capabilities"]
        assert isinstance(capabilities, dict)
        if self.revision < "2025-03-26":
            del capabilities["completions"]
        return {**answer, "protocolVersion": self.revision}

    def list_tools(self, params: Json) -> Json:
        known = [self.adorned(entry) for entry in self.DESCRIBED]
        for entry in known:
            if entry["name"] == "structured":
                entry |= self.since("2025-06-18", outputSchema=NUMBER)
            if entry["name"] == "panel":
                entry |= self.since("2025-06-18", _meta={"ui": {"resourceUri": PANEL, "visibility": ["model", "app"]}})
        added = [described(name, "Added later.", True) for name in self.added["tools"]]
        return self.page("tools", [*known, *added], params)

    def list_resources(self, params: Json) -> Json:
        answer = super().list_resources(params)
        marks = {"annotations": {"audience": ["user"], "priority": 0.5}}
        entries = answer["resources"]
        assert isinstance(entries, list)
        if "nextCursor" not in answer and self.revision >= "2025-06-18":
            entries.append({"uri": PANEL, "name": "panel", "mimeType": PAGE_TYPE, "_meta": PAGE_META})
        return {**answer, "resources": [self.adorned({**entry, **marks}) for entry in entries]}

    def read(self, params: Json) -> Json:
        if params.get("uri") != PANEL or self.revision < "2025-06-18":
            return super().read(params)
        page = {"uri": PANEL, "mimeType": PAGE_TYPE, "text": "<p>panel</p>", "_meta": PAGE_META}
        return {"contents": [page]}

    def list_templates(self, params: Json) -> Json:
        answer = super().list_templates(params)
        entries = answer["resourceTemplates"]
        assert isinstance(entries, list)
        return {**answer, "resourceTemplates": [self.adorned(entry) for entry in entries]}

    def list_prompts(self, params: Json) -> Json:
        answer = super().list_prompts(params)
        entries = answer["prompts"]
        assert isinstance(entries, list)
        return {**answer, "prompts": [self.adorned(entry) for entry in entries]}

    def tool_structured(self, number: int) -> Json:
        return said(json.dumps({"number": number}), **self.since("2025-06-18", structuredContent={"number": number}))

    def tool_contents(self, kind: str) -> Json:
        since, block = BLOCKS[kind]
        return {"content": [block]} if self.revision >= since else said(f"no {kind} in {self.revision}")

    def tool_meta(self) -> Json:
        return said(json.dumps(self.meta), _meta={"example.com/answer": {"deep": [1, 2]}})

    def tool_inquire(self, what: str) -> Steps:
        method, params = ASKED[what]
        answer = yield Ask(method, params)
        return said(json.dumps(answer))

    def tool_panel(self) -> Json:
        return said("shown")

    def tool_revision(self) -> Json:
        return said(self.revision)


class Hosted(Everything):
    """One client's server, reached over HTTP: each message goes out on the stream that it belongs to."""

    def __init__(self, revision: str, wires: str | None) -> None:
        super().__init__(revision, wires)
        self.id = secrets.token_hex(16)
        self.own: asyncio.Queue[Json | None] = asyncio.Queue()
        self.streams: dict[object, asyncio.Queue[Json | None]] = {}
        self.at: object = None

    def call(self, id_: object, params: Json) -> None:
        self.at = id_
        super().call(id_, params)

    def step(self, id_: object, steps: Steps, value: object) -> None:
        self.at = id_
        super().step(id_, steps, value)

    def cancelled(self, id_: object) -> None:
        super().cancelled(id_)
        if stream := self.streams.pop(id_, None):
            stream.put_nowait(None)

    def send(self, message: Json) -> None:
        self.note("out", message)
        method = str(message.get("method", ""))
        if "method" not in message and (stream := self.streams.pop(message["id"], None)):
            stream.put_nowait(message)
            stream.put_nowait(None)
        elif method.endswith("list_changed") or method == "notifications/resources/updated":
            self.own.put_nowait(message)
        else:
            self.streams.get(self.at, self.own).put_nowait(message)


class Site:
    """All sessions of one address."""

    def __init__(self, revision: str, wires: str | None) -> None:
        self.revision = revision
        self.wires = wires
        self.sessions: dict[str, Hosted] = {}

    def session(self) -> Hosted:
        """A new one."""
        made = Hosted(self.revision, self.wires)
        self.sessions[made.id] = made
        return made

    async def look_at_gates(self, _: web.Application) -> object:
        """Let calls go on whose gate is open, for as long as the application lives."""

        async def look() -> None:
            while True:
                for session in self.sessions.values():
                    if session.gated:
                        session.look_at_gates()
                await asyncio.sleep(GATE_POLL)

        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(look())
            yield
            looking.cancel()

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Streamable HTTP: one message, or several where the revision has that."""
        message = await request.json()
        if message.get("method") == "initialize":
            session = self.session()
            stream = session.streams[message["id"]] = asyncio.Queue()
            session.receive(message)
            return web.json_response(await stream.get(), headers={"Mcp-Session-Id": session.id})
        session = self.sessions.get(request.headers.get("Mcp-Session-Id", ""))
        if session is None:
            # What a probe in the modern era gets from servers of the legacy ones.
            refusal = {"code": -32000, "message": "Bad Request: no session"}
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": refusal}, status=400)
        if "method" not in message or "id" not in message:
            session.receive(message)
            return web.Response(status=202)
        stream = session.streams[message["id"]] = asyncio.Queue()
        session.receive(message)
        return await streamed(request, stream)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Streamable HTTP: the stream of what belongs to no request."""
        return await streamed(request, self.sessions[request.headers["Mcp-Session-Id"]].own)

    async def delete(self, request: web.Request) -> web.Response:
        """Streamable HTTP: the end of a session."""
        session = self.sessions.pop(request.headers["Mcp-Session-Id"], None)
        if session is not None:
            session.own.put_nowait(None)
        return web.Response(status=200)

    async def open(self, request: web.Request) -> web.StreamResponse:
        """HTTP+SSE: a session is its stream."""
        session = self.session()
        try:
            return await streamed(request, session.own, f"event: endpoint\ndata: /messages?session={session.id}\n\n")
        finally:
            del self.sessions[session.id]

    async def message(self, request: web.Request) -> web.Response:
        """HTTP+SSE: one message."""
        self.sessions[request.query["session"]].receive(await request.json())
        return web.Response(status=202)


async def streamed(request: web.Request, queue: asyncio.Queue[Json | None], first: str = "") -> web.StreamResponse:
    """An event stream of all that comes into the queue."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await answer.prepare(request)
    await answer.write((first or ": open\n\n").encode())
    while (message := await queue.get()) is not None:
        await answer.write(f"event: message\ndata: {json.dumps(message)}\n\n".encode())
    return answer


def application(site: Site) -> web.Application:
    """Both HTTP transports."""
    made = web.Application()
    made.cleanup_ctx.append(site.look_at_gates)  # type: ignore[arg-type]
    made.add_routes(
        [
            web.post("/mcp", site.post),
            web.get("/mcp", site.get),
            web.delete("/mcp", site.delete),
            web.get("/sse", site.open),
            web.post("/messages", site.message),
        ]
    )
    return made


async def serve(site: Site, path: str) -> None:
    """Listen on loopback and say where."""
    runner = web.AppRunner(application(site), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}{path}"}), flush=True)
    await asyncio.Event().wait()


def main(environment: Mapping[str, str] = os.environ) -> None:
    """Serve the transport that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=("stdio", "http", "sse"))
    parser.add_argument("revision", choices=REVISIONS)
    parser.add_argument("--wires", help="a folder for what is said")
    chosen = parser.parse_args()
    if chosen.transport == "stdio":
        Everything(chosen.revision, chosen.wires).run()
    else:
        asyncio.run(serve(Site(chosen.revision, chosen.wires), "/mcp" if chosen.transport == "http" else "/sse"))


if __name__ == "__main__":
    main()
