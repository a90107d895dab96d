"""The servers of the matrix: each with its revision and transport, started, and as sections of a config file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.clients import LEGACY
from tests.servers import Section

HERE = Path(__file__).parent
OWN = "-own"  # the id of the same server with a link for each session


@dataclass(frozen=True)
class Upstream:
    """One column of the matrix."""

    id: str
    name: str
    revision: str
    transport: str

    @property
    def command(self) -> list[str]:
        """What starts it."""
        return [sys.executable, str(HERE / "everything.py"), self.transport, self.revision]


def _plain(transport: str, name: str, revision: str) -> Upstream:
    return Upstream(f"{transport}-{revision}", name, revision, transport)


UPSTREAMS = (
    *(_plain("stdio", "stdio", revision) for revision in LEGACY),
    *(_plain("http", "Streamable HTTP", revision) for revision in LEGACY[1:]),
    _plain("sse", "HTTP+SSE", LEGACY[0]),
)


@contextmanager
def started(wires: Path) -> Iterator[dict[str, Section]]:
    """All of them, the ones over HTTP listening: the sections by id, a shared one and one for each session."""
    sections: dict[str, Section] = {}
    with ExitStack() as stack:
        for upstream in UPSTREAMS:
            command = [*upstream.command, "--wires", str(wires)]
            section: Section = {"transport": upstream.transport, "timeout": "20s"}
            if upstream.transport == "stdio":
                section["command"] = command
            else:
                section["url"] = stack.enter_context(_listening(command))
            sections[upstream.id] = section
            sections[upstream.id + OWN] = {**section, "isolation": "session", "max_links": 256}
        yield sections


@contextmanager
def _listening(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.kill()
