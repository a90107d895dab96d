"""One client at one server, and what a row of the matrix is: a feature, and whether both sides have it.

A feature has a function that shows it where both sides have it. Where one of them does not, another one shows that it
is refused, or is not there and hurts nobody. Both fail by an exception that says what was wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.matrix.clients import Client, Json, Kind, Refused
from tests.schemas import MODERN

PREFIX = "io.modelcontextprotocol/"
VALUE = "counter://value"


@dataclass(frozen=True)
class Meeting:
    """One client at one server; `own` connects it to the same server with a link for this client alone."""

    client: Client
    kind: Kind
    upstream: str  # the revision that the server speaks
    gateway: str
    server: str
    token: str
    folder: Path
    own: Callable[[], AbstractAsyncContextManager[Client]]

    @property
    def revision(self) -> str:
        """The client's."""
        return self.client.revision

    @property
    def modern(self) -> bool:
        """Whether the client has no session."""
        return self.revision == MODERN

    async def call(self, tool: str, _meta: Json | None = None, **arguments: object) -> Json:
        """A tool's result."""
        more = {} if _meta is None else {"_meta": _meta}
        return await self.client.ask("tools/call", {"name": tool, "arguments": arguments, **more})

    async def said(self, tool: str, **arguments: object) -> str:
        """The text of a tool's result."""
        return text(await self.call(tool, **arguments))

    def heard(self, method: str) -> list[Json]:
        """The params of all notifications of a method so far."""
        return [one.get("params") or {} for one in self.client.log.heard if one["method"] == method]

    async def everything(self, method: str, member: str) -> list[Json]:
        """All entries of a list, over all its pages."""
        page = await self.client.ask(method)
        found = list(page[member])
        while cursor := page.get("nextCursor"):
            page = await self.client.ask(method, {"cursor": cursor})
            found += page[member]
        return found


Check = Callable[[Meeting], Awaitable[None]]


@dataclass(frozen=True)
class Feature:
    """One row of the matrix. `until` is the last revision of clients that has it."""

    name: str
    since: str
    until: str
    works: Check
    absent: Check | None
    clients_alone: bool  # whatever the server speaks

    def exists(self, at: Meeting) -> bool:
        """Whether both sides have it."""
        has = self.since <= at.revision <= self.until
        return has and (self.clients_alone or self.since <= at.upstream)


KNOWN: Final[list[Feature]] = []


def feature(
    name: str, since: str = "2024-11-05", until: str = MODERN, absent: Check | None = None, clients_alone: bool = False
) -> Callable[[Check], Check]:
    """Make a row of this function."""

    def made(works: Check) -> Check:
        KNOWN.append(Feature(name, since, until, works, absent, clients_alone))
        return works

    return made


def text(result: Json) -> str:
    """The text of a tool's result."""
    return "".join(block.get("text", "") for block in result["content"])


async def refused(asking: Awaitable[object]) -> Refused:
    """The error that this ends with."""
    try:
        answer = await asking
    except Refused as error:
        return error
    raise AssertionError(f"answered instead of refused: {answer}")
