"""What passes untouched: `_meta`, and all that entries of lists say of themselves."""

from __future__ import annotations

import json

from tests.matrix.features.meeting import Meeting, feature, text


@feature("`_meta` both ways")
async def _meta(at: Meeting) -> None:
    result = await at.call("meta", _meta={"example.com/question": {"deep": [1]}})
    assert json.loads(text(result))["example.com/question"] == {"deep": [1]}
    assert result["_meta"]["example.com/answer"] == {"deep": [1, 2]}


@feature("trace context")
async def _trace(at: Meeting) -> None:
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", "tracestate": "a=b", "baggage": "c=d"
    }  # fmt: skip
    passed = json.loads(text(await at.call("meta", _meta=trace)))
    assert {key: passed.get(key) for key in trace} == trace


LISTS = {
    "tools/list": "tools", "prompts/list": "prompts", "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}  # fmt: skip


@feature("annotations")
async def _annotations(at: Meeting) -> None:
    for resource in await at.everything("resources/list", "resources"):
        assert resource["annotations"] == {"audience": ["user"], "priority": 0.5}
    if min(at.revision, at.upstream) >= "2025-03-26":
        for tool in await at.everything("tools/list", "tools"):
            assert "readOnlyHint" in tool["annotations"], tool


async def _no_member(at: Meeting, member: str) -> None:
    for method, name in LISTS.items():
        for entry in await at.everything(method, name):
            # A newer server's words may come along for an older client, who overlooks what it does not know.
            assert member not in entry or at.upstream > at.revision, entry


async def _no_titles(at: Meeting) -> None:
    await _no_member(at, "title")


@feature("titles", since="2025-06-18", absent=_no_titles)
async def _titles(at: Meeting) -> None:
    for method, member in LISTS.items():
        for entry in await at.everything(method, member):
            assert entry["name"].startswith("added") or entry["title"] == f"The {entry['name']}"


async def _no_icons(at: Meeting) -> None:
    await _no_member(at, "icons")


@feature("icons", since="2025-11-25", absent=_no_icons)
async def _icons(at: Meeting) -> None:
    for method, member in LISTS.items():
        for entry in await at.everything(method, member):
            assert entry["name"].startswith("added") or entry["icons"][0]["sizes"] == ["48x48"]


async def _no_apps(at: Meeting) -> None:
    await _no_member(at, "_meta")


@feature("pages of tools (MCP Apps)", since="2025-06-18", absent=_no_apps)
async def _apps(at: Meeting) -> None:
    listed = {tool["name"]: tool for tool in await at.everything("tools/list", "tools")}
    shown = listed["panel"]["_meta"]["ui"]
    assert shown == {"resourceUri": "ui://counter/panel", "visibility": ["model", "app"]}
    resources = {one["uri"]: one for one in await at.everything("resources/list", "resources")}
    listing = resources[shown["resourceUri"]]
    assert listing["mimeType"] == "text/html;profile=mcp-app"
    contents = (await at.client.ask("resources/read", {"uri": listing["uri"]}))["contents"]
    assert [(one["uri"], one["mimeType"], one["text"]) for one in contents] == [
        (listing["uri"], listing["mimeType"], "<p>panel</p>")
    ]
    csp = {"ui": {"csp": {"connectDomains": ["https://example.com"]}}}
    assert listing["_meta"] == contents[0]["_meta"] == csp
    assert await at.said("panel") == "shown"
