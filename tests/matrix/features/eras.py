"""What an era or a revision has alone."""

from __future__ import annotations

import aiohttp

from tests.faces.client import Session, old_session, request
from tests.matrix.clients import Json
from tests.matrix.features.meeting import Meeting, feature, refused
from tests.schemas import MODERN


async def _no_ping(at: Meeting) -> None:
    await refused(at.client.ask("ping"))


@feature("ping", until="2025-11-25", absent=_no_ping, clients_alone=True)
async def _ping(at: Meeting) -> None:
    assert await at.client.ask("ping") == {}


async def _batch(at: Meeting) -> list[Json]:
    """The answers to a batch, which no SDK can send: a session of the client's revision beside it."""
    batch = [request("ping", None, "one"), request("tools/list", {}, "two")]
    who = {"Authorization": f"Bearer {at.token}"}
    async with aiohttp.ClientSession() as http:
        if at.kind.face == "sse":
            async with old_session(http, at.gateway, who, f"/servers/{at.server}", at.revision) as old:
                if (await old.post(batch)).status == 400:
                    return []
                return [await old.events.message() for _ in batch]
        url = f"{at.gateway}/servers/{at.server}/mcp"
        if at.modern:
            session = Session(http, url, {**who, "Accept": "application/json, text/event-stream"})
            answer = await session.post(batch, **{"MCP-Protocol-Version": MODERN})
        else:
            session = await Session.opened(http, url, who, at.revision)
            answer = await session.post(batch)
        assert answer.status in (200, 400), answer
        return [one for one in answer.messages if "method" not in one] if answer.status == 200 else []


async def _no_batches(at: Meeting) -> None:
    assert await _batch(at) == []


@feature("batches", since="2025-03-26", until="2025-03-26", absent=_no_batches, clients_alone=True)
async def _batches(at: Meeting) -> None:
    answers = await _batch(at)
    assert {one["id"] for one in answers} == {"one", "two"}
    assert all("result" in one for one in answers)
