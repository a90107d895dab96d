"""A client of the modern era that is asked something, and makes its request again: each time on another connection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from mcpmux.errors import StateRefused
from tests.calls.upstream import Json
from tests.faces.client import Answer, bearer
from tests.faces.modern import PREFIX, Modern, asking
from tests.gateway_process import Gateway

ABLE: Json = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}}
ACCEPTED: Json = {"action": "accept", "content": {"a": "hers"}}
SAMPLED: Json = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "Paris"}}
ROOTS: Json = {"roots": [{"uri": "file:///x"}]}
FITTING = {"elicitation/create": ACCEPTED, "sampling/createMessage": SAMPLED, "roots/list": ROOTS}
NEVER_OURS = (200, -32602, str(StateRefused()))


@dataclass
class Asker:
    """A client of the modern era; each of its requests is on a connection of its own."""

    gateway: Gateway
    who: Mapping[str, str]
    able: Json = field(default_factory=lambda: ABLE)
    path: str = ""

    async def ask(self, tool: str, arguments: Json, again: Json | None = None, **meta: object) -> Answer:
        """One request; `again` is what it says besides when it is made again."""
        sent = {"name": tool, "arguments": arguments, **(again or {})}
        message = asking("tools/call", sent, **{PREFIX + "clientCapabilities": self.able, **meta})
        async with aiohttp.ClientSession() as http:
            return await Modern(http, f"{self.gateway.url}{self.path}/mcp", self.who).post(message)

    async def asked(self, tool: str, again: Json | None = None, **arguments: object) -> Json:
        """What the client is asked, as the result says it."""
        return needed(await self.ask(tool, arguments, again))

    async def answered(self, tool: str, former: Json, answers: Json, **arguments: object) -> Answer:
        """The same request made again, with these answers by key."""
        return await self.ask(tool, arguments, {"inputResponses": answers, "requestState": former["requestState"]})


def needed(answer: Answer) -> Json:
    """The result, which asks for something."""
    result = answer.messages[-1].get("result")
    assert isinstance(result, dict), answer
    assert result["resultType"] == "input_required", result
    return result


def requests(result: Json) -> dict[str, Json]:
    """What is asked, by key."""
    found = result["inputRequests"]
    assert isinstance(found, dict)
    return found


def heard(answer: Answer) -> object:
    """What the server says that it was answered."""
    result = answer.messages[-1].get("result")
    assert isinstance(result, dict), answer
    assert result["resultType"] == "complete", result
    return json.loads(result["content"][0]["text"])


def fitting(result: Json) -> Json:
    """An answer to everything that is asked."""
    return {key: FITTING[str(one["method"])] for key, one in requests(result).items()}


def shown(answer: Answer) -> tuple[object, object, object]:
    """What tells one error from another."""
    return answer.status, answer.code, answer.error["message"]


def person(gateway: Gateway, name: str, *servers: str) -> Asker:
    """Somebody with these servers."""
    return Asker(gateway, bearer(gateway, f"{name}@example.com", *(f"MCP-{server}" for server in servers)))
