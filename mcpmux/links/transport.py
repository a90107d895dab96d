"""Transport: what carries the messages of one link: pipes, Streamable HTTP, HTTP+SSE."""

from __future__ import annotations

from typing import Protocol

from mcpmux.protocol.upstream.received import Headers


class Transport(Protocol):
    """What carries the messages of one link. Everything it reads goes to `Link.receive()`, its end to `Link.end()`."""

    @property
    def pid(self) -> int | None:
        """The child process, if there is one."""

    @property
    def congested(self) -> bool:
        """Whether so much waits to be sent that no new call may be added."""

    def send(self, wire: bytes, request: int | None, headers: Headers | None = None) -> None:
        """Send soon, in order, without waiting. `request`: the id, when an answer is expected."""

    async def confirm(self, wire: bytes, revision: str) -> None:
        """Send `notifications/initialized`; on return other messages may follow. Raises: LinkFailed."""

    def forget(self, request: int) -> None:
        """Nobody waits for the answer to `request` any more."""

    def describe(self, problem: str) -> str:
        """After the end: `problem` with what is known besides, safe for the log and `status`."""
