"""The load generator, a process of its own: so many sessions, each calling one tool after the other.

    python -m bench.load URL TOOL ARGUMENTS --connections 8 --seconds 3      (the token comes in BENCH_TOKEN)

Prints one JSON line: calls, seconds, errors and the latencies' percentiles in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

import uvloop

from bench.wire import Connection, Session

WARM_UP = 20  # calls of each session that do not count


async def caller(options: argparse.Namespace, start: asyncio.Barrier) -> tuple[list[float], int]:
    """One session's latencies in seconds, and its errors."""
    session = Session(options.url, os.environ.get("BENCH_TOKEN", ""))
    connection = await Connection.to(options.url)
    await session.initialize(connection)
    asked = {"name": options.tool, "arguments": json.loads(options.arguments)}
    request = session.post("tools/call", asked, id_=7)
    for _ in range(WARM_UP):
        await connection.send(request)
    await start.wait()
    latencies: list[float] = []
    errors = 0
    begun = before = time.perf_counter()
    while before - begun < options.seconds:
        answer = await connection.send(request)
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
        # A cheap look at the answer: parsing each one would cost the core that the server needs.
        if answer.status != 200 or b'"id":7' not in answer.body.replace(b" ", b"") or b'"text"' not in answer.body:
            errors += 1
    if options.delete:
        await connection.send(session.delete())
    connection.close()
    return latencies, errors


async def load(options: argparse.Namespace) -> dict[str, float]:
    """All sessions at once."""
    start = asyncio.Barrier(options.connections)
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        callers = [tasks.create_task(caller(options, start)) for _ in range(options.connections)]
    took = time.perf_counter() - begun
    latencies = sorted(one for task in callers for one in task.result()[0])
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    told = {name: round(latencies[int(share * (len(latencies) - 1))] * 1000, 3) for name, share in shares.items()}
    errors = sum(task.result()[1] for task in callers)
    all_calls = len(latencies) + WARM_UP * options.connections
    return {"calls": all_calls, "rate": len(latencies) / options.seconds, "took": took, "errors": errors, **told}


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("tool")
    parser.add_argument("arguments")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--delete", action="store_true", help="end the sessions")
    print(json.dumps(uvloop.run(load(parser.parse_args()))))


if __name__ == "__main__":
    main()
