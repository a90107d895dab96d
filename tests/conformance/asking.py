"""What a person does behind whom mcpmux is the client under test: lists all there is, and calls every tool.

    MUX=<control URL> python asking.py <URL of the suite's server>

The suite starts it, once per scenario. `MUX` has the server put behind a running mcpmux, and says where it is then
and with which token (`test_client.py`). Everything is asked by the official SDK.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Iterator

import mcp_types as types
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError

MODERN = "2026-07-28"

Arguments = dict[str, object]

# What goes to tools of which the suite gives no arguments.
USUAL: dict[str, Arguments] = {"add_numbers": {"a": 5, "b": 3}}


def main(url: str) -> None:
    """Put the server behind mcpmux, use it, and take it away again."""
    with urllib.request.urlopen(os.environ["MUX"], url.encode(), timeout=25) as answer:
        place = json.loads(answer.read())
    try:
        asyncio.run(use(place["endpoint"], place["token"]))
    finally:
        gone = urllib.request.Request(os.environ["MUX"], place["id"].encode(), method="DELETE")
        urllib.request.urlopen(gone, timeout=25).close()


async def use(endpoint: str, token: str) -> None:
    """List all there is, and call what the suite wants to see called."""
    mode = "auto" if os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"] == MODERN else "legacy"
    async with (
        create_mcp_http_client(headers={"Authorization": f"Bearer {token}"}) as http,
        Client(
            streamable_http_client(endpoint, http_client=http), mode=mode, read_timeout_seconds=20.0,
            elicitation_callback=accepted, sampling_callback=sampled, list_roots_callback=rooted,
        ) as client,
    ):  # fmt: skip
        await look(client)
        tools = (await client.list_tools()).tools
        for name, arguments in calls(tools):
            result = await client.call_tool(name, arguments)
            assert isinstance(result, types.CallToolResult), result


def calls(tools: list[types.Tool]) -> Iterator[tuple[str, Arguments]]:
    """Every call that the suite wants to see: those of its context, else each tool once."""
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    for call in context.get("toolCalls", ()):
        yield call["name"], call["arguments"]
    if "toolCalls" in context:
        return
    for tool in tools:
        if tool.name == "json_schema_echo":
            yield tool.name, {"schema": tools[0].input_schema}
        else:
            yield tool.name, USUAL.get(tool.name, {})


async def look(client: Client) -> None:
    """Prompts and resources, where the server has any."""
    able = client.server_capabilities
    if able is not None and able.prompts is not None:
        for prompt in (await client.list_prompts()).prompts:
            await client.get_prompt(prompt.name, {argument.name: "x" for argument in prompt.arguments or ()})
    if able is not None and able.resources is not None:
        for resource in (await client.list_resources()).resources:
            await client.read_resource(resource.uri)


async def accepted(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    """A person who accepts what a form proposes."""
    fields = params.requested_schema["properties"] if isinstance(params, types.ElicitRequestFormParams) else {}
    content = {name: field["default"] for name, field in fields.items() if "default" in field}
    rest = {name: True for name, field in fields.items() if field.get("type") == "boolean" and name not in content}
    return types.ElicitResult(action="accept", content={**content, **rest})


async def sampled(context: ClientRequestContext, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    """A model that always says the same."""
    return types.CreateMessageResult(
        role="assistant", content=types.TextContent(type="text", text="said"), model="m", stop_reason="endTurn"
    )


async def rooted(context: ClientRequestContext) -> types.ListRootsResult:
    """A client with one folder."""
    return types.ListRootsResult(roots=[types.Root(uri="file:///work")])


if __name__ == "__main__":
    try:
        main(sys.argv[-1])
    except MCPError as error:
        sys.exit(f"{error.code}: {error.message}")
