"""Parked: calls of servers whose clients are away to find answers; and the state that such a client brings back.

Theory. A client of the modern era is never asked on a stream: its request ends with the questions and a `requestState`,
and it makes the request again, from anywhere, with the answers and that state. What becomes of the server's call
meanwhile depends on the server.

A server of a legacy era has no such thing. It is in the middle of a call and waits, so its call stays open here, with
its seat, and the request that is made again takes it over: once, because it is out of the table then. Nobody reads it
meanwhile. What it logs and reports waits in its exchange as for any slow reader (the last 256); if it ends, or takes
its questions back, that waits as well. A client that does not come back is noticed by the deadline alone: after
`PATIENCE` the server's call is cancelled, or sooner if another call needs its place (`relief.py`). Nothing of it
outlives mcpmux. How many there can be is bounded by `Inputs`: each has asked something that is counted there.

One that has refused, because somebody has to visit a web page first (-32042), has given its answer as well. The client
is asked to have that done, and its next request goes up like the first one.

A server of the modern era has given its answer: its questions go on under their names, and its own state inside ours.
Nothing is kept here, so that this survives a restart of mcpmux.

The state is sealed for its principal, endpoint, server, method and params: each request that is made again is decided
on like any other before its state is even looked at. What was never ours, is somebody else's, has expired or was used
before gets one and the same answer.
Source: MCP 2026-07-28 basic/patterns/mrtr; design section 3.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Raw, Struct

from mcpmux.access.decision import Decision
from mcpmux.calls.inputs import PATIENCE, Inputs
from mcpmux.errors import (
    CapabilityMissing,
    InvalidParams,
    InvalidRequest,
    MalformedMessage,
    SealBroken,
    StateRefused,
    UpstreamBroken,
    VisitDeclined,
)
from mcpmux.identity.principal import Principal
from mcpmux.links.exchange import Exchange
from mcpmux.links.pool import Pool
from mcpmux.observe.log import logger
from mcpmux.protocol import abilities, envelope, rounds
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.events import Ask, Failure, InputRequired
from mcpmux.protocol.methods import ELICITATION
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.rounds import Question
from mcpmux.seal import Keyring

if TYPE_CHECKING:
    from mcpmux.calls.call import Call

PURPOSE: Final = "requestState"
STATE_LIFE: Final = 3600.0  # seconds; of a state with a server's own in it
TOGETHER: Final = 0.05  # seconds in which what a server asks at once may come
ID: Final = 16  # bytes

# What a state holds: the id of a parked call, the state of a modern server, or that pages had to be visited.
_OURS: Final = b"p"
_THEIRS: Final = b"s"
_VISITS: Final = b"u"

CLOSED: Final = Failure(-32000, "mcpmux is shutting down: the client cannot be asked any more")
UNANSWERED: Final = "the client has not come back with what it was asked for"
DISPLACED: Final = "another call needed its place"
REVOKED: Final = "the client may not use this any more"

# How what was asked in a call has ended that was dropped for this reason; `void` for any other.
_OUTCOMES: Final = {UNANSWERED: "expired", DISPLACED: "displaced"}


class Parked(Struct, eq=False):
    """The call of a server, while its client is away. Times are `time.monotonic()` seconds.

    `scope` is whose links of their own it may use, `begun` when its server got it, `since` when its client was first
    asked what it has not answered yet; `asks` are by our numbers, `keys` the names that the client knows them by.
    """

    id: bytes
    exchange: Exchange
    principal: Principal
    decision: Decision
    native: str
    method: str
    request_id: str
    scope: str
    begun: float
    since: float
    deadline: float
    asks: dict[int, Ask]
    keys: dict[str, int]

    @property
    def server(self) -> str:
        """Whose call it is."""
        return self.exchange.link.key.server


class Parking:
    """The table of calls that are left; seals and opens the state of each."""

    def __init__(self, pool: Pool, inputs: Inputs, keyring: Keyring) -> None:
        self.inputs = inputs
        self._pool = pool
        self._keyring = keyring
        self._table: dict[str, dict[bytes, Parked]] = {}  # by server
        self._closed = False
        self._log = logger("calls")

    def __len__(self) -> int:
        return sum(map(len, self._table.values()))

    def __iter__(self) -> Iterator[Parked]:
        return iter([parked for some in self._table.values() for parked in some.values()])

    def at(self, server: str) -> list[Parked]:
        """Those of one server."""
        return list(self._table.get(server, {}).values())

    async def park(self, call: Call) -> None:
        """End a request with what its client is asked, and leave its call here; nothing, if nothing is asked any more.

        Waits a moment for what else is asked: a person had better see all of it at once.
        """
        await asyncio.sleep(TOGETHER)
        call.gather()
        self._leave(call)

    def resume(self, call: Call) -> bool:
        """Whether the request, which was decided on, goes on with a call that was left here.

        Otherwise its server's state is in `call.state` now, if it has any, and it is opened like any other.
        Raises: StateRefused, InvalidParams, VisitDeclined.
        """
        said = call.said
        if said is None or said.state is None:
            return False
        try:
            opened = self._keyring.open(PURPOSE, said.state, bound=_bound(call), now=time.time())
        except SealBroken as exc:
            raise StateRefused from exc
        if opened.startswith(_THEIRS):
            call.state = opened[len(_THEIRS) :].decode()
            return False
        if opened == _VISITS:
            if any(rounds.declines(ELICITATION, raw) for raw in (said.responses or {}).values()):
                raise VisitDeclined(call.server.id if call.server is not None else "")
            return False
        parked = self._table.get(call.server.id if call.server is not None else "", {}).get(opened[len(_OURS) :])
        if parked is None:
            raise StateRefused
        answers = _answers(parked, said.responses or {})
        self._take(parked)
        call.resume(parked, answers)
        if call.asks:
            call.gather()
            self._leave(call)
        return True

    def passed(self, call: Call, raw: Raw) -> InputRequired | None:
        """What a modern server asks by its result, as it goes on to the client; None if this is no such result.

        Raises: UpstreamBroken, CapabilityMissing (it asks for what the client has not declared).
        """
        link = call.exchange.link if call.exchange is not None else None
        if link is None or link.greeting is None or link.greeting.protocol_version != MODERN or call.said is None:
            return None
        try:
            found = rounds.asked(raw)
            asked = {} if found is None else rounds.questions(found)
        except (InvalidRequest, MalformedMessage) as exc:
            raise UpstreamBroken(link.key.server, "what it asks for cannot be read") from exc
        if found is None:
            return None
        if call.admission.method.name not in rounds.METHODS:
            raise UpstreamBroken(link.key.server, "nothing may be asked in this method")
        missing = _missing(asked.values(), call.said.capabilities)
        for one in asked.values():
            link.metrics.asked(one.method, "refused" if missing else "passed")
        if missing:
            raise CapabilityMissing(missing)
        theirs = envelope.text(found.get(rounds.STATE))
        if theirs is not None:
            ours = self._sealed(call, _THEIRS + theirs.encode(), STATE_LIFE)
            found[rounds.STATE] = Raw(envelope.encode(ours))
        return InputRequired(Raw(envelope.encode(found)))

    def required(self, call: Call, failure: Failure) -> InputRequired | None:
        """The pages to visit before a legacy server does this, as its client is asked; None for any other failure.

        Nothing is left here: the request that is made again goes up as the first one did.
        Raises: CapabilityMissing.
        """
        if failure.code != abilities.URL_REQUIRED or call.said is None or call.exchange is None:
            return None
        visits = rounds.visits(failure.data) if call.admission.method.name in rounds.METHODS else {}
        if not visits:
            return None
        questions = [Question(one.method, one.params) for one in visits.values()]
        missing = _missing(questions, call.said.capabilities)
        for one in questions:
            call.exchange.link.metrics.asked(one.method, "refused" if missing else "passed")
        if missing:
            raise CapabilityMissing(missing)
        return InputRequired(rounds.asking(visits, self._sealed(call, _VISITS, STATE_LIFE)))

    def sweep(self, now: float) -> None:
        """Give up the calls whose clients have not come back in time."""
        if self._table:
            for parked in self:
                if parked.deadline <= now:
                    self.drop(parked, UNANSWERED)

    def drop(self, parked: Parked, reason: str) -> None:
        """Cancel a call that nobody is to come back to; nothing, if somebody just has or it was dropped."""
        if self._table.get(parked.server, {}).get(parked.id) is not parked:
            return
        self._take(parked)
        outcome = _OUTCOMES.get(reason, "void")
        for ask in parked.asks.values():
            parked.exchange.link.metrics.asked(ask.method, outcome)
        self.inputs.give_back(parked.principal.key, len(parked.asks))
        parked.exchange.cancel(reason)
        self._pool.end(parked.scope)
        self._log.info(
            "parked_dropped", server=parked.server, method=parked.method, tool=parked.native,
            principal=parked.principal.label, request_id=parked.request_id, reason=reason,
        )  # fmt: skip

    def close(self) -> None:
        """Cancel every call that is left, and take no more: nobody could come back."""
        self._closed = True
        for parked in self:
            self.drop(parked, "mcpmux is shutting down")

    def _leave(self, call: Call) -> None:
        exchange = call.exchange
        if call.ended or exchange is None or exchange.ended or not call.asks or call.decision is None:
            return
        if self._closed:
            for ask in tuple(call.asks):
                call.refuse(ask, CLOSED)
            return
        now = time.monotonic()
        left = min(call.deadline, now + PATIENCE) - now
        parked = Parked(
            secrets.token_bytes(ID), exchange, call.caller.principal, call.decision, call.native,
            call.admission.method.name, call.request_id, call.scope, call.begun, _since(call, now), now + left,
            call.asks, _keys(call),
        )  # fmt: skip
        asked = {key: parked.asks[ask] for key, ask in parked.keys.items()}
        needed = InputRequired(rounds.asking(asked, self._sealed(call, _OURS + parked.id, left)))
        self._table.setdefault(parked.server, {})[parked.id] = parked
        exchange.link.metrics.parked(1)
        call.leave(needed, parked)

    def _take(self, parked: Parked) -> None:
        there = self._table[parked.server]
        del there[parked.id]
        if not there:
            del self._table[parked.server]
        parked.exchange.link.metrics.parked(-1)

    def _sealed(self, call: Call, payload: bytes, life: float) -> str:
        return self._keyring.seal(PURPOSE, payload, bound=_bound(call), expires=time.time() + life)


def _missing(asked: Iterable[Question], capabilities: Capabilities) -> dict[str, dict[str, object]]:
    """What a client would have to declare besides, to be asked all of that."""
    missing: dict[str, dict[str, object]] = {}
    for one in asked:
        if abilities.inability(one.method, one.params, capabilities, MODERN) is not None:
            for name, wanted in abilities.needed(one.method, one.params).items():
                missing.setdefault(name, {}).update(wanted)
    return missing


def _bound(call: Call) -> bytes:
    """What a request has to share with the one that its state was made for."""
    caller, admission = call.caller, call.admission
    server = call.server.id if call.server is not None else ""
    words = (caller.principal.key, f"{caller.view}", server, admission.method.name, rounds.digest(admission.params))
    return envelope.encode(words)


def _since(call: Call, now: float) -> float:
    """Since when its client has had what is asked; who comes back without an answer has had it all the time."""
    former = call.former
    return now if former is None or former.asks.keys() - (call.asks or {}).keys() else former.since


def _keys(call: Call) -> dict[str, int]:
    """What the client calls each ask: as its server does, if that names them.

    Otherwise a name that it has had before stays, a new one is new to it.
    """
    asks = call.asks or {}
    theirs = {ask.key: number for number, ask in asks.items() if ask.key is not None}
    if len(theirs) == len(asks):
        return theirs
    former = call.former.keys if call.former is not None else {}
    kept = {key: ask for key, ask in former.items() if ask in asks}
    named = set(kept.values())
    # No name stands for two questions of one call: an old answer must not meet a new question.
    count = max(map(int, former), default=0)
    return kept | {str(count + place): ask for place, ask in enumerate((one for one in asks if one not in named), 1)}


def _answers(parked: Parked, responses: Mapping[str, Raw]) -> dict[int, Raw]:
    """What was answered, by our numbers; names that we never gave mean nothing.

    Raises: InvalidParams.
    """
    found: dict[int, Raw] = {}
    for key, raw in responses.items():
        ask = parked.asks.get(parked.keys.get(key, 0))
        if ask is None:
            continue
        if not rounds.answers(ask.method, raw):
            raise InvalidParams(f"{rounds.RESPONSES} has no answer to {ask.method} under {key}")
        found[ask.id] = raw
    return found
