"""Refusals: the answers to what never became a call, one way for all faces, each with its log line and its metric."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from mcpmux.errors import MuxError
from mcpmux.faces.entry import RETRY_AFTER, Entry
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, faults
from mcpmux.protocol.events import Failure


def refused(entry: Entry, error: MuxError) -> Failure:
    """What the client of a message that never became a call is told; the log has its line."""
    logger("faces").info(
        "message_refused", reason=error.reason, principal=entry.principal.label, request_id=entry.request_id
    )
    return faults.failure(error, entry.request_id)


def refused_wire(entry: Entry, error: MuxError, request_id: int | str | None) -> bytes:
    """The same as the wire of a legacy answer."""
    return failure_wire(request_id, refused(entry, error))


def failure_wire(request_id: int | str | None, failed: Failure) -> bytes:
    """The wire of an error answer."""
    return envelope.error(request_id, failed.code, failed.message, failed.data)


def refusal(entry: Entry, wire: bytes, status: int, metrics: Metrics) -> web.StreamResponse:
    """The response to one request that never became a call."""
    if status != 200:
        metrics.http_refused(status)
    later = {"Retry-After": RETRY_AFTER} if status in (429, 503) else None
    return entry.answer(wire, status, later)


def plainly(
    request: web.BaseRequest, status: int, request_id: str, headers: Mapping[str, str], metrics: Metrics
) -> web.Response:
    """The answer to what no MCP client sends: a path (404) or a method (405) that is not there."""
    metrics.http_refused(status)
    reason = "no_path" if status == 404 else "no_method"
    logger("faces").info("request_refused", status=status, reason=reason, method=request.method, request_id=request_id)
    text = {404: "Not Found\n", 405: "Method Not Allowed\n"}[status]
    return web.Response(status=status, text=text, headers=headers)
