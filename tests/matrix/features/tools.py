"""Tools, and what their results may hold."""

from __future__ import annotations

import json

from tests.matrix.clients import Json
from tests.matrix.features.meeting import VALUE, Check, Meeting, feature, refused, text

TOOLS = {"echo", "progress", "structured", "contents", "meta", "inquire", "revision"}


@feature("tools")
async def _tools(at: Meeting) -> None:
    names = {tool["name"] for tool in await at.everything("tools/list", "tools")}
    assert names >= TOOLS, names
    assert await at.said("echo", text="héllo") == "héllo"
    assert (await at.call("fail", text="no"))["isError"] is True
    error = await refused(at.call("refuse"))
    # From 2026-07-28 on this code is one of those that are the specification's own.
    assert (error.code, error.data) == (-32603 if at.modern else -32050, {"why": "because"}), error
    assert (await refused(at.call("nothing"))).code == -32602


async def _only_text(at: Meeting) -> None:
    assert json.loads(await at.said("structured", number=4)) == {"number": 4}


@feature("structured content", since="2025-06-18", absent=_only_text)
async def _structured(at: Meeting) -> None:
    listed = {tool["name"]: tool for tool in await at.everything("tools/list", "tools")}
    assert listed["structured"]["outputSchema"]["required"] == ["number"]
    result = await at.call("structured", number=4)
    assert result["structuredContent"] == {"number": 4}
    assert json.loads(text(result)) == {"number": 4}


async def _block(at: Meeting, kind: str) -> Json:
    content = (await at.call("contents", kind=kind))["content"]
    assert len(content) == 1, content
    assert isinstance(content[0], dict)
    return content[0]


@feature("images, embedded resources")
async def _blocks(at: Meeting) -> None:
    for kind in ("text", "image", "resource"):
        assert (await _block(at, kind))["type"] == kind
    assert (await _block(at, "text"))["annotations"]["audience"] == ["user"]
    assert (await _block(at, "resource"))["resource"]["uri"] == VALUE


def _no_block(kind: str) -> Check:
    async def check(at: Meeting) -> None:
        assert (await _block(at, kind))["type"] == "text"

    return check


@feature("audio", since="2025-03-26", absent=_no_block("audio"))
async def _audio(at: Meeting) -> None:
    assert (await _block(at, "audio"))["mimeType"] == "audio/wav"


@feature("resource links", since="2025-06-18", absent=_no_block("resource_link"))
async def _links(at: Meeting) -> None:
    assert (await _block(at, "resource_link"))["uri"] == "counter://note/1"
