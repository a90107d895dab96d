"""Asks: the requests of one server to the client of one of its calls, until each is answered, taken back, or void.

The server has an id of its own for each, which may be anything; ours is a number that is never used twice, so that a
late answer cannot meet another question. One that opened a URL stays after its answer, for as long as its call lasts,
because the end of it may still be told.

What does not go on: a progress token (whoever asks is free not to be told; MCP basic/utilities/progress) and `task`
(who has not announced tasks takes the request as if it were not there; MCP 2025-11-25 basic/utilities/tasks).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import abilities, envelope
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.envelope import Request
from mcpmux.protocol.events import Ask, End, Failure, Result
from mcpmux.protocol.methods import SERVER_REQUESTS
from mcpmux.protocol.upstream.received import Greeting, Received, Send, Stray, T

PER_CALL: Final = 16  # open at once; beyond, the server gets an error
LONGEST_ELICITATION_ID: Final = 1024  # characters
SHOWN: Final = 500  # characters of a method that the log may have

INTERNAL_ERROR: Final = -32603
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
VOID: Final = "The call that this request belongs to has ended"


class Problem(Struct, frozen=True):
    """Why a request of a server goes to nobody: what the server is told, and a closed word for ourselves."""

    code: int
    text: str
    reason: str


UNATTRIBUTED: Final = Problem(
    INVALID_REQUEST,
    "This connection is shared by several clients, and nothing says for certain which of them is asked",
    "ask_unattributed",
)
IDLE: Final = Problem(INVALID_REQUEST, "No call is in flight in which a client could be asked", "ask_idle")
UNAWAITED: Final = Problem(
    INVALID_REQUEST, "Nobody waits for this task: ask on the stream of its tasks/result", "ask_unawaited"
)
EXCESS: Final = Problem(INVALID_REQUEST, "Too many requests of this call wait for an answer", "ask_excess")


def problem(asked: Request, capabilities: Capabilities, greeting: Greeting | None) -> Problem | None:
    """What is wrong with asking that of anybody on a link that announced these capabilities."""
    if greeting is None or asked.method not in SERVER_REQUESTS:
        return Problem(METHOD_NOT_FOUND, f"Method not found: {asked.method[:128]}", "unknown_request")
    text = abilities.inability(asked.method, asked.params, capabilities, greeting.protocol_version)
    return None if text is None else Problem(METHOD_NOT_FOUND, text, "ask_unannounced")


def unheard(task: str | None, idle: bool) -> Problem:
    """Why nobody can be asked: for a task, on an `idle` link, or because it may be anybody's."""
    if task is not None:
        return UNAWAITED
    return IDLE if idle else UNATTRIBUTED


def turned_down(asked: Request, problem: Problem) -> list[Received[T]]:
    """The answer to what goes to nobody, and the word for ourselves."""
    return [Send(envelope.error(asked.id, problem.code, problem.text)), Stray(problem.reason, asked.method[:SHOWN])]


class _Asked(Struct):
    """One request; `id` is the server's, `answered` says that it has its answer."""

    id: int | str
    call: int
    elicitation: str | None
    answered: bool = False


class Asks(dict[int, _Asked]):
    """The table, by our numbers; see the module."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        super().__init__()
        self._last = 0

    def add(self, asked: Request, call: int) -> Ask:
        """Remember what was asked in this call, as it goes on to the client."""
        params = passed_on(asked.params)
        elicitation = abilities.elicitation(asked.method, params)
        if elicitation is not None and len(elicitation) > LONGEST_ELICITATION_ID:
            elicitation = None
        self._last += 1
        self[self._last] = _Asked(asked.id, call, elicitation)
        return Ask(self._last, asked.method, params)

    def repeated(self, asked: Request) -> bool:
        """Whether another request with this id waits for its answer."""
        return self._number_of(asked.id) is not None

    def crowded(self, call: int) -> bool:
        """Whether as much is asked in this call as may be."""
        return sum(each.call == call for each in self.values()) >= PER_CALL

    def answer(self, call: int, number: int, answer: End) -> bytes | None:
        """The wire of an answer; None if nobody waits for it (any more)."""
        asked = self.get(number)
        if asked is None or asked.answered or asked.call != call:
            return None
        self._settle(number, asked)
        match answer:
            case Result(raw):
                return envelope.result(asked.id, raw)
            case Failure(code, message, data):
                return envelope.error(asked.id, code, message, data)

    def withdraw(self, said: Raw | None) -> tuple[int, int] | None:
        """The server needs no answer to this request any more: its call and our number, if it waited for one."""
        wanted = envelope.identifier(said)
        number = None if wanted is None else self._number_of(wanted)
        return None if number is None else (self.pop(number).call, number)

    def eliciting(self, elicitation: str) -> int | None:
        """The call in which this elicitation was begun, if it is still in flight."""
        return next((each.call for each in self.values() if each.elicitation == elicitation), None)

    def void(self, call: int) -> None:
        """Forget what was asked in a call that the server has answered, and so waits for no more."""
        for number in [number for number, asked in self.items() if asked.call == call]:
            del self[number]

    def orphaned(self, in_flight: Container[int]) -> list[bytes]:
        """Forget what was asked in calls that are over: the errors for what has no answer yet."""
        over = [number for number, asked in self.items() if asked.call not in in_flight]
        left = [self.pop(number) for number in over]
        return [envelope.error(asked.id, INTERNAL_ERROR, VOID) for asked in left if not asked.answered]

    def _settle(self, number: int, asked: _Asked) -> None:
        if asked.elicitation is None:
            del self[number]
        else:
            asked.answered = True

    def _number_of(self, id_: int | str) -> int | None:
        return next((number for number, each in self.items() if each.id == id_ and not each.answered), None)


def passed_on(params: Mapping[str, Raw] | None) -> dict[str, Raw] | None:
    """These params as the client gets them."""
    if params is None:
        return None
    found = {name: raw for name, raw in params.items() if name != "task"}
    try:
        meta = envelope.members(found.pop("_meta", b"{}"))
    except (InvalidRequest, MalformedMessage):
        return found
    meta.pop("progressToken", None)
    if meta:
        found["_meta"] = Raw(envelope.encode(meta))
    return found
