"""The tables of the README, made of what a run of the matrix found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.matrix.clients import LEGACY
from tests.matrix.features import FEATURES
from tests.matrix.missing import MISSING, reason_of
from tests.matrix.run import Cell
from tests.matrix.servers import UPSTREAMS
from tests.schemas import MODERN

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- made by tests/matrix: begin -->", "<!-- made by tests/matrix: end -->"
PLACE = re.compile(f"{re.escape(BEGIN)}\n(.*){re.escape(END)}", re.DOTALL)
COMMAND = "REWRITE_README=1 .venv/bin/pytest tests/matrix"

Column = tuple[str, Callable[[Cell], bool]]


def tables(cells: list[Cell]) -> str:
    """Both of them, and the reasons for what is not built."""
    clients: list[Column] = [
        (f"client {revision}", lambda cell, revision=revision: cell.revision == revision)
        for revision in (*LEGACY, MODERN)
    ]
    found = {cell.upstream.id: cell.upstream for cell in cells}
    servers: list[Column] = [
        (f"{found[id_].name} {found[id_].revision}", lambda cell, id_=id_: cell.upstream.id == id_)
        for id_ in (upstream.id for upstream in UPSTREAMS)
    ]
    parts = [_table(cells, clients), _table(cells, servers)]
    if MISSING:
        parts.append("\n".join(f"{number}. {one.reason}" for number, one in enumerate(MISSING, 1)))
    return "\n\n".join(parts) + "\n"


def _table(cells: list[Cell], columns: list[Column]) -> str:
    rows = [
        [
            feature.name,
            *(_state(cell for cell in cells if cell.feature == feature.name and of(cell)) for _, of in columns),
        ]
        for feature in FEATURES
    ]
    lines = [["feature", *(name for name, _ in columns)], ["---"] * (len(columns) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _state(cells: Iterable[Cell]) -> str:
    existing = [cell for cell in cells if cell.exists]
    if not existing:
        return "–"
    reasons = {reason for cell in existing if (reason := reason_of(cell)) is not None}
    if not reasons:
        return "works"
    numbers = ", ".join(str(number) for number, one in enumerate(MISSING, 1) if one.reason in reasons)
    whole = all(reason_of(cell) is not None for cell in existing)
    return f"not built ({numbers})" if whole else f"works but for ({numbers})"


def shown() -> str:
    """What the README has now."""
    found = PLACE.search(README.read_text())
    assert found is not None, f"the README has no {BEGIN}"
    return found[1]


def rewrite(text: str) -> None:
    """Put the tables into the README."""
    README.write_text(PLACE.sub(lambda _: f"{BEGIN}\n{text}{END}", README.read_text()))
