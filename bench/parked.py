"""What calls cost whose clients are away to answer a question, up to the bounds: 256 for each person, 4096 in all.

    python -m bench.parked [--people 17] [--each 256]

A server of 2025-11-25 over Streamable HTTP asks in each call, and clients of 2026-07-28 make each request on a
connection of its own. Everybody calls as often as may wait for one person, and once more; who comes when as many wait
as may in all is told so too. Then one person after the other comes back, and each call must end with its own answer.
At last they are asked again and lose their grants. Nothing may be left, here or at the server.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.wire import Connection, Session
from mcpmux.calls.inputs import IN_TOTAL, PER_PRINCIPAL
from tests.gateway_process import Gateway, running

LIMIT = 40_000  # bytes of memory of a call that is left
AT_ONCE = 64  # requests
PROBES = 200
ABLE = {"elicitation": {}}
Asked = dict[str, object]


@dataclass
class Person:
    """One person and what they are asked; each of their calls has a number among its arguments."""

    session: Session
    left: dict[int, Asked] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    async def calls(self, numbers: range) -> None:
        """Call so often, some at a time."""
        waiting = iter(numbers)

        async def some() -> None:
            for number in waiting:
                result = await self._request(number, {})
                if result["resultType"] == "input_required":
                    self.left[number] = result
                else:
                    self.refused.append(_text(result))

        await _together(some)

    async def comes_back(self) -> None:
        """Answer everything; each call must have its own answer."""
        waiting = iter(list(self.left))

        async def some() -> None:
            for number in waiting:
                asked = self.left.pop(number)
                requests = asked["inputRequests"]
                assert isinstance(requests, dict)
                answer = {"action": "accept", "content": {"sure": True, "number": number}}
                again = {"inputResponses": dict.fromkeys(requests, answer), "requestState": asked["requestState"]}
                said = _text(await self._request(number, again))
                assert f'"number":{number}}}' in said, said

        await _together(some)

    async def _request(self, number: int, more: Asked) -> Asked:
        connection = await Connection.to(self.session.url)
        params = {"name": "asker__ask", "arguments": {"number": number}, **more}
        answer = await connection.send(self.session.ask("tools/call", params, "asker__ask", ABLE))
        connection.close()
        result = answer.message()["result"]
        assert isinstance(result, dict), answer
        return result


async def _together(some: object) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(some())  # type: ignore[operator]


def _text(result: Asked) -> str:
    content = result["content"]
    assert isinstance(content, list)
    return str(content[0]["text"])


@contextmanager
def asker() -> Iterator[str]:
    """The server that asks; its URL."""
    with subprocess.Popen([sys.executable, "-m", "bench.asker"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        finally:
            process.kill()


async def echo(person: Person) -> float:
    """The median duration of another call, in seconds."""
    connection = await Connection.to(person.session.url)
    took = []
    for _ in range(PROBES):
        begun = time.perf_counter()
        params = {"name": "asker__echo", "arguments": {}}
        answer = await connection.send(person.session.ask("tools/call", params, "asker__echo"))
        took.append(time.perf_counter() - begun)
        assert _text(dict(answer.message()["result"])) == "echo"  # type: ignore[call-overload]
    connection.close()
    return statistics.median(took)


async def left(gateway: Gateway, count: int) -> None:
    """Wait until so many calls are left and nothing else is at work."""
    for name, value in (("mcpmux_calls_parked", count), ("mcpmux_calls_in_flight", 0), ("mcpmux_streams", 0)):
        await gateway.soon(lambda name=name, value=value: gateway.metric(name) == value, 60, name)  # type: ignore[misc]


async def measure(gateway: Gateway, people: list[Person], each: int) -> float:
    """Print what they cost; bytes of memory of each."""
    may = min(each, PER_PRINCIPAL)
    await people[0].calls(range(may))
    await people[0].comes_back()
    people[0].refused.clear()
    quick, before, cpu, begun = await echo(people[0]), gateway.memory(), gateway.cpu(), time.perf_counter()
    for person in people:
        await person.calls(range(each + 1))
    took, used = time.perf_counter() - begun, gateway.cpu() - cpu
    many = sum(len(person.left) for person in people)
    asked = len(people) * (each + 1)
    grown = (gateway.memory() - before) / many
    assert many == min(IN_TOTAL, len(people) * min(each + 1, PER_PRINCIPAL)), many
    assert all("Too many requests wait" in text for person in people for text in person.refused)
    await left(gateway, many)
    print(f"{asked} calls of {len(people)} people: {many} are left, {asked - many} were told that too many wait")
    print(f"each that is left: {used / asked * 1e3:.2f} ms of CPU, {grown / 1000:.1f} kB; {asked / took:.0f} a second")
    slow = await echo(people[0])
    print(f"another call meanwhile takes {slow * 1e3:.2f} ms, before it took {quick * 1e3:.2f} ms")
    cpu, begun = gateway.cpu(), time.perf_counter()
    for person in people:
        await person.comes_back()
    took, used = time.perf_counter() - begun, gateway.cpu() - cpu
    await left(gateway, 0)
    print(f"each that comes back: {used / many * 1e3:.2f} ms of CPU; {many / took:.0f} a second; mcpmux has "
          f"{gateway.memory() / 1e6:.0f} MB, before {before / 1e6:.0f} MB")  # fmt: skip
    await revoked(gateway, people, may)
    return grown


async def revoked(gateway: Gateway, people: list[Person], each: int) -> None:
    """Everybody is asked again, and then nobody may be any more."""
    for person in people:
        await person.calls(range(each))
    many = sum(len(person.left) for person in people)
    await left(gateway, many)
    begun = time.perf_counter()
    await asyncio.to_thread(gateway.revoke, "MCP-Asked", "asker")
    await left(gateway, 0)
    print(f"{many} calls were cancelled {time.perf_counter() - begun:.1f} s after their grant was taken away")
    assert gateway.metric("mcpmux_asks_total", outcome="void") == many


def main() -> None:
    """Measure and print; exit 1 over the goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=17)
    parser.add_argument("--each", type=int, default=PER_PRINCIPAL)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory() as folder, asker() as url:
        section = {"transport": "http", "url": url, "concurrency": 2 * IN_TOTAL}
        with running(Path(folder), {"asker": section}) as gateway:
            gateway.grant("MCP-Asked", "asker")
            gateway.wait_for(lambda: gateway.logged("link_ready", server="asker"), 20, "the server")
            tokens = [gateway.token(f"user{number}@example.com", "MCP-Asked") for number in range(options.people)]
            people = [Person(Session(f"{gateway.url}/mcp", token)) for token in tokens]
            grown = uvloop.run(measure(gateway, people, options.each))
    sys.exit(grown > LIMIT)


if __name__ == "__main__":
    main()
