"""The one record of a call: its metrics and its log line, made once, whatever happened."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from mcpmux.calls.call import Call
from mcpmux.observe.log import Logger, Stencil
from mcpmux.observe.metrics import Metrics

# The closed set of outcome words, by the `reason` of the exception that ended the call.
_OUTCOMES: Final[Mapping[str, str]] = {
    "ok": "ok",
    "tool_error": "tool_error",
    "rpc_error": "rpc_error",
    "parked": "input_required",
    "input_required": "input_required",
    "cancelled": "cancelled",
    "visit_declined": "cancelled",
    "unknown_tool": "refused",
    "unknown_prompt": "refused",
    "unknown_resource": "refused",
    "unknown_task": "refused",
    "forbidden": "refused",
    "unavailable": "unavailable",
    "upstream_refused": "unavailable",
    "store_unavailable": "unavailable",
    "draining": "unavailable",
    "link_lost": "lost",
    "upstream_broken": "lost",
    "timeout": "timeout",
    "busy": "busy",
    "too_many_tasks": "busy",
    "invalid_params": "invalid",
    "invalid_request": "invalid",
    "invalid_cursor": "invalid",
    "method_unknown": "invalid",
    "malformed": "invalid",
    "seal_broken": "invalid",
    "state_refused": "invalid",
    "header_mismatch": "invalid",
    "capability_missing": "invalid",
}
OUTCOMES: Final = frozenset(_OUTCOMES.values()) | {"internal"}

# As many lines are written in about a millisecond: more would keep others waiting.
CROWD: Final = 64

# How many lines with the same words are remembered: some hundreds of people with some tools each.
MOST_STENCILS: Final = 4096

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
        self._stencils: dict[tuple[str, str, str, str, str | None], Stencil] = {}

    def record(self, call: Call) -> None:
        """Count and time one ended call, and remember its log line."""
        seconds = time.monotonic() - call.started
        numbers = call.numbers
        if numbers is None:
            numbers = self._metrics.server(OURS).tally
        else:
            numbers.in_flight -= 1
        numbers.call(call.admission.method.name, _OUTCOMES.get(call.outcome, "internal"), seconds)
        self._ended.append((call, time.time(), seconds))
        if len(self._ended) >= CROWD:
            self.flush()

    def flush(self) -> None:
        """Write the lines of all calls that have ended."""
        ended, self._ended = self._ended, []
        good: list[tuple[Stencil, float, float, str]] = []
        for call, at, seconds in ended:
            took = round(seconds * 1000, 2)
            if call.outcome == "ok" and call.chat is None and call.admission.method.name != "ping":
                good.append((self._stencil(call), at, took, call.request_id))
            else:
                self._write(call, at, took)
        if good:
            Stencil.write(good)

    def _write(self, call: Call, at: float, took: float) -> None:
        outcome = _OUTCOMES.get(call.outcome, "internal")
        plain = {"duration_ms": took, "request_id": call.request_id}
        words = _words(call, outcome)
        write = self._log.debug if call.admission.method.name == "ping" else self._log.info
        event = "call_refused" if outcome == "refused" else "call_finished"
        write(event, timestamp=datetime.fromtimestamp(at, UTC), **words, **plain)

    def _stencil(self, call: Call) -> Stencil:
        """The line of good calls like this one: the same people use the same tools again and again."""
        server = call.server.id if call.server is not None else OURS
        tenant = call.decision.tenant if call.decision is not None else None
        key = (server, call.admission.method.name, call.native, call.caller.principal.label, tenant)
        stencil = self._stencils.get(key)
        if stencil is None:
            if len(self._stencils) >= MOST_STENCILS:
                self._stencils.clear()
            stencil = self._stencils[key] = Stencil("calls", "call_finished", _words(call, "ok"))
        return stencil


def _words(call: Call, outcome: str) -> dict[str, object]:
    """What the line of a call says, but for when, how long and under which id."""
    decision = call.decision
    refused = decision is not None and not decision.allowed
    words: dict[str, object] = {
        "server": call.server.id if call.server is not None else call.asked or OURS,
        "method": call.admission.method.name,
        "tool": call.native,
        "principal": call.caller.principal.label,
        "tenant": decision.tenant if decision is not None else None,
        "decision": None if decision is None else "denied" if refused else "allowed",
        "outcome": outcome,
    }
    if outcome != "ok":
        words["reason"] = decision.reason if decision is not None and refused else call.outcome
    if call.chat is not None:
        words["chat"] = call.chat
    return words
