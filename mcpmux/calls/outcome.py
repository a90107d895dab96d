"""The one record of a call: its metrics and its log line, made once, whatever happened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
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
    "upstream_refused": "unavailable",
    "store_unavailable": "unavailable",
    "draining": "unavailable",
    "link_lost": "lost",
    "upstream_broken": "lost",
    "timeout": "timeout",
    "busy": "busy",
    "invalid_params": "invalid",
    "invalid_request": "invalid",
    "invalid_cursor": "invalid",
    "method_unknown": "invalid",
    "malformed": "invalid",
}
OUTCOMES: Final = frozenset(_OUTCOMES.values()) | {"internal"}

# As many lines are written in about a millisecond: more would keep others waiting.
CROWD: Final = 64

# What a call that no server answers is counted under; no server id can be this.
OURS: Final = "*"


class Recorder:
    """Writes the record of each call: counted at once, logged in crowds.

    A line costs a third in a tight loop of what it costs between two calls, where nothing of it is in the processor's
    caches. So ended calls wait, at most one sweep of the router, for `flush()`; each line has the time of its end.
    """

    def __init__(self, metrics: Metrics, log: Logger) -> None:
        self._metrics = metrics
        self._log = log
        self._ended: list[tuple[Call, float, float]] = []

    def record(self, call: Call) -> None:
        """Count and time one ended call, and remember its log line."""
        seconds = time.monotonic() - call.started
        outcome = _OUTCOMES.get(call.outcome, "internal")
        numbers = call.numbers
        if numbers is None:
            numbers = self._metrics.server(OURS)
        else:
            numbers.call_closed()
        numbers.call(call.admission.method.name, outcome, seconds)
        self._ended.append((call, time.time(), seconds))
        if len(self._ended) >= CROWD:
            self.flush()

    def flush(self) -> None:
        """Write the lines of all calls that have ended."""
        ended, self._ended = self._ended, []
        for call, at, seconds in ended:
            self._write(call, at, seconds)

    def _write(self, call: Call, at: float, seconds: float) -> None:
        outcome = _OUTCOMES.get(call.outcome, "internal")
        decision = call.decision
        refused = decision is not None and not decision.allowed
        write = self._log.debug if call.admission.method.name == "ping" else self._log.info
        more: dict[str, object] = {}
        if call.chat is not None:
            more["chat"] = call.chat
        if outcome != "ok":
            more["reason"] = decision.reason if decision is not None and refused else call.outcome
        write(
            "call_refused" if outcome == "refused" else "call_finished",
            timestamp=datetime.fromtimestamp(at, UTC),
            server=call.server.id if call.server is not None else call.asked or OURS,
            method=call.admission.method.name,
            tool=call.native,
            principal=call.caller.principal.label,
            tenant=decision.tenant if decision is not None else None,
            decision=None if decision is None else "denied" if refused else "allowed",
            outcome=outcome,
            duration_ms=round(seconds * 1000, 2),
            request_id=call.request_id,
            **more,
        )
