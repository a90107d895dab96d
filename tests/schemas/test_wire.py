"""`tests/schemas/wire.py`: what it lets pass, what it finds, and that it costs next to nothing."""

from __future__ import annotations

import time

import pytest

from tests.faces.client import greeting, notification, request
from tests.schemas.wire import Wire, _methods

REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
ALL = (*REVISIONS, "2026-07-28")
TOOL = {"name": "t", "inputSchema": {"type": "object"}}


def answer(result: object, id_: object = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_good_conversation_passes(revision: str) -> None:
    server, client = Wire(revision, "Server"), Wire(revision, "Client")
    for message in (
        request("initialize", greeting(revision), 0),
        notification("notifications/initialized"),
        request("tools/list"),
    ):
        client.sent(message)
        server.heard(message)
    info = {"name": "s", "version": "1"}
    server.sent(answer({"protocolVersion": revision, "capabilities": {}, "serverInfo": info}, 0))
    server.sent(answer({"tools": [TOOL]}))
    server.sent(notification("notifications/tools/list_changed"))
    server.sent({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}})
    server.sent(request("roots/list"))
    client.heard(request("roots/list"))
    client.sent(answer({"roots": []}))


@pytest.mark.parametrize("revision", ALL)
def test_every_method_has_its_definition(revision: str) -> None:
    assert "tools/call" in _methods(revision, "ClientRequest")
    assert "notifications/cancelled" in _methods(revision, "ClientNotification")
    assert "notifications/progress" in _methods(revision, "ServerNotification")


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("2025-11-25", answer({"tools": [{"name": "t"}]})),
        ("2025-11-25", answer({"tools": [TOOL]}, None)),
        ("2025-11-25", {"jsonrpc": "2.0", "id": None, "error": {"code": 1}}),
        ("2025-11-25", {"jsonrpc": "2.0", "id": 1, "error": {"code": "x", "message": "no"}}),
        ("2025-11-25", notification("notifications/message", {"level": "loud", "data": 1})),
        ("2024-11-05", request("elicitation/create", {"message": "?", "requestedSchema": {"type": "object"}})),
        ("2025-11-25", request("tools/list")),
        ("2026-07-28", answer({"tools": [TOOL]})),
        ("2026-07-28", request("roots/list")),
        ("2026-07-28", {"jsonrpc": "2.0", "id": 1, "error": {"code": -32022, "message": "no"}}),
        ("2025-11-25", "text"),
    ],
)
def test_what_is_wrong_is_found(revision: str, message: object) -> None:
    wire = Wire(revision, "Server")
    wire.heard(request("tools/list"))
    with pytest.raises(AssertionError, match="not as 20"):
        wire.sent(message)


def test_it_is_cheap_enough_to_call_for_every_message() -> None:
    wire = Wire("2025-11-25", "Server")
    wire.heard(request("tools/list"))
    wire.sent(answer({"tools": [TOOL]}))
    begun = time.process_time()
    for _ in range(100):
        wire.sent(answer({"tools": [TOOL]}))
    assert time.process_time() - begun < 1
