"""One mcpmux for the tests of the middle: servers that remember what they were told, and people with parts of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import Witness
from tests.faces.client import NEWEST, Session, bearer
from tests.gateway_process import Gateway, running
from tests.schemas.watched import watching

Who = Mapping[str, str]
SERVERS = ("alpha", "beta", "gamma", "delta", "brief", "large", "asker", "hasty")


@dataclass(frozen=True)
class Place:
    """A running mcpmux and its servers by name."""

    gateway: Gateway
    servers: Mapping[str, Witness]
    sections: Mapping[str, Mapping[str, object]]

    @property
    def url(self) -> str:
        """Its address."""
        return self.gateway.url

    def person(self, name: str, *servers: str) -> Who:
        """Somebody with these servers."""
        return bearer(self.gateway, f"{name}@example.com", *(f"MCP-{server}" for server in servers))

    async def session(
        self, http: aiohttp.ClientSession, name: str, *servers: str, under: str = "", revision: str = NEWEST,
        able: Mapping[str, object] | None = None,
    ) -> Session:  # fmt: skip
        """A session of somebody with these servers."""
        return await Session.opened(http, f"{self.url}{under}/mcp", self.person(name, *servers), revision, able)


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Counters alpha to delta, `brief` with a short timeout, `large` with many tools, `off`, `fussy` with rules, and
    `asker` and `hasty` (with a short timeout), which ask and have one caller alone.

    `single` takes one call at a time.
    """
    folder = tmp_path_factory.mktemp("calls")
    servers = {name: Witness(name, folder) for name in (*SERVERS, "off", "fussy", "single")}
    sections: dict[str, Mapping[str, object]] = {name: witness.section() for name, witness in servers.items()}
    sections |= {
        "brief": servers["brief"].section(timeout="1s"),
        "hasty": servers["hasty"].section(timeout="1s"),
        "large": servers["large"].section("--tools", 4500, "--description", 40),
        "off": servers["off"].section(enabled=False),
        "single": servers["single"].section(concurrency=1),
        "fussy": servers["fussy"].section(tools={"allow": ["*"], "deny": ["delete_*", "count"]}),
    }
    with running(folder, sections) as gateway:
        for name in sections:
            gateway.grant(f"MCP-{name}", name)
        gateway.grant("MCP-readers", "delta", "read")
        for name in (*SERVERS, "fussy", "single"):
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
        yield Place(gateway, servers, sections)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of many connections."""
    async with watching(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture(scope="package")
def folder(place: Place) -> Path:
    """Where the gateway lives."""
    return place.gateway.folder
