"""A small, fast stdio server without dependencies: the one behind speed measurements and most journeys.

Single-threaded: a tool is a function, or a generator that yields what it waits for (`Gate`: a file that appears;
`Ask`: the client's answer), so that many calls are in flight at once and a cancelled one is closed where it stands.
A call that waits for a gate appends a line to `<gate>.entered` first, and to `<gate>.cancelled` if it is cancelled:
tests wait for these files and never sleep. Revisions up to 2025-11-25; `server/discover` is an unknown method.

    python counter.py [--name NAME] [--tools N] [--description BYTES] [--page N]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from testimony import Testimony

Json = dict[str, "object"]
Steps = Generator["Gate | Ask", "object", Json]
REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
GATE_POLL = 0.005  # seconds


@dataclass(frozen=True, slots=True)
class Gate:
    """Go on when this file exists."""

    path: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Go on with the client's whole response to this request."""

    method: str
    params: Json


class Refusal(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.body: Json = {"code": code, "message": message} | ({} if data is None else {"data": data})


def said(text: str, **more: object) -> Json:
    """A tool result of one text block."""
    return {"content": [{"type": "text", "text": text}], **more}


def note(path: str, line: str) -> None:
    """Append one line, visible to the test at once."""
    with Path(path).open("a") as file:
        file.write(line + "\n")


def described(name: str, description: str, read_only: bool, /, **arguments: str) -> Json:
    """One entry of `tools/list`; an argument whose type ends in `?` is optional."""
    properties = {key: {"type": kind.rstrip("?")} for key, kind in arguments.items()}
    required = [key for key, kind in arguments.items() if not kind.endswith("?")]
    schema: Json = {"type": "object", "properties": properties, "required": required}
    hints = {"readOnlyHint": read_only, "destructiveHint": not read_only}
    return {"name": name, "description": description, "inputSchema": schema, "annotations": hints}


class Counter:
    """The server: `run()` until the input ends. Faulty servers override its methods."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.value = 0
        self.level = 0
        self.subscribed: set[str] = set()
        self.added: dict[str, list[str]] = {"tools": [], "prompts": [], "resources": []}
        self.out: list[bytes] = []
        self.gated: dict[object, tuple[Steps, str]] = {}
        self.asked: dict[int, tuple[Steps, object]] = {}
        self.asks = 0
        self.meta: Json = {}
        self.testimony = Testimony()
        self.methods: dict[str, Callable[[Json], Json]] = {
            "initialize": self.initialize,
            "ping": lambda _: {},
            "logging/setLevel": self.set_level,
            "tools/list": self.list_tools,
            "resources/list": self.list_resources,
            "resources/templates/list": self.list_templates,
            "resources/read": self.read,
            "resources/subscribe": self.subscribe,
            "resources/unsubscribe": self.unsubscribe,
            "prompts/list": self.list_prompts,
            "prompts/get": self.get_prompt,
            "completion/complete": self.complete,
        }
        self.extra = [self.generated(number) for number in range(options.tools)]

    # The loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the input ends. Answers to what arrived together leave together."""
        rest = b""
        while True:
            if self.gated:
                ready = select.select([0], [], [], GATE_POLL)[0]
                self.look_at_gates()
                self.flush()
                if not ready:
                    continue
            data = os.read(0, 1 << 20)
            if not data:
                return self.ended()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    message = json.loads(line)
                    self.testimony.heard(message)
                    self.receive(message)
            self.flush()

    def ended(self) -> None:
        """The input has ended."""

    def receive(self, message: Json) -> None:
        """One message from the client."""
        method, id_ = message.get("method"), message.get("id")
        if method is None:
            self.answered(message)
        elif id_ is None:
            if method == "notifications/cancelled":
                self.cancelled(self.params_of(message).get("requestId"))
        elif method == "tools/call":
            self.call(id_, self.params_of(message))
        else:
            self.reply(id_, str(method), self.params_of(message))

    @staticmethod
    def params_of(message: Json) -> Json:
        params = message.get("params")
        return params if isinstance(params, dict) else {}

    def reply(self, id_: object, method: str, params: Json) -> None:
        """Answer a request that needs no waiting."""
        handler = self.methods.get(method)
        try:
            if handler is None:
                raise Refusal(-32601, f"Method not found: {method}")
            self.send({"jsonrpc": "2.0", "id": id_, "result": handler(params)})
        except Refusal as refusal:
            self.send({"jsonrpc": "2.0", "id": id_, "error": refusal.body})

    def send(self, message: Json) -> None:
        """Queue one message; `flush` writes."""
        self.testimony.said(message)
        self.out.append(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def notify(self, method: str, params: Json | None = None) -> None:
        """Queue one notification."""
        self.send({"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params}))

    def flush(self) -> None:
        """Write all that is queued."""
        if self.out:
            data = b"".join(self.out)
            self.out.clear()
            self.write(data)

    def write(self, data: bytes) -> None:
        """Write all of it to stdout, waiting for the reader."""
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    # Calls ------------------------------------------------------------------------------------------------------

    def call(self, id_: object, params: Json) -> None:
        """`tools/call`: answer, or begin to wait."""
        name, arguments = params.get("name"), params.get("arguments")
        meta = params.get("_meta")
        self.meta = meta if isinstance(meta, dict) else {}
        tool = getattr(self, f"tool_{name}", None)
        if tool is None:
            known = any(name == entry["name"] for entry in self.extra) or name in self.added["tools"]
            if not known:
                return self.send({"jsonrpc": "2.0", "id": id_, "error": Refusal(-32602, f"Unknown tool: {name}").body})
            return self.send({"jsonrpc": "2.0", "id": id_, "result": said(f"{name} was called")})
        try:
            result = tool(**(arguments if isinstance(arguments, dict) else {}))
        except Refusal as refusal:
            return self.send({"jsonrpc": "2.0", "id": id_, "error": refusal.body})
        except TypeError as exc:
            return self.send({"jsonrpc": "2.0", "id": id_, "error": Refusal(-32602, str(exc)).body})
        if isinstance(result, dict):
            return self.send({"jsonrpc": "2.0", "id": id_, "result": result})
        return self.step(id_, result, None)

    def step(self, id_: object, steps: Steps, value: object) -> None:
        """Run a tool to its next wait or its end."""
        try:
            waits = steps.send(value)
        except StopIteration as end:
            return self.send({"jsonrpc": "2.0", "id": id_, "result": end.value})
        if isinstance(waits, Gate):
            note(f"{waits.path}.entered", str(id_))
            self.gated[id_] = (steps, waits.path)
        else:
            self.asks += 1
            self.asked[self.asks] = (steps, id_)
            self.send({"jsonrpc": "2.0", "id": self.asks, "method": waits.method, "params": waits.params})
        return None

    def look_at_gates(self) -> None:
        """Let the calls go on whose gate is open."""
        for id_, (steps, path) in list(self.gated.items()):
            if Path(path).exists():
                del self.gated[id_]
                self.step(id_, steps, None)

    def answered(self, message: Json) -> None:
        """The client answered one of our requests."""
        id_ = message.get("id")
        waiting = self.asked.pop(id_, None) if isinstance(id_, int) else None
        if waiting is not None:
            self.step(waiting[1], waiting[0], message)

    def cancelled(self, id_: object) -> None:
        """The client gave up one call: no answer any more."""
        steps, path = self.gated.pop(id_, (None, None))
        if steps is not None:
            steps.close()
            note(f"{path}.cancelled", str(id_))
        for ask, (asking, call) in list(self.asked.items()):
            if call == id_:
                asking.close()
                del self.asked[ask]

    # Tools ------------------------------------------------------------------------------------------------------

    DESCRIBED = (
        described("echo", "Says what it was told.", True, text="string"),
        described("count", "Counts one up and says the count.", False),
        described("slow", "Waits until the file `gate` exists.", True, gate="string"),
        described("progress", "Reports progress `steps` times, then waits for `gate` if given.", True,
                  steps="integer", gate="string?"),
        described("log", "Sends `times` log messages of `level`.", True, level="string", text="string",
                  times="integer?"),
        described("fail", "Answers a result that is an error.", True, text="string?"),
        described("refuse", "Answers a JSON-RPC error with data.", True),
        described("big", "Answers a text of so many bytes.", True, bytes="integer"),
        described("structured", "Answers structured content.", True, number="integer"),
        described("links", "Answers a resource link and an embedded resource.", True),
        described("touch", "Says that a resource was updated.", False, uri="string"),
        described("offer", "Adds a tool, prompt or resource and says that the list changed.", False, kind="string",
                  name="string"),
        described("withdraw", "Takes away what `offer` added.", False, kind="string", name="string"),
        described("ask", "Asks the client with this method and says what it answered.", False, method="string",
                  params="object?"),
        described("whereami", "Says process, folder, arguments and environment.", True),
        described("stderr", "Writes a line to stderr.", False, text="string"),
        described("spawn", "Starts a process that outlives this one unless its group is ended.", False),
        described("die", "Ends the process with this code, in the middle of the call.", False, code="integer"),
        described("delete_all", "Would delete everything.", False),
    )  # fmt: skip

    def tool_echo(self, text: str) -> Json:
        return said(text)

    def tool_count(self) -> Json:
        self.value += 1
        return said(str(self.value))

    def tool_slow(self, gate: str) -> Steps:
        yield Gate(gate)
        return said(f"{gate} is open")

    def tool_progress(self, steps: int, gate: str | None = None) -> Steps:
        token = self.meta.get("progressToken")
        for done in range(1, steps + 1):
            if token is not None:
                params = {"progressToken": token, "progress": done, "total": steps, "message": f"step {done}"}
                self.notify("notifications/progress", params)
        if gate is not None:
            yield Gate(gate)
        return said(f"{steps} steps")

    def tool_log(self, level: str, text: str, times: int = 1) -> Json:
        for number in range(times):
            if LEVELS.index(level) >= self.level:
                data = {"text": text, "number": number}
                self.notify("notifications/message", {"level": level, "logger": "counter", "data": data})
        return said("logged")

    def tool_fail(self, text: str = "this tool fails") -> Json:
        return said(text, isError=True)

    def tool_refuse(self) -> Json:
        raise Refusal(-32050, "This tool refuses", {"why": "because"})

    def tool_big(self, bytes: int) -> Json:
        return said("x" * bytes)

    def tool_structured(self, number: int) -> Json:
        return said(json.dumps({"number": number}), structuredContent={"number": number})

    def tool_links(self) -> Json:
        embedded = {"uri": "counter://value", "mimeType": "text/plain", "text": str(self.value)}
        link = {"type": "resource_link", "uri": "counter://note/1", "name": "note 1"}
        return {"content": [link, {"type": "resource", "resource": embedded}]}

    def tool_touch(self, uri: str) -> Json:
        if uri in self.subscribed:
            self.notify("notifications/resources/updated", {"uri": uri})
        return said("subscribed" if uri in self.subscribed else "nobody is subscribed")

    def tool_offer(self, kind: str, name: str) -> Json:
        self.added[kind].append(name)
        self.notify(f"notifications/{kind}/list_changed")
        return said(f"{kind} has {name}")

    def tool_withdraw(self, kind: str, name: str) -> Json:
        self.added[kind].remove(name)
        self.notify(f"notifications/{kind}/list_changed")
        return said(f"{kind} has no {name}")

    def tool_ask(self, method: str, params: Json | None = None) -> Steps:
        answer = yield Ask(method, ASKS.get(method, {}) if params is None else params)
        return said(json.dumps(answer))

    def tool_whereami(self) -> Json:
        where = {"pid": os.getpid(), "cwd": str(Path.cwd()), "argv": sys.argv, "environment": dict(os.environ)}
        return said(json.dumps(where))

    def tool_stderr(self, text: str) -> Json:
        print(text, file=sys.stderr, flush=True)
        return said("written")

    def tool_spawn(self) -> Json:
        # A sleeper in our own process group: what npx, uvx and shells leave behind.
        sleeper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], stdin=subprocess.DEVNULL)
        return said(str(sleeper.pid))

    def tool_die(self, code: int) -> Json:
        print(f"counter: dying with code {code}", file=sys.stderr, flush=True)
        os._exit(code)

    def tool_delete_all(self) -> Json:
        return said("deleted")

    def generated(self, number: int) -> Json:
        """One of `--tools`, as wordy as real ones."""
        words = f"Generated tool {number}. " + "It does what generated tools do. " * 40
        size = self.options.description
        return described(f"generated_{number}", words[:size], number % 2 == 0, first="string", second="integer?")

    # Lists ------------------------------------------------------------------------------------------------------

    def page(self, key: str, entries: list[Json], params: Json) -> Json:
        """One page of `--page` entries, all of them without."""
        size = self.options.page
        if not size:
            return {key: entries}
        begin = int(str(params.get("cursor", "0")))
        more = {"nextCursor": str(begin + size)} if begin + size < len(entries) else {}
        return {key: entries[begin : begin + size], **more}

    def initialize(self, params: Json) -> Json:
        wanted = str(params.get("protocolVersion"))
        listed = {"listChanged": True}
        return {
            "protocolVersion": wanted if wanted in REVISIONS else REVISIONS[0],
            "capabilities": {
                "tools": listed, "prompts": listed, "resources": {"subscribe": True, **listed},
                "completions": {}, "logging": {},
                "extensions": {"com.example/panels": {"deep": [1]}},
            },
            "serverInfo": {"name": self.options.name, "version": "1.0.0"},
            "instructions": f"{self.options.name} counts.",
        }  # fmt: skip

    def set_level(self, params: Json) -> Json:
        self.level = LEVELS.index(str(params.get("level")))
        return {}

    def list_tools(self, params: Json) -> Json:
        added = [described(name, "Added later.", True) for name in self.added["tools"]]
        return self.page("tools", [*self.DESCRIBED, *self.extra, *added], params)

    def list_resources(self, params: Json) -> Json:
        names = ["value", *self.added["resources"]]
        entries: list[Json] = [{"uri": f"counter://{name}", "name": name, "mimeType": "text/plain"} for name in names]
        return self.page("resources", entries, params)

    def list_templates(self, params: Json) -> Json:
        template: Json = {"uriTemplate": "counter://note/{id}", "name": "note", "mimeType": "text/plain"}
        return self.page("resourceTemplates", [template], params)

    def list_prompts(self, params: Json) -> Json:
        greet: Json = {
            "name": "greet",
            "description": "Greets.",
            "arguments": [{"name": "who", "required": True}],
        }
        added: list[Json] = [{"name": name, "description": "Added later."} for name in self.added["prompts"]]
        return self.page("prompts", [greet, *added], params)

    def read(self, params: Json) -> Json:
        uri = str(params.get("uri"))
        if uri == "counter://value":
            value = str(self.value)
        elif uri.startswith("counter://note/"):
            value = f"note {uri.rpartition('/')[2]}"
        else:
            raise Refusal(-32002, "Resource not found", {"uri": uri})
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": value}]}

    def subscribe(self, params: Json) -> Json:
        self.subscribed.add(str(params.get("uri")))
        return {}

    def unsubscribe(self, params: Json) -> Json:
        self.subscribed.discard(str(params.get("uri")))
        return {}

    def get_prompt(self, params: Json) -> Json:
        arguments = params.get("arguments")
        if params.get("name") != "greet" or not isinstance(arguments, dict) or "who" not in arguments:
            raise Refusal(-32602, f"Unknown prompt: {params.get('name')}")
        content = {"type": "text", "text": f"Greet {arguments['who']} warmly."}
        return {"description": "A greeting", "messages": [{"role": "user", "content": content}]}

    def complete(self, params: Json) -> Json:
        argument = params.get("argument")
        begun = str(argument.get("value")) if isinstance(argument, dict) else ""
        values = [name for name in ("ana", "anton", "ben", "cem") if name.startswith(begun)]
        return {"completion": {"values": values, "total": len(values), "hasMore": False}}


ASKS: dict[str, Json] = {
    "sampling/createMessage": {
        "messages": [{"role": "user", "content": {"type": "text", "text": "Say a number"}}],
        "maxTokens": 10,
    },
    "elicitation/create": {
        "message": "Your name?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}


def parser() -> argparse.ArgumentParser:
    """The options above."""
    options = argparse.ArgumentParser()
    options.add_argument("--name", default="counter")
    options.add_argument("--tools", type=int, default=0, help="so many generated tools more")
    options.add_argument("--description", type=int, default=300, help="bytes of their descriptions")
    options.add_argument("--page", type=int, default=0, help="entries of a list's page; 0: all")
    return options


def main() -> None:
    """Serve on stdin and stdout."""
    Counter(parser().parse_args()).run()


if __name__ == "__main__":
    main()
