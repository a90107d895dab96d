"""Real servers from npm and PyPI, started by npx and uvx as a config file has them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import Person, all_tools, said

pytestmark = pytest.mark.timeout(600)

FIRST_RUN = 300.0  # seconds: npx and uvx may have to fetch the packages


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("real")
    files = folder / "files"
    files.mkdir()
    (files / "note.txt").write_text("written by the test\n")
    subprocess.run(["git", "init", "--quiet", files], check=True)
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "-C", files, "add", "."], check=True)
    subprocess.run(["git", "-C", files, *identity, "commit", "--quiet", "-m", "First"], check=True)
    npm = "@modelcontextprotocol/server"
    servers = {
        "everything": npx(f"{npm}-everything@2026.8.31"),
        "filesystem": npx(f"{npm}-filesystem@2026.8.31", str(files)),
        "memory": npx(f"{npm}-memory@2026.8.31") | {"env": {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")}},
        "time": uvx("mcp-server-time==2026.10.19"),
        "git": uvx("mcp-server-git==2026.10.19"),
        "fetch": uvx("mcp-server-fetch==2026.10.24"),
    }
    with running(folder / "gateway", servers) as made:
        for name in servers:
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), FIRST_RUN, name)
        yield made


def npx(*words: str) -> dict[str, object]:
    return {"transport": "stdio", "command": ["npx", "-y", *words], "timeout": "60s"}


def uvx(*words: str) -> dict[str, object]:
    return {"transport": "stdio", "command": ["uvx", *words], "timeout": "60s"}


@pytest.fixture
def person(gateway: Gateway) -> Person:
    return Person(gateway, "ana@example.com", ("MCP-Admin",))


def files_of(gateway: Gateway) -> Path:
    return gateway.folder.parent / "files"


async def test_all_six_are_listed_beside_each_other(person: Person) -> None:
    async with person.connected() as client:
        names = await all_tools(client)
    assert {name.partition("__")[0] for name in names} == {"everything", "filesystem", "memory", "time", "git", "fetch"}
    assert all(len(name) <= 56 for name in names)
    assert len(names) > 45


async def test_everything_answers_and_reports_progress(person: Person) -> None:
    steps: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with person.connected("/servers/everything") as client:
        assert "hello" in said(await client.call_tool("echo", {"message": "hello"}))
        long = {"duration": 1, "steps": 4}
        await client.call_tool("trigger-long-running-operation", long, progress_callback=progressed)
        assert len((await client.list_prompts()).prompts) >= 3
        resources = (await client.list_resources()).resources
        assert (await client.read_resource(str(resources[0].uri))).contents
    assert len(steps) == 4
    assert steps == sorted(steps)


async def test_filesystem_reads_and_writes_where_it_may_and_nowhere_else(gateway: Gateway, person: Person) -> None:
    files = files_of(gateway)
    async with person.connected() as client:
        read = await client.call_tool("filesystem__read_text_file", {"path": str(files / "note.txt")})
        assert "written by the test" in said(read)
        written = {"path": str(files / "new.txt"), "content": "by mcpmux"}
        assert not (await client.call_tool("filesystem__write_file", written)).is_error
        assert (files / "new.txt").read_text() == "by mcpmux"
        assert (await client.call_tool("filesystem__read_text_file", {"path": "/etc/hostname"})).is_error


async def test_memory_remembers_between_two_sessions(person: Person) -> None:
    fact = {"name": "mcpmux", "entityType": "gateway", "observations": ["multiplexes"]}
    async with person.connected() as client:
        await client.call_tool("memory__create_entities", {"entities": [fact]})
    async with person.connected(face="sse") as client:
        assert "multiplexes" in said(await client.call_tool("memory__search_nodes", {"query": "mcpmux"}))


async def test_time_and_git_and_fetch_answer(gateway: Gateway, person: Person) -> None:
    async with person.connected() as client:
        now = await client.call_tool("time__get_current_time", {"timezone": "Europe/Berlin"})
        assert json.loads(said(now))["timezone"] == "Europe/Berlin"
        log = await client.call_tool("git__git_log", {"repo_path": str(files_of(gateway))})
        assert "First" in said(log)
        # It refuses or fails to reach what is not there; that it says so is its answer.
        nowhere = await client.call_tool("fetch__fetch", {"url": "http://127.0.0.1:9/"})
        assert nowhere.is_error


async def test_a_reader_sees_only_what_they_say_is_read_only(gateway: Gateway) -> None:
    gateway.grant("reader@example.com", "filesystem", "read")
    async with Person(gateway, "reader@example.com").connected() as client:
        names = await all_tools(client)
    assert "filesystem__read_text_file" in names
    assert "filesystem__write_file" not in names
