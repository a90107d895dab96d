"""Squeezed lists: a client that takes gzip gets the same list in a tenth of the bytes; nothing else is compressed."""

from __future__ import annotations

import asyncio
import gzip
import json

import aiohttp
import pytest

from tests.faces.client import Json, Session, calling, request
from tests.faces.conftest import Place, Who
from tests.faces.modern import Modern, asking

GZIP = {"Accept-Encoding": "gzip"}
LIST = asking("tools/list")


async def raw(client: Modern, message: Json, accepted: str) -> tuple[str | None, bytes]:
    """The content coding and the body of an answer, as they came."""
    async with client.posting(message, Accept_Encoding=accepted) as answer:
        assert answer.status == 200
        body = await answer.read()
        assert answer.headers["Content-Length"] == str(len(body))
        assert answer.headers["X-Request-Id"]
        return answer.headers.get("Content-Encoding"), body


@pytest.fixture
def client(place: Place, http: aiohttp.ClientSession, ben: Who) -> Modern:
    return Modern(http, f"{place.url}/mcp", ben)


@pytest.mark.parametrize("accepted", ["gzip", "GZIP", "deflate, gzip;q=0.5", "br, *", "x-gzip", "gzip ; q=1.0"])
async def test_a_client_that_takes_gzip_gets_the_same_list_smaller(client: Modern, accepted: str) -> None:
    _, plain = await raw(client, LIST, "identity")
    coding, body = await raw(client, LIST, accepted)
    assert coding == "gzip"
    assert gzip.decompress(body) == plain
    assert len(body) < len(plain) / 2


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0", "*, gzip;q=0.000", "*;q=0"])
async def test_a_client_that_does_not_gets_it_as_it_is(client: Modern, accepted: str) -> None:
    coding, body = await raw(client, LIST, accepted)
    assert coding is None
    assert len(json.loads(body)["result"]["tools"]) > 10


async def test_each_answer_has_its_own_id_around_the_one_list(client: Modern) -> None:
    async def ids(number: int) -> tuple[object, int]:
        _, body = await raw(client, {**LIST, "id": f"list {number}"}, "gzip")
        message = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        return message["id"], len(message["result"]["tools"])

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ids(number)) for number in range(20)]
    answers = [one.result() for one in asked]
    assert [id_ for id_, _ in answers] == [f"list {number}" for number in range(20)]
    assert len({count for _, count in answers}) == 1


async def test_people_with_other_grants_get_their_own_list(client: Modern, ana: Who) -> None:
    _, all_of_it = await raw(client, LIST, "gzip")
    _, less = await raw(Modern(client.http, client.url, ana), LIST, "gzip")
    names = [
        {tool["name"] for tool in json.loads(gzip.decompress(one))["result"]["tools"]} for one in (all_of_it, less)
    ]
    assert names[1] < names[0]
    assert all(name.startswith("alpha__") for name in names[1])


async def test_a_legacy_client_is_served_alike(place: Place, http: aiohttp.ClientSession, ben: Who) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ben)
    headers = {**session.headers, **GZIP, "Content-Type": "application/json"}
    async with http.post(session.url, data=json.dumps(request("tools/list")), headers=headers) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        tools = json.loads(gzip.decompress(await answer.read()))["result"]["tools"]
    assert {"alpha__echo", "beta__echo"} <= {tool["name"] for tool in tools}


async def test_short_lists_and_answers_of_servers_are_never_compressed(client: Modern) -> None:
    coding, _ = await raw(client, asking("prompts/list"), "gzip")
    assert coding is None
    echo = calling("alpha__echo", {"text": "a" * 20_000})["params"]
    assert isinstance(echo, dict)
    coding, body = await raw(client, asking("tools/call", echo), "gzip")
    assert coding is None
    assert b"a" * 20_000 in body


async def test_a_change_of_the_list_changes_what_is_sent(place: Place, client: Modern) -> None:
    """The compressed form belongs to one state of the list."""
    _, before = await raw(client, LIST, "gzip")
    place.gateway.revoke("MCP-Both", "beta")
    try:
        async with asyncio.timeout(5):
            while True:
                _, after = await raw(client, LIST, "gzip")
                if gzip.decompress(after) != gzip.decompress(before):
                    break
        assert b"beta__" not in gzip.decompress(after)
    finally:
        place.gateway.grant("MCP-Both", "beta")
