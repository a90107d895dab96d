"""Which era a server is spoken to in: found by what it answers, does not answer, or dies of, and kept for next time."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mcpmux.config.schema import Server
from mcpmux.links import Pool, supervisor
from mcpmux.links.eras import LEGACY, MODERN, Eras
from mcpmux.seal import Keyring
from mcpmux.store import Database
from tests.links.harness import PATIENCE, call, counter, link_of, of, stdio, surroundings, until, with_section
from tests.servers.modern_server import Json

# A legacy server, as far as a greeting goes. What it does about `server/discover` is its first argument.
OLDER = """
import json, os, sys
how, seen = sys.argv[1:]
for line in sys.stdin:
    message = json.loads(line)
    open(seen, "a").write(line)
    if message["method"] == "server/discover":
        if how == "dies":
            os._exit(1)
        if how == "hangs":
            sys.stdin.read()
        if how == "answers":
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}), flush=True)
    elif message["method"] == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
    elif "id" in message:
        result = {"content": [{"type": "text", "text": "older"}]}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds are long in a test, and ten are longer."""
    monkeypatch.setattr(supervisor, "PROBE_LIMIT", 0.3)
    monkeypatch.setattr(supervisor, "SILENT_LIMIT", 2.5)


def older(how: str, seen: Path) -> Server:
    return with_section(Server(id="older", command=(sys.executable, "-c", OLDER, how, str(seen))))


def methods(seen: Path) -> list[object]:
    """What the server was told."""
    lines = seen.read_text().splitlines() if seen.exists() else []
    return [told(json.loads(line)).get("method") for line in lines]


def told(line: Json) -> Json:
    message = line.get("message", line)
    assert isinstance(message, dict)
    return message


@asynccontextmanager
async def running(folder: Path, eras: Eras, server: Server) -> AsyncIterator[Pool]:
    """A pool that knows these eras."""
    async with surroundings(folder) as ground:
        pool = Pool(ground, eras)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pool.run())
            pool.apply(of(server))
            try:
                yield pool
            finally:
                await pool.close(PATIENCE)


async def era(folder: Path, eras: Eras, server: Server) -> tuple[str | None, str | None]:
    """Start it, and say how it is spoken to."""
    async with running(folder, eras, server) as pool:
        await link_of(pool, server.id)
        (status,) = pool.status()
        return status.era, status.revision


async def test_a_server_that_does_not_know_the_question_is_greeted_on_the_same_connection(tmp_path: Path) -> None:
    async with running(tmp_path, Eras(), counter()) as pool:
        link = await link_of(pool, "counter")
        assert link.greeting is not None and link.greeting.protocol_version == "2025-11-25"
        (status,) = pool.status()
        assert (status.era, status.restarts) == (LEGACY, 0)


@pytest.mark.parametrize(
    ("how", "greetings", "restarts"),
    [
        ("answers", ["server/discover", "initialize"], 0),  # something that is no answer to it
        ("ignores", ["server/discover", "initialize"], 0),
        ("dies", ["server/discover", "initialize"], 1),
        ("hangs", ["server/discover", "initialize"], 1),
    ],
)
async def test_an_older_server_is_greeted_in_its_own_way(
    tmp_path: Path, how: str, greetings: list[str], restarts: int
) -> None:
    seen = tmp_path / "seen"
    async with running(tmp_path, Eras(), older(how, seen)) as pool:
        assert await call(await link_of(pool, "older"), "any") == "older"
        (status,) = pool.status()
        assert (status.era, status.revision, status.restarts) == (LEGACY, "2025-06-18", restarts)
    assert methods(seen)[:2] == greetings


async def test_a_server_of_both_eras_is_spoken_to_in_the_modern_one(tmp_path: Path) -> None:
    server = stdio("both", "modern_server.py", "stdio", "--era", "dual")
    assert await era(tmp_path, Eras(), server) == (MODERN, "2026-07-28")


async def test_the_official_sdk_is_spoken_to_in_the_modern_era(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SILENT_LIMIT", 30.0)
    server = stdio("sdk", "conformance_modern.py", "stdio")
    assert await era(tmp_path, Eras(), server) == (MODERN, "2026-07-28")


async def test_a_slow_server_of_both_eras_is_not_taken_for_an_older_one(tmp_path: Path) -> None:
    whole = stdio("slow", "modern_server.py", "stdio", "--era", "dual")
    command = ("sh", "-c", 'sleep 0.6; exec "$@"', "sh", *whole.command)
    server = with_section(Server(id="slow", command=command))
    assert await era(tmp_path, Eras(), server) == (MODERN, "2026-07-28")


async def test_a_server_of_a_later_era_alone_says_why_it_cannot_be_used(tmp_path: Path) -> None:
    server = stdio("later", "modern_server.py", "stdio", "--discover", "unsupported")
    async with running(tmp_path, Eras(), server) as pool:
        await until(lambda: "2099-01-01" in (pool.status()[0].reason or ""))


async def test_what_was_found_is_not_asked_again(tmp_path: Path, database: Database) -> None:
    seen = tmp_path / "seen"
    server = older("dies", seen)
    async with running(tmp_path, Eras(database, keyring()), server) as pool:
        await link_of(pool, "older")
        await kept(database, LEGACY)
    assert await era(tmp_path, Eras(database, keyring()), server) == (LEGACY, "2025-06-18")
    assert methods(seen).count("server/discover") == 1


async def test_what_is_known_of_one_section_says_nothing_of_another(tmp_path: Path, database: Database) -> None:
    eras = Eras(database, keyring())
    await eras.found(older("dies", tmp_path / "a"), LEGACY)
    again = Eras(database, keyring())
    assert await again.of(older("dies", tmp_path / "a")) == LEGACY
    assert await again.of(older("dies", tmp_path / "b")) is None
    assert await Eras(database, keyring(2)).of(older("dies", tmp_path / "a")) is None


async def test_an_era_is_believed_for_a_week(tmp_path: Path, database: Database) -> None:
    await Eras(database, keyring()).found(counter(), MODERN)
    await database.execute("UPDATE link_eras SET kept_at = now() - interval '8 days'")
    assert await Eras(database, keyring()).of(counter()) is None


async def test_a_server_that_has_become_modern_is_found_out(tmp_path: Path, database: Database) -> None:
    server = stdio("new", "modern_server.py", "stdio")
    eras = Eras(database, keyring())
    await eras.found(server, LEGACY)
    async with running(tmp_path, eras, server) as pool:
        await link_of(pool, "new")
        assert pool.status()[0].era == MODERN
        await kept(database, MODERN)


async def test_a_server_that_has_become_older_is_found_out(tmp_path: Path) -> None:
    eras = Eras()
    await eras.found(counter(), MODERN)
    assert (await era(tmp_path, eras, counter()))[0] == LEGACY
    assert await eras.of(counter()) == LEGACY


async def kept(database: Database, era: str) -> None:
    """Wait until that is written down: it happens just after the link is ready."""
    async with asyncio.timeout(PATIENCE):
        while await database.fetchval("SELECT era FROM link_eras") != era:
            await asyncio.sleep(0.01)


def keyring(number: int = 1) -> Keyring:
    """A key for digests."""
    return Keyring([str(number).encode() * 32])
