"""What the server programs of a test were told (`tests/servers/testimony.py`), held against the official schemas.

What a client answered is its own: of an answer only the envelope is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.schemas import MODERN
from tests.schemas.wire import Wire, problems
from tests.servers.testimony import FOLDER

NEWEST = "2025-11-25"
REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", NEWEST)


def check_heard(folder: Path) -> None:
    """Fail unless all was right that any server program was told below this folder."""
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        _check(list(_lines(path)))


def _check(lines: list[tuple[str, object]]) -> None:
    spoken = [str(what) for kind, what in lines if kind == "speaks" and what in REVISIONS]
    wire = Wire(spoken[-1] if spoken else NEWEST, "Client")
    right: set[str] = set()
    for kind, what in lines:
        if kind == "heard" and (alike := _alike(what)) not in right:
            _check_modern(what) if _is_modern(what) else wire.sent(what)
            right.add(alike)


def _check_modern(message: object) -> None:
    if isinstance(message, dict) and str(message.get("method")).startswith("tasks/"):
        found = problems(MODERN, "JSONRPCRequest", message)  # the extension is not part of the schema
        assert not found, found
        return
    Wire(MODERN, "Client").sent(message)


def _lines(path: Path) -> Iterator[tuple[str, object]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the process may have been killed while it wrote
            kind, what = json.loads(line)
            yield kind, what


def _alike(message: object) -> str:
    """A message without what differs in each one of its kind."""
    if not isinstance(message, dict) or "method" not in message:
        return repr(message)
    return json.dumps(message).replace(str(message.get("id")), "0")


def _is_modern(message: object) -> bool:
    return isinstance(message, dict) and "io.modelcontextprotocol/protocolVersion" in json.dumps(message.get("params"))
