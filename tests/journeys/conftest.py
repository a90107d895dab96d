"""One mcpmux per module of journeys, with three counters and three people (and one who may do nothing)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import Person
from tests.servers import counter


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """mcpmux with the servers alpha, beta and gamma, all ready, and `off`, which is disabled."""
    servers = {name: counter("--name", name) for name in ("alpha", "beta", "gamma")}
    servers["beta"]["tools"] = {"allow": ["*"], "deny": ["delete_*"]}
    servers["off"] = counter(enabled=False)
    with running(tmp_path_factory.mktemp("gateway"), servers) as made:
        made.grant("MCP-Alpha", "alpha")
        made.grant("MCP-Alpha", "off")
        made.grant("ben@example.com", "alpha", "read")
        made.grant("ben@example.com", "beta")
        for name in ("alpha", "beta", "gamma"):
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 20, name)
        yield made


@pytest.fixture
def ana(gateway: Gateway) -> Person:
    """Has alpha, through a group."""
    return Person(gateway, "ana@example.com", ("MCP-Alpha",))


@pytest.fixture
def ben(gateway: Gateway) -> Person:
    """Has alpha to read and beta to write, by e-mail."""
    return Person(gateway, "ben@example.com")


@pytest.fixture
def cem(gateway: Gateway) -> Person:
    """Is an administrator: has all that is enabled."""
    return Person(gateway, "cem@example.com", ("MCP-Admin",))


@pytest.fixture
def dan(gateway: Gateway) -> Person:
    """Has a token and no grant."""
    return Person(gateway, "dan@example.com", ("MCP-Unmapped",))
