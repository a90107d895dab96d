"""A strict server of the modern era with the tasks of the extension, with the tools that the conformance suite calls.

    python tasks_suite.py stdio|http [options of modern_server.py]

For clients that know the extension it makes a task of every call but `greet`; others get the result of the call at
once, or -32021 where a tool is a task or nothing. It tells subscriptions of each change of their tasks. Its ids are as
guessable as can be: `task-1`, `task-2`, again from 1 in each new process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from modern_server import (
    ASKS,
    PREFIX,
    Json,
    ModernServer,
    Refusal,
    Request,
    described,
    note,
    parser,
    said,
    serve_stdio,
)

EXTENSION = PREFIX + "tasks"
ABLE: Json = {"extensions": {EXTENSION: {}}}
MADE = "2026-11-23T10:30:00Z"
TTL = 60_000  # milliseconds
A_WHILE = 0.2  # seconds that a job takes

TOOLS = (
    described("greet", "Says hello, and is no task.", name="string"),
    described("slow_compute", "Takes so many seconds.", seconds="number", label_="string"),
    described("failing_job", "Is a task or nothing; its result is an error."),
    described("protocol_error_job", "Ends with a JSON-RPC error."),
    described("confirm_delete", "Asks whether to delete.", filename="string"),
    described("multi_input", "Asks for two things at once."),
    described("test_tool_with_task", "Asks for a name before it becomes a task, or nothing."),
    described("die", "Ends the process with this code.", code="integer"),
    described("unlisten", "Ends all subscriptions: graceful or abrupt, and is no task.", how="string"),
    described("gated", "Waits until the file `gate` exists.", gate="string"),
    described("insist", "Is a task or nothing, and asks for two things, one after the other."),
    described("held", "Is a task or nothing, and waits until the file `gate` exists.", gate="string"),
)
REQUIRED = ("failing_job", "test_tool_with_task", "insist", "held")


@dataclass(eq=False)
class Task:
    """One task; `more` is what its state says besides, `answers` what it was told."""

    id: str
    status: str = "working"
    more: Json = field(default_factory=dict)
    asked: dict[str, Json] = field(default_factory=dict)
    answers: Json = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    def made(self) -> Json:
        """As `tools/call` answers it."""
        times: Json = {"createdAt": MADE, "lastUpdatedAt": MADE, "ttlMs": TTL, "pollIntervalMs": 20}
        return {"taskId": self.id, "status": self.status, **times}

    def shown(self) -> Json:
        """As `tasks/get` and notifications have it."""
        asked = {key: one for key, one in self.asked.items() if key not in self.answers}
        return {**self.made(), **({"inputRequests": asked} if self.status == "input_required" else self.more)}


class TaskServer(ModernServer):
    """The server; see the module."""

    def __init__(self, options: argparse.Namespace, jobs: asyncio.TaskGroup) -> None:
        super().__init__(options)
        self.tasks: dict[str, Task] = {}
        self.jobs = jobs

    def tools(self) -> list[Json]:
        return list(TOOLS)

    def _handlers(self) -> Mapping[str, Callable[[Request], Awaitable[Json]]]:
        about = {"tasks/get": self.get_task, "tasks/update": self.update_task, "tasks/cancel": self.cancel_task}
        return {**super()._handlers(), **about}

    def _offer(self, modern: bool) -> Json:
        return {"capabilities": {"tools": {}, **ABLE}}

    async def listen(self, request: Request) -> Json:
        wanted = request.params.get("notifications")
        wants: Json = dict(wanted) if isinstance(wanted, dict) else {}
        if "taskIds" in wants:
            _need(request)
            ids = wants.pop("taskIds")
            assert isinstance(ids, list)
            known = [one for one in ids if one in self.tasks]
            wants |= {"taskIds": known} if known else {}
        request.params["notifications"] = wants
        return await super().listen(request)

    async def call(self, request: Request) -> Json:
        name = request.params.get("name")
        if name == "test_tool_with_task":
            asked = self._asked(request, ["form"], 1)
            if asked is not None:
                return asked
        if name in ("greet", "die", "unlisten"):
            return await super().call(request)
        if not _able(request):
            if name in REQUIRED:
                _need(request)
            return await super().call(request)
        task = Task(f"task-{len(self.tasks) + 1}")
        self.tasks[task.id] = task
        request.params["task"] = task
        task.work = self.jobs.create_task(self.carry_out(task, request), name=task.id)
        return {"resultType": "task", **task.made()}

    async def carry_out(self, task: Task, request: Request) -> None:
        """Do what was called for, and keep what came of it."""
        try:
            result = await super().call(request)
        except Refusal as refusal:
            await self.settle(task, "failed", error=refusal.body)
        except asyncio.CancelledError:
            await self.settle(task, "cancelled")
        else:
            await self.settle(task, "completed", result=result)
            arguments = request.params.get("arguments")
            if isinstance(arguments, dict) and "gate" in arguments:
                note(f"{arguments['gate']}.told", task.id)

    async def settle(self, task: Task, status: str, **more: object) -> None:
        """Another state, told to whoever wants to hear of it."""
        task.status, task.more = status, more

        def wanted(wants: Json) -> bool:
            ids = wants.get("taskIds")
            return isinstance(ids, list) and task.id in ids

        await self.tell("notifications/tasks", wanted, task.shown())

    async def ask(self, request: Request, **asked: Json) -> Json:
        """What the client of a task answers to that."""
        task = request.params.get("task")
        if not isinstance(task, Task):
            raise Refusal(-32603, "this is only asked in tasks")
        task.asked |= asked
        task.answered.clear()
        await self.settle(task, "input_required")
        await task.answered.wait()
        await self.settle(task, "working")
        return task.answers

    # About tasks -----------------------------------------------------------------------------------------------------

    def task(self, request: Request) -> Task:
        _need(request)
        found = self.tasks.get(str(request.params.get("taskId")))
        if found is None:
            raise Refusal(-32602, "Failed to retrieve task: Task not found")
        return found

    async def get_task(self, request: Request) -> Json:
        return self.task(request).shown()

    async def update_task(self, request: Request) -> Json:
        task, told = self.task(request), request.params.get("inputResponses")
        if not isinstance(told, dict):
            raise Refusal(-32602, "inputResponses must be an object")
        task.answers |= {key: one for key, one in told.items() if key in task.asked}
        if task.asked.keys() <= task.answers.keys():
            task.answered.set()
        return {}

    async def cancel_task(self, request: Request) -> Json:
        task = self.task(request)
        if task.work is not None:
            task.work.cancel()
        return {}

    # Tools -----------------------------------------------------------------------------------------------------------

    async def tool_greet(self, request: Request, name: str) -> Json:
        return said(f"Hello, {name}!")

    async def tool_slow_compute(self, request: Request, seconds: float, label: str = "") -> Json:
        await asyncio.sleep(seconds)
        return said(f"{label} took {seconds} s")

    async def tool_failing_job(self, request: Request) -> Json:
        await asyncio.sleep(A_WHILE)
        return said("this job fails", isError=True)

    async def tool_protocol_error_job(self, request: Request) -> Json:
        raise Refusal(-32603, "this job breaks")

    async def tool_confirm_delete(self, request: Request, filename: str) -> Json:
        return said(json.dumps(await self.ask(request, confirm=ASKS["form"][0])))

    async def tool_multi_input(self, request: Request) -> Json:
        return said(json.dumps(await self.ask(request, first=ASKS["form"][0], second=ASKS["form"][0])))

    async def tool_test_tool_with_task(self, request: Request) -> Json:
        return said(self._told(request))

    async def tool_insist(self, request: Request) -> Json:
        await self.ask(request, first=ASKS["form"][0])
        return said(json.dumps(await self.ask(request, second=ASKS["form"][0])))

    async def tool_held(self, request: Request, gate: str) -> Json:
        return await self.tool_slow(request, gate)

    async def tool_gated(self, request: Request, gate: str) -> Json:
        return await self.tool_slow(request, gate)


def _able(request: Request) -> bool:
    declared = request.meta.get(PREFIX + "clientCapabilities")
    extensions = declared.get("extensions") if isinstance(declared, dict) else None
    return isinstance(extensions, dict) and EXTENSION in extensions


def _need(request: Request) -> None:
    if not _able(request):
        raise Refusal(-32021, "Missing required client capability", {"requiredCapabilities": ABLE})


async def main() -> None:
    """Serve as the options say."""
    options = parser().parse_args()
    async with asyncio.TaskGroup() as jobs:
        server = TaskServer(options, jobs)
        if options.transport == "stdio":
            await serve_stdio(server)
            for task in server.tasks.values():
                if task.work is not None:
                    task.work.cancel()
            return
        from modern_http import HttpFace, listening

        async with listening(HttpFace(server, Request), options.port) as url:
            print(json.dumps({"url": url}), flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
