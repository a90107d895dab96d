"""Whose link a call goes through, and what is revealed to a server."""

from __future__ import annotations

import pytest

from mcpmux.config.schema import Server
from mcpmux.credentials import LinkKey, link_key, static
from mcpmux.errors import ServerUnavailable
from mcpmux.seal import Secret


def test_all_callers_of_a_shared_server_share_one_link() -> None:
    server = Server(id="github")
    assert link_key(server, "ana", "session-1") == link_key(server, "ben", "") == LinkKey("github")


def test_all_callers_of_a_pooled_server_share_its_links() -> None:
    server = Server(id="github", isolation="pooled")
    assert link_key(server, "ana", "session-1") == link_key(server, "ben", "") == LinkKey("github")


def test_each_session_has_a_link_of_its_own_whoever_the_caller_is() -> None:
    server = Server(id="browser", isolation="session")
    assert link_key(server, "ana", "session-1") == link_key(server, "ana", "session-1")
    assert link_key(server, "ana", "session-1") == LinkKey("browser", "session-1")
    assert link_key(server, "ana", "session-1") != link_key(server, "ana", "session-2")


def test_nobody_without_a_session_ends_up_on_the_link_that_lists() -> None:
    with pytest.raises(ServerUnavailable):
        link_key(Server(id="browser", isolation="session"), "ana", "")


@pytest.mark.parametrize("isolation", ["tenant", "user"])
def test_an_isolation_that_is_not_built_never_shares_a_link(isolation: str) -> None:
    server = Server(id="github", isolation=isolation)  # type: ignore[arg-type]
    with pytest.raises(ServerUnavailable):
        link_key(server, "ana", "session-1")


def test_a_server_is_shown_its_own_credentials_in_clear() -> None:
    server = Server(id="github", env={"TOKEN": Secret("s3cret-1")}, headers={"X-Key": Secret("s3cret-2")})
    assert static.environment(server) == {"TOKEN": "s3cret-1"}
    assert static.headers(server) == {"X-Key": "s3cret-2"}
    assert [secret.reveal() for secret in static.secrets(server)] == ["s3cret-1", "s3cret-2"]
