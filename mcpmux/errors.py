"""Every exception that mcpmux raises on purpose.

Owns the text that a client may see: `str(error)` is always safe and actionable, facts go in as arguments and the
class makes the sentence. The cause is chained (`raise … from exc`) for the log alone. `reason` is a word of a closed
set, good for a metric label. Which JSON-RPC code and HTTP status a class becomes is `protocol/faults.py`'s.
"""

from __future__ import annotations

from typing import ClassVar


class MuxError(Exception):
    """Anything raised on purpose; `reason` is a closed word, `str()` is safe for clients."""

    reason: ClassVar[str] = "internal"


# Messages and methods ------------------------------------------------------------------------------------------


class MalformedMessage(MuxError):
    """The bytes are not JSON, not UTF-8, too deep, or carry a name twice. JSON-RPC 2.0 section 5.1: -32700."""

    reason = "malformed"

    def __init__(self, problem: str) -> None:
        super().__init__(f"Parse error: {problem}")


class InvalidRequest(MuxError):
    """JSON, but not a JSON-RPC message that may come here. JSON-RPC 2.0 section 5.1: -32600.

    `request_id` is the id of the message if one could be read, for the reply.
    """

    reason = "invalid_request"

    def __init__(self, problem: str, request_id: int | str | None = None) -> None:
        super().__init__(f"Invalid request: {problem}")
        self.request_id = request_id


class MethodUnknown(MuxError):
    """A method that does not exist, or not in this revision or direction: -32601."""

    reason = "method_unknown"

    def __init__(self, method: str) -> None:
        super().__init__(f"Method not found: {method}")


class InvalidParams(MuxError):
    """Params of a known method that cannot be right: -32602."""

    reason = "invalid_params"

    def __init__(self, problem: str) -> None:
        super().__init__(f"Invalid params: {problem}")


class RevisionUnsupported(MuxError):
    """`MCP-Protocol-Version` names a revision that is not spoken here."""

    reason = "revision_unsupported"

    def __init__(self, revision: str, supported: tuple[str, ...]) -> None:
        shown = revision if revision.isascii() and revision.isprintable() and len(revision) <= 32 else "(unreadable)"
        super().__init__(f"Unsupported protocol version: {shown} (supported: {', '.join(supported)})")
        self.supported = supported


class MetaInvalid(InvalidParams):
    """A modern request whose `_meta` lacks what every request must say, or says it wrongly: -32602, HTTP 400."""

    reason = "invalid_meta"


class VersionUnsupported(MuxError):
    """A modern request in a revision that is not served: -32022, HTTP 400, with those that are."""

    reason = "revision_unsupported"

    def __init__(self, requested: str, supported: tuple[str, ...]) -> None:
        super().__init__("Unsupported protocol version")
        self.requested = requested
        self.supported = supported


class CapabilityMissing(MuxError):
    """What a modern request asks for needs something of its client that the client did not declare: -32021, HTTP 400.

    `required` are the capabilities as the client would have to declare them.
    """

    reason = "capability_missing"

    def __init__(self, required: dict[str, dict[str, object]]) -> None:
        super().__init__(f"The client does not support what this needs: {', '.join(sorted(required))}")
        self.required = required


class HeaderMismatch(MuxError):
    """A header of a modern request does not say what the body says, is missing, or stands twice: -32020, HTTP 400.

    `problem` goes on behind the header's name; it never repeats a value.
    """

    reason = "header_mismatch"

    def __init__(self, header: str, problem: str) -> None:
        super().__init__(f"Header mismatch: {header} {problem}")


class AnnotationInvalid(MuxError):
    """An `x-mcp-header` annotation that a tool may not have; for the log, no caller sees it."""

    reason = "annotation_invalid"

    def __init__(self, problem: str) -> None:
        super().__init__(f"x-mcp-header: {problem}")


class NotInitialized(MuxError):
    """A request before `initialize`."""

    reason = "not_initialized"

    def __init__(self) -> None:
        super().__init__("Invalid request: send initialize first")


# Names: one answer for "absent" and "refused" ------------------------------------------------------------------


class ToolUnknown(MuxError):
    """No such tool for this caller: absent, disabled and refused are the same answer (-32602)."""

    reason = "unknown_tool"

    def __init__(self, name: str) -> None:
        super().__init__(f"Unknown tool: {name}")


class PromptUnknown(MuxError):
    """No such prompt for this caller (-32602)."""

    reason = "unknown_prompt"

    def __init__(self, name: str) -> None:
        super().__init__(f"Unknown prompt: {name}")


class ResourceUnknown(MuxError):
    """No such resource for this caller: -32002 up to 2025-11-25, -32602 from 2026-07-28."""

    reason = "unknown_resource"

    def __init__(self, uri: str) -> None:
        super().__init__(f"Resource not found: {uri}")
        self.uri = uri


class TaskUnknown(MuxError):
    """No such task for this caller: made up, another's, expired and refused are the same answer (-32602)."""

    reason = "unknown_task"

    def __init__(self) -> None:
        super().__init__("Task not found")


class TasksExhausted(MuxError):
    """One principal, or all together, have as many tasks at work as may be."""

    reason = "too_many_tasks"

    def __init__(self) -> None:
        super().__init__("Too many tasks are at work: wait for some to end, or cancel them")


class CursorInvalid(MuxError):
    """A cursor that we did not mint for this principal and method, or too long ago (-32602)."""

    reason = "invalid_cursor"

    def __init__(self) -> None:
        super().__init__("Invalid cursor")


class EndpointForbidden(MuxError):
    """A whole endpoint (`/servers/{id}/…`) that is unknown, disabled or not granted: HTTP 403."""

    reason = "forbidden"

    def __init__(self) -> None:
        super().__init__("Forbidden: this endpoint does not exist or you have no access to it")


# Upstream ------------------------------------------------------------------------------------------------------


class UpstreamError(MuxError):
    """A server could not serve a call: `isError` result for `tools/call`, -32603 otherwise."""

    server: str


class ServerUnavailable(UpstreamError):
    """The server is starting, restarting or failed, and the call waited as long as it may."""

    reason = "unavailable"

    def __init__(self, server: str, retry_after: float | None = None) -> None:
        hint = f" Try again in {max(1, round(retry_after))} s." if retry_after is not None else " Try again later."
        super().__init__(f"The server '{server}' is not available right now.{hint}")
        self.server = server
        self.retry_after = retry_after


class LinkLost(UpstreamError):
    """The connection to the server ended while the call was in flight."""

    reason = "link_lost"

    def __init__(self, server: str) -> None:
        super().__init__(
            f"The server '{server}' stopped while it worked on this call, so the call may or may not have taken "
            "effect. It is being restarted; check before you try again."
        )
        self.server = server


class CallTimedOut(UpstreamError):
    """The server did not answer within its `timeout`."""

    reason = "timeout"

    def __init__(self, server: str, seconds: float) -> None:
        super().__init__(
            f"The server '{server}' did not answer within {seconds:g} s; the call was cancelled. "
            "Try a smaller request, or ask your administrator to raise its timeout."
        )
        self.server = server


class CallCut(UpstreamError):
    """mcpmux ends, and the call has not finished within the drain limit."""

    reason = "draining"

    def __init__(self, server: str) -> None:
        super().__init__(
            f"mcpmux is shutting down and could not wait any longer for the server '{server}', so the call may or may "
            "not have taken effect. Check before you try again in a moment."
        )
        self.server = server


class ServerBusy(UpstreamError):
    """The server has as many calls in flight as its `concurrency` allows, and none ended in time."""

    reason = "busy"

    def __init__(self, server: str) -> None:
        super().__init__(f"The server '{server}' is busy with other calls. Try again in a few seconds.")
        self.server = server


class LinksTaken(UpstreamError):
    """The server gives each session a link of its own, and as many are in use as its `max_links` allows."""

    reason = "busy"

    def __init__(self, server: str) -> None:
        super().__init__(
            f"The server '{server}' is busy: it works for as many sessions as it may. Try again in a minute."
        )
        self.server = server


class CallCancelled(MuxError):
    """The client cancelled the call, or went away for good: nobody gets an answer."""

    reason = "cancelled"

    def __init__(self) -> None:
        super().__init__("The call was cancelled")


class VisitDeclined(UpstreamError):
    """Somebody has to go to a web page before the server can do this, and was asked to, and will not."""

    reason = "visit_declined"

    def __init__(self, server: str) -> None:
        super().__init__(
            f"The server '{server}' can do this only when a web page that it names has been visited, and that was "
            "declined. Ask again to get there."
        )
        self.server = server


class UpstreamBroken(UpstreamError):
    """The server answered, but not with what MCP allows (bad JSON, too large, wrong shape); `problem` says in what."""

    reason = "upstream_broken"

    def __init__(self, server: str, problem: str = "") -> None:
        what = f": {problem}" if problem else ""
        super().__init__(f"The server '{server}' sent an answer that could not be used{what}.")
        self.server = server


class UpstreamRefused(UpstreamError):
    """The server refused the request for its HTTP form or its credentials; `status` is its answer's."""

    reason = "upstream_refused"

    def __init__(self, server: str, status: int) -> None:
        hint = " Ask your administrator to check its credentials." if status in (401, 403, 407) else ""
        super().__init__(f"The server '{server}' refused the request with HTTP status {status}.{hint}")
        self.server = server
        self.status = status


class ServerEnded(UpstreamError):
    """The server was switched off, removed or replaced by an administrator while the call was in flight."""

    reason = "link_lost"

    def __init__(self, server: str) -> None:
        super().__init__(
            f"The server '{server}' was switched off while it worked on this call, so the call may or may not have "
            "taken effect."
        )
        self.server = server


class LinkFailed(MuxError):
    """A link could not be made, or ended; the text says why, for logs and `status`, never for callers.

    `refused`: the server does not want us (credentials, address), so trying again soon is no use.
    """

    reason = "link_failed"

    def __init__(self, problem: str, *, refused: bool = False) -> None:
        super().__init__(problem)
        self.refused = refused


# Callers -------------------------------------------------------------------------------------------------------


class TokenMissing(MuxError):
    """No bearer token where one is needed: 401 without `error` (RFC 6750 section 3.1)."""

    reason = "missing"

    def __init__(self) -> None:
        super().__init__("Authentication required")


class TokenRefused(MuxError):
    """A bearer token that is not good here: 401. The text never says why; `cause` (a closed word) does, in the log."""

    reason = "refused"

    def __init__(self, cause: str) -> None:
        super().__init__("The access token is invalid or expired")
        self.cause = cause


class AuthorizationMalformed(MuxError):
    """Two `Authorization` headers: 400 `invalid_request` (RFC 6750 section 3.1)."""

    reason = "malformed"

    def __init__(self) -> None:
        super().__init__("Malformed Authorization header")


class SigningRefused(MuxError):
    """The development issuer does not sign such a token."""

    reason = "signing"

    def __init__(self, problem: str) -> None:
        super().__init__(f"No token can be made: {problem}")


class SessionUnknown(MuxError):
    """A session id that does not exist for this principal: HTTP 404, so that the client initializes anew."""

    reason = "unknown_session"

    def __init__(self) -> None:
        super().__init__("Session not found: initialize a new one")


class SessionsExhausted(MuxError):
    """One principal has as many sessions as `limits.sessions_per_user` allows: HTTP 429."""

    reason = "too_many_sessions"

    def __init__(self) -> None:
        super().__init__("Too many sessions are open for you: close some and try again")


class ListensExhausted(MuxError):
    """One principal has as many subscriptions open as `limits.sessions_per_user` allows: HTTP 429."""

    reason = "too_many_listens"

    def __init__(self) -> None:
        super().__init__("Too many subscriptions are open for you: close some and try again")


class Draining(MuxError):
    """mcpmux is shutting down and takes no new sessions or calls: HTTP 503."""

    reason = "draining"

    def __init__(self) -> None:
        super().__init__("The gateway is shutting down: try again in a moment")


# Services that we ask ourselves --------------------------------------------------------------------------------


class OutboundFailed(MuxError):
    """A request of ours to another service (an issuer's keys, metadata) got no usable answer.

    `problem` is a word: one of `outbound.PROBLEMS`, or of the room that could not use the answer. `retry_after` is
    what the service asked for, in seconds.
    """

    reason = "outbound"

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(f"A request to another service failed: {problem}")
        self.problem = problem
        self.retry_after = retry_after


# HTTP ----------------------------------------------------------------------------------------------------------


class HttpRefused(MuxError):
    """An HTTP request refused for its form; `status` is the answer's."""

    reason = "http"
    status: ClassVar[int] = 400


class OriginRefused(HttpRefused):
    """`Host` or `Origin` is not one of ours (DNS rebinding)."""

    reason = "origin"
    status = 403

    def __init__(self) -> None:
        super().__init__("Forbidden: Host or Origin not allowed")


class NotAcceptable(HttpRefused):
    """`Accept` leaves out a media type that the answer may have."""

    reason = "not_acceptable"
    status = 406

    def __init__(self, needed: str) -> None:
        super().__init__(f"Not Acceptable: the client must accept {needed}")


class MediaTypeUnsupported(HttpRefused):
    """The body is not `application/json`, or is compressed."""

    reason = "media_type"
    status = 415

    def __init__(self) -> None:
        super().__init__("Unsupported Media Type: send Content-Type application/json without Content-Encoding")


class BodyTooLarge(HttpRefused):
    """The body is over `limits.body`."""

    reason = "too_large"
    status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"Request body too large: at most {limit} bytes")


# Carrying messages for a client on pipes (`mcpmux stdio`) --------------------------------------------------------


class BridgeFailed(MuxError):
    """`mcpmux stdio` got no answer for its client's request; the text says what helps."""

    reason = "bridge_failed"


class EndpointUnreachable(BridgeFailed):
    """There is no connection, so nothing was done. `problem` is words of ours."""

    reason = "unreachable"

    def __init__(self, problem: str) -> None:
        super().__init__(f"mcpmux cannot be reached: {problem}")


class EndpointRefused(BridgeFailed):
    """An HTTP status that is no answer. `text` says what helps."""

    reason = "refused"

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class AnswerLost(BridgeFailed):
    """The connection ended before the answer, so nobody knows what was done."""

    reason = "answer_lost"

    def __init__(self) -> None:
        super().__init__("The connection to mcpmux was lost before the answer: it may or may not have been carried out")


class AnswerBroken(BridgeFailed):
    """What came back is no answer."""

    reason = "answer_broken"

    def __init__(self, problem: str) -> None:
        super().__init__(f"mcpmux gave no usable answer: {problem}")


class SessionNotRenewed(BridgeFailed):
    """The session is gone, and the endpoint made none that the client could go on with."""

    reason = "session_lost"

    def __init__(self, problem: str) -> None:
        super().__init__(f"The session with mcpmux was lost and could not be made anew: {problem}")


# Sealed things, configuration, storage -------------------------------------------------------------------------


class SealBroken(MuxError):
    """A sealed text is foreign, tampered with, bound to another, or expired."""

    reason = "seal_broken"

    def __init__(self) -> None:
        super().__init__("Invalid or expired reference")


class StateRefused(MuxError):
    """A `requestState` that is not good, or not any more: foreign, tampered with, expired, used, or given up."""

    reason = "state_refused"

    def __init__(self) -> None:
        super().__init__(
            "Invalid or expired requestState: it belongs to another request, or what was asked is not waited for any "
            "more. Make the request again without requestState and inputResponses."
        )


class ConfigInvalid(MuxError):
    """The config file cannot be used; `problems` are whole lines `file:line:column: what is wrong`."""

    reason = "config_invalid"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreUnavailable(MuxError):
    """PostgreSQL cannot be reached or started."""

    reason = "store_unavailable"

    def __init__(self, problem: str) -> None:
        super().__init__(f"The database is not available: {problem}")


class ValueRefused(MuxError):
    """PostgreSQL refused a value: a constraint does not allow it, or no column can hold it.

    `constraint` is the constraint's name, "" when it is not about one.
    """

    reason = "value_refused"

    def __init__(self, constraint: str = "") -> None:
        rule = f" (rule {constraint})" if constraint else ""
        super().__init__(f"The database does not allow this value{rule}")
        self.constraint = constraint


class MigrationFailed(MuxError):
    """A migration did not apply, or the database was migrated by other files."""

    reason = "migration_failed"

    def __init__(self, problem: str) -> None:
        super().__init__(f"Database migration failed: {problem}")


class DataDirBusy(MuxError):
    """Another process holds the data directory."""

    reason = "data_dir_busy"

    def __init__(self, data_dir: str) -> None:
        super().__init__(f"Another mcpmux is using the data directory {data_dir}")


class StartRefused(MuxError):
    """`serve` refuses to start for a reason that a person can mend; the text says how."""

    reason = "start_refused"


class NotRunning(MuxError):
    """No mcpmux answers on the control socket of a data directory."""

    reason = "not_running"


class UsageWrong(MuxError):
    """A command was called in a way that cannot mean anything; the text says what is expected."""

    reason = "usage"
