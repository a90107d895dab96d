"""What is not built yet, each with its reason: the matrix fails when one of these works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.matrix.run import Cell


@dataclass(frozen=True)
class Missing:
    """Some cells, and why they are as they are."""

    reason: str
    features: tuple[str, ...]
    where: Callable[[Cell], bool]


MISSING: tuple[Missing, ...] = ()


def reason_of(cell: Cell) -> str | None:
    """Why this cell need not work."""
    for one in MISSING:
        if cell.feature in one.features and one.where(cell):
            return one.reason
    return None
