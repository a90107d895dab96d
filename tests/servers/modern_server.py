"""A raw server of the modern era (2026-07-28) without an SDK, over stdio and Streamable HTTP (`modern_http.py`).

It is strict: a request without what `_meta` must hold is refused, a `requestState` that is not its own too, and what no
client may send is remembered in `problems`. `seen` has every message that came, with its headers on HTTP.

    python modern_server.py stdio|http [--port N] [--name NAME] [--era modern|dual] [--page N] [--ttl MS]
        [--discover answers|refuses|silent|unsupported|dies] [--scope public|private] [--unannounced]
        [--tells all|less|refuses] [--seen FILE]

`http` prints one JSON line `{"url": …}` when it listens. `--seen` gets a line of JSON for each message. A tool that
waits for a gate appends to `<gate>.entered` and `<gate>.cancelled`, as `counter.py` does. `dual` also answers
`initialize`, and then requests without `_meta`, as a server of 2025-11-25 that asks its client nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Json = dict[str, "object"]
REVISION = "2026-07-28"
LEGACY = "2025-11-25"
PREFIX = "io.modelcontextprotocol/"
SUBSCRIPTION = PREFIX + "subscriptionId"
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
KINDS = ("tools", "prompts", "resources")
GATE_POLL = 0.005  # seconds

NAME_FORM: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
SAYING: Json = {"messages": [{"role": "user", "content": {"type": "text", "text": "Say a number"}}], "maxTokens": 10}
# What `ask` asks, and what a client must have declared for it.
ASKS: dict[str, tuple[Json, Json]] = {
    "form": (
        {"method": "elicitation/create",
         "params": {"mode": "form", "message": "Your name?", "requestedSchema": NAME_FORM}},
        {"elicitation": {"form": {}}},
    ),
    "url": (
        {"method": "elicitation/create",
         "params": {"mode": "url", "message": "Please agree", "url": "https://example.com/consent"}},
        {"elicitation": {"url": {}}},
    ),
    "sampling": ({"method": "sampling/createMessage", "params": SAYING}, {"sampling": {}}),
    "roots": ({"method": "roots/list"}, {"roots": {}}),
}  # fmt: skip


class Refusal(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.body: Json = {"code": code, "message": message} | ({} if data is None else {"data": data})


@dataclass(eq=False)
class Request:
    """One request under way; `send` gives its client a message on its stream."""

    id: object
    method: str
    params: Json
    send: Callable[[Json], Awaitable[None]]
    modern: bool = True

    @property
    def meta(self) -> Json:
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}

    async def notify(self, method: str, params: Json) -> None:
        await self.send({"jsonrpc": "2.0", "method": method, "params": params})


@dataclass(eq=False)
class Listen:
    """One `subscriptions/listen`; it ends when `over` has how."""

    request: Request
    wants: Json
    over: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def said(text: str, **more: object) -> Json:
    """A tool result of one text block."""
    return {"content": [{"type": "text", "text": text}], **more}


def note(path: str, line: str) -> None:
    """Append one line, visible to the test at once."""
    with Path(path).open("a") as file:
        file.write(line + "\n")


def described(name: str, description: str, /, **arguments: object) -> Json:
    """One entry of `tools/list`; an argument is a type or a whole schema, optional if its name ends in `_`."""
    properties = {
        key.rstrip("_"): kind if isinstance(kind, dict) else {"type": kind} for key, kind in arguments.items()
    }
    schema = {"type": "object", "properties": properties, "required": [key for key in arguments if key[-1] != "_"]}
    hints = {"readOnlyHint": True, "destructiveHint": False}
    return {"name": name, "description": description, "inputSchema": schema, "annotations": hints}


PLACE: Json = {"type": "object", "properties": {"zone": {"type": "string", "x-mcp-header": "Zone"}}}
TOOLS = (
    described("echo", "Says what it was told.", text="string"),
    described("whoami", "Says the whole params of the call."),
    described("locate", "Has arguments that go in headers too.", region={"type": "string", "x-mcp-header": "Region"},
              count_={"type": "integer", "x-mcp-header": "Count"}, sure_={"type": "boolean", "x-mcp-header": "Sure"},
              place_=PLACE),
    described("broken", "Has an annotation that no client may honour.",
              weight={"type": "number", "x-mcp-header": "Weight"}),
    described("progress", "Reports progress `steps` times.", steps="integer"),
    described("log", "Sends a log message, if the request wants its level.", level="string", text="string"),
    described("slow", "Waits until the file `gate` exists.", gate="string"),
    described("fail", "Answers a result that is an error."),
    described("refuse", "Answers a JSON-RPC error with data."),
    described("structured", "Answers structured content.", number="integer"),
    described("links", "Answers a resource link and an embedded resource."),
    described("ask", "Asks for what the kinds say (form, url, sampling, roots), for so many rounds.",
              kinds_={"type": "array", "items": {"type": "string"}}, rounds_="integer"),
    described("defer", "Asks nothing, and wants to be called again with its requestState."),
    described("forever", "Asks again whatever it is answered."),
    described("strange", "Answers a resultType that nobody knows."),
    described("annotate", "Wants `locate` to have its region in another header, and says so to nobody; a liar lists "
              "the former one still.", header="string", lies_="boolean"),
    described("touch", "Says that a resource was updated.", uri="string"),
    described("offer", "Adds a tool, prompt or resource and says that the list changed.", kind="string", name="string"),
    described("withdraw", "Takes away what `offer` added.", kind="string", name="string"),
    described("unlisten", "Ends all subscriptions: graceful or abrupt.", how="string"),
    described("die", "Ends the process with this code.", code="integer"),
)  # fmt: skip


class ModernServer:
    """The server, whatever carries its messages."""

    def __init__(self, options: argparse.Namespace | None = None) -> None:
        self.options = options or parser().parse_args(["http"])
        self.seen: list[tuple[Json, Mapping[str, str]]] = []
        self.problems: list[str] = []
        self.changed = asyncio.Event()  # `seen`, `problems` or `listens`
        self.listens: list[Listen] = []
        self.added: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.running: dict[object, asyncio.Task[None]] = {}
        self.region: tuple[str, bool] = ("Region", False)  # in which header it goes, and whether the list hides that
        self._secret = os.urandom(32)

    def receive(self, message: Json, headers: Mapping[str, str] | None = None) -> None:
        """Remember a message, and what is wrong with it as one of a client."""
        self.seen.append((message, headers or {}))
        if self.options.seen:
            note(self.options.seen, json.dumps({"message": message, "headers": dict(headers or {})}))
        if "method" not in message:
            self.problem(f"a client of this era sends no responses: {message}")
        self.changed.set()

    def problem(self, text: str) -> None:
        """Remember what no client may do."""
        self.problems.append(text)
        self.changed.set()
        print(f"modern_server: {text}", file=sys.stderr, flush=True)

    def count(self, method: str) -> int:
        """How many requests of one method were seen."""
        return sum(1 for message, _ in self.seen if message.get("method") == method)

    async def answer(self, request: Request) -> Json:
        """The response to a request, after the notifications that come before it."""
        try:
            result = await self._result(request)
        except Refusal as refusal:
            return {"jsonrpc": "2.0", "id": request.id, "error": refusal.body}
        if request.modern:
            result = {"resultType": "complete", **result}
        return {"jsonrpc": "2.0", "id": request.id, "result": result}

    async def _result(self, request: Request) -> Json:
        if request.method == "initialize" and self.options.era == "dual":
            request.modern = False
            return self.initialize()
        request.modern = PREFIX + "protocolVersion" in request.meta
        if not request.modern and self.options.era == "modern":
            # As the versioning page wants it: whoever tries `initialize` learns what is spoken here.
            message = f"_meta has no {PREFIX}protocolVersion; this server speaks {REVISION} only"
            raise Refusal(-32602, message, {"supported": [REVISION]})
        if request.modern:
            self._check_meta(request.meta)
        if not request.modern and request.method in ("ping", "logging/setLevel"):
            return {}
        handler = self._handlers().get(request.method)
        if handler is None or (not request.modern and request.method in ("server/discover", "subscriptions/listen")):
            raise Refusal(-32601, f"Method not found: {request.method}")
        return await handler(request)

    def _handlers(self) -> Mapping[str, Callable[[Request], Awaitable[Json]]]:
        return {
            "server/discover": self.discover,
            "tools/list": self.list_tools,
            "tools/call": self.call,
            "prompts/list": self.list_prompts,
            "prompts/get": self.get_prompt,
            "resources/list": self.list_resources,
            "resources/templates/list": self.list_templates,
            "resources/read": self.read,
            "completion/complete": self.complete,
            "subscriptions/listen": self.listen,
        }

    def _check_meta(self, meta: Json) -> None:
        version = meta.get(PREFIX + "protocolVersion")
        if not isinstance(meta.get(PREFIX + "clientCapabilities"), dict):
            raise Refusal(-32602, f"_meta has no {PREFIX}clientCapabilities")
        if version != REVISION or self.options.discover == "unsupported":
            supported = ["2099-01-01"] if self.options.discover == "unsupported" else [REVISION]
            raise Refusal(-32022, "Unsupported protocol version", {"supported": supported, "requested": version})

    # What it is ------------------------------------------------------------------------------------------------------

    def _offer(self, modern: bool) -> Json:
        listed: Json = {} if self.options.unannounced else {"listChanged": True}
        capabilities: Json = {"tools": listed, "prompts": listed, "resources": {"subscribe": modern, **listed},
                              "completions": {}, "logging": {}}  # fmt: skip
        return {"capabilities": capabilities, "instructions": f"{self.options.name} is modern."}

    async def discover(self, request: Request) -> Json:
        match self.options.discover:
            case "refuses":
                raise Refusal(-32601, "Method not found: server/discover")
            case "silent":
                await asyncio.Event().wait()
            case "dies":
                os._exit(3)
        versions = [REVISION, LEGACY] if self.options.era == "dual" else [REVISION]
        info = {"name": self.options.name, "version": "1.0.0"}
        return {
            "supportedVersions": versions,
            **self._offer(True),
            **self._kept(),
            "_meta": {PREFIX + "serverInfo": info},
        }

    def initialize(self) -> Json:
        info = {"name": self.options.name, "version": "1.0.0"}
        return {"protocolVersion": LEGACY, **self._offer(False), "serverInfo": info}

    def _kept(self) -> Json:
        return {"ttlMs": self.options.ttl, "cacheScope": self.options.scope}

    def _page(self, key: str, entries: list[Json], request: Request) -> Json:
        size = self.options.page or len(entries) or 1
        begin = int(str(request.params.get("cursor", "0")))
        more = {"nextCursor": str(begin + size)} if begin + size < len(entries) else {}
        return {key: entries[begin : begin + size], **more, **self._kept()}

    # Lists, prompts, resources ---------------------------------------------------------------------------------------

    def tools(self) -> list[Json]:
        """The tools as they are."""
        shown = [_renamed(tool, self.region[0]) if tool["name"] == "locate" else tool for tool in TOOLS]
        return [*shown, *(described(name, "Added later.") for name in self.added["tools"])]

    async def list_tools(self, request: Request) -> Json:
        lies = self.region[1]
        return self._page("tools", [*TOOLS] if lies else self.tools(), request)

    async def list_prompts(self, request: Request) -> Json:
        who: Json = {"name": "who", "required": True}
        entries: list[Json] = [{"name": "greet", "arguments": [who]}, {"name": "ask"}]
        return self._page("prompts", [*entries, *({"name": name} for name in self.added["prompts"])], request)

    async def list_resources(self, request: Request) -> Json:
        names = ["value", "ask", *self.added["resources"]]
        return self._page("resources", [{"uri": f"modern://{name}", "name": name} for name in names], request)

    async def list_templates(self, request: Request) -> Json:
        return self._page("resourceTemplates", [{"uriTemplate": "modern://note/{id}", "name": "note"}], request)

    async def get_prompt(self, request: Request) -> Json:
        arguments = request.params.get("arguments")
        if request.params.get("name") == "ask":
            return self._asked(request, ["form"], 1) or self._prompt(f"Greet {self._told(request)}.")
        if request.params.get("name") != "greet" or not isinstance(arguments, dict) or "who" not in arguments:
            raise Refusal(-32602, f"Unknown prompt: {request.params.get('name')}")
        return self._prompt(f"Greet {arguments['who']} warmly.")

    def _prompt(self, text: str) -> Json:
        return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}

    async def read(self, request: Request) -> Json:
        uri = str(request.params.get("uri"))
        if uri == "modern://ask":
            asked = self._asked(request, ["roots"], 1)
            if asked is not None:
                return asked
        elif uri != "modern://value" and not uri.startswith("modern://note/"):
            raise Refusal(-32602, "Resource not found", {"uri": uri})
        text = self._told(request) if uri == "modern://ask" else uri.rpartition("/")[2]
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": text}], **self._kept()}

    async def complete(self, request: Request) -> Json:
        argument = request.params.get("argument")
        begun = str(argument.get("value")) if isinstance(argument, dict) else ""
        values = [name for name in ("ana", "anton", "ben") if name.startswith(begun)]
        return {"completion": {"values": values, "total": len(values), "hasMore": False}}

    # Subscriptions ---------------------------------------------------------------------------------------------------

    async def listen(self, request: Request) -> Json:
        wanted = request.params.get("notifications")
        wants: Json = dict(wanted) if isinstance(wanted, dict) else {}
        if self.options.tells == "refuses":
            raise Refusal(-32603, "no subscriptions today")
        if self.options.unannounced or self.options.tells == "less":
            wants = {name: value for name, value in wants.items() if not name.endswith("ListChanged")}
        listen = Listen(request, wants)
        meta = {SUBSCRIPTION: request.id}
        await request.notify("notifications/subscriptions/acknowledged", {"notifications": wants, "_meta": meta})
        self.listens.append(listen)
        self.changed.set()
        try:
            how = await listen.over
        finally:
            self.listens.remove(listen)
            self.changed.set()
        if how == "abrupt":
            raise asyncio.CancelledError
        return {"_meta": meta}

    async def tell(self, method: str, wanted: Callable[[Json], object], params: Json) -> int:
        """Send a notification to every subscription that wants it; how many do."""
        listens = [listen for listen in self.listens if wanted(listen.wants)]
        for listen in listens:
            await listen.request.notify(method, {**params, "_meta": {SUBSCRIPTION: listen.request.id}})
        return len(listens)

    async def list_changed(self, kind: str) -> None:
        """Say that a list changed."""
        await self.tell(f"notifications/{kind}/list_changed", lambda wants: wants.get(f"{kind}ListChanged"), {})

    # Tools -----------------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> Json:
        name, arguments = request.params.get("name"), request.params.get("arguments") or {}
        tool = getattr(self, f"tool_{name}", None)
        if name in self.added["tools"]:
            return said(f"{name} was called")
        if tool is None or not isinstance(arguments, dict):
            raise Refusal(-32602, f"Unknown tool: {name}")
        try:
            result = await tool(request, **arguments)
        except TypeError as exc:
            raise Refusal(-32602, str(exc)) from exc
        assert isinstance(result, dict)
        return result

    async def tool_echo(self, request: Request, text: str) -> Json:
        return said(text)

    async def tool_whoami(self, request: Request) -> Json:
        return said(json.dumps(request.params))

    async def tool_locate(self, request: Request, **arguments: object) -> Json:
        return said(json.dumps(arguments))

    async def tool_annotate(self, request: Request, header: str, lies: bool = False) -> Json:
        self.region = (header, lies)
        return said(header)

    async def tool_broken(self, request: Request, weight: float) -> Json:
        return said(str(weight))

    async def tool_progress(self, request: Request, steps: int) -> Json:
        token = request.meta.get("progressToken")
        for done in range(1, steps + 1):
            if token is not None:
                await request.notify(
                    "notifications/progress", {"progressToken": token, "progress": done, "total": steps}
                )
        return said(f"{steps} steps")

    async def tool_log(self, request: Request, level: str, text: str) -> Json:
        wanted = request.meta.get(PREFIX + "logLevel")
        if wanted in LEVELS and LEVELS.index(level) >= LEVELS.index(str(wanted)):
            await request.notify("notifications/message", {"level": level, "data": text})
        return said("logged")

    async def tool_slow(self, request: Request, gate: str) -> Json:
        note(f"{gate}.entered", str(request.id))
        try:
            while not Path(gate).exists():
                await asyncio.sleep(GATE_POLL)
        except asyncio.CancelledError:
            note(f"{gate}.cancelled", str(request.id))
            raise
        return said(f"{gate} is open")

    async def tool_fail(self, request: Request) -> Json:
        return said("this tool fails", isError=True)

    async def tool_refuse(self, request: Request) -> Json:
        raise Refusal(-32050, "This tool refuses", {"why": "because"})

    async def tool_structured(self, request: Request, number: int) -> Json:
        return said(json.dumps({"number": number}), structuredContent={"number": number})

    async def tool_links(self, request: Request) -> Json:
        embedded = {"uri": "modern://value", "mimeType": "text/plain", "text": "value"}
        link = {"type": "resource_link", "uri": "modern://note/1", "name": "note 1"}
        return {"content": [link, {"type": "resource", "resource": embedded}]}

    async def tool_ask(self, request: Request, kinds: list[str] | None = None, rounds: int = 1) -> Json:
        return self._asked(request, kinds or ["form"], rounds) or said(self._told(request))

    async def tool_defer(self, request: Request) -> Json:
        return self._asked(request, [], 1) or said("done")

    async def tool_forever(self, request: Request) -> Json:
        return self._asked(request, ["form"], sys.maxsize) or {}

    async def tool_strange(self, request: Request) -> Json:
        return {"resultType": "com.example/odd", **said("odd")}

    async def tool_touch(self, request: Request, uri: str) -> Json:
        def wanted(wants: Json) -> bool:
            uris = wants.get("resourceSubscriptions")
            return isinstance(uris, list) and uri in uris

        return said(f"{await self.tell('notifications/resources/updated', wanted, {'uri': uri})} listen")

    async def tool_offer(self, request: Request, kind: str, name: str) -> Json:
        self.added[kind].append(name)
        await self.list_changed(kind)
        return said(f"{kind} has {name}")

    async def tool_withdraw(self, request: Request, kind: str, name: str) -> Json:
        self.added[kind].remove(name)
        await self.list_changed(kind)
        return said(f"{kind} has no {name}")

    async def tool_unlisten(self, request: Request, how: str) -> Json:
        for listen in self.listens:
            listen.over.set_result(how)
        return said(f"{len(self.listens)} ended")

    async def tool_die(self, request: Request, code: int) -> Json:
        os._exit(code)

    # Several rounds --------------------------------------------------------------------------------------------------

    def _asked(self, request: Request, kinds: list[str], rounds: int) -> Json | None:
        """What to ask in this round; None when all of them are over."""
        if not request.modern:
            raise Refusal(-32603, "this tool asks clients of the modern era only")
        told = self._state(request)
        if told is not None:
            answers = request.params.get("inputResponses")
            answers = answers if isinstance(answers, dict) else {}
            if all(f"{kind}_{len(told)}" in answers for kind in kinds):
                told = [*told, answers]
        told = told or []
        if len(told) >= rounds and self._state(request) is not None:
            request.params["told"] = told
            return None
        declared = request.meta.get(PREFIX + "clientCapabilities")
        for kind in kinds:
            _require(declared, ASKS[kind][1])
        asking = {"inputRequests": {f"{kind}_{len(told)}": ASKS[kind][0] for kind in kinds}} if kinds else {}
        return {"resultType": "input_required", **asking, "requestState": self._sealed(told, request)}

    def _told(self, request: Request) -> str:
        """Everything that was answered, round by round."""
        return json.dumps(request.params.get("told"), sort_keys=True)

    def _sealed(self, told: list[Json], request: Request) -> str:
        body = json.dumps([told, self._about(request)]).encode()
        return base64.b64encode(hmac.digest(self._secret, body, hashlib.sha256) + body).decode()

    def _state(self, request: Request) -> list[Json] | None:
        """What was told in earlier rounds; None in the first one."""
        sealed = request.params.get("requestState")
        if sealed is None:
            if "inputResponses" in request.params:
                self.problem("inputResponses without the requestState that was given")
            return None
        try:
            raw = base64.b64decode(str(sealed), validate=True)
        except ValueError:
            raw = b""
        if not hmac.compare_digest(raw[:32], hmac.digest(self._secret, raw[32:], hashlib.sha256)):
            self.problem("a requestState that is not ours")
            raise Refusal(-32602, "Invalid requestState")
        told, about = json.loads(raw[32:])
        if about != self._about(request):
            self.problem("a requestState of another request")
            raise Refusal(-32602, "Invalid requestState")
        return list(told)

    def _about(self, request: Request) -> Json:
        """What must be the same in every round."""
        return {"method": request.method} | {
            name: request.params[name] for name in ("name", "uri", "arguments") if name in request.params
        }


def _renamed(tool: Json, header: str) -> Json:
    """A tool whose argument `region` goes in this header."""
    schema = json.loads(json.dumps(tool["inputSchema"]))
    schema["properties"]["region"]["x-mcp-header"] = header
    return {**tool, "inputSchema": schema}


def _require(declared: object, needed: Json) -> None:
    """Refuse a client that has not declared what is needed; `elicitation: {}` means forms."""
    for name, modes in needed.items():
        has = declared.get(name) if isinstance(declared, dict) else None
        assert isinstance(modes, dict)
        if not isinstance(has, dict) or any(mode not in has and (mode, has) != ("form", {}) for mode in modes):
            raise Refusal(-32021, "Missing required client capability", {"requiredCapabilities": needed})


# On pipes ------------------------------------------------------------------------------------------------------------


async def serve_stdio(server: ModernServer) -> None:
    """Serve on stdin and stdout until the input ends; each request is a task."""
    from testimony import Testimony  # beside this file, which tests import from elsewhere as well

    testimony = Testimony()

    async def send(message: Json) -> None:
        sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
        sys.stdout.buffer.flush()

    async def work(request: Request) -> None:
        try:
            await send(await server.answer(request))
        finally:
            server.running.pop(request.id, None)

    reader = asyncio.StreamReader(limit=64 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as tasks:
        while line := await reader.readline():
            message = json.loads(line)
            testimony.heard(message)
            server.receive(message)
            params = message.get("params") or {}
            if "id" in message and "method" in message:
                if message["id"] in server.running:
                    server.problem(f"the id {message['id']} is in use")
                request = Request(message["id"], message["method"], params, send)
                server.running[request.id] = tasks.create_task(work(request))
            elif message.get("method") == "notifications/cancelled" and params.get("requestId") in server.running:
                server.running[params["requestId"]].cancel()
        for task in server.running.values():
            task.cancel()


def parser() -> argparse.ArgumentParser:
    """The options above."""
    options = argparse.ArgumentParser()
    options.add_argument("transport", choices=("stdio", "http"))
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--name", default="modern")
    options.add_argument("--era", default="modern", choices=("modern", "dual"))
    options.add_argument(
        "--discover", default="answers", choices=("answers", "refuses", "silent", "unsupported", "dies")
    )
    options.add_argument("--page", type=int, default=0, help="entries of a list's page; 0: all")
    options.add_argument("--ttl", type=int, default=0, help="ttlMs of everything that may be kept")
    options.add_argument("--scope", default="public", choices=("public", "private"))
    options.add_argument("--unannounced", action="store_true", help="no listChanged, and no such notification")
    options.add_argument(
        "--tells", default="all", choices=("all", "less", "refuses"), help="of what it announces to tell: all, no lists"
    )
    options.add_argument("--seen", help="a file for every message that came")
    return options


async def main() -> None:
    """Serve as the options say."""
    options = parser().parse_args()
    server = ModernServer(options)
    if options.transport == "stdio":
        await serve_stdio(server)
        return
    from modern_http import HttpFace, listening  # aiohttp takes a while to import, and stdio needs none of it

    async with listening(HttpFace(server, Request), options.port) as url:
        print(json.dumps({"url": url}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
