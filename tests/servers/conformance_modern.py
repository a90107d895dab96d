"""The conformance server with what the suite asks of revision 2026-07-28: questions in rounds, subscriptions, headers.

    python conformance_modern.py stdio|http [--port N] [--era dual|modern|legacy]

`dual`, which is what the official SDK serves, takes both eras; `modern` refuses legacy requests, `legacy` modern ones,
as servers of one era do. What `conformance_server.py` asks its client in the middle of a call is asked here in rounds
if the request is one of the modern era.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import conformance_server as base
import mcp_types as types
from conformance_server import Content, Context, needs, text, tool
from mcp.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from one_era import REVISION, on_pipes, over_http

BUS = InMemorySubscriptionBus()
Answers = Mapping[str, Any]
GIVEN: ContextVar[tuple[Answers, str | None]] = ContextVar("given", default=({}, None))


class InputNeeded(Exception):
    """What has to be asked before the tool can go on."""

    def __init__(self, state: str | None = None, **asked: types.ServerRequest) -> None:
        super().__init__()
        self.result = types.InputRequiredResult(input_requests=asked or None, request_state=state)


def form(message: str, **fields: str) -> types.ElicitRequest:
    """A form with one field of each name and type, all required."""
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in fields.items()},
        "required": list(fields),
    }
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sampling(prompt: str, most: int) -> types.CreateMessageRequest:
    """A question to the model."""
    said = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=prompt))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[said], max_tokens=most))


def roots() -> types.ListRootsRequest:
    """A question for the client's roots."""
    return types.ListRootsRequest(params=types.RequestParams())


def answered(name: str) -> Any:
    """The answer of that name; None if there is none."""
    return GIVEN.get()[0].get(name)


def field_of(answer: Any, name: str) -> str:
    """One field of an accepted form."""
    content = answer.content if isinstance(answer, types.ElicitResult) else None
    return str((content or {}).get(name))


def words(answer: Any) -> str:
    """What a model said."""
    content = answer.content if isinstance(answer, types.CreateMessageResult) else None
    return content.text if isinstance(content, types.TextContent) else "(nothing)"


# Questions in rounds ---------------------------------------------------------------------------------------------


@tool("Asks for a name.")
async def test_input_required_result_elicitation(_: Context, __: dict[str, str]) -> list[Content]:
    if answered("user_name") is None:
        raise InputNeeded(user_name=form("What is your name?", name="string"))
    return [text(f"Hello, {field_of(answered('user_name'), 'name')}!")]


@tool("Asks the model.")
async def test_input_required_result_sampling(_: Context, __: dict[str, str]) -> list[Content]:
    if answered("capital_question") is None:
        raise InputNeeded(capital_question=sampling("What is the capital of France?", 100))
    return [text(words(answered("capital_question")))]


@tool("Asks for roots.")
async def test_input_required_result_list_roots(_: Context, __: dict[str, str]) -> list[Content]:
    answer = answered("client_roots")
    if answer is None:
        raise InputNeeded(client_roots=roots())
    return [text(", ".join(f"{root.name} {root.uri}" for root in answer.roots))]


@tool("Asks for a confirmation, with a state.")
async def test_input_required_result_request_state(_: Context, __: dict[str, str]) -> list[Content]:
    if answered("confirm") is None or GIVEN.get()[1] != "waiting":
        raise InputNeeded("waiting", confirm=form("Please confirm", ok="boolean"))
    return [text("state-ok")]


@tool("Asks with a state that nobody may change.")
async def test_input_required_result_tampered_state(_: Context, __: dict[str, str]) -> list[Content]:
    if answered("confirm") is None:
        raise InputNeeded("sealed", confirm=form("Please confirm", ok="boolean"))
    return [text("state-ok")]


@tool("Asks person, model and roots at once.")
async def test_input_required_result_multiple_inputs(_: Context, __: dict[str, str]) -> list[Content]:
    if any(answered(name) is None for name in ("user_name", "greeting", "client_roots")):
        raise InputNeeded(
            "several",
            user_name=form("What is your name?", name="string"),
            greeting=sampling("Generate a greeting", 50),
            client_roots=roots(),
        )
    return [text(f"{words(answered('greeting'))}, {field_of(answered('user_name'), 'name')}")]


@tool("Asks twice.")
async def test_input_required_result_multi_round(_: Context, __: dict[str, str]) -> list[Content]:
    state = GIVEN.get()[1]
    if state == "round 1" and answered("step1") is not None:
        raise InputNeeded("round 2", step2=form("Step 2: What is your favorite color?", color="string"))
    if state == "round 2" and answered("step2") is not None:
        return [text(f"It is {field_of(answered('step2'), 'color')}.")]
    raise InputNeeded("round 1", step1=form("Step 1: What is your name?", name="string"))


@tool("Asks for what the client can do.")
async def test_input_required_result_capabilities(ctx: Context, __: dict[str, str]) -> list[Content]:
    if GIVEN.get()[0]:
        return [text("Thank you.")]
    can = ctx.session.client_capabilities or types.ClientCapabilities()
    asked: dict[str, Any] = {}
    if can.sampling is not None:
        asked["model"] = sampling("Say something", 50)
    if can.elicitation is not None:
        asked["person"] = form("Your name?", name="string")
    if can.roots is not None:
        asked["folders"] = roots()
    if not asked:
        return [text("The client can be asked nothing.")]
    raise InputNeeded(**asked)


@tool("Needs a client with a model.")
async def test_missing_capability(ctx: Context, _: dict[str, str]) -> list[Content]:
    can = ctx.session.client_capabilities
    if can is None or can.sampling is None:
        raise MCPError(-32021, "Missing required client capability", {"requiredCapabilities": {"sampling": {}}})
    return [text("The client has a model.")]


# What the legacy tools ask, in rounds -----------------------------------------------------------------------------


async def elicit(ctx: Context, message: str, properties: dict[str, object]) -> str:
    """As `conformance_server.elicit`, in rounds for a modern client."""
    if ctx.protocol_version != REVISION:
        return await LEGACY_ELICIT(ctx, message, properties)
    answer = answered("answer")
    if answer is None:
        schema = {"type": "object", "properties": properties, "required": []}
        params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
        raise InputNeeded(answer=types.ElicitRequest(params=params))
    return f"action={answer.action}, content={json.dumps(answer.content or {})}"


LEGACY_ELICIT = base.elicit
LEGACY_SAMPLING = base.TOOLS["test_sampling"][1]


@tool("Asks the client's model.", needs("prompt", "What the model is asked"))
async def test_sampling(ctx: Context, arguments: dict[str, str]) -> list[Content]:
    if ctx.protocol_version != REVISION:
        return await LEGACY_SAMPLING(ctx, arguments)
    if answered("answer") is None:
        raise InputNeeded(answer=sampling(arguments["prompt"], 100))
    return [text(f"LLM response: {words(answered('answer'))}")]


async def call_tool(
    ctx: Context, params: types.CallToolRequestParams
) -> types.CallToolResult | types.InputRequiredResult:
    """As `conformance_server.call_tool`, with what was answered so far; changes are told to subscriptions too."""
    GIVEN.set((params.input_responses or {}, params.request_state))
    try:
        if params.name == "test_missing_capability":
            return types.CallToolResult(content=await test_missing_capability(ctx, {}))
        result = await base.call_tool(ctx, params)
    except InputNeeded as needed:
        return needed.result
    event = {"test_trigger_tool_change": ToolsListChanged, "test_trigger_prompt_change": PromptsListChanged}
    if params.name in event:
        await BUS.publish(event[params.name]())
    return result


async def get_prompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    """As `conformance_server.get_prompt`, and one that asks."""
    if params.name != "test_input_required_result_prompt":
        return await base.get_prompt(ctx, params)
    answer = (params.input_responses or {}).get("user_context")
    if answer is None:
        return InputNeeded(user_context=form("What context should the prompt use?", context="string")).result
    said = text(f"Use this context: {field_of(answer, 'context')}")
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=said)])


async def read_resource(ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    """As `conformance_server.read_resource`, with this era's error."""
    try:
        return await base.read_resource(ctx, params)
    except MCPError as exc:
        code = types.INVALID_PARAMS if ctx.protocol_version == REVISION else exc.error.code
        raise MCPError(code, exc.error.message, exc.error.data) from exc


def build() -> Server:
    """The server of both eras, not yet on a transport."""
    base.elicit = elicit  # type: ignore[assignment]
    base.PROMPTS["test_input_required_result_prompt"] = ("A prompt that asks.", ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        server = base.build(
            on_call_tool=call_tool,
            on_get_prompt=get_prompt,
            on_read_resource=read_resource,
            on_subscriptions_listen=ListenHandler(BUS),
            get_tool_input_schema=lambda name: base.TOOLS[name][0].input_schema if name in base.TOOLS else None,
        )
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience="conformance"))
    return server


def main() -> None:
    """Serve as the command line says."""
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=("stdio", "http"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--era", choices=("dual", "modern", "legacy"), default="dual")
    chosen = parser.parse_args()
    server = build()
    if chosen.transport == "stdio":
        return asyncio.run(on_pipes(server, chosen.era))
    app = server.streamable_http_app(event_store=base.Events(), retry_interval=100)
    return base.serve_http(over_http(app, chosen.era), chosen.port, "/mcp")


if __name__ == "__main__":
    sys.exit(main())
