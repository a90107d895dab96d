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
    """One column of the matrix; `revision` is empty if it is what mcpmux and the server agree on."""

    id: str
    name: str
    revision: str
    transport: str
    program: str = "everything"

    def command(self, wires: Path) -> list[str]:
        """What starts it; some note what is said in a folder."""
        command = [sys.executable, str(HERE / f"{self.program}.py"), self.transport]
        return [*command, self.revision, "--wires", str(wires)] if self.program == "everything" else command


def _plain(transport: str, name: str, revision: str) -> Upstream:
    return Upstream(f"{transport}-{revision}", name, revision, transport)


def _official(transport: str, name: str) -> Upstream:
    return Upstream(f"{transport}-official", name, "", transport, "official")


UPSTREAMS = (
    *(_plain("stdio", "stdio", revision) for revision in LEGACY),
    *(_plain("http", "Streamable HTTP", revision) for revision in LEGACY[1:]),
    _plain("sse", "HTTP+SSE", LEGACY[0]),
    _official("stdio", "Python SDK 2.x, stdio"),
    _official("http", "Python SDK 2.x, Streamable HTTP"),
    _official("sse", "Python SDK 2.x, HTTP+SSE"),
)


@contextmanager
def started(wires: Path) -> Iterator[dict[str, Section]]:
    """All of them, the ones over HTTP listening: the sections by id, a shared one and one for each session."""
    sections: dict[str, Section] = {}
    with ExitStack() as stack:
        for upstream in UPSTREAMS:
            command = upstream.command(wires)
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
