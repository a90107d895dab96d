"""The clients of the matrix: official SDKs, each made to speak one revision, all asked in the same words.

A `Client` is one connection. `ask` is the SDK's own function for a method, its result what the SDK made of the answer;
`heard` and `asked` are what the SDK handed to its callbacks. Below the SDK each message is looked at: what mcpmux sends
must be as the schema of the revision has it (`tests/schemas/wire.py`), and `initialize` asks for the revision that the
matrix wants instead of the SDK's newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import mcp_types as types
from mcp import Client as SDK
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError

from tests.schemas import MODERN
from tests.schemas.wire import Wire

Json = dict[str, Any]
WAIT = 10.0  # seconds for anything that a client waits for

# What the person, the model and the machine behind every client answer.
ACCEPTED: Json = {"action": "accept", "content": {"name": "matrix"}}
SEEN: Json = {"action": "accept"}
SAID: Json = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "seven"}, "stopReason": "endTurn"}
USED: Json = {
    "role": "assistant", "model": "m", "stopReason": "toolUse",
    "content": {"type": "tool_use", "id": "1", "name": "dice", "input": {}},
}  # fmt: skip
ROOTS: Json = {"roots": [{"uri": "file:///matrix", "name": "matrix"}]}


class Refused(Exception):
    """The answer is an error, of mcpmux or of the SDK, which knows that its revision does not have what was asked."""

    def __init__(self, code: int | None, message: str, data: object = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.data = data


@dataclass(frozen=True)
class Kind:
    """A sort of client: its program, how it connects, the revisions that it speaks."""

    name: str
    program: str
    face: str
    revisions: tuple[str, ...]


LEGACY = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
KINDS = (
    Kind("Python SDK 2.x", "python", "mcp", (*LEGACY[1:], MODERN)),
    Kind("TypeScript SDK 1.x", "sdk", "mcp", LEGACY[1:]),
    Kind("TypeScript SDK 2.x", "client", "mcp", (*LEGACY[1:], MODERN)),
    Kind("Python SDK 2.x over HTTP+SSE", "python", "sse", LEGACY),
    Kind("TypeScript SDK 1.x over HTTP+SSE", "sdk", "sse", LEGACY),
)


@dataclass
class Log:
    """What one connection saw; `problems` are messages of mcpmux that are not as the schema has them."""

    heard: list[Json] = field(default_factory=list)
    asked: list[Json] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, kind: list[Json], message: Json) -> None:
        """Keep what the SDK handed out, and wake who waits for it."""
        kind.append(message)
        self.changed.set()

    def look(self, wire: Wire, direction: str, message: object) -> None:
        """See one message that passes below the SDK."""
        if direction == "out":
            wire.heard(message)
            return
        try:
            wire.sent(message)
        except AssertionError as problem:
            self.problems.append(str(problem))

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait for what the SDK hands out. Raises: TimeoutError."""
        async with asyncio.timeout(WAIT):
            while not happened():
                self.changed.clear()
                await self.changed.wait()


class Client(Protocol):
    """One connection of one SDK."""

    log: Log
    revision: str
    capabilities: Json

    async def ask(self, method: str, params: Mapping[str, object] | None = None, *, progress: bool = False) -> Json:
        """The SDK's result of a request. Raises: Refused. A cancelled wait is a cancelled request."""

    def listening(self, wanted: Json) -> AbstractAsyncContextManager[None]:
        """An open `subscriptions/listen`; what it brings comes into `log.heard`."""


# Below the SDK ---------------------------------------------------------------------------------------------------


class _Seen:
    """The streams of a transport, looked at and, where it greets, changed."""

    def __init__(self, stream: Any, look: Callable[[Any], None]) -> None:
        self._stream = stream
        self._look = look

    async def receive(self) -> Any:
        found = await self._stream.receive()
        self._look(found)
        return found

    async def send(self, item: Any) -> None:
        self._look(item)
        await self._stream.send(item)

    def __aiter__(self) -> _Seen:
        return self

    async def __anext__(self) -> Any:
        found = await self._stream.__anext__()
        self._look(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> _Seen:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *ended: Any) -> None:
        await self._stream.__aexit__(*ended)


@asynccontextmanager
async def _watched(transport: Any, revision: str, log: Log) -> AsyncIterator[Any]:
    wire = Wire(revision, "Server")

    def sees(direction: str) -> Callable[[Any], None]:
        def look(item: Any) -> None:
            if isinstance(item, Exception):
                log.problems.append(repr(item))
                return
            message = item.message
            if getattr(message, "method", "") == "initialize":
                message.params["protocolVersion"] = revision
            log.look(wire, direction, message.model_dump(by_alias=True, mode="json", exclude_unset=True))

        return look

    async with transport as (incoming, outgoing):
        yield _Seen(incoming, sees("in")), _Seen(outgoing, sees("out"))


# The Python SDK --------------------------------------------------------------------------------------------------


class PythonClient:
    """A connection of the official Python SDK."""

    def __init__(self, revision: str, log: Log) -> None:
        self.revision = revision
        self.log = log
        self.sdk: SDK
        self.capabilities: Json = {}

    @classmethod
    @asynccontextmanager
    async def connected(cls, kind: Kind, url: str, token: str, revision: str) -> AsyncIterator[PythonClient]:
        """A connection to one endpoint (its URL without the face)."""
        made = cls(revision, Log())
        headers = {"Authorization": f"Bearer {token}"}
        options: Json = {
            "message_handler": made._take, "elicitation_callback": made._elicit, "sampling_callback": made._sample,
            "sampling_capabilities": types.SamplingCapability(tools=types.SamplingToolsCapability()),
            "list_roots_callback": made._roots, "mode": MODERN if revision == MODERN else "legacy", "cache": None,
        }  # fmt: skip
        async with create_mcp_http_client(headers=headers) as http:
            transport: Any = streamable_http_client(f"{url}/mcp", http_client=http)
            if kind.face == "sse":
                transport = sse_client(f"{url}/sse", headers=headers)
            if revision == MODERN:
                options["mode"] = "auto"
            async with SDK(_watched(transport, revision, made.log), **options) as made.sdk:
                assert made.sdk.protocol_version == revision, made.sdk.protocol_version
                made.capabilities = _json(made.sdk.server_capabilities)
                yield made

    async def ask(self, method: str, params: Mapping[str, object] | None = None, *, progress: bool = False) -> Json:
        """The SDK's result of a request. Raises: Refused."""
        try:
            async with asyncio.timeout(WAIT):
                return _json(await self._asking(method, dict(params or {}), progress))
        except MCPError as error:
            raise Refused(error.error.code, error.error.message, error.error.data) from error
        except RuntimeError as error:
            raise Refused(None, str(error)) from error

    @asynccontextmanager
    async def listening(self, wanted: Json) -> AsyncIterator[None]:
        """An open `subscriptions/listen`."""
        names = {
            "toolsListChanged": "tools_list_changed",
            "promptsListChanged": "prompts_list_changed",
            "resourcesListChanged": "resources_list_changed",
            "resourceSubscriptions": "resource_subscriptions",
        }
        try:
            opening = self.sdk.listen(**{names[key]: value for key, value in wanted.items()})
            stream = await opening.__aenter__()
        except (MCPError, RuntimeError) as error:
            raise Refused(None, str(error)) from error
        try:
            assert _json(stream.honored) == wanted, stream.honored
            yield
        finally:
            await opening.__aexit__(None, None, None)

    async def _asking(self, method: str, params: Json, progress: bool) -> object:
        sdk, meta = self.sdk, params.get("_meta")
        match method:
            case "tools/call":
                reported = self._reported if progress else None
                return await sdk.call_tool(
                    params["name"], params.get("arguments"), progress_callback=reported, meta=meta
                )
            case "prompts/get":
                return await sdk.get_prompt(params["name"], params.get("arguments"), meta=meta)
            case "resources/read":
                return await sdk.read_resource(params["uri"], meta=meta)
            case "completion/complete":
                kinds = {"ref/prompt": types.PromptReference, "ref/resource": types.ResourceTemplateReference}
                ref = kinds[params["ref"]["type"]].model_validate(params["ref"])
                return await sdk.complete(ref, params["argument"])
            case "resources/subscribe":
                return await sdk.subscribe_resource(params["uri"])
            case "resources/unsubscribe":
                return await sdk.unsubscribe_resource(params["uri"])
            case "logging/setLevel":
                return await sdk.set_logging_level(params["level"])
            case "ping":
                return await sdk.send_ping()
            case _:
                lists = {
                    "tools/list": sdk.list_tools,
                    "prompts/list": sdk.list_prompts,
                    "resources/list": sdk.list_resources,
                    "resources/templates/list": sdk.list_resource_templates,
                }
                return await lists[method](cursor=params.get("cursor"))

    async def _take(self, message: Any) -> None:
        if isinstance(message, Exception):
            self.log.problems.append(repr(message))
        else:
            self.log.take(self.log.heard, _json(message))

    async def _reported(self, progress: float, total: float | None, message: str | None) -> None:
        params = {"progress": progress, "total": total, "message": message}
        self.log.take(self.log.heard, {"method": "reported", "params": params})

    async def _elicit(self, _: object, params: Any) -> Any:
        self.log.take(self.log.asked, {"method": "elicitation/create", "params": _json(params)})
        return types.ElicitResult.model_validate(SEEN if params.mode == "url" else ACCEPTED)

    async def _sample(self, _: object, params: Any) -> Any:
        self.log.take(self.log.asked, {"method": "sampling/createMessage", "params": _json(params)})
        if params.tools:
            return types.CreateMessageResultWithTools.model_validate(USED)
        return types.CreateMessageResult.model_validate(SAID)

    async def _roots(self, _: object) -> Any:
        self.log.take(self.log.asked, {"method": "roots/list", "params": {}})
        return types.ListRootsResult.model_validate(ROOTS)


def _json(value: Any) -> Json:
    dumped = value.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert isinstance(dumped, dict)
    return dumped
