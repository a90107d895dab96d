"""Seventy real links at once: start, memory, a full list, and the first chat after a cold start.

    python -m bench.seventy [--links 70]

The servers are in `seventy.json`: from the catalog, without credentials, the light ones, installed beforehand; each
runs in as many configurations as it takes to reach the number. The children need about 75 MB each.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop

from bench.installed import install
from bench.lists import chat
from tests.gateway_process import Gateway, prepared

MEMORY = 150e6  # bytes of mcpmux itself: the goal of issue 3
FIRST_CHAT = 2.0  # seconds until the first chat has its whole list: likewise
READY = 600.0  # seconds that seventy starts may take on two cores


def sections(links: int, folder: Path) -> dict[str, object]:
    """So many config sections: every server once, then every server again, each with a folder of its own."""
    commands = install(json.loads(Path(__file__).with_name("seventy.json").read_text()))
    made: dict[str, object] = {}
    for number in range(links):
        server = list(commands)[number % len(commands)]
        place = folder / "work" / f"{server}-{number}"
        place.mkdir(parents=True)
        # The git server wants a repository where it runs; the others don't mind one.
        subprocess.run(["git", "init", "--quiet", place], check=True)
        command = [word.replace("{folder}", str(place)) for word in commands[server]]
        id_ = f"{server[:18]}-{number // len(commands)}"
        made[id_] = {"transport": "stdio", "command": command, "cwd": str(place), "timeout": "60s"}
    return made


def settled(gateway: Gateway) -> bool:
    """Whether every server is ready or has failed for good."""
    return all(server["state"] in ("ready", "failed") for server in gateway.status().values())


def wait_until_settled(gateway: Gateway, begun: float) -> None:
    """Wait for the links; print when the last one was ready and which are not."""
    gateway.wait_for(functools.partial(settled, gateway), READY, "all links")
    states = gateway.status()
    ready = [server for server, told in states.items() if told["state"] == "ready"]
    print(f"{len(ready)} of {len(states)} links ready after {time.monotonic() - begun:.1f} s")
    for server in states.keys() - ready:
        print(f"  not ready: {server}: {states[server].get('reason')}")


def children_memory(gateway: Gateway) -> float:
    """Resident bytes of everything below mcpmux."""
    assert gateway.process is not None
    below = psutil.Process(gateway.process.pid).children(recursive=True)
    return sum(one.memory_info().rss for one in below if one.is_running())


def listed(gateway: Gateway, token: str) -> int:
    """One chat; prints what its list took. The number of tools."""
    took, tools, size = uvloop.run(chat(f"{gateway.url}/mcp", token, "modern", wants_list=True))
    print(f"  a chat with the full list: {tools} tools, {size / 1e6:.2f} MB, {took * 1000:.0f} ms")
    return tools


def measure(gateway: Gateway) -> bool:
    """Both starts, told line by line; whether the goals are met."""
    begun = time.monotonic()
    print(f"first start: accepting requests after {gateway.start():.1f} s")
    token = gateway.token("ana@example.com", "MCP-Admin")
    wait_until_settled(gateway, begun)
    tools = listed(gateway, token)
    tools = max(tools, listed(gateway, token))
    memory = gateway.memory()
    print(f"  mcpmux itself: {memory / 1e6:.0f} MB; all its children: {children_memory(gateway) / 1e9:.1f} GB")
    begun = time.monotonic()
    gateway.end()
    print(f"ended, nothing left, after {time.monotonic() - begun:.1f} s")
    begun = time.monotonic()
    print(f"cold start: accepting requests after {gateway.start():.1f} s")
    took, seen, _ = uvloop.run(chat(f"{gateway.url}/mcp", token, "modern", wants_list=True))
    print(f"  first chat after the cold start: {seen} of {tools} tools after {took * 1000:.0f} ms")
    wait_until_settled(gateway, begun)
    listed(gateway, token)
    later = gateway.memory()
    print(f"  mcpmux itself: {later / 1e6:.0f} MB")
    return max(memory, later) < MEMORY and took < FIRST_CHAT and seen == tools


def main() -> None:
    """Measure and print; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--links", type=int, default=70)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers = sections(options.links, folder)
        with prepared(folder / "gateway", servers) as gateway:
            good = measure(gateway)
    sys.exit(not good)


if __name__ == "__main__":
    main()
