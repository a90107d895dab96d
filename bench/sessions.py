"""What an idle session costs: so many, each with an open GET stream and a token of 12 kB.

    python -m bench.sessions [--sessions 1000] [--users 20]

Every user has a token with 200 groups (12 kB). The first batch warms up what all share; the growth of mcpmux's own
resident memory over the others is divided by their number. Afterwards all streams close, all sessions are deleted,
and none may be left.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from bench.wire import Connection, Session
from tests.gateway_process import Gateway, running
from tests.servers import counter

TOKEN = 12_000  # bytes
LIMIT = 60_000  # bytes of memory a session: the goal of issue 3
WARM_UP = 200  # sessions


def long_token(gateway: Gateway, number: int) -> str:
    """A token as somebody with 200 groups has it."""
    groups = [f"MCP-Some-Department-With-A-Long-Name-{number:02}-{group:03}" for group in range(199)]
    token = gateway.token(f"user{number}@example.com", "MCP-Idle", *groups)
    assert len(token) >= TOKEN, f"only {len(token)} bytes"
    return token


async def opened(url: str, token: str) -> tuple[Session, Connection]:
    """One session: greeted on one connection, which closes, streaming on another."""
    session = Session(url, token)
    greeting = await Connection.to(url)
    await session.initialize(greeting)
    greeting.close()
    stream = await Connection.to(url)
    head = await stream.open_stream(session.get())
    assert head.status == 200, f"GET answered {head.status}"
    return session, stream


async def measure(gateway: Gateway, tokens: list[str], sessions: int) -> float:
    """Bytes of memory per session."""
    url = f"{gateway.url}/mcp"
    held: list[tuple[Session, Connection]] = []

    async def more(count: int) -> None:
        # Twenty at a time, as people come: a thousand at once would measure the peak of the greetings.
        for begin in range(0, count, 20):
            async with asyncio.TaskGroup() as tasks:
                made = [
                    tasks.create_task(opened(url, tokens[(begin + n) % len(tokens)]))
                    for n in range(min(20, count - begin))
                ]
            held.extend(task.result() for task in made)

    await more(WARM_UP)
    before = gateway.memory()
    await more(sessions)
    await asyncio.sleep(1.0)  # Whatever mcpmux tidies up after a greeting is not part of an idle session.
    grown = gateway.memory() - before
    counted = gateway.metric("mcpmux_sessions")
    assert counted == sessions + WARM_UP, f"mcpmux counts {counted} sessions"
    ending = await Connection.to(url)
    for session, stream in held:
        stream.close()
        gone = await ending.send(session.delete())
        assert gone.status in (200, 202, 204), f"DELETE answered {gone.status}"
    await gateway.soon(lambda: gateway.metric("mcpmux_sessions") == 0, what="the end of every session")
    await gateway.soon(lambda: gateway.metric("mcpmux_streams") == 0, what="the end of every stream")
    return grown / sessions


def main() -> None:
    """Measure and print; exit 1 over the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--users", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), {"idle": counter()}) as gateway:
        gateway.grant("MCP-Idle", "idle")
        tokens = [long_token(gateway, number) for number in range(options.users)]
        each = uvloop.run(measure(gateway, tokens, options.sessions))
        size = len(tokens[0])
        print(f"{options.sessions} idle sessions with an open stream, {options.users} users, tokens of {size} bytes")
        print(f"{each / 1000:.1f} kB each (goal: under {LIMIT / 1000:.0f}); mcpmux has {gateway.memory() / 1e6:.0f} MB")
    sys.exit(each > LIMIT)


if __name__ == "__main__":
    main()
