"""A raw server of the modern era with tasks as the extension has them, over stdio, without an SDK.

    python tasks_modern.py --record FILE

It makes a task of `work`, `confirm` and `points` for clients that know the extension, and answers others at once; its
ids are as guessable as can be. Every message that arrives is written to FILE, one JSON line each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

Json = dict[str, "object"]
PREFIX = "io.modelcontextprotocol/"
EXTENSION = PREFIX + "tasks"
ABLE: Json = {"extensions": {EXTENSION: {}}}
MADE = "2026-11-23T10:30:00Z"
FORM: Json = {"mode": "form", "message": "Name?", "requestedSchema": {"type": "object", "properties": {}}}
QUESTION: Json = {"name": {"method": "elicitation/create", "params": FORM}}
LINK: Json = {"type": "resource_link", "uri": "tasks://note", "name": "note"}
COMPLETE: Json = {"resultType": "complete"}


def tool(name: str) -> Json:
    """One entry of the list."""
    return {"name": name, "description": name, "inputSchema": {"type": "object"}}


def said(*content: Json) -> Json:
    """A tool's result."""
    return {**COMPLETE, "content": list(content)}


class Server:
    """The tasks by id, and what each of them waits for."""

    def __init__(self) -> None:
        self.tasks: dict[str, Json] = {}

    def answer(self, method: str, params: Json) -> Json:
        """A `result` or an `error`."""
        meta = params.get("_meta")
        assert isinstance(meta, dict)
        able = EXTENSION in meta[PREFIX + "clientCapabilities"].get("extensions", {})
        if method.startswith("tasks/"):
            if not able:
                return {"error": {"code": -32021, "message": "Missing", "data": {"requiredCapabilities": ABLE}}}
            return self.about(method, params)
        if method == "tools/call":
            return {"result": self.called(str(params["name"]), able)}
        known = {
            "server/discover": {
                "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, **ABLE}, "ttlMs": 1,
                "cacheScope": "private", "_meta": {PREFIX + "serverInfo": {"name": "modern", "version": "1"}},
            },
            "tools/list": {"tools": [tool(name) for name in ("work", "confirm", "points")], "ttlMs": 60000,
                           "cacheScope": "private"},
        }  # fmt: skip
        if method not in known:
            return {"error": {"code": -32601, "message": f"Method not found: {method}"}}
        return {"result": {**COMPLETE, **known[method]}}

    def called(self, name: str, able: bool) -> Json:
        """`tools/call`."""
        if not able:
            return said({"type": "text", "text": "at once"})
        task = f"task-{len(self.tasks) + 1}"
        self.tasks[task] = {"taskId": task, "status": "working", "createdAt": MADE, "lastUpdatedAt": MADE,
                            "ttlMs": 60000, "pollIntervalMs": 10}  # fmt: skip
        if name == "confirm":
            self.tasks[task] |= {"status": "input_required", "inputRequests": QUESTION}
        if name == "points":
            self.tasks[task] |= {"status": "completed", "result": {"content": [LINK]}}
        shown = {key: value for key, value in self.tasks[task].items() if key not in ("inputRequests", "result")}
        return {"resultType": "task", **shown}

    def about(self, method: str, params: Json) -> Json:
        """A request about one task."""
        task = self.tasks.get(str(params.get("taskId")))
        if task is None:
            return {"error": {"code": -32602, "message": "No such task"}}
        if method == "tasks/get":
            return {"result": {**COMPLETE, **task}}
        if method == "tasks/cancel":
            task["status"] = "cancelled"
        if method == "tasks/update":
            del task["inputRequests"]
            text = json.dumps(params["inputResponses"])
            task |= {"status": "completed", "result": {"content": [{"type": "text", "text": text}]}}
        return {"result": COMPLETE}


def main() -> None:
    """Serve on stdin and stdout."""
    record = Path(sys.argv[sys.argv.index("--record") + 1])
    server = Server()
    for line in sys.stdin:
        with record.open("a") as file:
            file.write(line)
        message = json.loads(line)
        if "id" in message and "method" in message:
            found = server.answer(message["method"], message.get("params") or {})
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **found}), flush=True)


if __name__ == "__main__":
    main()
