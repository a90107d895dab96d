"""A plain client of the modern era for tests: each request stands alone, each message that comes fits the schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from msgspec import Raw

from mcpmux.protocol import headers
from tests import schemas
from tests.faces.client import ACCEPT, WAIT, Answer, Events, Json, read, request

REVISION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
SUBSCRIPTION = PREFIX + "subscriptionId"
META: Json = {
    PREFIX + "protocolVersion": REVISION,
    PREFIX + "clientInfo": {"name": "test", "version": "1"},
    PREFIX + "clientCapabilities": {},
}


def asking(method: str, params: Mapping[str, object] | None = None, id_: object = 1, **meta: object) -> Json:
    """A request; `meta` are further members of its `_meta`, `log` the level of log messages that it wants."""
    level = {PREFIX + "logLevel": meta.pop("log")} if "log" in meta else {}
    return request(method, {**(params or {}), "_meta": {**META, **level, **meta}}, id_)


@dataclass
class Modern:
    """One person at one endpoint."""

    http: aiohttp.ClientSession
    url: str
    who: Mapping[str, str]
    more: dict[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def posting(self, message: Json, **said: str | None) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST a message; the answer while it comes. `said` are other headers than the right ones, None for none."""
        method, params = str(message.get("method")), message.get("params")
        right = headers.standard(method, _raw(params), REVISION)
        wrong = {name.replace("_", "-"): value for name, value in said.items()}
        merged = {**ACCEPT, **right, **self.who, **self.more, "Content-Type": "application/json", **wrong}
        sent = {name: value for name, value in merged.items() if value is not None}
        async with self.http.post(self.url, data=json.dumps(message).encode(), headers=sent) as answer:
            yield answer

    async def post(self, message: Json, **said: str | None) -> Answer:
        """POST a message and read the whole answer; each message in it must be one of the schema."""
        async with asyncio.timeout(WAIT), self.posting(message, **said) as answer:
            found = await read(answer)
        if found.body and found.headers["Content-Type"].startswith(("application/json", "text/event-stream")):
            for one in found.messages:
                schemas.check_modern(one, str(message.get("method")))
        return found

    async def ask(self, method: str, params: Mapping[str, object] | None = None, **meta: object) -> Json:
        """The result of a request."""
        answer = await self.post(asking(method, params, **meta))
        result = answer.messages[-1].get("result")
        assert isinstance(result, dict), answer
        return result

    async def call(self, tool: str, **arguments: object) -> str:
        """The text of a tool's result."""
        result = await self.ask("tools/call", {"name": tool, "arguments": arguments})
        return "".join(block.get("text", "") for block in result["content"])  # type: ignore[union-attr]

    @asynccontextmanager
    async def streaming(self, message: Json) -> AsyncIterator[Stream]:
        """POST a message whose answer is an event stream."""
        async with self.posting(message) as answer:
            assert answer.content_type == "text/event-stream", await read(answer)
            yield Stream(Events(answer), str(message["method"]))

    @asynccontextmanager
    async def listening(self, notifications: Mapping[str, object], id_: object = "listen-1") -> AsyncIterator[Stream]:
        """A subscription after its acknowledgement, which is in `honored`."""
        async with self.streaming(asking("subscriptions/listen", {"notifications": notifications}, id_)) as stream:
            first = await stream.message()
            assert first["method"] == "notifications/subscriptions/acknowledged", first
            params = first["params"]
            assert isinstance(params, dict)
            assert params["_meta"] == {SUBSCRIPTION: id_}
            stream.honored = params["notifications"]
            yield stream


@dataclass
class Stream:
    """The messages of one event stream, each of which must be one of the schema."""

    events: Events
    method: str
    honored: Json = field(default_factory=dict)

    async def message(self) -> Json:
        """The next one."""
        event = await self.events.next()
        assert event is not None, "the stream ended"
        assert event.id is None, "there is nothing to come back to"
        schemas.check_modern(event.json, self.method)
        return event.json

    async def rest(self) -> list[Json]:
        """All that come until the stream ends."""
        found = await self.events.rest()
        for event in found:
            assert event.id is None
            schemas.check_modern(event.json, self.method)
        return [event.json for event in found]


def _raw(params: object) -> dict[str, Raw] | None:
    if not isinstance(params, dict):
        return None
    return {name: Raw(json.dumps(value).encode()) for name, value in params.items()}
