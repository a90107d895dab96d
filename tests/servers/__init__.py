"""Small real MCP servers, and the sections that put them into a config file.

Each is a program of its own that a test starts as a child process (or mcpmux does): `counter.py` is fast and does
everything, `faulty.py` misbehaves in one way per mode, `conformance_server.py` speaks all three transports through
the official SDK in the legacy eras, `conformance_modern.py` both eras or one of them, `modern_server.py` (with
`modern_http.py`) is a strict one of the modern era.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
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


def modern(*arguments: str | int, **more: object) -> Section:
    """A section with the server of the modern era, on pipes."""
    return stdio("modern_server", "stdio", *arguments, **more)


@contextmanager
def listening(
    transport: str, port: int = 0, program: str = "conformance_server", arguments: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on `http` or `sse`: its URL and its process, which is killed at the end."""
    command = [sys.executable, str(HERE / f"{program}.py"), transport, "--port", str(port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.kill()
