"""The address we listen on: bound before anything is started, listened on when all is there.

So a port that is in use is told at once, and a client that comes too early is refused rather than left waiting.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from mcpmux.config.schema import Listen
from mcpmux.errors import StartRefused


class Address:
    """Where we listen; see the module."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self.sockets: list[socket.socket] = []

    def take(self) -> None:
        """Bind. Raises: StartRefused."""
        with self.had():
            self.sockets = _bound(self._listen.host, self._listen.port)

    def leave(self) -> None:
        """Give it back; closing twice does no harm."""
        for one in self.sockets:
            one.close()

    @contextmanager
    def had(self) -> Iterator[None]:
        """What goes wrong with the address, as one clear line."""
        try:
            yield
        except OSError as error:
            problem = error.strerror or str(error)
            raise StartRefused(f"Cannot listen on {self._listen.host}:{self._listen.port}: {problem}") from error


def _bound(host: str, port: int) -> list[socket.socket]:
    """A socket for every address of `host`, on one port (0: a free one); none of them listens yet.

    Addresses that this machine does not have (IPv6 switched off) are left out if there are others.
    Raises: OSError (the name is unknown, the address taken or not ours).
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, _, (address, _, *scope) in dict.fromkeys(found):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError as exc:
                missing = exc
                continue
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((address, port, *scope))
            except OSError as exc:
                if exc.errno != errno.EADDRNOTAVAIL:
                    raise
                missing = exc
                made.pop().close()
                continue
            port = one.getsockname()[1]
        if not made:
            raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for one in made:
            one.close()
        raise
    return made
