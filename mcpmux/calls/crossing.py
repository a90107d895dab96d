"""Crossing: tasks of servers of 2025-11-25, as clients of the modern era have them who know the extension.

Theory. There a client asks how its task stands, waits for its result in a request of its own, and is asked on that
one's stream. Here all three are one: `tasks/get` says how the task stands, what it asks for, and what came of it;
`tasks/update` brings the answers. So mcpmux makes that other request in the client's place, once something is asked or
the task has ended, and a `Keeper` has what comes of it. A task that its server calls `failed` may have a result that is
an error: here it is `completed` then, and `failed` only without any result.

Nothing is kept of a task that is only at work: each look asks its server. A keeper that nobody looks at is let go.
Source: MCP 2025-11-25 basic/utilities/tasks; the extension io.modelcontextprotocol/tasks (SEP-2663).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from mcpmux.calls.inputs import Inputs
from mcpmux.calls.keeper import UNLOOKED, Keeper
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import InvalidParams, InvalidRequest, LinkLost, MalformedMessage, MuxError, UpstreamBroken
from mcpmux.links.link import Link
from mcpmux.protocol import envelope, rounds, tasks
from mcpmux.protocol.events import ENDS, End, Failure, Opening, Result
from mcpmux.protocol.methods import TASK_CANCEL, TASK_GET, TASK_RESULT, TASK_UPDATE

if TYPE_CHECKING:
    from mcpmux.calls.call import Call
    from mcpmux.calls.errand import Errand

ASKED_WITHIN: Final = 1.0  # seconds in which a server that wants input says what it wants

_EMPTY: Final = Raw(b"{}")
_Place = tuple[LinkKey, str]


class Crossing:
    """The table of keepers, by where the task is and the server's own id."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._keepers: dict[_Place, Keeper] = {}

    def __len__(self) -> int:
        return len(self._keepers)

    async def carry_out(self, call: Call, link: Link, errand: Errand) -> End:
        """The answer to one request about such a task. Raises: InvalidParams, UpstreamError."""
        match errand.method:
            case method if method == TASK_GET:
                return await self._look(link, errand)
            case method if method == TASK_UPDATE:
                return self._update(link, errand, call.admission.params)
            case _:
                return await self._cancel(link, errand)

    def sweep(self, now: float) -> None:
        """Let go of what nobody looks at; times are `time.monotonic()` seconds."""
        if self._keepers:
            for place in [place for place, keeper in self._keepers.items() if keeper.deadline <= now]:
                self._drop(place, UNLOOKED)

    # The three requests --------------------------------------------------------------------------------------------

    async def _look(self, link: Link, errand: Errand) -> End:
        told = await self._ask(link, errand, TASK_GET)
        if isinstance(told, Failure):
            return told
        state, standing = tasks.state(told.result), tasks.standing(told.result)
        if state is None or standing is None:
            raise UpstreamBroken(errand.server.id, "it does not say how its task stands")
        status, more = await self._inside(link, errand, standing)
        if status in tasks.ENDED:
            errand.of.ended(link, errand.task)
        return Result(tasks.crossed(state, errand.sealed, status, more))

    async def _inside(self, link: Link, errand: Errand, standing: tasks.Standing) -> tuple[str, Mapping[str, Raw]]:
        """The status, and what else is said of a task that stands so."""
        if standing.status == tasks.CANCELLED:
            self._drop((link.key, errand.task), "the task was cancelled")
            return tasks.CANCELLED, {}
        try:
            keeper = await self._looked(link, errand, standing)
        except LinkLost:  # what was asked for does no harm twice
            keeper = await self._looked(link, errand, standing)
        if keeper is None:
            return tasks.WORKING, {}
        if keeper.end is not None:
            return tasks.ending(keeper.end)
        if standing.ended:
            raise UpstreamBroken(errand.server.id, "it does not say what its task has come to")
        if not keeper.asks:
            return tasks.WORKING, {}
        return tasks.INPUT_REQUIRED, {rounds.REQUESTS: rounds.requests(keeper.asks)}

    async def _looked(self, link: Link, errand: Errand, standing: tasks.Standing) -> Keeper | None:
        """The keeper, with what it takes for a task that stands so; None if there need be none. Raises: LinkLost."""
        place, able = (link.key, errand.task), errand.caller.capabilities
        asks = standing.status == tasks.INPUT_REQUIRED
        keeper = self._keepers.get(place)
        if keeper is None and (standing.ended or asks):
            keeper = self._kept(link, errand)
        if keeper is None:
            return None
        try:
            if standing.ended:
                await keeper.look(able, errand.server.timeout, lambda _: False)
            else:
                await keeper.look(able, ASKED_WITHIN, lambda one: not asks or bool(one.asks))
        except MuxError:
            self._drop(place, "nothing more can come of it")
            raise
        return keeper

    def _update(self, link: Link, errand: Errand, params: Mapping[str, Raw]) -> End:
        try:
            responses = envelope.members(params.get(rounds.RESPONSES, Raw(b"")))
        except (InvalidRequest, MalformedMessage) as exc:
            raise InvalidParams(f"{rounds.RESPONSES} must be an object with each name once") from exc
        keeper = self._keepers.get((link.key, errand.task))
        if keeper is not None:
            keeper.answer(responses)
        return Result(_EMPTY)

    async def _cancel(self, link: Link, errand: Errand) -> End:
        """A task that has ended is no error here."""
        told = await self._ask(link, errand, TASK_CANCEL)
        if isinstance(told, Failure):
            told = await self._ask(link, errand, TASK_GET)
        return told if isinstance(told, Failure) else Result(_EMPTY)

    # The server ----------------------------------------------------------------------------------------------------

    async def _ask(self, link: Link, errand: Errand, method: str) -> Result | Failure:
        """What the server answers to a request about the task. Raises: UpstreamError."""
        exchange = link.open(self._opening(errand, method))
        try:
            while not isinstance(event := await exchange.next(), ENDS):
                pass
        finally:
            exchange.cancel("no longer waiting")
        return event

    def _kept(self, link: Link, errand: Errand) -> Keeper:
        exchange = link.open(self._opening(errand, TASK_RESULT))
        keeper = Keeper(exchange, errand.task, errand.caller.principal.key, self._inputs)
        self._keepers[link.key, errand.task] = keeper
        return keeper

    def _opening(self, errand: Errand, method: str) -> Opening:
        params = {"taskId": Raw(envelope.encode(errand.task))}
        return Opening(method, params, errand.caller.principal.key, task=errand.task)

    def _drop(self, place: _Place, reason: str) -> None:
        keeper = self._keepers.pop(place, None)
        if keeper is not None:
            keeper.close(reason)
