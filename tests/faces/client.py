"""A plain MCP client over HTTP for tests: every header, status and event is visible, nothing is hidden or mended.

`Session` is one Streamable HTTP session of one revision, `OldSession` one over HTTP+SSE. `Events` reads an event
stream as it comes. Everything that waits gives up after 5 s, and every message of mcpmux in a session is checked
against the schema of its revision.
"""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from mcpmux.identity import development_issuer
from tests.gateway_process import Gateway
from tests.schemas.wire import Wire

WAIT = 5.0
Json = dict[str, object]
NEWEST = "2025-11-25"
REVISIONS = ("2025-03-26", "2025-06-18", NEWEST)
ACCEPT = {"Accept": "application/json, text/event-stream"}
SESSION = "Mcp-Session-Id"


def bearer(gateway: Gateway, email: str, *groups: str, ttl: float = 3600.0) -> dict[str, str]:
    """The `Authorization` header of a person, signed by the gateway's own development issuer."""
    return {"Authorization": f"Bearer {_issuer(gateway.data).sign(email, groups, ttl)}"}


_issuer = functools.cache(development_issuer)


def greeting(revision: str = NEWEST, able: Mapping[str, object] | None = None) -> Json:
    """The params of `initialize`; `able` are the client's capabilities."""
    info = {"name": "test", "version": "1"}
    return {"protocolVersion": revision, "capabilities": dict(able or {}), "clientInfo": info}


def request(method: str, params: Mapping[str, object] | None = None, id_: object = 1) -> Json:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": id_, "method": method} | ({} if params is None else {"params": dict(params)})


def notification(method: str, params: Mapping[str, object] | None = None) -> Json:
    """A JSON-RPC notification."""
    return {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": dict(params)})


def calling(tool: str, arguments: Mapping[str, object] | None = None, id_: object = 1, token: object = None) -> Json:
    """A `tools/call`, with a progress token if one is given."""
    meta = {} if token is None else {"_meta": {"progressToken": token}}
    return request("tools/call", {"name": tool, "arguments": dict(arguments or {}), **meta}, id_)


def fail(problem: object) -> None:
    """Fail with what was found."""
    raise AssertionError(problem)


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        """The body, which must say that it is JSON."""
        assert self.headers["Content-Type"] == "application/json", self
        found = json.loads(self.body)
        assert isinstance(found, dict), found
        return found

    @property
    def messages(self) -> list[Json]:
        """The messages in the body, in whichever form it is."""
        if not self.headers["Content-Type"].startswith("text/event-stream"):
            return [self.json]
        lines = self.body.decode().splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]

    @property
    def error(self) -> Json:
        """The JSON-RPC error in the body."""
        found = self.json["error"]
        assert isinstance(found, dict), found
        return found

    @property
    def code(self) -> object:
        """The code of that error."""
        return self.error["code"]


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str | None
    kind: str | None
    data: str
    retry: int | None = None

    @property
    def json(self) -> Json:
        """The message that it carries."""
        found = json.loads(self.data)
        assert isinstance(found, dict), found
        return found


class Events:
    """The events of one answer, in order; comments are left out."""

    def __init__(self, answer: aiohttp.ClientResponse, wire: Wire | None = None) -> None:
        self.answer = answer
        self.last: str | None = None
        self._wire = wire

    async def next(self) -> Event | None:
        """The next event, None when the stream has ended properly."""
        async with asyncio.timeout(WAIT):
            return await self._next()

    async def message(self) -> Json:
        """The next message."""
        while True:
            event = await self.next()
            if event is None:
                raise AssertionError("the stream ended")
            if event.data:
                return event.json

    async def rest(self) -> list[Event]:
        """All that comes until the stream ends."""
        found: list[Event] = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found

    async def messages(self) -> list[Json]:
        """All messages that come until the stream ends."""
        return [event.json for event in await self.rest() if event.data]

    async def _next(self) -> Event | None:
        fields: dict[str, list[str]] = {}
        while True:
            line = (await self.answer.content.readline()).decode()
            if not line:
                return None
            text = line.rstrip("\n")
            if text.startswith(":"):
                continue
            if text:
                name, _, value = text.partition(":")
                fields.setdefault(name, []).append(value.removeprefix(" "))
            elif fields:
                return self._made(fields)

    def _made(self, fields: dict[str, list[str]]) -> Event:
        retry = fields.get("retry")
        id_ = fields.get("id", [None])[-1]
        self.last = id_ or self.last
        kind, data = fields.get("event", [None])[-1], "\n".join(fields.get("data", []))
        if self._wire is not None and data and kind in (None, "message"):
            self._wire.sent(json.loads(data))
        return Event(id_, kind, data, int(retry[0]) if retry else None)


async def read(answer: aiohttp.ClientResponse, wire: Wire | None = None) -> Answer:
    """All of an answer."""
    async with asyncio.timeout(WAIT):
        found = Answer(answer.status, answer.headers, await answer.read())
    if wire is not None and answer.content_type in ("application/json", "text/event-stream"):
        for message in found.messages:
            wire.sent(message)
    return found


@dataclass
class Session:
    """One session of one person at one endpoint."""

    http: aiohttp.ClientSession
    url: str
    headers: dict[str, str]
    revision: str = NEWEST
    greeted: Json = field(default_factory=dict)
    wire: Wire = field(init=False)

    def __post_init__(self) -> None:
        self.wire = Wire(self.revision, "Server")

    @classmethod
    async def opened(
        cls, http: aiohttp.ClientSession, url: str, who: Mapping[str, str], revision: str = NEWEST,
        able: Mapping[str, object] | None = None,
    ) -> Session:  # fmt: skip
        """A session after its handshake."""
        made = cls(http, url, {**ACCEPT, **who}, revision)
        answer = await made.post(request("initialize", greeting(revision, able), 0))
        assert answer.status == 200, answer
        result = answer.json["result"]
        assert isinstance(result, dict), answer
        made.greeted = result
        made.headers[SESSION] = answer.headers[SESSION]
        if revision >= "2025-06-18":
            made.headers["MCP-Protocol-Version"] = revision
        assert (await made.post(notification("notifications/initialized"))).status == 202
        return made

    @property
    def id(self) -> str:
        """Its id."""
        return self.headers[SESSION]

    async def post(self, message: object, **more: str) -> Answer:
        """POST a message (or bytes as they are) and read the whole answer."""
        async with asyncio.timeout(WAIT), self.posting(message, **more) as answer:
            return await read(answer, self.wire)

    @asynccontextmanager
    async def posting(self, message: object, **more: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST a message; the answer while it still comes."""
        data = _heard(self.wire, message)
        headers = {"Content-Type": "application/json", **self.headers, **_named(more)}
        async with self.http.post(self.url, data=data, headers=headers) as answer:
            yield answer

    @asynccontextmanager
    async def streaming(self, message: object) -> AsyncIterator[Events]:
        """POST a message whose answer is an event stream."""
        async with self.posting(message) as answer:
            assert answer.content_type == "text/event-stream", await read(answer)
            yield Events(answer, self.wire)

    @asynccontextmanager
    async def listening(self, last: str | None = None) -> AsyncIterator[Events]:
        """GET an event stream, from `last` on."""
        more = {} if last is None else {"Last-Event-ID": last}
        headers = {**self.headers, "Accept": "text/event-stream", **more}
        async with self.http.get(self.url, headers=headers) as answer:
            assert answer.status == 200, await read(answer)
            yield Events(answer, self.wire)

    async def get(self, **more: str) -> Answer:
        """GET, when it is refused."""
        async with self.http.get(self.url, headers={**self.headers, **_named(more)}) as answer:
            return await read(answer)

    async def delete(self, **more: str) -> Answer:
        """End the session."""
        async with self.http.delete(self.url, headers={**self.headers, **_named(more)}) as answer:
            return await read(answer)

    async def ask(self, method: str, params: Mapping[str, object] | None = None) -> Json:
        """A request; its answer, in whichever form it comes."""
        id_ = secrets.token_hex(4)
        async with asyncio.timeout(WAIT), self.posting(request(method, params, id_)) as answer:
            if answer.content_type == "text/event-stream":
                messages = await Events(answer, self.wire).messages()
            else:
                messages = [(await read(answer, self.wire)).json]
        found = [one for one in messages if one.get("id") == id_]
        assert len(found) == 1, messages
        return found[0]

    async def call(self, tool: str, **arguments: object) -> str:
        """The text of a tool's result."""
        return said(await self.ask("tools/call", {"name": tool, "arguments": arguments}))


def said(message: Json) -> str:
    """The text of the tool result in a message."""
    result = message.get("result")
    assert isinstance(result, dict), message
    return "".join(block.get("text", "") for block in result["content"])


def failed(message: Json) -> bool:
    """Whether a message holds a tool result that is an error."""
    result = message.get("result")
    return isinstance(result, dict) and result.get("isError") is True


def error_of(message: Json) -> tuple[object, object]:
    """Code and text of the error in a message."""
    found = message.get("error")
    assert isinstance(found, dict), message
    return found["code"], found["message"]


def _heard(wire: Wire, message: object) -> bytes:
    """A message as bytes, remembered; those that are given as bytes may be anything."""
    if not isinstance(message, bytes):
        wire.heard(message)
        return json.dumps(message).encode()
    try:
        wire.heard(json.loads(message))
    except (ValueError, RecursionError):
        wire.forget()
    return message


def _named(more: Mapping[str, str]) -> dict[str, str]:
    """Keywords as header names: `Mcp_Session_Id` is `Mcp-Session-Id`."""
    return {name.replace("_", "-"): value for name, value in more.items()}


@dataclass
class OldSession:
    """One session over HTTP+SSE: `events` come down, `post` goes up."""

    http: aiohttp.ClientSession
    base: str
    path: str
    headers: dict[str, str]
    events: Events
    wire: Wire

    async def post(self, message: object, **more: str) -> Answer:
        """POST a message and read the HTTP answer."""
        data = _heard(self.wire, message)
        headers = {"Content-Type": "application/json", **self.headers, **_named(more)}
        async with self.http.post(self.base + self.path, data=data, headers=headers) as answer:
            return await read(answer)

    async def ask(self, method: str, params: Mapping[str, object] | None = None) -> Json:
        """A request; its answer, which must be the next message on the stream."""
        id_ = secrets.token_hex(4)
        assert (await self.post(request(method, params, id_))).status == 202
        answer = await self.events.message()
        assert answer.get("id") == id_, answer
        return answer


@asynccontextmanager
async def old_session(
    http: aiohttp.ClientSession, base: str, who: Mapping[str, str], under: str = "",
    revision: str | None = "2024-11-05", able: Mapping[str, object] | None = None,
) -> AsyncIterator[OldSession]:  # fmt: skip
    """An HTTP+SSE session below the path `under`, after its handshake unless `revision` is None."""
    async with http.get(f"{base}{under}/sse", headers={**who, "Accept": "text/event-stream"}) as answer:
        assert answer.status == 200, await read(answer)
        wire = Wire(revision or "2024-11-05", "Server")
        events = Events(answer, wire)
        first = await events.next()
        assert first is not None and first.kind == "endpoint", first
        made = OldSession(http, base, first.data, dict(who), events, wire)
        if revision is not None:
            await made.ask("initialize", greeting(revision, able))
            assert (await made.post(notification("notifications/initialized"))).status == 202
        yield made
