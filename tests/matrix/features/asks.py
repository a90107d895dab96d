"""What servers ask their clients in the middle of a call."""

from __future__ import annotations

import json

from tests.matrix.clients import ACCEPTED, ROOTS, SAID, SEEN, USED, Json, Refused
from tests.matrix.features.meeting import Check, Meeting, feature, text
from tests.schemas import MODERN


async def _inquiry(at: Meeting, what: str) -> tuple[Json, list[Json]]:
    """What the server was answered, and what this client was asked."""
    before = len(at.client.log.asked)
    answer: Json = json.loads(await at.said("inquire", what=what))
    return answer, at.client.log.asked[before:]


async def _answered(at: Meeting, what: str, method: str, wanted: Json) -> None:
    answer, asked = await _inquiry(at, what)
    assert "result" in answer, answer["error"]
    assert {key: answer["result"].get(key) for key in wanted} == wanted, answer
    assert [one["method"] for one in asked] == [method]


def _not_asked(what: str) -> Check:
    async def check(at: Meeting) -> None:
        before = len(at.client.log.asked)
        try:
            answer, _ = await _inquiry(at, what)
        except Refused:
            # A server of the modern era cannot be answered by an error: its call ends with one,
            assert at.upstream == MODERN
        else:
            # or, where the schema has a word for it, it is told that nobody answers.
            told = answer["result"]["action"] == "cancel" if at.upstream == MODERN else answer["error"]["message"]
            assert told, answer
        assert at.client.log.asked[before:] == []

    return check


@feature("elicitation by form", since="2025-06-18", absent=_not_asked("form"))
async def _form(at: Meeting) -> None:
    await _answered(at, "form", "elicitation/create", ACCEPTED)


@feature("elicitation by URL", since="2025-11-25", absent=_not_asked("url"))
async def _url(at: Meeting) -> None:
    await _answered(at, "url", "elicitation/create", SEEN)


@feature("sampling")
async def _sampling(at: Meeting) -> None:
    await _answered(at, "sampling", "sampling/createMessage", SAID)


@feature("sampling with tools", since="2025-11-25", absent=_not_asked("sampling tools"))
async def _tools_in_sampling(at: Meeting) -> None:
    await _answered(at, "sampling tools", "sampling/createMessage", USED)


@feature("roots")
async def _roots(at: Meeting) -> None:
    async with at.own() as alone:
        answer = json.loads(text(await alone.ask("tools/call", {"name": "inquire", "arguments": {"what": "roots"}})))
        assert answer.get("result") == ROOTS, answer
