"""A server of 2025-11-25, on pipes, that asks its client in the middle of a call where the conformance suite wants one
of 2026-07-28 to answer `input_required`: what a gateway makes of it is what the suite gets to see.

    python questions.py
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable

import mcp_types as types
from conformance_server import build
from mcp.server import ServerRequestContext
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata
from one_era import on_pipes

Context = ServerRequestContext
Asking = Callable[[Context], Awaitable[str]]
NAME = "test_input_required_result_"


async def elicited(ctx: Context, message: str, field: str = "name") -> str:
    """What the person says."""
    schema: dict[str, object] = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return str((answer.content or {}).get(field))


async def sampled(ctx: Context) -> str:
    """What the model says."""
    said = types.SamplingMessage(role="user", content=types.TextContent(type="text", text="The capital of France?"))
    params = types.CreateMessageRequestParams(messages=[said], max_tokens=100)
    answer = await ctx.session.send_request(
        types.CreateMessageRequest(params=params),
        types.CreateMessageResult,
        metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
    )
    return answer.content.text if isinstance(answer.content, types.TextContent) else answer.content.type


async def rooted(ctx: Context) -> str:
    """Where the client is at work."""
    found = await ctx.session.list_roots()
    return ", ".join(str(root.uri) for root in found.roots)


async def one(ctx: Context) -> str:
    return f"Hello, {await elicited(ctx, 'What is your name?')}!"


async def all_at_once(ctx: Context) -> str:
    async with asyncio.TaskGroup() as tasks:
        asked = elicited(ctx, "What is your name?"), sampled(ctx), rooted(ctx)
        told = [tasks.create_task(question) for question in asked]
    return ", ".join(answer.result() for answer in told)


async def one_by_one(ctx: Context) -> str:
    return f"{await elicited(ctx, 'Step 1: your name?')}, {await elicited(ctx, 'Step 2: your color?', 'color')}"


async def state(ctx: Context) -> str:
    await elicited(ctx, "Please confirm", "ok")
    return "state-ok"


async def possible(ctx: Context) -> str:
    try:
        return await elicited(ctx, "What is your name?")
    except MCPError:
        return await sampled(ctx)


TOOLS: dict[str, Asking] = {
    NAME + "elicitation": one,
    NAME + "sampling": sampled,
    NAME + "list_roots": rooted,
    NAME + "request_state": state,
    NAME + "multiple_inputs": all_at_once,
    NAME + "multi_round": one_by_one,
    NAME + "tampered_state": state,
    NAME + "capabilities": possible,
}


async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    empty: dict[str, object] = {"type": "object", "properties": {}}
    return types.ListToolsResult(
        tools=[types.Tool(name=name, description="Asks its client.", input_schema=empty) for name in TOOLS]
    )


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    try:
        told, failed = await TOOLS[params.name](ctx), False
    except MCPError as error:
        told, failed = str(error), True
    return types.CallToolResult(content=[types.TextContent(type="text", text=told)], is_error=failed)


async def list_prompts(_: Context, __: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
    return types.ListPromptsResult(prompts=[types.Prompt(name=NAME + "prompt", description="Asks its client.")])


async def get_prompt(ctx: Context, _: types.GetPromptRequestParams) -> types.GetPromptResult:
    told = types.TextContent(type="text", text=await elicited(ctx, "What context?", "context"))
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=told)])


if __name__ == "__main__":
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    server = build(
        on_list_tools=list_tools, on_call_tool=call_tool, on_list_prompts=list_prompts, on_get_prompt=get_prompt
    )
    asyncio.run(on_pipes(server, "legacy"))
