"""One mcpmux for the tests of the faces: three servers that remember what they were told, and four people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import Witness
from tests.faces.client import bearer
from tests.faces.modern import Modern
from tests.gateway_process import Gateway, running
from tests.schemas.watched import watching

Who = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """A running mcpmux and its servers."""

    gateway: Gateway
    alpha: Witness
    beta: Witness

    @property
    def url(self) -> str:
        """Its address."""
        return self.gateway.url


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """mcpmux with alpha and beta, ready, and `off`, which is disabled."""
    folder = tmp_path_factory.mktemp("faces")
    alpha, beta, off = (Witness(name, folder) for name in ("alpha", "beta", "off"))
    servers = {"alpha": alpha.section(), "beta": beta.section(), "off": off.section(enabled=False)}
    with running(folder, servers) as gateway:
        gateway.grant("MCP-Alpha", "alpha")
        gateway.grant("MCP-Alpha", "off")
        gateway.grant("MCP-Both", "alpha")
        gateway.grant("MCP-Both", "beta")
        for name in ("alpha", "beta"):
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 20, name)
        yield Place(gateway, alpha, beta)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of many connections."""
    plain = {"Accept-Encoding": "identity"}  # who wants it otherwise says so
    async with watching(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, headers=plain) as session:
        yield session


@pytest.fixture(scope="package")
def folder(place: Place) -> Path:
    """Where the gateway lives."""
    return place.gateway.folder


@pytest.fixture(scope="package")
def ana(place: Place) -> Who:
    """Has alpha."""
    return bearer(place.gateway, "ana@example.com", "MCP-Alpha")


@pytest.fixture(scope="package")
def ben(place: Place) -> Who:
    """Has alpha and beta."""
    return bearer(place.gateway, "ben@example.com", "MCP-Both")


@pytest.fixture(scope="package")
def dan(place: Place) -> Who:
    """Has a token and no grant."""
    return bearer(place.gateway, "dan@example.com")


@pytest.fixture
def modern(place: Place, http: aiohttp.ClientSession, ana: Who) -> Modern:
    """Ana at the endpoint of all servers, in the modern era."""
    return Modern(http, f"{place.url}/mcp", ana)


@pytest.fixture
def both(place: Place, http: aiohttp.ClientSession, ben: Who) -> Modern:
    """Ben there, who has beta as well."""
    return Modern(http, f"{place.url}/mcp", ben)
