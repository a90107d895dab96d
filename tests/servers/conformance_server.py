"""A server with everything that the official conformance suite asks of revision 2025-11-25, and what a server of that
revision can have of what it asks of 2026-07-28.

Built on the official SDK's low-level `Server`; the names and texts are the suite's. It speaks all three transports,
so that one server serves the direct run and every kind of link behind mcpmux:

    python conformance_server.py stdio
    python conformance_server.py http [--port N]      Streamable HTTP at /mcp, resumable
    python conformance_server.py sse  [--port N]      HTTP+SSE of 2024-11-05 at /sse

The HTTP kinds print one JSON line `{"url": …}` on stdout when they listen; port 0 takes a free one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server import Server, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata
from one_era import Asgi, on_pipes, over_http
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

Content = types.TextContent | types.ImageContent | types.AudioContent | types.EmbeddedResource

# A red pixel as PNG, and a WAV header with no samples: the smallest that decoders accept.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="

Context = ServerRequestContext
Tool = Callable[[Context, dict[str, str]], Awaitable[list[Content]]]
TOOLS: dict[str, tuple[types.Tool, Tool]] = {}
LATER = "added_later"
NO_ARGUMENTS: dict[str, object] = {"type": "object", "properties": {}}


class ToolFailed(Exception):
    """A tool that answers `isError: true` with this text."""


def text(value: str) -> Content:
    """One text block."""
    return types.TextContent(type="text", text=value)


def embedded(uri: str, mime_type: str, value: str) -> Content:
    """One embedded text resource."""
    return types.EmbeddedResource(
        type="resource", resource=types.TextResourceContents(uri=uri, mime_type=mime_type, text=value)
    )


def image() -> Content:
    """The pixel as an image block."""
    return types.ImageContent(type="image", data=PIXEL, mime_type="image/png")


def tool(description: str, schema: dict[str, object] = NO_ARGUMENTS) -> Callable[[Tool], Tool]:
    """Register the function under its own name."""

    def register(function: Tool) -> Tool:
        name = function.__name__
        TOOLS[name] = (types.Tool(name=name, description=description, input_schema=schema), function)
        return function

    return register


def needs(argument: str, description: str) -> dict[str, object]:
    """The schema of a tool with one required text."""
    return {
        "type": "object",
        "properties": {argument: {"type": "string", "description": description}},
        "required": [argument],
    }


# Tools that only answer -----------------------------------------------------------------------------------------


@tool("Answers one text block.")
async def test_simple_text(_: Context, __: dict[str, str]) -> list[Content]:
    return [text("This is a simple text response for testing.")]


@tool("Answers one image.")
async def test_image_content(_: Context, __: dict[str, str]) -> list[Content]:
    return [image()]


@tool("Answers one sound.")
async def test_audio_content(_: Context, __: dict[str, str]) -> list[Content]:
    return [types.AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]


@tool("Answers one embedded resource.")
async def test_embedded_resource(_: Context, __: dict[str, str]) -> list[Content]:
    return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@tool("Answers a text, an image and a resource.")
async def test_multiple_content_types(_: Context, __: dict[str, str]) -> list[Content]:
    data = json.dumps({"test": "data", "value": 123}, separators=(",", ":"))
    mixed = embedded("test://mixed-content-resource", "application/json", data)
    return [text("Multiple content types test:"), image(), mixed]


@tool("Always fails.")
async def test_error_handling(_: Context, __: dict[str, str]) -> list[Content]:
    raise ToolFailed("This tool intentionally returns an error for testing")


@tool(
    "Carries the JSON Schema 2020-12 words that a gateway must not lose.",
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
)
async def json_schema_2020_12_tool(_: Context, arguments: dict[str, str]) -> list[Content]:
    return [text(json.dumps(arguments))]


@tool(
    "Says the region, which goes in a header too.",
    {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
)
async def test_custom_header(_: Context, arguments: dict[str, str]) -> list[Content]:
    return [text(arguments.get("region", "nowhere"))]


# Tools that speak while they work -------------------------------------------------------------------------------


@tool("Sends three log messages, then answers.")
async def test_tool_with_logging(ctx: Context, _: dict[str, str]) -> list[Content]:
    for step in ("started", "processing data", "completed"):
        prefix = "Tool" if step == "processing data" else "Tool execution"
        await ctx.session.send_log_message("info", f"{prefix} {step}", related_request_id=ctx.request_id)
        await asyncio.sleep(0.05)
    return [text("Three log messages were sent.")]


@tool("Sends a log message, then answers: the suite looks whether anybody hears it.")
async def test_logging_tool(ctx: Context, _: dict[str, str]) -> list[Content]:
    await ctx.session.send_log_message("error", "for nobody", related_request_id=ctx.request_id)
    return [text("A log message was sent.")]


@tool("Adds a tool, or takes it away again.")
async def test_trigger_tool_change(ctx: Context, _: dict[str, str]) -> list[Content]:
    if TOOLS.pop(LATER, None) is None:
        TOOLS[LATER] = (types.Tool(name=LATER, description="Added later.", input_schema=NO_ARGUMENTS), test_simple_text)
    await ctx.session.send_tool_list_changed()
    return [text("The tools have changed.")]


@tool("Adds a prompt, or takes it away again.")
async def test_trigger_prompt_change(ctx: Context, _: dict[str, str]) -> list[Content]:
    if PROMPTS.pop(LATER, None) is None:
        PROMPTS[LATER] = ("Added later.", ())
    await ctx.session.send_prompt_list_changed()
    return [text("The prompts have changed.")]


@tool("Reports 0, 50 and 100 of 100, then answers.")
async def test_tool_with_progress(ctx: Context, _: dict[str, str]) -> list[Content]:
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100, f"{done} of 100")
        await asyncio.sleep(0.05)
    return [text("Progress was reported three times.")]


@tool("Closes the stream in the middle of the call; the rest is for whoever comes back for it (SEP-1699).")
async def test_reconnection(ctx: Context, _: dict[str, str]) -> list[Content]:
    await ctx.session.send_log_message("info", "before the stream closes", related_request_id=ctx.request_id)
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
        await asyncio.sleep(0.3)  # The suite asks for a pause that is longer than the retry interval below.
    await ctx.session.send_log_message("info", "after the stream closed", related_request_id=ctx.request_id)
    return [text("The call outlived its stream.")]


# Tools that ask the client --------------------------------------------------------------------------------------


async def elicit(ctx: Context, message: str, properties: dict[str, object]) -> str:
    """What the person answered, as the suite wants it shown."""
    schema = {"type": "object", "properties": properties, "required": []}
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return f"action={answer.action}, content={json.dumps(answer.content or {})}"


@tool("Asks the client's model.", needs("prompt", "What the model is asked"))
async def test_sampling(ctx: Context, arguments: dict[str, str]) -> list[Content]:
    asked = types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(
            messages=[
                types.SamplingMessage(role="user", content=types.TextContent(type="text", text=arguments["prompt"]))
            ],
            max_tokens=100,
        )
    )
    scoped = ServerMessageMetadata(related_request_id=ctx.request_id)
    answer = await ctx.session.send_request(asked, types.CreateMessageResult, metadata=scoped)
    said = answer.content.text if isinstance(answer.content, types.TextContent) else answer.content.type
    return [text(f"LLM response: {said}")]


@tool("Asks the person.", needs("message", "What the person is asked"))
async def test_elicitation(ctx: Context, arguments: dict[str, str]) -> list[Content]:
    fields = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    return [text(f"User response: {await elicit(ctx, arguments['message'], fields)}")]


@tool("Asks the person: the suite looks that no request comes on the stream of a modern client.")
async def test_streaming_elicitation(ctx: Context, _: dict[str, str]) -> list[Content]:
    return [text(await elicit(ctx, "Go on?", {"yes": {"type": "boolean"}}))]


@tool("Asks the person, with a default for each primitive type (SEP-1034).")
async def test_elicitation_sep1034_defaults(ctx: Context, _: dict[str, str]) -> list[Content]:
    fields: dict[str, object] = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return [text(f"Elicitation completed: {await elicit(ctx, 'Check these values', fields)}")]


@tool("Asks the person, with each kind of enumeration (SEP-1330).")
async def test_elicitation_sep1330_enums(ctx: Context, _: dict[str, str]) -> list[Content]:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
    fields: dict[str, object] = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return [text(f"Elicitation completed: {await elicit(ctx, 'Choose', fields)}")]


async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    """Every tool, in the order above."""
    return types.ListToolsResult(tools=[described for described, _ in TOOLS.values()])


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    """The tool's content; what a tool or the client refuses is a result that says so."""
    found = TOOLS.get(params.name)
    if found is None:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    try:
        content = await found[1](ctx, params.arguments or {})
    except (ToolFailed, MCPError) as exc:
        return types.CallToolResult(content=[text(str(exc))], is_error=True)
    return types.CallToolResult(content=content)


# Resources ------------------------------------------------------------------------------------------------------

WATCHED = "test://watched-resource"
RESOURCES: dict[str, types.TextResourceContents | types.BlobResourceContents] = {
    "test://static-text": types.TextResourceContents(
        uri="test://static-text", mime_type="text/plain", text="This is the content of the static text resource."
    ),
    "test://static-binary": types.BlobResourceContents(uri="test://static-binary", mime_type="image/png", blob=PIXEL),
    WATCHED: types.TextResourceContents(uri=WATCHED, mime_type="text/plain", text="Somebody may watch this."),
}


async def list_resources(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
    """The resources with a fixed URI."""
    return types.ListResourcesResult(
        resources=[
            types.Resource(
                uri=uri, name=uri.partition("://")[2], description=f"Content of {uri}", mime_type=found.mime_type
            )
            for uri, found in RESOURCES.items()
        ]
    )


async def list_templates(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourceTemplatesResult:
    """The one template."""
    template = types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="template",
        description="Data of one id",
        mime_type="application/json",
    )
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(_: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    """A fixed resource, or the template filled in."""
    uri = str(params.uri)
    found = RESOURCES.get(uri)
    if found is None and uri.startswith("test://template/") and uri.endswith("/data"):
        asked = uri.removeprefix("test://template/").removesuffix("/data")
        data = {"id": asked, "templateTest": True, "data": f"Data for ID: {asked}"}
        found = types.TextResourceContents(uri=uri, mime_type="application/json", text=json.dumps(data))
    if found is None:
        raise MCPError(-32002, "Resource not found", {"uri": uri})
    return types.ReadResourceResult(contents=[found])


async def subscribe(ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
    """Accept, and say at once that the resource changed: the suite listens for nothing else."""
    if str(params.uri) == WATCHED:
        await ctx.session.send_resource_updated(WATCHED)
    return types.EmptyResult()


async def unsubscribe(_: Context, __: types.UnsubscribeRequestParams) -> types.EmptyResult:
    """Accept."""
    return types.EmptyResult()


# Prompts, completion, log level ---------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "test_simple_prompt": ("A prompt without arguments.", ()),
    "test_prompt_with_arguments": ("A prompt with two arguments.", ("arg1", "arg2")),
    "test_prompt_with_embedded_resource": ("A prompt that embeds a resource.", ("resourceUri",)),
    "test_prompt_with_image": ("A prompt that shows an image.", ()),
}


async def list_prompts(_: Context, __: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
    """The four prompts."""
    return types.ListPromptsResult(
        prompts=[
            types.Prompt(
                name=name,
                description=description,
                arguments=[types.PromptArgument(name=one, description=one, required=True) for one in arguments],
            )
            for name, (description, arguments) in PROMPTS.items()
        ]
    )


async def get_prompt(_: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """The prompt's messages, all of them the user's."""
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            content = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            resource = embedded(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
            content = [resource, text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            content = [image(), text("Please analyze the image above.")]
        case unknown:
            raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {unknown}")
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=one) for one in content])


async def complete(_: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    """The cities that begin as the argument does."""
    cities = ["paris", "parma", "porto", "prague"]
    values = [city for city in cities if city.startswith(params.argument.value)]
    return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))


async def set_level(_: Context, __: types.SetLevelRequestParams) -> types.EmptyResult:
    """Accept: this server logs only when a tool is told to."""
    return types.EmptyResult()


# Serving --------------------------------------------------------------------------------------------------------


class Events(EventStore):
    """Every event of every stream, for `Last-Event-ID`."""

    def __init__(self) -> None:
        self._events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._events):
            return None
        seen = int(last_event_id)
        stream_id = self._events[seen - 1][0]
        for number, (stream, message) in enumerate(self._events[seen:], seen + 1):
            if stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


def build(**others: Any) -> Server:
    """The server, not yet on a transport; `others` are handlers beside or instead of these."""
    with warnings.catch_warnings():
        # Log levels are gone from 2026-07-28 and asked for by 2025-11-25.
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        handlers = {
            "on_list_tools": list_tools,
            "on_call_tool": call_tool,
            "on_list_resources": list_resources,
            "on_list_resource_templates": list_templates,
            "on_read_resource": read_resource,
            "on_subscribe_resource": subscribe,
            "on_unsubscribe_resource": unsubscribe,
            "on_list_prompts": list_prompts,
            "on_get_prompt": get_prompt,
            "on_completion": complete,
            "on_set_logging_level": set_level,
            **others,
        }
        instructions = "Everything that the conformance suite asks for."
        return Server("conformance", version="1.0.0", instructions=instructions, **handlers)


def sse_app(server: Server) -> Starlette:
    """The 2024-11-05 transport: `GET /sse`, `POST /messages/`."""
    transport = SseServerTransport("/messages/")

    async def stream(request: Request) -> Response:
        sending = request._send  # The transport is an ASGI application; Starlette has no public name for the callable.
        async with transport.connect_sse(request.scope, request.receive, sending) as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options(NotificationOptions()))
        return Response()

    return Starlette(routes=[Route("/sse", endpoint=stream), Mount("/messages/", app=transport.handle_post_message)])


def serve_http(app: Asgi, port: int, path: str) -> None:
    """Listen on loopback, say where on stdout, serve until a signal."""
    listening = socket.create_server(("127.0.0.1", port))
    print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}{path}"}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def main() -> None:
    """Serve the transport that the command line names."""
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=("stdio", "http", "sse"))
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    server = build()
    match chosen.transport:
        case "http":
            # 100 ms: how soon the suite comes back for the rest of `test_reconnection`.
            app = server.streamable_http_app(event_store=Events(), retry_interval=100)
            serve_http(over_http(app, "legacy"), chosen.port, "/mcp")
        case "sse":
            serve_http(sse_app(server), chosen.port, "/sse")
        case _:
            asyncio.run(on_pipes(server, "legacy"))


if __name__ == "__main__":
    main()
