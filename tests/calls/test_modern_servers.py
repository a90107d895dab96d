"""Calls of servers of the modern era, by a client of the modern era: over each transport, with each isolation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.faces.modern import PREFIX, Modern
from tests.gateway_process import Gateway, running
from tests.servers import listening, modern

CAPABILITIES = PREFIX + "clientCapabilities"
ABLE = {"elicitation": {"form": {}}, "sampling": {}, "roots": {}}
ANSWERS: dict[str, object] = {
    "elicitation/create": {"action": "accept", "content": {"name": "Ana"}},
    "sampling/createMessage": {"role": "assistant", "model": "m", "content": {"type": "text", "text": "7"}},
    "roots/list": {"roots": [{"uri": "file:///x"}]},
}
NAMES = [f"{transport}-{isolation}" for transport in ("stdio", "http") for isolation in ("shared", "pooled", "session")]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One server per transport and isolation; those over HTTP are one."""
    folder = tmp_path_factory.mktemp("modern")
    with listening("http", program="modern_server") as (url, _):
        servers = {}
        for name in NAMES:
            transport, isolation = name.split("-")
            remote = {"transport": "http", "url": url, "isolation": isolation}
            servers[name] = remote if transport == "http" else modern(isolation=isolation)
        with running(folder, servers) as found:
            yield found


@pytest.fixture(params=NAMES)
async def client(request: pytest.FixtureRequest, gateway: Gateway) -> AsyncIterator[Modern]:
    """Somebody at the endpoint of each of them."""
    await gateway.ready(request.param)
    token = gateway.token("ana@example.com", "MCP-Admin")
    async with aiohttp.ClientSession() as http:
        yield Modern(http, f"{gateway.url}/servers/{request.param}/mcp", {"Authorization": f"Bearer {token}"})


async def test_what_is_asked_in_rounds_is_answered_at_the_process_that_asks(client: Modern) -> None:
    call: dict[str, object] = {"name": "ask", "arguments": {"kinds": ["form", "sampling", "roots"], "rounds": 2}}
    again: dict[str, object] = {}
    for _ in range(2):
        asked = await client.ask("tools/call", {**call, **again}, **{CAPABILITIES: ABLE})
        assert asked["resultType"] == "input_required"
        requests = asked["inputRequests"]
        assert isinstance(requests, dict)
        assert sorted(one["method"] for one in requests.values()) == sorted(ANSWERS)
        answers = {key: ANSWERS[one["method"]] for key, one in requests.items()}
        again = {"inputResponses": answers, "requestState": asked["requestState"]}
    told = await client.ask("tools/call", {**call, **again}, **{CAPABILITIES: ABLE})
    assert told["resultType"] == "complete"
    rounds = json.loads(told["content"][0]["text"])  # type: ignore[index]
    assert [sorted(answers) for answers in rounds] == [
        [f"{kind}_{number}" for kind in ("form", "roots", "sampling")] for number in range(2)
    ]


async def test_arguments_go_in_headers_from_end_to_end(client: Modern) -> None:
    call = {"name": "locate", "arguments": {"region": "Grüße", "count": 3, "place": {"zone": " x "}}}
    client.more.update({"Mcp-Param-Region": "=?base64?R3LDvMOfZQ==?=", "Mcp-Param-Count": "3"})
    client.more["Mcp-Param-Zone"] = "=?base64?IHgg?="
    told = await client.ask("tools/call", call)
    assert json.loads(told["content"][0]["text"]) == call["arguments"]  # type: ignore[index]


async def test_tools_with_invalid_headers_are_left_out_where_headers_are_sent(client: Modern) -> None:
    listed = await client.ask("tools/list")
    names = [tool["name"] for tool in listed["tools"]]  # type: ignore[union-attr]
    assert ("broken" in names) == ("stdio-" in client.url)
    assert "locate" in names
