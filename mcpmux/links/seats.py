"""Seats: what a link asks before it opens a call, and tells when the call has ended.

Two things stand behind it: a `Bulkhead`, whose link many calls share, and a `Loan`, whose link is lent to one.
"""

from __future__ import annotations

from typing import Protocol


class Seats(Protocol):
    """How many calls may be open on one link."""

    @property
    def lent(self) -> bool:
        """Whether the link is one call's alone, so that whatever the server says meanwhile belongs to that call."""

    @property
    def taken(self) -> int:
        """How many calls are open."""

    def take(self) -> None:
        """Take a seat. Raises: ServerBusy."""

    def give_back(self) -> None:
        """A call has ended."""
