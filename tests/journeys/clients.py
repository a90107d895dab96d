"""People with the official SDK: connections as one of them, and what a test asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mcp_types as types
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError

from tests.gateway_process import WAIT, Gateway

# How the SDK connects by each: "auto" asks in the modern era first, and over HTTP+SSE falls back.
FACES = {"modern": "auto", "streamable": "legacy", "sse": "auto"}
SESSIONS = ("streamable", "sse")  # the legacy eras, where what belongs to no call comes by itself


@dataclass
class Heard:
    """What reached one client beside its answers."""

    notifications: list[types.ServerNotification] = field(default_factory=list)
    logs: list[types.LoggingMessageNotificationParams] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def of(self, kind: type[types.ServerNotification]) -> list[types.ServerNotification]:
        """The notifications of one kind."""
        return [one for one in self.notifications if isinstance(one, kind)]

    async def take(self, message: object) -> None:
        """The client's message handler."""
        if isinstance(message, Exception):
            self.failures.append(message)
        elif not isinstance(message, types.JSONRPCRequest):
            self.notifications.append(message)  # type: ignore[arg-type]

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        """The client's logging callback."""
        self.logs.append(params)


@dataclass(frozen=True)
class Person:
    """Somebody with a token at one gateway."""

    gateway: Gateway
    email: str
    groups: tuple[str, ...] = ()

    token: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # At once: the command takes a second, which no test should spend in the middle of what it times.
        object.__setattr__(self, "token", self.gateway.token(self.email, *self.groups))

    @asynccontextmanager
    async def connected(
        self,
        path: str = "",
        face: str = "streamable",
        heard: Heard | None = None,
        mode: str | None = None,
        **more: object,
    ) -> AsyncIterator[Client]:
        """A connected client at `path` (`/servers/x`, `/tenants/x` or nothing), in one of the `FACES`.

        `more` are further options of the SDK's client.
        """
        listener = heard or Heard()
        headers = {"Authorization": f"Bearer {self.token}"}
        mode = mode or FACES[face]
        options = {"message_handler": listener.take, "logging_callback": listener.log, "read_timeout_seconds": 30.0}
        options |= more
        if face == "sse":
            async with Client(
                sse_client(f"{self.gateway.url}{path}/sse", headers=headers), mode=mode, **options
            ) as client:
                yield client
            return
        async with (
            create_mcp_http_client(headers=headers) as http,
            Client(
                streamable_http_client(f"{self.gateway.url}{path}/mcp", http_client=http), mode=mode, **options
            ) as client,
        ):
            yield client


async def all_tools(client: Client) -> list[str]:
    """The names of every tool, over all pages."""
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor, cache_mode="bypass")
        names += [tool.name for tool in page.tools]
        cursor = page.next_cursor
        if cursor is None:
            return names


def said(result: object) -> str:
    """The text of a tool result."""
    assert isinstance(result, types.CallToolResult), result
    return "".join(block.text for block in result.content if isinstance(block, types.TextContent))


async def refusal(asking: Awaitable[object]) -> MCPError:
    """The JSON-RPC error that this ends with."""
    try:
        answer = await asking
    except MCPError as error:
        return error
    raise AssertionError(f"answered instead of refused: {answer}")


async def until(happened: Callable[[], object], wait: float = WAIT, what: str = "it") -> None:
    """Wait until this is true; bounded."""
    try:
        async with asyncio.timeout(wait):
            while not happened():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen within {wait} s") from None


async def appears(path: Path, wait: float = WAIT) -> None:
    """Wait until a file exists: a call has reached its server."""
    await until(path.exists, wait, f"the file {path.name}")


def lines(path: Path) -> int:
    """How many lines a file has; none if it does not exist yet."""
    return len(path.read_text().splitlines()) if path.exists() else 0
