"""What a test sees of a server's side: the messages that `witness.py` wrote down, each as the schema has it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from mcpmux.protocol.methods import DISCOVER
from tests.schemas import MODERN
from tests.schemas.wire import Wire

WAIT = 5.0
Json = dict[str, object]
PROGRAM = Path(__file__).with_name("witness.py")


class Witness:
    """One server that remembers what it was told, on a folder of the test's.

    All that it was told must be right: what no test has looked at is looked at when its module is over, and once more
    in the end (`all_is_right()`, called by fixtures for all tests).
    """

    _all: ClassVar[list[Witness]] = []

    def __init__(self, name: str, folder: Path) -> None:
        self._all.append(self)
        self.name = name
        self.record = folder / f"{name}.record"
        self._wire = Wire("2025-11-25", "Client")
        self._probe = Wire(MODERN, "Client")  # before the server is known to be a legacy one
        self._checked = 0
        self._right: set[str] = set()  # messages that were found right, but for their ids

    @classmethod
    def all_is_right(cls) -> int:
        """Look at everything that any of them was told; how much that was until now."""
        for witness in cls._all:
            witness.heard()
        return sum(witness._checked for witness in cls._all)

    def section(self, *arguments: str | int, **more: object) -> dict[str, object]:
        """The config section that starts it."""
        command = [sys.executable, str(PROGRAM), "--name", self.name, "--record", str(self.record)]
        return {"transport": "stdio", "command": [*command, *map(str, arguments)], **more}

    def heard(self, method: str | None = None) -> list[Json]:
        """Every message so far, or those of one method."""
        if not self.record.exists():
            return []
        text = self.record.read_text()
        messages = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        for message in messages[self._checked :]:
            self._checked += 1
            if (alike := json.dumps({**message, "id": 0})) not in self._right or "method" not in message:
                (self._probe if message.get("method") == DISCOVER else self._wire).sent(message)
                self._right.add(alike)
        return [one for one in messages if method in (None, one.get("method"))]

    def tools(self, name: str) -> list[Json]:
        """The calls of one tool so far."""
        return [one for one in self.heard("tools/call") if params(one).get("name") == name]

    async def hears(self, method: str, matching: Callable[[Json], bool] = lambda _: True, count: int = 1) -> list[Json]:
        """Wait until so many messages of this method that match have come."""
        found: list[Json] = []

        def enough() -> bool:
            found[:] = [one for one in self.heard(method) if matching(one)]
            return len(found) >= count

        await until(enough, f"{count} x {method} at {self.name}")
        return found


def params(message: Json) -> Json:
    """The params of a message."""
    found = message.get("params")
    return found if isinstance(found, dict) else {}


async def until(happened: Callable[[], object], what: str, wait: float = WAIT) -> None:
    """Wait until this is true; bounded."""
    try:
        async with asyncio.timeout(wait):
            while not happened():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {wait} s") from None
