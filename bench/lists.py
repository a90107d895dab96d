"""What a chat costs before its first call: the greeting and `tools/list` of 600 tools over 30 servers, in both eras.

    python -m bench.lists [--chats 300] [--servers 30] [--tools 20] [--users 3]

Each chat has a new connection. In the modern era it is as Open WebUI has it: `server/discover`, `tools/list` over all
pages. In the legacy eras: `initialize`, `initialized`, `tools/list`, DELETE. Several users with equal grants take
turns, so that one encoded list serves them all. CPU is mcpmux's own, told for the greeting (everything but the list)
and the list.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.wire import Connection, Session
from tests.gateway_process import Gateway, running
from tests.servers import counter

LIMIT = 0.003  # seconds of CPU for both together: the goal of issue 3
ERAS = ("modern", "legacy")


async def chat(url: str, token: str, era: str, wants_list: bool) -> tuple[float, int, int]:
    """One chat: its duration in seconds, the tools it saw and the bytes they came in."""
    begun = time.perf_counter()
    session = Session(url, token)
    connection = await Connection.to(url)
    if era == "modern":
        answer = await connection.send(session.ask("server/discover", {}))
        assert answer.status == 200, answer.body[:300]
    else:
        await session.initialize(connection)
    tools = size = 0
    cursor: object = None
    while wants_list:
        params = {"cursor": cursor} if cursor else {}
        asked = session.ask("tools/list", params) if era == "modern" else session.post("tools/list", params)
        answer = await connection.send(asked)
        result = answer.message()["result"]
        assert isinstance(result, dict)
        tools += len(result["tools"])
        size += len(answer.body)
        cursor = result.get("nextCursor")
        if cursor is None:
            break
    if era == "legacy":
        gone = await connection.send(session.delete())
        assert gone.status in (200, 202, 204), f"DELETE answered {gone.status}"
    connection.close()
    return time.perf_counter() - begun, tools, size


async def cpu_of(gateway: Gateway, chats: int, one: Callable[[int], Awaitable[object]]) -> float:
    """Seconds of mcpmux's CPU for each of so many chats."""
    before = gateway.cpu()
    for number in range(chats):
        await one(number)
    return (gateway.cpu() - before) / chats


async def measure(gateway: Gateway, tokens: list[str], options: argparse.Namespace, era: str) -> float:
    """Print what one era costs; seconds of CPU of a whole chat."""
    url = f"{gateway.url}/mcp"
    wanted = options.servers * options.tools
    durations: list[float] = []
    size = 0

    async def whole(number: int) -> None:
        nonlocal size
        took, tools, size = await chat(url, tokens[number % len(tokens)], era, wants_list=True)
        assert tools == wanted, f"{tools} tools instead of {wanted}"
        durations.append(took)

    async def greeting(number: int) -> None:
        await chat(url, tokens[number % len(tokens)], era, wants_list=False)

    await cpu_of(gateway, 20, whole)
    durations.clear()
    greetings: list[float] = []
    wholes: list[float] = []
    for _ in range(3):
        greetings.append(await cpu_of(gateway, options.chats // 3, greeting))
        wholes.append(await cpu_of(gateway, options.chats // 3, whole))
    greeted, both = statistics.median(greetings), statistics.median(wholes)
    print(f"{era}: {wanted} tools of {options.servers} servers in {size / 1000:.0f} kB, {options.users} users")
    parts = (("greeting", greeted), ("list", both - greeted), ("together", both))
    print("CPU: " + ", ".join(f"{name} {cost * 1000:.2f} ms" for name, cost in parts))
    print(f"a chat without calls takes {statistics.median(durations) * 1000:.1f} ms (median of {len(durations)})")
    print(f"lists encoded: {gateway.metric('mcpmux_lists_encoded_total', method='tools/list'):.0f}")
    return both


def main() -> None:
    """Measure and print; exit 1 over the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chats", type=int, default=300)
    parser.add_argument("--servers", type=int, default=30)
    parser.add_argument("--tools", type=int, default=20)
    parser.add_argument("--users", type=int, default=3)
    options = parser.parse_args()
    own = 19  # the counter's own tools
    servers = {f"list{n:02}": counter("--tools", options.tools - own) for n in range(options.servers)}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), servers) as gateway:
        for server in servers:
            gateway.grant("MCP-Lists", server)
        for server in servers:
            gateway.wait_for(lambda server=server: gateway.logged("link_ready", server=server), 60, server)
        tokens = [gateway.token(f"user{number}@example.com", "MCP-Lists") for number in range(options.users)]
        costs = [uvloop.run(measure(gateway, tokens, options, era)) for era in ERAS]
    sys.exit(max(costs) > LIMIT)


if __name__ == "__main__":
    main()
