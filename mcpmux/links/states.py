"""The states of a server and how one follows from another: one table, pure.

`starting`: a link is being made, or will be very soon. `ready`: calls go through. `degraded`: the link is there but
the server has stopped answering; calls wait while it is asked whether it lives. `failed`: it ended or would not start
too often; it is tried again slowly, and calls are refused at once. `draining`: it is on its way out (another takes its
place, or nobody): calls in flight may finish, none is opened. `unconfigured` and `disabled` cost nothing.

What is not in the table does not happen: `next()` raises, and a test walks every reachable pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What `status`, metrics and people call it."""

    UNCONFIGURED = "unconfigured"
    DISABLED = "disabled"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    DRAINING = "draining"


class Happened(StrEnum):
    """What moves a server from one state to another."""

    GREETED = "greeted"  # the link is ready for calls
    SILENCED = "silenced"  # calls or pings go unanswered
    ANSWERED = "answered"  # after all
    LOST = "lost"  # the link ended or could not be made; another try follows soon
    GAVE_UP = "gave_up"  # that happened too often, or the server does not want us; another try follows late
    RETRIED = "retried"  # the late try begins
    RETIRED = "retired"  # the config changed, or mcpmux ends


_S, _H = State, Happened

TRANSITIONS: Final[Mapping[tuple[State, Happened], State]] = {
    (_S.STARTING, _H.GREETED): _S.READY,
    (_S.STARTING, _H.LOST): _S.STARTING,
    (_S.STARTING, _H.GAVE_UP): _S.FAILED,
    (_S.STARTING, _H.RETIRED): _S.DRAINING,
    (_S.READY, _H.SILENCED): _S.DEGRADED,
    (_S.READY, _H.LOST): _S.STARTING,
    (_S.READY, _H.GAVE_UP): _S.FAILED,
    (_S.READY, _H.RETIRED): _S.DRAINING,
    (_S.DEGRADED, _H.ANSWERED): _S.READY,
    (_S.DEGRADED, _H.LOST): _S.STARTING,
    (_S.DEGRADED, _H.GAVE_UP): _S.FAILED,
    (_S.DEGRADED, _H.RETIRED): _S.DRAINING,
    (_S.FAILED, _H.RETRIED): _S.STARTING,
    (_S.FAILED, _H.RETIRED): _S.DRAINING,
    (_S.DRAINING, _H.LOST): _S.DRAINING,
    (_S.DRAINING, _H.RETIRED): _S.DRAINING,
}


def next(state: State, happened: Happened) -> State:
    """The state that follows. Raises: ValueError when that cannot happen in `state`."""
    try:
        return TRANSITIONS[state, happened]
    except KeyError:
        raise ValueError(f"a {state} server cannot have {happened}") from None


def initial(*, enabled: bool, unconfigured: bool) -> State:
    """Where a server begins, as its config says."""
    if not enabled:
        return State.DISABLED
    return State.UNCONFIGURED if unconfigured else State.STARTING
