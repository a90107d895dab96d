"""Prompts, resources, completion, and pages of lists."""

from __future__ import annotations

from tests.matrix.features.meeting import VALUE, Meeting, feature, refused


@feature("prompts")
async def _prompts(at: Meeting) -> None:
    listed = {prompt["name"]: prompt for prompt in await at.everything("prompts/list", "prompts")}
    assert listed["greet"]["arguments"][0]["required"] is True
    got = await at.client.ask("prompts/get", {"name": "greet", "arguments": {"who": "Ana"}})
    assert got["messages"][0]["content"]["text"] == "Greet Ana warmly."
    await refused(at.client.ask("prompts/get", {"name": "nothing"}))


@feature("resources")
async def _resources(at: Meeting) -> None:
    assert VALUE in [one["uri"] for one in await at.everything("resources/list", "resources")]
    contents = (await at.client.ask("resources/read", {"uri": VALUE}))["contents"]
    assert [(one["uri"], one["text"]) for one in contents] == [(VALUE, "0")]
    await refused(at.client.ask("resources/read", {"uri": "counter://nothing"}))


@feature("resource templates")
async def _templates(at: Meeting) -> None:
    listed = await at.everything("resources/templates/list", "resourceTemplates")
    assert "counter://note/{id}" in [one["uriTemplate"] for one in listed]
    contents = (await at.client.ask("resources/read", {"uri": "counter://note/7"}))["contents"]
    assert contents[0]["text"] == "note 7"


@feature("completion")
async def _completion(at: Meeting) -> None:
    for ref in ({"type": "ref/prompt", "name": "greet"}, {"type": "ref/resource", "uri": "counter://note/{id}"}):
        asked = {"ref": ref, "argument": {"name": "who", "value": "an"}}
        assert (await at.client.ask("completion/complete", asked))["completion"]["values"] == ["ana", "anton"]


@feature("pagination")
async def _pagination(at: Meeting) -> None:
    names = [tool["name"] for tool in await at.everything("tools/list", "tools")]
    assert len(names) == len(set(names)) > 7, names
    assert (await refused(at.client.ask("tools/list", {"cursor": "made up"}))).code == -32602
