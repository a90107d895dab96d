"""Tasks: requests that work on after their answer, and the ids by which their callers come back to them.

Theory. A server names its tasks as it likes, maybe so that anybody can guess. What a client gets is an id of ours: the
server's, with all that is needed to find the way back and to decide anew, sealed for one principal at one endpoint and
expiring with the task. So there is no table to look a task up in; an id works after a restart of mcpmux, and a foreign,
forged or expired one looks like one that never existed. Every request about a task is decided on like a call of the
tool that it runs: what is revoked is cut off from its tasks too.

A task lives where it was made. On a shared link that is any link of its server; if the server is a child of ours, the
very process, because the next one may give the same id to somebody else. On a session's own link it is that link. On a
pooled one there are no tasks: it is lent to others while the task still speaks. Requests of the modern era have no
link of their own for longer than one of them lasts, so for them there are tasks on shared links alone.

The two eras have tasks of two kinds, which are not translated: a client has those of servers of its own era. An id of
one kind is none of the other.

While a task is at work, what its link says without an address may be about it: `Link.outlasts()` keeps that from
everybody else. What the server asks for a task names it, and goes to whoever waits for its result.

The table here has the tasks that are at work, for two things alone: to bound them, and to tell the session in which
one was made how it stands. It is bounded itself; what it has lost is not told, which MCP allows.
Source: MCP 2025-11-25 basic/utilities/tasks; the extension io.modelcontextprotocol/tasks (SEP-2663); design section 3.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw, Struct

from mcpmux.access.decision import GrantSet, decide, whole
from mcpmux.access.grants import Grants
from mcpmux.calls.target import of_tool
from mcpmux.catalog.offers import Offers
from mcpmux.catalog.view import Catalog, Found, View
from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey, link_key
from mcpmux.errors import CapabilityMissing, InvalidParams, MethodUnknown, SealBroken, TasksExhausted, TaskUnknown
from mcpmux.links.changes import LinkGone, LinkReady, TaskChanged
from mcpmux.links.exchange import Exchange
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, faults, tasks
from mcpmux.protocol.events import Ask, End, Event, Failure, Log, Opening, Progress, Result, TaskMade
from mcpmux.protocol.methods import TASK_RESULT, Answers, Subject
from mcpmux.seal import Keyring

if TYPE_CHECKING:
    from mcpmux.calls.call import Call, Caller

PER_PRINCIPAL: Final = 256  # at work at once
IN_TOTAL: Final = 4096
LONGEST_LIFE: Final = 86_400.0  # seconds after which an id leads nowhere, also if its task is kept for ever
RESULT_WAIT: Final = 3600.0  # seconds that a request for a result may wait
START_WAIT: Final = 15.0  # seconds for a link that is being restarted

_PURPOSE: Final = "task"
_TASKED: Final = ("shared", "session")  # isolations with which there are tasks
_ANSWERED: Final = ("ok", "tool_error", "rpc_error", "input_required")
_UNUSABLE: Final = Failure(faults.INTERNAL_ERROR, "The server sent an answer that could not be used.")


class Ticket(Struct, frozen=True, array_like=True):
    """What a sealed id says: where the task is, which tool it runs, and the server's own id.

    `life` is the link's, where the task ends with it; empty where the server outlives our links.
    """

    server: str
    scope: str
    life: str
    tool: str
    task: str


_TICKET: Final = msgspec.json.Decoder(Ticket)


class _AtWork(Struct, frozen=True):
    """A task that has not ended as far as we know."""

    principal: str
    caller: Caller
    sealed: str
    tool: str
    child: bool  # it ends with its link
    until: float  # unix seconds


class Told(Struct, frozen=True):
    """How a task stands, for the session in which it was made; `params` as its client gets them."""

    session: str
    server: str
    tool: str
    params: dict[str, Raw]


class Tasks:
    """Finds the way to tasks; see the module."""

    def __init__(
        self, keyring: Keyring, grants: Grants, catalog: Catalog, offers: Offers, pool: Pool, metrics: Metrics
    ) -> None:
        self._keyring = keyring
        self._grants = grants
        self._catalog = catalog
        self._offers = offers
        self._pool = pool
        self._metrics = metrics
        self._at_work: dict[tuple[LinkKey, str], _AtWork] = {}
        self._held: Counter[str] = Counter()

    @property
    def at_work(self) -> int:
        """How many tasks have not ended as far as we know."""
        return len(self._at_work)

    def capability(self, servers: Iterable[Server]) -> dict[str, object] | None:
        """What an endpoint with these servers announces of tasks; None if none of them has any."""
        found = [self._announced(server) for server in servers]
        if not any(each.calls for each in found):
            return None
        cancel: dict[str, object] = {"cancel": {}} if any(each.calls and each.cancel for each in found) else {}
        return {**cancel, "requests": {"tools": {"call": {}}}}

    # A call that is to become a task -------------------------------------------------------------------------------

    def prepare(self, call: Call, found: Found, grants: GrantSet) -> None:
        """The client says that it wants a task of this call: have one made, or take that word away.

        Taken away where nobody has announced tasks to this client, as the specification asks for.
        Raises: MethodUnknown (this tool is no task), TasksExhausted.
        """
        if call.said is not None:
            self._prepare_modern(call, found)
            return
        admission, caller = call.admission, call.caller
        named = admission.method.answers is Answers.SERVER and admission.method.subject is Subject.TOOL
        if not (named and caller.revision >= tasks.SINCE and self._offered(caller.view, grants)):
            _take_word(call)
            return
        if found.item is None or not self._announced(found.server).calls or not tasks.takes_tasks(found.item.raw):
            raise MethodUnknown("tools/call as a task, which this tool cannot be")
        if self._full(caller):
            raise TasksExhausted
        call.errand = Errand(self, caller, found.server, found.native, admission.method.name)

    def begun(self, errand: Errand, link: Link, made: tasks.Standing) -> str:
        """The id that the client gets for this new task."""
        caller, server = errand.caller, errand.server
        # A server of the modern era may keep a task longer than it said at first.
        life = LONGEST_LIFE if made.life is None or not caller.revision else min(made.life, LONGEST_LIFE)
        child = server.transport == "stdio"
        ticket = Ticket(server.id, link.key.scope, link.life if child else "", errand.tool, made.id)
        until = time.time() + life
        sealed = self._keyring.seal(_PURPOSE, envelope.encode(ticket), bound=_bound(caller), expires=until)
        if not made.ended:
            self._forget(link.key, made.id)
            self._at_work[link.key, made.id] = _AtWork(caller.principal.key, caller, sealed, errand.tool, child, until)
            self._held[caller.principal.key] += 1
            link.outlasts(made.id, caller.principal.key, life)
        return sealed

    def ended(self, link: Link, task: str) -> None:
        """A task can say nothing more."""
        self._forget(link.key, task)
        link.outlasts(task, "", 0.0)

    # A request about a task ----------------------------------------------------------------------------------------

    async def open(self, call: Call, grants: GrantSet) -> None:
        """Decide on a request about a task, and begin it where the task is.

        Raises: InvalidParams, TaskUnknown (absent, another's, expired and refused alike), ServerUnavailable,
        ServerBusy.
        """
        if call.said is not None and not tasks.is_extended(call.said.capabilities):
            raise CapabilityMissing(tasks.REQUIRED)
        sealed, ticket = self._ticket(call)
        server = self._catalog.server(ticket.server)
        if server is None:
            raise TaskUnknown
        call.decision = decide(grants, of_tool(self._catalog, server, ticket.tool))
        call.native = ticket.tool
        if not call.decision.allowed:
            call.asked = server.id
            raise TaskUnknown
        call.server = server
        call.numbers = numbers = self._metrics.server(server.id).tally
        numbers.in_flight += 1
        link = await self._link(call, server, ticket)
        method = call.admission.method.name
        call.errand = Errand(self, call.caller, server, ticket.tool, method, ticket.task, sealed)
        params = {**tasks.unmarked(call.admission.params), "taskId": Raw(envelope.encode(ticket.task))}
        wants_progress, client = call.admission.token is not None, call.caller.capabilities
        opening = Opening(method, params, call.caller.principal.key, wants_progress, ticket.task, client)
        call.opened(link.open(opening), RESULT_WAIT if method == TASK_RESULT else server.timeout)

    async def told(self) -> AsyncIterator[Told]:
        """Everything that servers say of tasks at work."""
        async for change in self._pool.changes():
            match change:
                case TaskChanged(server, key, task, params):
                    at_work, standing = self._at_work.get((key, task)), tasks.standing(params)
                    if at_work is None or standing is None or at_work.until <= time.time():
                        continue
                    if standing.ended:
                        self._settle(key, task)
                    shown = tasks.renamed_params(params, at_work.sealed)
                    yield Told(at_work.caller.session, server, at_work.tool, shown)
                case LinkReady(_, key) | LinkGone(_, key):
                    self._lost(key)

    async def allows(self, caller: Caller, told: Told) -> bool:
        """Whether this caller may know of that (still).

        Raises: StoreUnavailable.
        """
        server = self._catalog.server(told.server)
        grants = self._grants.cached(caller.principal) or await self._grants.of(caller.principal)
        return server is not None and decide(grants, of_tool(self._catalog, server, told.tool)).allowed

    def _ticket(self, call: Call) -> tuple[str, Ticket]:
        sealed = envelope.text(call.admission.params.get("taskId"))
        if sealed is None:
            raise InvalidParams("taskId must be a string")
        try:
            payload = self._keyring.open(_PURPOSE, sealed, bound=_bound(call.caller), now=time.time())
            return sealed, _TICKET.decode(payload)
        except (SealBroken, msgspec.DecodeError) as exc:
            raise TaskUnknown from exc

    async def _link(self, call: Call, server: Server, ticket: Ticket) -> Link:
        if server.isolation not in _isolations(call.caller):
            raise TaskUnknown
        key = link_key(server, call.caller.principal.key, call.caller.session)
        gone = bool(key.scope) and not self._pool.lives(key)  # nobody starts a link for a task that ended with it
        if key.scope != ticket.scope or gone:
            raise TaskUnknown
        link = self._pool.ready(key)
        if link is None:
            link = await call.patiently(self._pool.link(key, min(server.timeout, START_WAIT), call.caller.capabilities))
        if ticket.life not in ("", link.life):
            raise TaskUnknown
        return link

    # What is announced ---------------------------------------------------------------------------------------------

    def _offered(self, view: View, grants: GrantSet) -> bool:
        servers = self._catalog.servers(view)
        return any(self._announced(server).calls and decide(grants, whole(server)).allowed for server in servers)

    def _announced(self, server: Server) -> tasks.Announced:
        offer = self._offers.of(server.id) if server.isolation in _TASKED else None
        return tasks.announced({} if offer is None else offer.capabilities)

    def extended(self, servers: Iterable[Server]) -> bool:
        """Whether any of these servers has tasks for clients of the modern era."""
        offers = [self._offers.of(server.id) for server in servers if server.isolation == "shared"]
        return any(offer is not None and tasks.is_extended(offer.capabilities) for offer in offers)

    def _prepare_modern(self, call: Call, found: Found) -> None:
        """The server may make a task of this call, if its client knows them: it alone decides whether it does."""
        if tasks.PARAM in call.admission.params:
            _take_word(call)
        admission, caller = call.admission, call.caller
        able = admission.method.name == "tools/call" and tasks.is_extended(caller.capabilities)
        if able and self.extended((found.server,)) and not self._full(caller):
            call.errand = Errand(self, caller, found.server, found.native, admission.method.name)

    # The table -----------------------------------------------------------------------------------------------------

    def _settle(self, key: LinkKey, task: str) -> None:
        link = self._pool.ready(key)
        if link is not None:
            self.ended(link, task)
        else:
            self._forget(key, task)

    def _forget(self, key: LinkKey, task: str) -> None:
        gone = self._at_work.pop((key, task), None)
        if gone is not None:
            self._held[gone.principal] -= 1
            if not self._held[gone.principal]:
                del self._held[gone.principal]

    def _lost(self, key: LinkKey) -> None:
        """Another link stands at this address: tasks of a child have ended with the former."""
        for at, task in [place for place, found in self._at_work.items() if place[0] == key and found.child]:
            self._forget(at, task)

    def _full(self, caller: Caller) -> bool:
        self._expire()
        return len(self._at_work) >= IN_TOTAL or self._held[caller.principal.key] >= PER_PRINCIPAL

    def _expire(self) -> None:
        now = time.time()
        for key, task in [place for place, found in self._at_work.items() if found.until <= now]:
            self._forget(key, task)


class Errand(Struct, frozen=True):
    """What one call has to do with a task: ids are exchanged in everything that passes, both ways.

    `task` is the server's id and `sealed` the client's; both are empty while the task is yet to be made.
    """

    of: Tasks
    caller: Caller
    server: Server
    tool: str
    method: str
    task: str = ""
    sealed: str = ""

    def shown(self, event: Event, exchange: Exchange) -> Event:
        """An event of the call as its client gets it."""
        match event:
            case Result(raw):
                return self._answered(raw, exchange.link)
            case Ask(id_, method, params, key):
                return Ask(id_, method, tasks.remarked(params, self.sealed), key) if self.sealed else event
            case Progress(params) if self.sealed:
                return Progress(tasks.remarked(params, self.sealed) or params)
            case Log(level, raw) if self.sealed:
                return Log(level, tasks.remarked_raw(raw, self.sealed))
        return event

    def answer(self, end: End) -> End:
        """What a client answered to what it was asked, as the server gets it."""
        return Result(tasks.remarked_raw(end.result, self.task)) if isinstance(end, Result) and self.task else end

    def over(self, outcome: str, exchange: Exchange) -> None:
        """The call has ended. Given up before its task had an id, it may have left one at work all the same."""
        if not self.task and outcome not in _ANSWERED:
            exchange.link.outlasts(f"call {exchange.id}", self.caller.principal.key, RESULT_WAIT)

    def _answered(self, raw: Raw, link: Link) -> End:
        if not self.task and not self.caller.revision:
            return self._turned(raw, link)
        if not self.task:
            made = tasks.made(raw)
            return Result(raw if made is None else tasks.renamed_made(raw, self.of.begun(self, link, made)))
        if self.method == TASK_RESULT:
            self.of.ended(link, self.task)
            marked = tasks.marked(raw, self.sealed)
            return _UNUSABLE if marked is None else Result(marked)
        standing = tasks.standing(raw)
        if standing is None:
            # In the modern era only `tasks/get` shows the task, the others say that they were heard.
            return _UNUSABLE if self.caller.revision or self.method == "tasks/get" else Result(raw)
        if standing.ended:
            self.of.ended(link, self.task)
        return Result(tasks.renamed(raw, self.sealed))

    def _turned(self, raw: Raw, link: Link) -> End:
        """The result of a call of a modern client, which may be a task."""
        found = tasks.turned(raw)
        if found is None:
            return Result(raw)
        made = tasks.standing(found)
        if made is None:
            return _UNUSABLE
        return TaskMade(tasks.renamed(Raw(envelope.encode(found)), self.of.begun(self, link, made)))


def _take_word(call: Call) -> None:
    """Nothing is said any more of a task that this call should be."""
    params = {name: raw for name, raw in call.admission.params.items() if name != tasks.PARAM}
    call.admission = msgspec.structs.replace(call.admission, params=params)


def _isolations(caller: Caller) -> tuple[str, ...]:
    return _TASKED if caller.session else ("shared",)


def _bound(caller: Caller) -> bytes:
    era = "legacy" if caller.revision else "modern"
    return f"{caller.principal.key} {caller.view} {era}".encode()
