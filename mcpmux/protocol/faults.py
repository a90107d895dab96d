"""THE mapping from an exception of ours to what a client gets: JSON-RPC code and HTTP status.

Every class of `errors.py` has a row, its own or its parent's (a test walks the tree). Texts are the exceptions'
own; the unforeseen becomes "Internal error" and the request id, so that a person can name it to those who read the
log.
Source: JSON-RPC 2.0 section 5.1; MCP server/tools, server/resources (error handling), basic/transports.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw, Struct

from mcpmux import errors
from mcpmux.protocol.envelope import encode
from mcpmux.protocol.events import End, Failure, Result

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
RESOURCE_NOT_FOUND: Final = -32002
SERVER_ERROR: Final = -32000
HEADER_MISMATCH: Final = -32020


class Fault(Struct, frozen=True):
    """What one class of exception becomes.

    `status` is the HTTP status where the exception ends the whole HTTP request; inside a session an answer to a request
    is HTTP 200 with the error in it. `traced`: the request id goes along, because ops can find more under it.
    """

    code: int
    status: int
    traced: bool = False


_ROWS: Final[dict[type[Exception], Fault]] = {
    Exception: Fault(INTERNAL_ERROR, 500, traced=True),
    errors.MuxError: Fault(INTERNAL_ERROR, 500, traced=True),
    errors.MalformedMessage: Fault(PARSE_ERROR, 400),
    errors.InvalidRequest: Fault(INVALID_REQUEST, 400),
    errors.MethodUnknown: Fault(METHOD_NOT_FOUND, 200),
    errors.InvalidParams: Fault(INVALID_PARAMS, 200),
    errors.RevisionUnsupported: Fault(INVALID_REQUEST, 400),
    errors.ModernEraNotSpoken: Fault(METHOD_NOT_FOUND, 400),
    errors.HeaderMismatch: Fault(HEADER_MISMATCH, 400),
    errors.NotInitialized: Fault(INVALID_REQUEST, 400),
    errors.ToolUnknown: Fault(INVALID_PARAMS, 200),
    errors.PromptUnknown: Fault(INVALID_PARAMS, 200),
    errors.ResourceUnknown: Fault(RESOURCE_NOT_FOUND, 200),
    errors.CursorInvalid: Fault(INVALID_PARAMS, 200),
    errors.SealBroken: Fault(INVALID_PARAMS, 200),
    errors.EndpointForbidden: Fault(SERVER_ERROR, 403),
    errors.UpstreamError: Fault(INTERNAL_ERROR, 200, traced=True),
    errors.CallCancelled: Fault(SERVER_ERROR, 200),
    errors.TokenMissing: Fault(SERVER_ERROR, 401),
    errors.TokenRefused: Fault(SERVER_ERROR, 401),
    errors.AuthorizationMalformed: Fault(INVALID_REQUEST, 400),
    errors.SessionUnknown: Fault(SERVER_ERROR, 404),
    errors.SessionsExhausted: Fault(SERVER_ERROR, 429),
    errors.Draining: Fault(SERVER_ERROR, 503),
    errors.HttpRefused: Fault(SERVER_ERROR, 400),
    errors.StoreUnavailable: Fault(INTERNAL_ERROR, 503, traced=True),
}


def fault(error: BaseException) -> Fault:
    """The row of this exception's class, or of the nearest parent that has one."""
    if isinstance(error, errors.HttpRefused):
        return Fault(SERVER_ERROR, error.status)
    return next(_ROWS[kind] for kind in type(error).__mro__ if kind in _ROWS)


def failure(error: BaseException, request_id: str) -> Failure:
    """What the client reads: the exception's own safe text, or "Internal error" for whatever nobody foresaw."""
    row = fault(error)
    text = str(error) if isinstance(error, errors.MuxError) and type(error) is not errors.MuxError else "Internal error"
    data: dict[str, str] = {}
    if isinstance(error, errors.ResourceUnknown):
        data["uri"] = error.uri
    if row.traced:
        data["request_id"] = request_id
    return Failure(row.code, text, Raw(encode(data)) if data else None)


def ended(error: BaseException, method: str, request_id: str) -> End:
    """How a call that failed ends: for `tools/call` a result that a person and a model can read, when it is the
    server's fault; the JSON-RPC error otherwise.
    """
    if method != "tools/call" or not isinstance(error, errors.UpstreamError):
        return failure(error, request_id)
    text = f"{error} (request {request_id})"
    return Result(Raw(encode({"content": [{"type": "text", "text": text}], "isError": True})))
