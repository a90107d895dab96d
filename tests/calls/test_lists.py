"""`calls/lists.py`: one list over many servers, in pages, of exactly what is granted, never empty for want of time.

Source: MCP server/utilities/pagination; design sections 4 and 5; attacks 49 and 65.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import aiohttp
import pytest

from tests.calls.conftest import Place
from tests.calls.upstream import Json, Witness
from tests.faces.client import NEWEST, Session, error_of, failed, request, said
from tests.gateway_process import running
from tests.servers import faulty

Http = aiohttp.ClientSession
LISTS = {
    "tools/list": "tools", "resources/list": "resources", "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}  # fmt: skip
MANY = 4500
PATIENCE = 5.0  # seconds: how long a list may wait for a server that is starting


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """`large` has 4500 tools. `late` starts when its gate opens, `mute` never, `broken` ends at each start."""
    folder = tmp_path_factory.mktemp("lists")
    servers = {name: Witness(name, folder) for name in ("alpha", "large", "off")}
    sections: dict[str, dict[str, object]] = {
        "alpha": servers["alpha"].section(),
        "large": servers["large"].section("--tools", MANY, "--description", 40),
        "off": servers["off"].section(enabled=False),
        "late": faulty("late", "--gate", folder / "late.gate"),
        "mute": faulty("silent-start"),
        "broken": faulty("exit-start", timeout="1s"),
    }
    with running(folder, sections) as gateway:
        for name in sections:
            gateway.grant(f"MCP-{name}", name)
        for name in ("alpha", "large"):
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 20, name)
        yield Place(gateway, servers, sections)


async def page(session: Session, method: str, cursor: object = None) -> Json:
    """One page, or the error instead."""
    async with (
        asyncio.timeout(PATIENCE + 5),
        session.posting(request(method, {} if cursor is None else {"cursor": cursor})) as answer,
    ):
        found = await answer.json()
        assert isinstance(found, dict)
        return found


async def pages(session: Session, method: str) -> list[list[str]]:
    """The names on all pages."""
    found: list[list[str]] = []
    cursor: object = None
    while True:
        result = (await page(session, method, cursor))["result"]
        assert isinstance(result, dict)
        found.append([entry.get("name") for entry in result[LISTS[method]]])
        cursor = result.get("nextCursor")
        if cursor is None:
            return found


# Pages --------------------------------------------------------------------------------------------------------------


async def test_a_long_list_comes_in_pages_each_entry_once_and_always_in_the_same_order(
    place: Place, http: Http
) -> None:
    session = await place.session(http, "ana", "alpha", "large")
    found = await pages(session, "tools/list")
    assert len(found) > 2
    names = [name for names in found for name in names]
    assert len(set(names)) == len(names) == MANY + 2 * len([name for name in names if name.startswith("alpha__")])
    assert names[0].startswith("alpha__")
    assert f"large__generated_{MANY - 1}" in names
    assert await pages(session, "tools/list") == found
    assert await session.call(found[-1][-1]) != ""


async def test_a_servers_own_endpoint_pages_native_names(place: Place, http: Http) -> None:
    session = await place.session(http, "ana", "large", under="/servers/large")
    found = await pages(session, "tools/list")
    assert len(found) > 1
    assert f"generated_{MANY - 1}" in found[-1]


async def test_short_lists_are_one_page_without_a_cursor(place: Place, http: Http) -> None:
    session = await place.session(http, "ben", "alpha")
    for method in LISTS:
        result = (await page(session, method))["result"]
        assert isinstance(result, dict)
        assert list(result) == [LISTS[method]]
        assert result[LISTS[method]] != []
    assert (await page(session, "tools/list", None))["result"] == (await session.ask("tools/list", {"cursor": None}))[
        "result"
    ]


# Cursors ------------------------------------------------------------------------------------------------------------


async def cursor_of(session: Session) -> str:
    """The cursor of the second page of tools."""
    result = (await page(session, "tools/list"))["result"]
    assert isinstance(result, dict)
    return str(result["nextCursor"])


async def test_a_cursor_is_good_for_its_person_in_any_of_their_sessions(place: Place, http: Http) -> None:
    one, other = [await place.session(http, "ana", "alpha", "large") for _ in range(2)]
    cursor = await cursor_of(one)
    second = [(await page(session, "tools/list", cursor))["result"] for session in (one, other)]
    assert second[0]["tools"] == second[1]["tools"]  # type: ignore[index]


async def test_foreign_tampered_and_invented_cursors_are_one_and_the_same_error(place: Place, http: Http) -> None:
    mine = await place.session(http, "ana", "alpha", "large")
    theirs = await place.session(http, "ben", "alpha", "large")
    elsewhere = await place.session(http, "ana", "alpha", "large", under="/servers/large")
    cursor = await cursor_of(mine)
    flipped = [cursor[:at] + ("A" if cursor[at] != "A" else "B") + cursor[at + 1 :] for at in range(0, len(cursor), 7)]
    tries: list[tuple[Session, str, str]] = [
        (theirs, "tools/list", cursor), (mine, "tools/list", await cursor_of(theirs)),
        (elsewhere, "tools/list", cursor), (mine, "tools/list", await cursor_of(elsewhere)),
        *((mine, method, cursor) for method in LISTS if method != "tools/list"),
        *((mine, "tools/list", text) for text in flipped), (mine, "tools/list", cursor[:-1]),
        (mine, "tools/list", cursor + "A"),
        (mine, "tools/list", cursor[: len(cursor) // 2]), (mine, "tools/list", ""),
        (mine, "tools/list", "2"), (mine, "tools/list", "-1"), (mine, "tools/list", "eyJvZmZzZXQiOjB9"),
        (mine, "tools/list", "x" * 1_000_000), (mine, "tools/list", "\u00fc"), (mine, "tools/list", "../../etc/passwd"),
    ]  # fmt: skip
    for session, method, text in tries:
        answer = await page(session, method, text)
        assert "error" in answer, (session.url, method, cursor, text[:200])
        assert error_of(answer) == (-32602, "Invalid cursor")
    assert "result" in await page(mine, "tools/list", cursor)


async def test_a_cursor_shows_what_is_granted_now_not_what_was(place: Place, http: Http) -> None:
    await asyncio.to_thread(place.gateway.grant, "eva@example.com", "large")
    session = await place.session(http, "eva", "alpha")
    cursor = await cursor_of(session)
    reloads = place.gateway.metric("mcpmux_grants_reloaded_total")
    await asyncio.to_thread(place.gateway.revoke, "eva@example.com", "large")
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_grants_reloaded_total") > reloads)
    answer = await page(session, "tools/list", cursor)
    assert "large__" not in str(answer)
    assert "alpha__echo" in str(answer) or error_of(answer) == (-32602, "Invalid cursor")


# For whom -----------------------------------------------------------------------------------------------------------


async def test_people_with_equal_grants_share_one_encoded_list(place: Place, http: Http) -> None:
    sessions = [await place.session(http, f"equal{number}", "alpha") for number in range(5)]
    first = (await page(sessions[0], "tools/list"))["result"]
    encoded = place.gateway.metric("mcpmux_lists_encoded_total", method="tools/list")
    for session in sessions:
        assert (await page(session, "tools/list"))["result"] == first
    assert place.gateway.metric("mcpmux_lists_encoded_total", method="tools/list") == encoded


async def test_without_grants_every_list_is_an_empty_success(place: Place, http: Http) -> None:
    session = await place.session(http, "dan")
    began = time.monotonic()
    for method, member in LISTS.items():
        assert (await page(session, method))["result"] == {member: []}
    assert time.monotonic() - began < PATIENCE, "a list waited for servers that are not this person's"


@pytest.mark.parametrize("revision", ["2025-03-26", NEWEST])
async def test_names_of_an_aggregate_stand_at_every_place_that_has_one(revision: str, place: Place, http: Http) -> None:
    session = await place.session(http, "ana", "alpha", revision=revision)
    assert "alpha__greet" in str(await page(session, "prompts/list"))
    assert "'alpha+counter://value'" in str(await page(session, "resources/list"))
    assert "'alpha+counter://note/{id}'" in str(await page(session, "resources/templates/list"))


# Servers that are not there yet -------------------------------------------------------------------------------------


async def test_a_server_that_never_starts_delays_a_list_once_and_not_for_ever(place: Place, http: Http) -> None:
    session = await place.session(http, "pia", "alpha", "mute")
    began = time.monotonic()
    assert "alpha__echo" in str(await page(session, "tools/list"))
    first = time.monotonic() - began
    began = time.monotonic()
    for _ in range(3):
        assert "alpha__echo" in str(await page(session, "tools/list"))
    assert first < PATIENCE + 2
    assert time.monotonic() - began < PATIENCE / 2


async def test_a_list_of_nothing_but_a_server_that_does_not_start_is_an_error_not_empty(
    place: Place, http: Http
) -> None:
    session = await place.session(http, "quin", "mute")
    answer = await page(session, "tools/list")
    assert error_of(answer)[0] == -32603
    assert "'mute' is not available" in str(error_of(answer)[1])
    assert answer["error"]["data"]["request_id"]  # type: ignore[index]


async def test_what_needs_a_broken_server_fails_clearly_and_soon(place: Place, http: Http) -> None:
    session = await place.session(http, "ray", "alpha", "broken")
    answer = await session.ask("tools/call", {"name": "broken__echo", "arguments": {"text": "x"}})
    assert failed(answer)
    assert "'broken' is not available" in said(answer)
    assert "(request " in said(answer)
    for method, params in (
        ("resources/read", {"uri": "broken+counter://value"}), ("prompts/get", {"name": "broken__greet"}),
        ("resources/subscribe", {"uri": "broken+counter://value"}),
    ):  # fmt: skip
        refused = await session.ask(method, params)
        assert error_of(refused)[0] == -32603
        assert "'broken'" in str(error_of(refused)[1])
        assert refused["error"]["data"]["request_id"]  # type: ignore[index]
    assert await session.call("alpha__echo", text="unharmed") == "unharmed"


async def test_a_list_waits_for_a_server_that_is_starting_and_sessions_are_told_of_it(place: Place, http: Http) -> None:
    """Last in this module: it lets `late` start."""
    waits = await place.session(http, "sam", "late")
    told = await place.session(http, "tom", "alpha", "late")
    async with told.listening() as events, asyncio.TaskGroup() as tasks:
        await events.next()
        listed = tasks.create_task(page(waits, "tools/list"))
        called = tasks.create_task(waits.ask("tools/call", {"name": "late__echo", "arguments": {"text": "patient"}}))
        await place.gateway.soon(lambda: place.gateway.metric("mcpmux_sessions", transport="streamable") >= 2)
        (place.gateway.folder / "late.gate").touch()
        assert (await events.message())["method"] in (
            "notifications/tools/list_changed",
            "notifications/prompts/list_changed",
        )
    assert "late__echo" in str(listed.result()["result"])
    assert said(called.result()) == "patient"
    assert "late__echo" in str(await page(told, "tools/list"))
