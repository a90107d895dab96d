"""The official Python SDK 2.x as a server of the matrix: both eras, whichever the client begins with.

What it offers and says is `everything.py`'s; how it says it is the SDK's. A tool that asks its client sends a request
in a legacy era, and ends with `input_required` in the modern one, to be called again with the answer.

    python official.py stdio|http|sse

The HTTP kinds print one JSON line `{"url": …}` on stdout when they listen.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import warnings
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged, ResourceUpdated, ToolsListChanged
from pydantic import TypeAdapter

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))

import conformance_server
from counter import GATE_POLL, Ask, Gate, Json, Refusal, Steps, note, said
from everything import Everything

MODERN = "2026-07-28"
Context = ServerRequestContext[Any, Any]
ANSWERS = {
    "elicitation/create": types.ElicitResult, "roots/list": types.ListRootsResult,
    "sampling/createMessage": types.CreateMessageResultWithTools,
}  # fmt: skip
CHANGED = {
    "notifications/tools/list_changed": (types.ToolListChangedNotification, ToolsListChanged),
    "notifications/prompts/list_changed": (types.PromptListChangedNotification, PromptsListChanged),
    "notifications/resources/list_changed": (types.ResourceListChangedNotification, ResourcesListChanged),
}
BUS = InMemorySubscriptionBus()


class Core(Everything):
    """What there is to offer, for all clients together; what it tells them is kept for the SDK."""

    def __init__(self) -> None:
        super().__init__("2025-11-25", None)
        self.told: list[tuple[str, Json]] = []

    def notify(self, method: str, params: Json | None = None) -> None:
        self.told.append((method, params or {}))

    def tool_touch(self, uri: str) -> Json:
        self.notify("notifications/resources/updated", {"uri": uri})
        return said("subscribed")


CORE = Core()


def answer(method: str, result_type: Any) -> Any:
    """A handler that gives what the core gives."""

    async def handle(ctx: Context, params: Any) -> Any:
        given = {} if params is None else params.model_dump(by_alias=True, mode="json", exclude_none=True)
        try:
            return result_type.model_validate(CORE.methods[method](given))
        except Refusal as refusal:
            raise MCPError(**refusal.body) from refusal  # type: ignore[arg-type]
        except ValueError as error:
            raise MCPError(types.INVALID_PARAMS, "no such cursor") from error

    return handle


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> Any:
    """A tool of the core, with what it tells and asks meanwhile."""
    tool = getattr(CORE, f"tool_{params.name}", None)
    if tool is None:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    meta = dict(ctx.meta or {})
    CORE.meta = meta if params.name == "meta" else {"progressToken": meta.get("progress_token", 0)}
    try:
        result = said(ctx.protocol_version) if params.name == "revision" else tool(**(params.arguments or {}))
        if not isinstance(result, dict):
            result = await steps_of(ctx, params, result)
    except Refusal as refusal:
        raise MCPError(**refusal.body) from refusal  # type: ignore[arg-type]
    await tell(ctx)
    return types.CallToolResult.model_validate(result) if isinstance(result, dict) else result


async def steps_of(ctx: Context, params: types.CallToolRequestParams, steps: Steps) -> Any:
    """Go through a tool that waits."""
    value: object = None
    while True:
        try:
            waits = steps.send(value)
        except StopIteration as end:
            return end.value
        await tell(ctx)
        if isinstance(waits, Gate):
            await opened(waits)
            value = None
            continue
        if ctx.protocol_version == MODERN:
            answers = params.input_responses
            if answers is None:
                asked = {"method": waits.method, "params": waits.params}
                request = TypeAdapter(types.InputRequest).validate_python(asked)
                return types.InputRequiredResult(input_requests={"question": request}, request_state="asked")
            value = {"result": dumped(answers["question"])}
        else:
            value = await asking(ctx, waits)


async def asking(ctx: Context, ask: Ask) -> Json:
    """The client's answer to a request, as a message."""
    request = TypeAdapter(types.InputRequest).validate_python({"method": ask.method, "params": ask.params})
    scoped = ServerMessageMetadata(related_request_id=ctx.request_id)
    try:
        return {"result": dumped(await ctx.session.send_request(request, ANSWERS[ask.method], metadata=scoped))}
    except MCPError as error:
        return {"error": {"code": error.error.code, "message": error.error.message}}


async def opened(gate: Gate) -> None:
    """Wait for a file."""
    note(f"{gate.path}.entered", "")
    try:
        while not Path(gate.path).exists():
            await asyncio.sleep(GATE_POLL)
    except asyncio.CancelledError:
        note(f"{gate.path}.cancelled", "")
        raise


async def tell(ctx: Context) -> None:
    """Send what the core has told since the last time."""
    told, CORE.told = CORE.told, []
    for method, params in told:
        if method == "notifications/progress":
            await ctx.session.report_progress(params["progress"], params["total"], params["message"])
        elif method == "notifications/message":
            await ctx.session.send_log_message(params["level"], params["data"], related_request_id=ctx.request_id)
        elif method == "notifications/resources/updated":
            await BUS.publish(ResourceUpdated(uri=params["uri"]))
            if ctx.protocol_version != MODERN:
                await ctx.session.send_resource_updated(params["uri"])
        else:
            notification, event = CHANGED[method]
            await BUS.publish(event())
            if ctx.protocol_version != MODERN:
                await ctx.session.send_notification(notification())


def dumped(value: Any) -> Json:
    """A result as JSON has it."""
    found = value.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert isinstance(found, dict)
    return found


def build() -> Server[Any]:
    """The server, not yet on a transport."""
    return Server(
        "official",
        version="1.0.0",
        on_list_tools=answer("tools/list", types.ListToolsResult),
        on_call_tool=call_tool,
        on_list_resources=answer("resources/list", types.ListResourcesResult),
        on_list_resource_templates=answer("resources/templates/list", types.ListResourceTemplatesResult),
        on_read_resource=answer("resources/read", types.ReadResourceResult),
        on_subscribe_resource=answer("resources/subscribe", types.EmptyResult),
        on_unsubscribe_resource=answer("resources/unsubscribe", types.EmptyResult),
        on_subscriptions_listen=ListenHandler(BUS),
        on_list_prompts=answer("prompts/list", types.ListPromptsResult),
        on_get_prompt=answer("prompts/get", types.GetPromptResult),
        on_completion=answer("completion/complete", types.CompleteResult),
        on_set_logging_level=answer("logging/setLevel", types.EmptyResult),
    )


async def serve_stdio() -> None:
    """Serve one client on pipes."""
    server = build()
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options(NotificationOptions()))


def main() -> None:
    """Serve the transport that the command line names."""
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=("stdio", "http", "sse"))
    match parser.parse_args().transport:
        case "http":
            conformance_server.serve_http(build().streamable_http_app(), 0, "/mcp")
        case "sse":
            conformance_server.serve_http(conformance_server.sse_app(build()), 0, "/sse")
        case _:
            asyncio.run(serve_stdio())


if __name__ == "__main__":
    main()
