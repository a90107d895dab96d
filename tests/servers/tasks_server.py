"""The counter with tasks as revision 2025-11-25 has them: some tools work on after their call.

    python tasks_server.py --record FILE [--untasked] [--required] [--cancel no] [options of counter.py]

Its ids are as guessable as can be (`task-1`, `task-2`, again from 1 in each new process), so that a test sees what a
gateway makes of them. A task that asks does so on the stream of `tasks/result`, as the specification wants, or with
`--eager` whenever it likes. With `--required` every such tool is a task or nothing. Every message that arrives is
written to FILE, one JSON line each.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from counter import ASKS, Ask, Counter, Gate, Json, Refusal, Steps, described, note, parser, said

RELATED = "io.modelcontextprotocol/related-task"
MADE = "2026-11-23T10:30:00Z"
ENDED = ("completed", "failed", "cancelled")


def tasked(support: str, *of: object, **arguments: str) -> Json:
    """A tool that says whether it can be a task."""
    name, description = of
    return {**described(str(name), str(description), True, **arguments), "execution": {"taskSupport": support}}


@dataclass
class Task:
    """One task: `outcome` is what its request came to, `waiting` the ids of `tasks/result` that wait for that."""

    id: str
    ttl: object
    status: str = "working"
    outcome: Json | None = None
    waiting: list[object] = field(default_factory=list)
    question: tuple[Steps, Ask] | None = None

    def shown(self) -> Json:
        """As a client sees it."""
        times: Json = {"createdAt": MADE, "lastUpdatedAt": MADE}
        return {"taskId": self.id, "status": self.status, "ttl": self.ttl, "pollInterval": 50, **times}


class Tasker(Counter):
    """The server."""

    DESCRIBED = (
        *Counter.DESCRIBED,
        tasked("optional", "work", "Says what it was told when `gate` exists.", gate="string", text="string?"),
        tasked("required", "must", "Is a task or nothing.", text="string?"),
        tasked("forbidden", "never", "Is no task."),
        tasked("optional", "confirm", "Asks, and says what the answer was."),
        tasked("optional", "fails", "Answers a result that is an error."),
        tasked("optional", "refuses", "Answers a JSON-RPC error."),
        tasked("optional", "points", "Answers a resource link."),
        tasked("optional", "chatter", "Logs a word when `gate` exists.", gate="string", word="string"),
        tasked("optional", "reports", "Reports progress, before and after it asks.", gate="string?"),
    )  # fmt: skip

    def __init__(self, options: object) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        self.tasks: dict[object, Task] = {}
        self.methods |= {"tasks/get": self.get, "tasks/cancel": self.cancel, "tasks/list": self.list_tasks}

    def initialize(self, params: Json) -> Json:
        found = super().initialize(params)
        capabilities = found["capabilities"]
        assert isinstance(capabilities, dict)
        if not self.options.untasked:
            cancel = {} if self.options.cancel == "no" else {"cancel": {}}
            capabilities["tasks"] = {"list": {}, **cancel, "requests": {"tools": {"call": {}}}}
        return found

    def list_tools(self, params: Json) -> Json:
        tools = super().list_tools(params)["tools"]
        assert isinstance(tools, list)
        return {"tools": [{**one, "execution": {"taskSupport": self.support(one)}} if "execution" in one else one
                          for one in tools]}  # fmt: skip

    def support(self, tool: Json) -> str:
        execution = tool.get("execution")
        said = str(execution["taskSupport"]) if isinstance(execution, dict) else "forbidden"
        return "required" if said == "optional" and self.options.required else said

    def call(self, id_: object, params: Json) -> None:
        needed = {tool["name"] for tool in self.DESCRIBED if self.support(tool) == "required"}
        if params.get("name") in needed and not self.options.untasked:
            refusal = Refusal(-32601, f"Tool {params['name']} requires task augmentation")
            return self.send({"jsonrpc": "2.0", "id": id_, "error": refusal.body})
        return super().call(id_, params)

    def receive(self, message: Json) -> None:
        with Path(self.options.record).open("a") as file:
            file.write(json.dumps(message) + "\n")
        if message.get("method") == "tasks/result":
            self.wait(message["id"], self.params_of(message))
        elif message.get("method") == "tools/call" and "task" in self.params_of(message):
            self.begin(message["id"], self.params_of(message))
        else:
            super().receive(message)

    # The methods ------------------------------------------------------------------------------------------------

    def begin(self, id_: object, params: Json) -> None:
        """`tools/call` as a task, which is made when the file `late` exists, if that is among the arguments."""
        arguments = params.get("arguments")
        late = arguments.pop("late", None) if isinstance(arguments, dict) else None
        if late is None:
            return self.make(id_, params)
        self.gated["late", id_] = (params, str(late))  # type: ignore[assignment]
        return note(f"{late}.entered", str(id_))

    def make(self, id_: object, params: Json) -> None:
        """Answer with the task, then work."""
        wanted = params["task"]
        assert isinstance(wanted, dict)
        task = Task(f"task-{len(self.tasks) + 1}", wanted.get("ttl", None))
        self.tasks[task.id] = task
        self.send({"jsonrpc": "2.0", "id": id_, "result": {"task": task.shown(), **self.related(task)}})
        arguments, meta = params.get("arguments"), params.get("_meta")
        self.meta = meta if isinstance(meta, dict) else {}
        try:
            made = getattr(self, f"tool_{params['name']}")(**(arguments if isinstance(arguments, dict) else {}))
        except Refusal as refusal:
            return self.settle(task, {"error": refusal.body})
        if isinstance(made, dict):
            return self.settle(task, {"result": made})
        return self.step(task.id, made, None)

    def wait(self, id_: object, params: Json) -> None:
        """`tasks/result`."""
        try:
            task = self.task(params)
        except Refusal as refusal:
            return self.send({"jsonrpc": "2.0", "id": id_, "error": refusal.body})
        task.waiting.append(id_)
        if task.status in ENDED:
            self.answer(task)
        else:
            self.put(task)
        return None

    def get(self, params: Json) -> Json:
        return self.task(params).shown()

    def cancel(self, params: Json) -> Json:
        task = self.task(params)
        if task.status in ENDED:
            raise Refusal(-32602, f"Cannot cancel task: already in terminal status '{task.status}'")
        self.cancelled(task.id)
        self.settle(task, {"error": Refusal(-32000, "cancelled").body}, "cancelled")
        return task.shown()

    def list_tasks(self, _: Json) -> Json:
        return {"tasks": [task.shown() for task in self.tasks.values()]}

    # Tasks ------------------------------------------------------------------------------------------------------

    def task(self, params: Json) -> Task:
        found = self.tasks.get(params.get("taskId"))
        if found is None:
            raise Refusal(-32602, "Failed to retrieve task: Task not found")
        return found

    def related(self, task: Task) -> Json:
        return {"_meta": {RELATED: {"taskId": task.id}}}

    def tell(self, task: Task, status: str) -> None:
        """Another status, and say so."""
        task.status = status
        self.notify("notifications/tasks/status", task.shown())

    def settle(self, task: Task, outcome: Json, status: str = "") -> None:
        """What the request came to."""
        result = outcome.get("result")
        bad = result is None or (isinstance(result, dict) and result.get("isError"))
        task.outcome = outcome
        self.tell(task, status or ("failed" if bad else "completed"))
        self.answer(task)

    def answer(self, task: Task) -> None:
        """Answer all that wait."""
        assert task.outcome is not None
        for id_ in task.waiting:
            outcome = dict(task.outcome)
            if isinstance(outcome.get("result"), dict):
                outcome["result"] = {**outcome["result"], **self.related(task)}  # type: ignore[dict-item]
            self.send({"jsonrpc": "2.0", "id": id_, **outcome})
        task.waiting.clear()

    def put(self, task: Task) -> None:
        """Ask what the task has to ask, once."""
        if task.question is None or not (task.waiting or self.options.eager):
            return
        (steps, ask), task.question = task.question, None
        self.asks += 1
        self.asked[self.asks] = (steps, task.id)
        params: Json = {**ask.params, **self.related(task)}
        self.send({"jsonrpc": "2.0", "id": self.asks, "method": ask.method, "params": params})

    def step(self, id_: object, steps: Steps, value: object) -> None:
        if isinstance(id_, tuple):
            return self.make(id_[1], steps)  # type: ignore[arg-type]
        task = self.tasks.get(id_)
        if task is None:
            return super().step(id_, steps, value)
        if task.status == "input_required":
            self.tell(task, "working")
        try:
            waits = steps.send(value)
        except StopIteration as end:
            return self.settle(task, {"result": end.value})
        if isinstance(waits, Gate):
            self.gated[id_] = (steps, waits.path)
            return note(f"{waits.path}.entered", str(id_))
        task.question = (steps, waits)
        self.tell(task, "input_required")
        return self.put(task)

    # Tools ------------------------------------------------------------------------------------------------------

    def tool_work(self, gate: str, text: str = "done") -> Steps:
        yield Gate(gate)
        return said(text)

    def tool_must(self, text: str = "must") -> Json:
        return said(text)

    def tool_never(self) -> Json:
        return said("never")

    def tool_confirm(self) -> Steps:
        answer = yield Ask("elicitation/create", ASKS["elicitation/create"])
        return said(json.dumps(answer))

    def tool_reports(self, gate: str | None = None) -> Steps:
        token = self.meta.get("progressToken")
        self.notify("notifications/progress", {"progressToken": token, "progress": 1})
        answer = yield Ask("elicitation/create", ASKS["elicitation/create"])
        self.notify("notifications/progress", {"progressToken": token, "progress": 2})
        if gate is not None:
            yield Gate(gate)
            self.notify("notifications/progress", {"progressToken": token, "progress": 3})
        return said(json.dumps(answer))

    def tool_fails(self) -> Json:
        return said("it failed", isError=True)

    def tool_refuses(self) -> Json:
        raise Refusal(-32050, "This tool refuses", {"why": "because"})

    def tool_points(self) -> Json:
        return self.tool_links()

    def tool_chatter(self, gate: str, word: str) -> Steps:
        yield Gate(gate)
        self.notify("notifications/message", {"level": "error", "data": word})
        return said("logged")


def main() -> None:
    """Serve on stdin and stdout."""
    options = parser()
    options.add_argument("--record", required=True)
    options.add_argument("--untasked", action="store_true", help="announces no tasks")
    options.add_argument("--required", action="store_true", help="what can be a task is one or nothing")
    options.add_argument("--cancel", default="yes")
    options.add_argument("--eager", action="store_true", help="asks without waiting for tasks/result")
    options.set_defaults(name="tasker")
    Tasker(options.parse_args()).run()


if __name__ == "__main__":
    main()
