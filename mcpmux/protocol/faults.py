"""THE mapping from an exception of ours to what a client gets: JSON-RPC code and HTTP status.

Every class of `errors.py` has a row, its own or its parent's (a test walks the tree). Texts are the exceptions'
own; the unforeseen becomes "Internal error" and the request id, so that a person can name it to those who read the
log.

The eras differ in little, and all of it is here: `modern` gives an error the code that it has in the modern era, and
`modern_status` the HTTP status, which there belongs to the code.

Source: JSON-RPC 2.0 section 5.1; MCP server/tools, server/resources (error handling), basic/transports; 2026-07-28
basic/index ("Error Codes"), basic/transports/streamable-http.
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
URL_REQUIRED: Final = -32042
SERVER_ERROR: Final = -32000
HEADER_MISMATCH: Final = -32020
CAPABILITY_MISSING: Final = -32021
VERSION_UNSUPPORTED: Final = -32022


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
    errors.MetaInvalid: Fault(INVALID_PARAMS, 400),
    errors.VersionUnsupported: Fault(VERSION_UNSUPPORTED, 400),
    errors.CapabilityMissing: Fault(CAPABILITY_MISSING, 400),
    errors.HeaderMismatch: Fault(HEADER_MISMATCH, 400),
    errors.NotInitialized: Fault(INVALID_REQUEST, 400),
    errors.ToolUnknown: Fault(INVALID_PARAMS, 200),
    errors.PromptUnknown: Fault(INVALID_PARAMS, 200),
    errors.ResourceUnknown: Fault(RESOURCE_NOT_FOUND, 200),
    errors.TaskUnknown: Fault(INVALID_PARAMS, 200),
    errors.TasksExhausted: Fault(SERVER_ERROR, 200),
    errors.CursorInvalid: Fault(INVALID_PARAMS, 200),
    errors.SealBroken: Fault(INVALID_PARAMS, 200),
    errors.StateRefused: Fault(INVALID_PARAMS, 200),
    errors.EndpointForbidden: Fault(SERVER_ERROR, 403),
    errors.UpstreamError: Fault(INTERNAL_ERROR, 200, traced=True),
    errors.CallCancelled: Fault(SERVER_ERROR, 200),
    errors.TokenMissing: Fault(SERVER_ERROR, 401),
    errors.TokenRefused: Fault(SERVER_ERROR, 401),
    errors.AuthorizationMalformed: Fault(INVALID_REQUEST, 400),
    errors.SessionUnknown: Fault(SERVER_ERROR, 404),
    errors.SessionsExhausted: Fault(SERVER_ERROR, 429),
    errors.ListensExhausted: Fault(SERVER_ERROR, 429),
    errors.Draining: Fault(SERVER_ERROR, 503),
    errors.HttpRefused: Fault(SERVER_ERROR, 400),
    errors.StoreUnavailable: Fault(INTERNAL_ERROR, 503, traced=True),
}

# Codes that the modern era took away, and those that it keeps for later: a server of an older era may use them.
_RENAMED: Final = {RESOURCE_NOT_FOUND: INVALID_PARAMS, URL_REQUIRED: INTERNAL_ERROR}
_RESERVED: Final = range(-32099, VERSION_UNSUPPORTED)

# -32602 has two: 400 where the request is malformed (its row says so), 200 where what it names is not there.
_MODERN_STATUS: Final = {
    METHOD_NOT_FOUND: 404,
    HEADER_MISMATCH: 400,
    CAPABILITY_MISSING: 400,
    VERSION_UNSUPPORTED: 400,
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
    data = _data(error)
    if row.traced:
        data["request_id"] = request_id
    return Failure(row.code, text, Raw(encode(data)) if data else None)


def modern(failed: Failure) -> Failure:
    """This error as the modern era has it."""
    code = _RENAMED.get(failed.code, INTERNAL_ERROR if failed.code in _RESERVED else failed.code)
    return failed if code == failed.code else Failure(code, failed.message, failed.data)


def modern_status(failed: Failure) -> int:
    """The HTTP status of an answer that is this error of the modern era."""
    return _MODERN_STATUS.get(failed.code, 200)


def ended(error: BaseException, method: str, request_id: str) -> End:
    """How a call that failed ends: for `tools/call` a result that a person and a model can read, when it is the
    server's fault; the JSON-RPC error otherwise.
    """
    if method != "tools/call" or not isinstance(error, errors.UpstreamError):
        return failure(error, request_id)
    text = f"{error} (request {request_id})"
    return Result(Raw(encode({"content": [{"type": "text", "text": text}], "isError": True})))


def _data(error: BaseException) -> dict[str, object]:
    match error:
        case errors.ResourceUnknown():
            return {"uri": error.uri}
        case errors.VersionUnsupported():
            return {"supported": error.supported, "requested": error.requested}
        case errors.CapabilityMissing():
            return {"requiredCapabilities": error.required}
    return {}
