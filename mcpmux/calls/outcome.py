"""The one record of a call: a log line and its metrics, written once, whatever happened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from mcpmux.calls.call import Call
from mcpmux.observe.log import Logger
from mcpmux.observe.metrics import Metrics

# The closed set of outcome words, by the `reason` of the exception that ended the call.
_OUTCOMES: Final[Mapping[str, str]] = {
    "ok": "ok",
    "tool_error": "tool_error",
    "rpc_error": "rpc_error",
    "cancelled": "cancelled",
    "unknown_tool": "refused",
    "unknown_prompt": "refused",
    "unknown_resource": "refused",
    "forbidden": "refused",
    "unavailable": "unavailable",
    "link_lost": "lost",
    "timeout": "timeout",
    "busy": "busy",
    "invalid_params": "invalid",
    "invalid_request": "invalid",
    "invalid_cursor": "invalid",
    "method_unknown": "invalid",
    "malformed": "invalid",
}
OUTCOMES: Final = frozenset(_OUTCOMES.values()) | {"internal"}

# What a call that no server answers is counted under; no server id can be this.
OURS: Final = "*"


class Recorder:
    """Writes the record of each call."""

    def __init__(self, metrics: Metrics, log: Logger) -> None:
        self._metrics = metrics
        self._log = log

    def record(self, call: Call) -> None:
        """Log, count and time one ended call."""
        seconds = time.monotonic() - call.started
        outcome = _OUTCOMES.get(call.outcome, "internal")
        server = call.server.id if call.server is not None else OURS
        method = call.admission.method.name
        self._metrics.server(server).call(method, outcome, seconds)
        decision = call.decision
        event = "call_refused" if outcome == "refused" else "call_finished"
        write = self._log.debug if method == "ping" else self._log.info
        write(
            event,
            server=server,
            method=method,
            tool=call.native,
            principal=call.caller.principal.label,
            tenant=decision.tenant if decision is not None else None,
            decision=None if decision is None else "allowed" if decision.allowed else "denied",
            reason=decision.reason if decision is not None and not decision.allowed else call.outcome,
            outcome=outcome,
            duration_ms=round(seconds * 1000, 2),
            request_id=call.request_id,
            chat=call.chat,
        )
