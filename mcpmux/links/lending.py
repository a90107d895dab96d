"""Lending: the links of one pooled server, each lent to one call at a time, and the line of those who wait for one.

A link that is free goes to whoever has waited longest, and nobody is overtaken: while somebody waits, `ready()` gives
nothing. What is given is kept for that call until it runs, which takes it before it awaits anything else. Of several
free links the one that has rested longest is lent: should its server have said its last word on a call too late, it
has been said before the next call is there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from mcpmux.errors import ServerBusy
from mcpmux.links.link import Link
from mcpmux.links.supervisor import Supervisor


class Loan:
    """The one seat of one pooled link; it stays when the link is replaced."""

    __slots__ = ("_desk", "kept", "lent", "rested", "supervisor", "taken")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.supervisor: Supervisor | None = None
        self.lent: Final = True
        self.taken = 0
        self.kept = False  # for somebody who is about to wake
        self.rested = 0.0  # since when, in loop time

    @property
    def link(self) -> Link | None:
        """The link, if calls may be opened on it."""
        return None if self.supervisor is None else self.supervisor.ready

    @property
    def free(self) -> bool:
        """Whether the link can be lent now."""
        return not self.taken and not self.kept and self.link is not None

    def take(self) -> None:
        """A call opens. Raises: ServerBusy."""
        if self.taken:
            raise ServerBusy(self._desk.server)
        self.taken = 1

    def give_back(self) -> None:
        """The call has ended, and its server is done with it."""
        self.taken = 0
        self.rested = asyncio.get_running_loop().time()
        self._desk.look()


class _Waiting:
    """One who waits, for any link or for the one of a certain scope."""

    __slots__ = ("given", "scope")

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.given: asyncio.Future[Loan | None] = asyncio.get_running_loop().create_future()


class Desk:
    """Where links are lent; see the module."""

    __slots__ = ("_line", "_loans", "server")

    def __init__(self, server: str) -> None:
        self.server = server
        self._loans: list[Loan] = []
        self._line: deque[_Waiting] = deque()

    @property
    def taken(self) -> int:
        """How many links are with a call."""
        return sum(loan.taken for loan in self._loans)

    def loan(self) -> Loan:
        """The seat of one more link."""
        loan = Loan(self)
        self._loans.append(loan)
        return loan

    def ready(self, scope: str) -> Link | None:
        """A link that can be had without waiting; `scope` empty: any."""
        loan = None if self._line else self._free(scope)
        return None if loan is None else loan.link

    async def lend(self, scope: str, until: float) -> Link | None:
        """The next free link, until loop time `until`; None: something is different, look again.

        Raises: ServerBusy.
        """
        waiting = _Waiting(scope)
        self._line.append(waiting)
        self.look()
        try:
            async with asyncio.timeout_at(until):
                loan = await waiting.given
        except TimeoutError:
            raise ServerBusy(self.server) from None
        finally:
            self._leave(waiting)
        return None if loan is None else loan.link

    def relieves(self, scope: str, link: Link) -> bool:
        """Whether one who waits for any link, or for the one of `scope`, can be lent `link` when it comes back."""
        return self._free(scope) is None and any(
            loan.taken and loan.link is link and (not scope or scope == _scope(loan)) for loan in self._loans
        )

    def look(self) -> None:
        """Give what is free to those who wait."""
        for waiting in tuple(self._line):
            loan = self._free(waiting.scope)
            if loan is None:
                if not waiting.scope:
                    return
                continue
            self._line.remove(waiting)
            if not waiting.given.done():
                loan.kept = True
                waiting.given.set_result(loan)

    def scatter(self) -> None:
        """Let everybody look again who waits."""
        while self._line:
            waiting = self._line.popleft()
            if not waiting.given.done():
                waiting.given.set_result(None)

    def _free(self, scope: str) -> Loan | None:
        free = [loan for loan in self._loans if loan.free and (not scope or scope == _scope(loan))]
        return min(free, key=lambda loan: loan.rested) if free else None

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._line:
            self._line.remove(waiting)
            return
        given = waiting.given
        loan = given.result() if given.done() and not given.cancelled() else None
        if loan is not None:
            loan.kept = False
            # Later: the caller takes it first; if it does not, the next one gets it.
            asyncio.get_running_loop().call_soon(self.look)


def _scope(loan: Loan) -> str:
    return "" if loan.supervisor is None else loan.supervisor.key.scope
