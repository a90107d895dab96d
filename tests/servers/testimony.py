"""What a server program was told, written down for the test that started mcpmux; one file for each process.

The files are in the folder `heard` below `TMPDIR`, which mcpmux passes on to its children, and which is the test's own;
where there is no such folder nothing is written. A line is `["heard", message]` or, when the server has said in which
revision, `["speaks", revision]`. `tests/schemas/heard.py` reads them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

FOLDER = "heard"


class Testimony:
    """The file of this process."""

    def __init__(self) -> None:
        folder = Path(os.environ.get("TMPDIR", os.devnull)) / FOLDER
        self._path = folder / f"{os.getpid()}.jsonl" if folder.is_dir() else None
        self._file: TextIO | None = None

    def heard(self, message: object) -> None:
        """A message came."""
        self._note("heard", message)

    def said(self, message: dict[str, object]) -> None:
        """A message went out."""
        result = message.get("result")
        if isinstance(result, dict) and "serverInfo" in result:
            self._note("speaks", result.get("protocolVersion"))

    def _note(self, kind: str, what: object) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("a", buffering=1)
        self._file.write(json.dumps([kind, what]) + "\n")
