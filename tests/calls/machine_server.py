"""A server on pooled links of which a test says every word: real links and seats, and a wire that only remembers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from mcpmux.credentials import LinkKey
from mcpmux.links.lending import Desk, Loan
from mcpmux.links.link import Link
from mcpmux.observe.metrics import ServerMetrics
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.upstream import LinkCore

Json = dict[str, object]
SERVER = "counter"
FORM: Json = {"requestedSchema": {"type": "object", "properties": {}}}


@dataclass(eq=False)
class Asked:
    """A question of the server's in call `number`, under its own `id`; `reply` is what it has heard."""

    number: int
    id: str
    withdrawn: bool = False
    reply: Json | None = None

    @property
    def open(self) -> bool:
        """Whether it waits for its answer."""
        return self.reply is None and not self.withdrawn


@dataclass(eq=False)
class Work:
    """A call at the server."""

    number: int
    request: object
    token: object
    cancelled: bool = False


class Pipe:
    """The server's end of one link. `work` is the call that it has, until it has answered."""

    pid = 1
    congested = False

    def __init__(self) -> None:
        self.work: Work | None = None
        self.asks: list[Asked] = []
        self.say: Callable[[Json], None] = lambda _: None

    def send(self, wire: bytes, request: int | None, headers: object = None) -> None:
        message = json.loads(wire)
        params = message.get("params") or {}
        match message.get("method"):
            case "initialize":
                told = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": INFO}
                asyncio.get_running_loop().call_soon(self.answer, message["id"], told)
            case "tools/call":
                assert self.work is None, "two calls at once on a lent link"
                self.work = Work(params["arguments"]["n"], message["id"], params["_meta"]["progressToken"])
            case "notifications/cancelled":
                assert self.work is not None and self.work.request == params["requestId"]
                self.work.cancelled = True
            case None:
                (asked,) = (one for one in self.asks if one.id == message["id"])
                assert asked.reply is None, "a question was answered twice"
                asked.reply = message

    async def confirm(self, wire: bytes, revision: str) -> None:
        pass

    def forget(self, request: int) -> None:
        pass

    def describe(self, problem: str) -> str:
        return problem

    def answer(self, request: object, result: object) -> None:
        """Answer a request."""
        self.say({"jsonrpc": "2.0", "id": request, "result": result})

    def done(self) -> None:
        """Answer the call that it has."""
        work, self.work = self.work, None
        assert work is not None
        self.answer(work.request, {"content": [{"type": "text", "text": f"done {work.number}"}]})

    def ask(self, id_: str) -> Asked:
        """Ask the client of the call something."""
        assert self.work is not None
        asked = Asked(self.work.number, id_)
        self.asks.append(asked)
        params = {**FORM, "message": f"{self.work.number} {id_}"}
        self.say({"jsonrpc": "2.0", "id": id_, "method": "elicitation/create", "params": params})
        return asked

    def report(self, progress: int) -> None:
        """Report progress of the call."""
        assert self.work is not None
        params = {"progressToken": self.work.token, "progress": progress}
        self.say({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})

    def withdraw(self, asked: Asked) -> None:
        """Take a question back."""
        asked.withdrawn = True
        self.say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": asked.id}})


INFO: Json = {"name": "machine", "version": "1"}


class Member:
    """What stands for a supervisor: the link at one place, and the next one when it is lost."""

    def __init__(self, number: int, loan: Loan, desk: Desk, metrics: ServerMetrics) -> None:
        self.key = LinkKey(SERVER, f"pooled {number}")
        self.ready: Link | None = None
        self.pipe = Pipe()
        self.links: list[Link] = []
        self._loan, self._desk, self._metrics = loan, desk, metrics
        loan.supervisor = self  # type: ignore[assignment]

    async def begin(self) -> None:
        """A new link at this place."""
        self.ready = None
        self.pipe = Pipe()
        link = Link(
            self.key, LinkCore(streamed=False, version="1", lent=True), self._loan, self._metrics, lambda _: None
        )
        self.pipe.say = lambda message: link.receive(json.dumps(message).encode())
        await link.greet(self.pipe)
        self.links.append(link)
        self.ready = link
        self._desk.look()

    def lose(self) -> None:
        """The link is gone."""
        assert self.ready is not None
        link, self.ready = self.ready, None
        link.end("it was lost")


class Places:
    """What stands for the pool: one server, its members and their desk."""

    def __init__(self, count: int, metrics: ServerMetrics) -> None:
        self.desk = Desk(SERVER)
        self.members = [Member(number, self.desk.loan(), self.desk, metrics) for number in range(count)]
        self.ended: list[str] = []

    def ready(self, key: LinkKey) -> Link | None:
        return self.desk.ready(key.scope)

    async def link(self, key: LinkKey, wait: float, client: Capabilities) -> Link:
        until = asyncio.get_running_loop().time() + wait
        while True:
            if (link := await self.desk.lend(key.scope, until)) is not None:
                return link

    def relieves(self, key: LinkKey, link: Link) -> bool:
        return self.desk.relieves(key.scope, link)

    def end(self, scope: str) -> None:
        self.ended.append(scope)
