"""mcpmux with shorter clocks: the real program, with some of its constants set before it begins.

What a person waits half a minute for is waited for a second here; nothing else is different.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.gateway_process import Gateway

_PROGRAM = """
import importlib, json, sys
for place, value in json.loads(sys.argv.pop(1)).items():
    module, _, name = place.rpartition(".")
    found = importlib.import_module(module)
    assert hasattr(found, name), place
    setattr(found, name, value)
from mcpmux.cli.main import main
sys.exit(main())
"""


class QuickGateway(Gateway):
    """A gateway whose `serve` runs with these constants; `mcpmux.faces.sessions.RESUME` is one's name."""

    def __init__(
        self, folder: Path, servers: Mapping[str, object], gateway: Mapping[str, object], clocks: Mapping[str, float]
    ) -> None:
        super().__init__(folder, servers, gateway)
        self.clocks = clocks

    def command(self, *arguments: str) -> list[str]:
        """The command line; only that of `serve` is special."""
        line = super().command(*arguments)
        return [sys.executable, "-c", _PROGRAM, json.dumps(self.clocks), *line[1:]] if "serve" in arguments else line


@contextmanager
def quick(
    folder: Path, servers: Mapping[str, object], clocks: Mapping[str, float], **gateway: object
) -> Iterator[Gateway]:
    """A ready mcpmux with these clocks; ended, and proven gone, on the way out."""
    folder.mkdir(parents=True, exist_ok=True)
    made = QuickGateway(folder, servers, gateway, clocks)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.end()
