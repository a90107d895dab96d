"""Small real MCP servers, and the sections that put them into a config file.

Each is a program of its own that a test starts as a child process (or mcpmux does): `counter.py` is fast and does
everything, `faulty.py` misbehaves in one way per mode, `conformance_server.py` speaks all three transports through
the official SDK.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
Section = dict[str, object]


def stdio(program: str, *arguments: str | Path | int, **more: object) -> Section:
    """The config section of one of these programs as a child; `more` are further keys of the section."""
    command = [sys.executable, str(HERE / f"{program}.py"), *map(str, arguments)]
    return {"transport": "stdio", "command": command, **more}


def counter(*arguments: str | int, **more: object) -> Section:
    """A section with the counter server."""
    return stdio("counter", *arguments, **more)


def faulty(mode: str, *arguments: str | Path | int, **more: object) -> Section:
    """A section with a server that misbehaves."""
    return stdio("faulty", mode, *arguments, **more)


@contextmanager
def listening(transport: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The conformance server on `http` or `sse`: its URL and its process, which is killed at the end."""
    command = [sys.executable, str(HERE / "conformance_server.py"), transport, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.kill()
