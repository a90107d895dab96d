"""Tasks: requests that work on after their answer, and the ids by which their callers come back to them.

Theory. A server names its tasks as it likes, maybe so that anybody can guess. What a client gets is an id of ours: the
server's, with all that is needed to find the way back and to decide anew, sealed (`ticket.py`). Every request about a
task is decided on like a call of the tool that it runs: what is revoked is cut off from its tasks too.

A task lives where it was made. On a shared link that is any link of its server; if the server is a child of ours, the
very process, because the next one may give the same id to somebody else. On a session's own link it is that link. On a
pooled one there are no tasks: it is lent to others while the task still speaks. Requests of the modern era have no
link of their own for longer than one of them lasts, so for them there are tasks on shared links alone.

The two eras have tasks of two kinds, and an id of one is none of the other. A client of the modern era has tasks of
older servers as well, in its own form (`crossing.py`); a client of 2025-11-25 has none of modern servers.

While a task is at work, what its link says without an address may be about it: `Link.outlasts()` keeps that from
everybody else. What the server asks for a task names it, and goes to whoever waits for its result.

The table here has the tasks that are at work, for two things alone: to bound them, and to tell the session in which
one was made how it stands. It is bounded itself; what it has lost is not told, which MCP allows. Clients of the modern
era hear of tasks by their subscriptions (`task_news.py`). What one call does with a task is its `Errand` (`errand.py`).
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
from mcpmux.calls import ticket
from mcpmux.calls.crossing import Crossing
from mcpmux.calls.errand import RESULT_WAIT, Errand, is_modern
from mcpmux.calls.inputs import Inputs
from mcpmux.calls.target import of_tool
from mcpmux.calls.task_news import Hearer, TaskNews
from mcpmux.calls.ticket import Ticket
from mcpmux.catalog import rewrite
from mcpmux.catalog.offers import Offers
from mcpmux.catalog.view import Catalog, Found, View
from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey, link_key
from mcpmux.errors import CapabilityMissing, InvalidParams, MethodUnknown, TasksExhausted, TaskUnknown
from mcpmux.links.changes import LinkGone, LinkReady, TaskChanged, TaskMissed, TaskMoved
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, tasks
from mcpmux.protocol.events import Failure, Opening
from mcpmux.protocol.methods import TASK_RESULT, TASK_SUBSCRIBE, Answers, Subject
from mcpmux.seal import Keyring

if TYPE_CHECKING:
    from mcpmux.calls.call import Call, Caller

PER_PRINCIPAL: Final = 256  # at work at once
IN_TOTAL: Final = 4096
LONGEST_LIFE: Final = 86_400.0  # seconds after which an id leads nowhere, also if its task is kept for ever
START_WAIT: Final = 15.0  # seconds for a link that is being restarted

TASKED: Final = ("shared", "session")  # isolations with which there are tasks


class _AtWork(Struct, frozen=True):
    """A task that has not ended as far as we know."""

    principal: str
    caller: Caller
    sealed: str
    tool: str
    token: int | str | None  # of the client, for progress
    child: bool  # it ends with its link
    until: float  # unix seconds


class Told(Struct, frozen=True):
    """How a task stands, for the session in which it was made, or for a subscription; `params` as its client gets them.

    None: nothing can be heard of it any more. `progress`: they are those of `notifications/progress`. `look`: they only
    name the task, and how it stands has to be looked at.
    """

    session: str
    server: str
    tool: str
    params: dict[str, Raw] | None
    progress: bool = False
    look: bool = False


class Tasks:
    """Finds the way to tasks; see the module."""

    def __init__(
        self, keyring: Keyring, grants: Grants, catalog: Catalog, offers: Offers, pool: Pool, inputs: Inputs,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._keyring = keyring
        self._grants = grants
        self._catalog = catalog
        self._offers = offers
        self._pool = pool
        self._metrics = metrics
        self.news = TaskNews(pool)
        self.crossing = Crossing(inputs)
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
        if found.item is None or not self._announced(found.server).calls or not found.item.task:
            raise MethodUnknown("tools/call as a task, which this tool cannot be")
        if self._full(caller):
            raise TasksExhausted
        call.errand = Errand(self, caller, found.server, found.native, admission.method.name, token=admission.token)

    def begun(self, errand: Errand, link: Link, made: tasks.Standing) -> str:
        """The id that the client gets for this new task."""
        caller, server = errand.caller, errand.server
        # A server of the modern era may keep a task longer than it said at first.
        life = LONGEST_LIFE if made.life is None or is_modern(link) else min(made.life, LONGEST_LIFE)
        child = server.transport == "stdio"
        found = Ticket(server.id, link.key.scope, link.life if child else "", errand.tool, made.id)
        until = time.time() + life
        sealed = ticket.sealed(found, caller, self._keyring, until)
        if not made.ended:
            self._forget(link.key, made.id)
            self._at_work[link.key, made.id] = _AtWork(
                caller.principal.key, caller, sealed, errand.tool, errand.token, child, until
            )
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
            raise CapabilityMissing(tasks.CAPABILITY)
        sealed = envelope.text(call.admission.params.get("taskId"))
        if sealed is None:
            raise InvalidParams("taskId must be a string")
        found = ticket.opened(sealed, call.caller, self._keyring)
        server = self._catalog.server(found.server)
        if server is None:
            raise TaskUnknown
        call.decision = decide(grants, of_tool(self._catalog, server, found.tool))
        call.native = found.tool
        if not call.decision.allowed:
            call.asked = server.id
            raise TaskUnknown
        call.server = server
        call.numbers = numbers = self._metrics.server(server.id).tally
        numbers.in_flight += 1
        link = await self._link(call, server, found)
        errand = Errand(self, call.caller, server, found.tool, call.admission.method.name, found.task, sealed)
        if call.caller.revision or is_modern(link):
            self._begin(call, link, errand)
        else:
            await self._cross(call, link, errand)

    def _begin(self, call: Call, link: Link, errand: Errand) -> None:
        """Ask the server; who wants to hear of the task does so before the server can say anything."""
        subscribes, client = errand.method == TASK_SUBSCRIBE.name, call.caller.capabilities
        call.errand = errand
        params = {**tasks.unmarked(call.admission.params), "taskId": Raw(envelope.encode(errand.task))}
        wants_progress = call.admission.token is not None
        opening = Opening(errand.method, params, call.caller.principal.key, wants_progress, errand.task, client)
        exchange = link.open(opening)
        if subscribes:
            self.news.add(errand, link)
        call.opened(exchange, RESULT_WAIT if errand.method == TASK_RESULT else errand.server.timeout)

    async def _cross(self, call: Call, link: Link, errand: Errand) -> None:
        """Answer a request about a task that its server has in another form."""
        if errand.method == TASK_SUBSCRIBE.name:
            self.news.add(errand, link)
            call.answer(Raw(b"{}"))
            return
        call.deadline = time.monotonic() + errand.server.timeout
        end = await call.patiently(self.crossing.carry_out(call, link, errand))
        if isinstance(end, Failure):
            call.refused(end)
        else:
            call.answer(end.result if call.caller.view.kind == "server" else self._shown(end.result, errand))

    def _shown(self, state: Raw, errand: Errand) -> Raw:
        return rewrite.result(errand.method, state, errand.server.id)

    async def told(self) -> AsyncIterator[Told]:
        """Everything that servers say of tasks at work."""
        async for change in self._pool.changes():
            match change:
                case TaskChanged(server, key, task, params):
                    for told in self._told(server, key, task, params):
                        yield told
                case TaskMoved(server, key, task, params):
                    moved = self._moved(server, key, task, params)
                    if moved is not None:
                        yield moved
                case TaskMissed(server, key, task):
                    for hearer in self.news.missed(key, task):
                        yield Told(hearer.listen, server, hearer.tool, None)
                case LinkReady(server, key) | LinkGone(server, key):
                    self._lost(key)
                    for hearer in self.news.lost(key):
                        yield Told(hearer.listen, server, hearer.tool, None)

    async def allows(self, caller: Caller, told: Told) -> bool:
        """Whether this caller may know of that (still).

        Raises: StoreUnavailable.
        """
        server = self._catalog.server(told.server)
        grants = self._grants.cached(caller.principal) or await self._grants.of(caller.principal)
        return server is not None and decide(grants, of_tool(self._catalog, server, told.tool)).allowed

    def _told(self, server: str, key: LinkKey, task: str, params: dict[str, Raw]) -> list[Told]:
        """Who is told that a task stands so."""
        at_work, standing = self._at_work.get((key, task)), tasks.standing(params)
        if standing is None:
            return []
        found = [
            Told(hearer.listen, server, hearer.tool, _news(params, hearer), look=hearer.crosses)
            for hearer in self.news.of(key, task)
        ]
        if standing.ended:
            self.news.over(key, task)
            self._settle(key, task)
        if at_work is not None and at_work.caller.session and at_work.until > time.time():
            shown = tasks.renamed_params(params, at_work.sealed)
            found.append(Told(at_work.caller.session, server, at_work.tool, shown))
        return found

    def _moved(self, server: str, key: LinkKey, task: str, params: dict[str, Raw]) -> Told | None:
        """Who is told of the progress of a task: the session whose call has asked for it, for as long as it lasts."""
        at_work = self._at_work.get((key, task))
        if at_work is None or at_work.token is None or at_work.until <= time.time():
            return None
        shown = tasks.remarked(params, at_work.sealed) or params
        shown = {**shown, "progressToken": Raw(envelope.encode(at_work.token))}
        return Told(at_work.caller.session, server, at_work.tool, shown, progress=True)

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
        offer = self._offers.of(server.id) if server.isolation in TASKED else None
        return tasks.announced({} if offer is None else offer.capabilities)

    def extended(self, servers: Iterable[Server]) -> bool:
        """Whether any of these servers has tasks for clients of the modern era."""
        offers = [self._offers.of(server.id) for server in servers if server.isolation == "shared"]
        return any(
            tasks.is_extended(offer.capabilities) or tasks.announced(offer.capabilities).calls
            for offer in offers
            if offer is not None
        )

    def _prepare_modern(self, call: Call, found: Found) -> None:
        """The server may make a task of this call, if its client knows them: it alone decides whether it does."""
        if tasks.PARAM in call.admission.params:
            _take_word(call)
        admission, caller = call.admission, call.caller
        able = admission.method.name == "tools/call" and tasks.is_extended(caller.capabilities)
        if able and self._makes_tasks(found) and not self._full(caller):
            call.errand = Errand(self, caller, found.server, found.native, admission.method.name)

    def _makes_tasks(self, found: Found) -> bool:
        """Whether a call of a modern client that knows the extension may become a task."""
        if not self.extended((found.server,)):
            return False
        crosses = self._announced(found.server).calls
        return not crosses or (found.item is not None and bool(found.item.task))

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


def _news(params: dict[str, Raw], hearer: Hearer) -> dict[str, Raw]:
    """What a subscription gets of news of a task."""
    named = {} if hearer.crosses else params
    return tasks.renamed_params(named, hearer.sealed)


def _take_word(call: Call) -> None:
    """Nothing is said any more of a task that this call should be."""
    params = {name: raw for name, raw in call.admission.params.items() if name != tasks.PARAM}
    call.admission = msgspec.structs.replace(call.admission, params=params)


def _isolations(caller: Caller) -> tuple[str, ...]:
    return TASKED if caller.session else ("shared",)
