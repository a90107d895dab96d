"""Links to servers of the modern era over stdio: greeted, asked, asking, heard, and cancelled, by real processes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from msgspec import Raw

from mcpmux.links import Link
from mcpmux.links.changes import OfferChanged, ResourceUpdated
from mcpmux.protocol.events import Ask, Failure, Log, Opening, Progress, Result
from tests.links.harness import call, ending, events, link_of, running, stdio, tool, until
from tests.servers.modern_server import Json

ABLE = {"elicitation": Raw(b'{"form":{}}'), "sampling": Raw(b"{}"), "roots": Raw(b"{}")}


def modern(seen: Path, *options: str, **fields: object):  # type: ignore[no-untyped-def]
    """The strict server; `seen` gets what it was told."""
    return stdio("modern", "modern_server.py", "stdio", "--seen", str(seen), *options, **fields)


def told(seen: Path, method: str) -> list[Json]:
    """The messages of one method that the server got."""
    lines = seen.read_text().splitlines() if seen.exists() else []
    return [message for line in lines if (message := json.loads(line)["message"]).get("method") == method]


def asking(*kinds: str, rounds: int = 1, **more: object) -> Opening:
    """A call of the tool that asks; fields of the opening over it."""
    return msgspec.structs.replace(tool("ask", kinds=list(kinds), rounds=rounds), client=ABLE, **more)


def about(method: str, uri: str) -> Opening:
    """A subscription, or its end."""
    return Opening(method, {"uri": Raw(json.dumps(uri).encode())}, "")


async def test_a_modern_server_is_greeted_and_called(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    async with running(tmp_path, modern(seen)) as pool:
        link = await link_of(pool, "modern")
        assert await call(link, "echo", text="hello") == "hello"
        (status,) = pool.status()
        assert (status.era, status.revision) == ("modern", "2026-07-28")
    assert not told(seen, "initialize")
    (called,) = told(seen, "tools/call")
    assert called["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] == {}  # type: ignore[index]


async def test_progress_and_logs_come_to_their_call(tmp_path: Path) -> None:
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        link = await link_of(pool, "modern")
        found = await events(link.open(tool("progress", progress=True, steps=2)))
        assert [type(event) for event in found] == [Progress, Progress, Result]
        quiet = await events(link.open(tool("log", level="info", text="x")))
        assert [type(event) for event in quiet] == [Result]
        wanting = msgspec.structs.replace(tool("log", level="info", text="x"), log_level="info")
        assert [type(event) for event in await events(link.open(wanting))] == [Log, Result]


async def test_what_a_server_asks_reaches_the_call_and_its_answers_go_up(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    async with running(tmp_path, modern(seen)) as pool:
        link = await link_of(pool, "modern")
        exchange = link.open(asking("form", "roots", rounds=2))
        for _ in range(2):
            asked = [await exchange.next(), await exchange.next()]
            assert [ask.method for ask in asked if isinstance(ask, Ask)] == ["elicitation/create", "roots/list"]
            exchange.answer(asked[0].id, Result(Raw(b'{"action":"accept","content":{"name":"ana"}}')))  # type: ignore[union-attr]
            exchange.answer(asked[1].id, Result(Raw(b'{"roots":[]}')))  # type: ignore[union-attr]
        assert isinstance(await ending(exchange), Result)
        assert link.in_flight == 0
    first, second, third = told(seen, "tools/call")
    assert len({first["id"], second["id"], third["id"]}) == 3  # type: ignore[arg-type]


async def test_a_caller_who_understands_it_gets_what_the_server_wants_to_know(tmp_path: Path) -> None:
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        link = await link_of(pool, "modern")
        end = await ending(link.open(asking("form", resumes=True)))
        assert isinstance(end, Result) and b"input_required" in bytes(end.result)


async def test_a_server_that_only_wants_to_be_asked_again_is(tmp_path: Path) -> None:
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        link = await link_of(pool, "modern")
        assert isinstance(await ending(link.open(tool("defer"))), Result)


async def test_a_cancelled_call_is_cancelled_at_the_server(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        link = await link_of(pool, "modern")
        exchange = link.open(tool("slow", gate=str(gate)))
        await until(Path(f"{gate}.entered").exists)
        exchange.cancel("enough")
        await until(Path(f"{gate}.cancelled").exists)
        assert await call(link, "echo", text="still here") == "still here"


async def test_changes_are_heard_without_being_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        changes = pool.changes()
        link = await link_of(pool, "modern")
        await listening(link, tmp_path / "seen")
        await call(link, "offer", kind="tools", name="late")
        async for change in changes:
            if isinstance(change, OfferChanged):
                break


async def test_a_resource_is_heard_of_once_it_is_subscribed(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    async with running(tmp_path, modern(seen)) as pool:
        changes = pool.changes()
        link = await link_of(pool, "modern")
        assert isinstance(await ending(link.open(about("resources/subscribe", "modern://value"))), Result)
        await call(link, "touch", uri="modern://value")
        async for change in changes:
            if isinstance(change, ResourceUpdated):
                assert change.uri == "modern://value"
                break
        assert isinstance(await ending(link.open(about("resources/unsubscribe", "modern://value"))), Result)
        await until(lambda: len(told(seen, "notifications/cancelled")) == 2)
    listens = [message["params"]["notifications"] for message in told(seen, "subscriptions/listen")]  # type: ignore[index]
    assert ["resourceSubscriptions" in wants for wants in listens] == [False, True, False]


async def test_a_subscription_that_the_server_ends_is_begun_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    async with running(tmp_path, modern(seen)) as pool:
        link = await link_of(pool, "modern")
        await listening(link, seen)
        await call(link, "unlisten", how="graceful")
        await until(lambda: len(told(seen, "subscriptions/listen")) == 2)


async def test_a_result_of_an_unknown_type_is_none(tmp_path: Path) -> None:
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        link = await link_of(pool, "modern")
        exchange = link.open(tool("strange"))
        try:
            raise AssertionError(await ending(exchange))
        except Exception as exc:
            assert "could not be used" in str(exc)


async def test_there_is_no_log_level_of_the_connection(tmp_path: Path) -> None:
    async with running(tmp_path, modern(tmp_path / "seen")) as pool:
        link = await link_of(pool, "modern")
        assert isinstance(await ending(link.open(Opening("logging/setLevel", None, ""))), Failure)
        await link.probe("ping")


async def listening(link: Link, seen: Path) -> None:
    """The server has been asked for its changes, and has read that (it answers in order)."""
    await until(lambda: told(seen, "subscriptions/listen"))
    assert await call(link, "echo", text="x") == "x"
