"""The servers that other tests rely on do what they say, asked directly by the official SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError

from tests.servers import HERE, counter, faulty, listening

# Greet and list as they should: their fault shows in a call, at the end, or is one that a client can pass over.
HARMLESS = (
    *("silent-call", "heedless", "deaf", "strange-requests", "huge-list", "endless-pages", "wrapper"),
    *("flood-stderr", "long-line", "long-noise", "die-in-call", "die-in-answer", "closes-output"),
    *("strange-results", "deep-result", "chatter"),
)
OTHERS = (
    "silent-start",
    "silent-list",
    "wrong-ids",
    "garbage",
    "exit-start",
    "exit-once",
    "late",
    "refuses-greeting",
    "strange-revision",
    "no-tools",
)
OUTLIVING = ("family", "stubborn")

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


def client_of(section: dict[str, object]) -> Client:
    command = section["command"]
    assert isinstance(command, list)
    return Client(StdioServerParameters(command=command[0], args=command[1:]), read_timeout_seconds=20)


async def test_the_counter_lists_and_answers_everything_it_offers() -> None:
    async with client_of(counter("--tools", 30, "--page", 20)) as client:
        assert client.protocol_version == "2025-11-25"
        first = await client.list_tools()
        assert len(first.tools) == 20
        assert first.next_cursor == "20"
        assert (await client.call_tool("echo", {"text": "héllo"})).content[0].text == "héllo"
        assert (await client.call_tool("generated_29", {})).content[0].text == "generated_29 was called"
        assert (await client.call_tool("fail", {})).is_error
        with pytest.raises(MCPError, match="This tool refuses"):
            await client.call_tool("refuse", {})
        assert (await client.read_resource("counter://note/7")).contents[0].text == "note 7"
        assert (await client.get_prompt("greet", {"who": "Ana"})).messages[0].content.text == "Greet Ana warmly."


async def test_the_counter_answers_others_while_one_call_waits_and_notes_a_cancelled_one(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with client_of(counter()) as client, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(client.call_tool("slow", {"gate": str(gate)}))
        given_up = tasks.create_task(client.call_tool("slow", {"gate": str(tmp_path / "never")}))
        assert (await client.call_tool("count", {})).content[0].text == "1"
        async with asyncio.timeout(5):
            while not (tmp_path / "never.entered").exists():
                await asyncio.sleep(0.005)
        given_up.cancel()
        async with asyncio.timeout(5):
            while not (tmp_path / "never.cancelled").exists():
                await asyncio.sleep(0.005)
        assert not waiting.done()
        gate.touch()
        assert (await waiting).content[0].text == f"{gate} is open"


@pytest.mark.parametrize("mode", HARMLESS)
async def test_a_fault_that_a_patient_client_survives_leaves_the_rest_of_the_server_working(mode: str) -> None:
    async with client_of(faulty(mode, "--bytes", 2_000_000)) as client:
        assert (await client.list_tools()).tools


def test_every_mode_is_in_one_of_the_two_lists() -> None:
    asked = subprocess.run([sys.executable, HERE / "faulty.py", "--help"], capture_output=True, text=True, check=True)
    assert set(re.findall(r"[a-z-]+", re.search(r"\{(.*?)\}", asked.stdout, re.DOTALL)[1])) == {
        *HARMLESS,
        *OTHERS,
        *OUTLIVING,
    }


@pytest.mark.parametrize("mode", OTHERS)
async def test_every_other_fault_can_at_least_be_started(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "faulty.py"), mode, "--gate", str(tmp_path / "gate")]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode() + b"\n")
    process.stdin.close()
    if mode == "late":
        (tmp_path / "gate").touch()
    async with asyncio.timeout(5):
        _, errors = await process.communicate()
    assert b"Traceback" not in errors


@pytest.mark.parametrize("mode", OUTLIVING)
def test_something_of_these_outlives_the_end_of_the_input_and_sigterm(mode: str) -> None:
    command = [sys.executable, str(HERE / "faulty.py"), mode]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdin.close()
    os.killpg(process.pid, signal.SIGTERM)
    group = [one for one in psutil.process_iter() if os.getpgid(one.pid) == process.pid and one.is_running()]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
    assert any(one.pid != process.pid for one in group) or mode == "stubborn"


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_the_conformance_server_speaks_both_http_transports(transport: str) -> None:
    with listening(transport) as (url, _):
        async with Client(url if transport == "http" else sse_client(url)) as client:
            assert len((await client.list_tools()).tools) == 19


async def test_the_conformance_server_speaks_stdio() -> None:
    server = StdioServerParameters(command=sys.executable, args=[str(HERE / "conformance_server.py"), "stdio"])
    async with Client(stdio_client(server)) as client:
        assert len((await client.list_prompts()).prompts) == 4


@pytest.mark.parametrize(
    ("era", "revision"), [("dual", "2026-07-28"), ("modern", "2026-07-28"), ("legacy", "2025-11-25")]
)
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_the_modern_conformance_server_speaks_one_era_or_both(transport: str, era: str, revision: str) -> None:
    with listening("http", program="conformance_modern", arguments=["--era", era]) as (url, _):
        command = [str(HERE / "conformance_modern.py"), "stdio", "--era", era]
        place = url if transport == "http" else StdioServerParameters(command=sys.executable, args=command)
        async with Client(place) as client:
            assert client.protocol_version == revision
            assert len((await client.list_tools()).tools) == 28
