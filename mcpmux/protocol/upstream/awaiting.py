"""Awaiting: how a call goes on at a server that makes a task of it, for a client that wants its result and no task.

Theory. Some tools are a task or nothing. The client of such a call need not know: here we are the task's client in its
place, and what the client gets is what any call gives: progress, questions, a result.

In revision 2025-11-25 the call says that it wants a task; once there is one, `tasks/result` waits for its end, and its
questions come meanwhile. In the modern era the server decides. Who refuses a call because its client does not know
tasks (-32021) has not begun it, so it is made again by somebody who does; then the task is looked at as often as the
server likes (`tasks/get`), and what it asks for (`inputRequests`) is asked like any other question (`tasks/update`).

Pure: each answer, each question answered and each pause gives the next `Step`, which `links/awaited.py` takes. A task
is cancelled by `cancelling()`, never by a notification. Its id at the server goes no further than here.
Source: MCP 2025-11-25 basic/utilities/tasks, basic/utilities/cancellation; the extension io.modelcontextprotocol/tasks
(SEP-2663).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope, faults, rounds, tasks
from mcpmux.protocol.events import Ask, End, Event, Failure, Log, Opening, Progress, Result
from mcpmux.protocol.methods import TASK_CANCEL, TASK_GET, TASK_RESULT, TASK_UPDATE
from mcpmux.protocol.upstream import asking
from mcpmux.protocol.upstream.asking import ROUNDS, Round

PAUSE: Final = 1.0  # seconds between two looks at a task whose server does not say how often
SHORTEST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 60.0
LOST_PAUSE: Final = 1.0  # seconds before a lost request about a task is made again
LOSSES: Final = 3  # requests about one task that are lost one after the other, each within `SOON` seconds
SOON: Final = 10.0

FIRST_ASK: Final = 1 << 40  # far from the numbers of what a link asks otherwise

_UNUSABLE: Final = Failure(faults.INTERNAL_ERROR, "The server sent an answer that could not be used.")


class Go(Struct, frozen=True):
    """The call goes on with this request."""

    opening: Opening


class Rest(Struct, frozen=True):
    """Nothing is asked for so many seconds; then `rested()` says what."""

    seconds: float


class Put(Struct, frozen=True):
    """The client is asked; when all is answered, the call goes on."""

    asks: list[Ask]


class Over(Struct, frozen=True):
    """The call has ended; `at_work`: its task has not, so it must be cancelled."""

    end: End
    at_work: bool = False


Step = Go | Rest | Put | Over


class Awaiting:
    """One call; `task` is the server's id, empty as long as there is no task. See the module."""

    __slots__ = ("_knows", "_losses", "_modern", "_opening", "_pause", "_round", "_rounds", "_seen", "_sent", "_since",
                 "task")  # fmt: skip

    def __init__(self, opening: Opening, *, modern: bool) -> None:
        self.task = ""
        self._modern = modern
        self._opening = opening
        self._knows = not modern  # the request in flight says that we know tasks
        self._pause = PAUSE
        self._round: Round | None = None
        self._rounds = 0
        self._seen: set[str] = set()  # keys of what was asked
        self._sent: Opening = opening
        self._since = 0.0
        self._losses = 0

    @property
    def caller(self) -> str:
        """Whose call it is."""
        return self._opening.caller

    @property
    def may_become(self) -> bool:
        """Whether the answer to what is in flight may be a task, which has to be cancelled by its id then."""
        return self._knows and not self.task

    def answered(self, end: End) -> Step:
        """What follows on an answer of the server."""
        if not self.task:
            return self._made(end)
        if not self._modern:
            return Over(tasks.payload(end.result) if isinstance(end, Result) else end)
        if isinstance(end, Failure):
            text = f"The server does not say how its task stands: {end.message}"
            return Over(Failure(faults.INTERNAL_ERROR, text, end.data), at_work=True)
        return self._looked(end.result) if self._sent.method == TASK_GET else Rest(self._pause)

    def rested(self) -> Step:
        """What follows on a pause."""
        return self._go(TASK_GET) if self._modern else self._go(TASK_RESULT)

    def lost(self, now: float) -> Step | None:
        """What follows on the loss of an answer about the task: it does no harm to ask again. None: nothing."""
        self._losses = self._losses + 1 if now - self._since < SOON else 1
        self._since = now
        if not self.task or self._losses > LOSSES or self._sent.method == TASK_UPDATE:
            return None
        return Rest(LOST_PAUSE)

    def cancelling(self) -> Opening | None:
        """The request that cancels the task, if there is one."""
        return self._about(TASK_CANCEL) if self.task else None

    # What is asked -------------------------------------------------------------------------------------------------

    def shown(self, event: Event) -> Event:
        """What comes before the end, without the task that it has to do with."""
        match event:
            case Ask(id_, method, params, key) if params is not None:
                return Ask(id_, method, tasks.unmarked(params), key)
            case Progress(params):
                return Progress(tasks.unmarked(params))
            case Log(level, raw):
                return Log(level, tasks.unmarked_raw(raw))
        return event

    def has_asked(self, ask: int) -> bool:
        """Whether this was asked by `Put`, and waits for its answer."""
        return self._round is not None and ask in self._round.open

    def marked(self, answer: End) -> End:
        """What a client answered, as a server gets it that has asked for the task itself."""
        if not self.task or isinstance(answer, Failure):
            return answer
        return Result(tasks.marked(answer.result, self.task) or answer.result)

    def answer(self, ask: int, answer: End) -> Step | None:
        """What follows on an answer of the client to what was `Put`; None if it is not the last one."""
        asked = self._round
        if asked is None:
            return None
        failure = asked.answer(ask, answer)
        if failure is not None:
            self._round = None
            return Over(failure, at_work=True)
        if asked.open:
            return None
        self._round = None
        return self._go(TASK_UPDATE, {rounds.RESPONSES: Raw(envelope.encode(asked.answers))})

    # The task ------------------------------------------------------------------------------------------------------

    def _made(self, end: End) -> Step:
        """The answer to the call itself."""
        if isinstance(end, Failure):
            if self._knows or end.code != faults.CAPABILITY_MISSING or not tasks.lacking(end.data):
                return Over(end)
            self._knows = True
            self._opening = msgspec.structs.replace(self._opening, task=tasks.TO_BE_MADE)
            return Go(self._opening)
        if not self._modern:
            made = tasks.made(end.result)
            if made is None:
                return Over(end)
            self.task = made.id
            return self._go(TASK_RESULT)
        found = tasks.turned(end.result)
        if found is None:
            return Over(end)
        made = tasks.standing(found)
        if made is None:
            return Over(_UNUSABLE)
        self.task = made.id
        return self._go(TASK_GET) if made.ended else self._wait(made)

    def _looked(self, raw: Raw) -> Step:
        """The answer to `tasks/get`."""
        found = tasks.state(raw)
        standing = tasks.standing(found)
        if found is None or standing is None or standing.id != self.task:
            return Over(_UNUSABLE, at_work=True)
        if standing.ended:
            return Over(tasks.outcome(found) or _UNUSABLE)
        if standing.status != tasks.INPUT_REQUIRED:
            return self._wait(standing)
        try:
            return self._asked(found, standing)
        except (InvalidRequest, MalformedMessage) as fault:
            return Over(Failure(faults.INTERNAL_ERROR, f"The server cannot be answered: {fault}"), at_work=True)

    def _asked(self, found: Mapping[str, Raw], standing: tasks.Standing) -> Step:
        """Ask what was not asked before. Raises: InvalidRequest, MalformedMessage."""
        requests = envelope.members(found.get(rounds.REQUESTS, Raw(b"")))
        new = {key: raw for key, raw in requests.items() if key not in self._seen}
        if not new:
            return self._wait(standing)  # what was answered takes a while to be heard
        self._rounds += 1
        if self._rounds > ROUNDS:
            raise InvalidRequest("it asks again and again")
        last = FIRST_ASK + len(self._seen)
        self._round, asks = asking.begin({rounds.REQUESTS: Raw(envelope.encode(new))}, self._opening, last)
        self._seen |= new.keys()
        return Put(asks)

    def _wait(self, standing: tasks.Standing) -> Step:
        wanted = PAUSE if standing.pause is None else standing.pause
        self._pause = min(max(wanted, SHORTEST_PAUSE), LONGEST_PAUSE)
        return Rest(self._pause)

    def _go(self, method: str, more: Mapping[str, Raw] | None = None) -> Go:
        self._sent = self._about(method, more)
        return Go(self._sent)

    def _about(self, method: str, more: Mapping[str, Raw] | None = None) -> Opening:
        former = self._opening
        params = {"taskId": Raw(envelope.encode(self.task)), **(more or {})}
        return Opening(
            method, params, former.caller, task=self.task, client=former.client, log_level=former.log_level,
            awaits=True,
        )  # fmt: skip
