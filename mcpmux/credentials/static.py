"""Credentials that stand in the config: revealed here, at the last moment, for one server only."""

from __future__ import annotations

from collections.abc import Mapping

from mcpmux.config.schema import Server
from mcpmux.seal import Secret


def headers(server: Server) -> dict[str, str]:
    """The configured headers of every HTTP request to `server`, in clear."""
    return _revealed(server.headers)


def environment(server: Server) -> dict[str, str]:
    """The configured variables of the server's child process, in clear."""
    return _revealed(server.env)


def secrets(server: Server) -> tuple[Secret, ...]:
    """Everything that must never be shown of what `server` may repeat after us."""
    return (*server.env.values(), *server.headers.values())


def _revealed(values: Mapping[str, Secret]) -> dict[str, str]:
    return {name: secret.reveal() for name, secret in values.items()}
