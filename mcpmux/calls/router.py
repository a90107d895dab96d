"""Router: takes one admitted request to whoever answers it. THE place of decisions on calls, and of their deadlines.

Every request passes `open()`: what it is about is found in the catalog, `decide()` says yes or no, and only then is
a link asked for. Refused looks exactly like absent. Calls in flight stand in one table, which one sweep looks
through for deadlines and which is decided on anew whenever grants change.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, assert_never

from msgspec import Raw

from mcpmux.access.decision import Decision, GrantSet, Target, decide, whole
from mcpmux.access.grants import Grants
from mcpmux.calls.call import PARKED, Call, Caller
from mcpmux.calls.interest import MAX_WANTED, Interest
from mcpmux.calls.lists import Lists
from mcpmux.calls.local import EMPTY, Local
from mcpmux.calls.outcome import OURS, Recorder
from mcpmux.calls.parked import REVOKED, Parking
from mcpmux.calls.relief import Relief
from mcpmux.calls.request import MAX_NAMED, cursor_of, interest_after, opening_of, subject_of, unknown
from mcpmux.calls.target import of_found
from mcpmux.calls.tasks import Tasks
from mcpmux.catalog.names import public_uri
from mcpmux.catalog.offers import Offers
from mcpmux.catalog.view import Catalog, Found, View
from mcpmux.credentials.scope import LinkKey, link_key
from mcpmux.errors import (
    CallCut,
    EndpointForbidden,
    InvalidParams,
    MethodUnknown,
    MuxError,
    ServerUnavailable,
    StoreUnavailable,
    UpstreamBroken,
)
from mcpmux.identity.principal import Principal
from mcpmux.links.pool import Pool
from mcpmux.observe.fence import fenced
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, headers, methods
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.events import Failure, Offered, Result
from mcpmux.protocol.headers import Values
from mcpmux.protocol.methods import Answers, Subject

SWEEP: Final = 0.1

# A call that has been silent for this long becomes an event stream, so that it can be resumed.
QUIET: Final = 1.0

# How long a call waits for a link that is being restarted; a server's first start may take its whole timeout.
RESTART_WAIT: Final = 15.0

MAX_CHAT: Final = 64  # characters of a chat's id
MOST_ROUTES: Final = 8192


class Router:
    """Opens calls and keeps the table of those in flight."""

    def __init__(
        self, grants: Grants, catalog: Catalog, offers: Offers, pool: Pool,
        parts: tuple[Lists, Local, Interest, Parking, Tasks], recorder: Recorder, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._grants = grants
        self._catalog = catalog
        self._offers = offers
        self._pool = pool
        self._lists, self._local, self._interest, self._parking, self._tasks = parts
        self.signature = self._local.signature  # who answers on an endpoint
        self._relief = Relief(pool, self._parking)
        self._recorder = recorder
        self._metrics = metrics
        self._calls: set[Call] = set()
        self._routes: dict[tuple[View, str, Subject, str], tuple[Found, Decision]] = {}
        self._doors: dict[tuple[View, str], bool] = {}  # whether one who has these grants may enter
        self._serial = -1

    @property
    def in_flight(self) -> int:
        """How many calls have no outcome yet."""
        return len(self._calls)

    def knows(self, server: str) -> bool:
        """Whether a server of that id is there now."""
        return self._catalog.server(server) is not None

    async def enter(self, principal: Principal, view: View) -> GrantSet:
        """The caller's grants, if this endpoint exists for them at all.

        Raises: EndpointForbidden (unknown, disabled and ungranted alike), StoreUnavailable.
        """
        grants = self._grants.cached(principal) or await self._grants.of(principal)
        if view.kind == "all":
            return grants
        if self._serial != self._catalog.serial:
            self._renew()
        key = (view, grants.fingerprint)
        enters = self._doors.get(key)
        if enters is None:
            server = self._catalog.server(view.id) if view.kind == "server" else None
            enters = server is not None and decide(grants, whole(server)).allowed
            if len(self._doors) >= MOST_ROUTES:
                self._renew()
            self._doors[key] = enters
        if not enters:
            raise EndpointForbidden
        return grants

    async def initialize(self, caller: Caller, revision: str) -> Raw:
        """The result of `initialize` for this caller.

        Raises: EndpointForbidden, StoreUnavailable.
        """
        return await self._local.initialize(caller.view, await self.enter(caller.principal, caller.view), revision)

    async def shown_uri(self, caller: Caller, server: str, uri: str) -> str | None:
        """The URI of a changed resource as this caller knows it; None if the caller may not know it (any more)."""
        found = self._catalog.server(server)
        grants = self._grants.cached(caller.principal) or await self._grants.of(caller.principal)
        if (
            found is None
            or not decide(grants, Target(server, found.enabled, "resource", uri, False, found.tools)).allowed
        ):
            return None
        return public_uri(server, uri) if caller.view.aggregate else uri

    def roots_changed(self, caller: Caller) -> None:
        """The roots of this session's client have changed: tell the servers that have a link of its own."""
        for server in self._catalog.servers(caller.view):
            if server.isolation != "session":
                continue
            with contextlib.suppress(ServerUnavailable):
                link = self._pool.ready(link_key(server, caller.principal.key, caller.session))
                if link is not None:
                    link.roots_changed()

    def call(self, caller: Caller, admission: Admission, request_id: str, chat: str | None = None) -> Call:
        """A call that is in the table and not opened yet."""
        call = Call(caller, admission, request_id, self._ended, self._parking.inputs, chat[:MAX_CHAT] if chat else None)
        self._calls.add(call)
        return call

    def modern(self, caller: Caller, said: RequestCore, mirror: Values, request_id: str, chat: str | None) -> Call:
        """The same for a request of the modern era, whose headers `mirror` gives."""
        call = self.call(caller, said.admission, request_id, chat)
        call.said, call.mirror, call.parking = said, mirror, self._parking
        return call

    async def open(self, call: Call) -> None:
        """Decide on the call and begin it; what goes wrong on the way ends it."""
        try:
            principal = call.caller.principal
            answers = call.admission.method.answers
            if answers is Answers.SERVER or answers is Answers.INTEREST:
                await self._to_server(call, self._grants.cached(principal) or await self._grants.of(principal))
                return
            grants = await self.enter(principal, call.caller.view)
            match answers:
                case Answers.LIST:
                    listed = await self._list(call, grants)
                    call.answer(listed.result, listed.page)
                case Answers.US:
                    call.answer(await self._ourselves(call, grants))
                case Answers.TASK:
                    await self._tasks.open(call, grants)
                case other:
                    assert_never(other)
        except MuxError as error:
            call.fail(error)
        except asyncio.CancelledError:
            call.cancel("the client went away")
            raise

    def leave(self, session: str) -> None:
        """A session has ended: so do the links that were its own."""
        self._pool.end(session)

    def drain(self) -> None:
        """Nobody can come back any more to a call that was left."""
        self._parking.close()

    def cut(self) -> None:
        """End every call that is still in flight, because mcpmux ends."""
        for call in list(self._calls):
            call.fail(CallCut(call.server.id if call.server is not None else OURS))

    async def run(self) -> None:
        """Sweep for deadlines and recheck on changed grants, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fenced("call deadlines", self._sweep, self._metrics), name="call deadlines")
                for name, changes in (("call grants", self._grants.changes), ("call catalog", self._catalog.changes)):
                    tasks.create_task(fenced(name, partial(self._recheck_on, changes), self._metrics), name=name)
        finally:
            self._recorder.flush()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for call in list(self._calls):
                call.sweep(now, QUIET)
            self._parking.sweep(now)
            self._tasks.crossing.sweep(now)
            self._relief.sweep(now, self._calls)
            self._interest.sweep(now)
            self._recorder.flush()

    async def _recheck_on(self, changes: Callable[[], AsyncIterator[None]]) -> None:
        async for _ in changes():
            await self._recheck()

    async def _recheck(self) -> None:
        """End the calls in flight, and those that were left, that would not be allowed now."""
        for call in list(self._calls):
            if call.decision is None or call.ended:
                continue
            now = await self._revoked(call.caller.principal, call.decision)
            if now is not None and not call.ended:
                call.decision = now
                call.fail(unknown(call))
        for parked in self._parking:
            if await self._revoked(parked.principal, parked.decision) is not None:
                self._parking.drop(parked, REVOKED)

    async def _revoked(self, principal: Principal, decision: Decision) -> Decision | None:
        """The decision as it is now, if what was allowed is not allowed any more."""
        try:
            now = self._redecided(decision.target, await self._grants.of(principal))
        except StoreUnavailable:
            # Nobody knows: it was allowed when it began, its deadline bounds it, and news of the grants comes here.
            return None
        return None if now.allowed else now

    def _redecided(self, target: Target, grants: GrantSet) -> Decision:
        """The decision as it is today; a server that is in the config no more is one that nobody may use."""
        server = self._catalog.server(target.server)
        enabled = server is not None and server.enabled
        rules = server.tools if server is not None else target.rules
        return decide(grants, Target(target.server, enabled, target.kind, target.name, target.read_only, rules))

    def _ended(self, call: Call) -> None:
        self._calls.discard(call)
        if call.admission.method.answers is Answers.INTEREST:
            interest_after(call, self._interest)
        if not call.caller.session:
            self._interest.let_go(call.request_id)
            if call.outcome != PARKED:
                self._pool.end(call.scope)  # it was a session of its own
        self._recorder.record(call)

    # What we answer ourselves --------------------------------------------------------------------------------------

    async def _ourselves(self, call: Call, grants: GrantSet) -> Raw:
        match call.admission.method.name:
            case "ping":
                return EMPTY
            case methods.DISCOVER:
                return await self._local.discover(call.caller.view, grants)
            case "logging/setLevel":
                level = envelope.text(call.admission.params.get("level")) or "info"
                shown = self._catalog.servers(call.caller.view)
                servers = [server.id for server in shown if decide(grants, whole(server)).allowed]
                self._interest.set_level(call.caller.session, level, servers)
                return EMPTY
        raise MethodUnknown(call.admission.method.name)

    async def _list(self, call: Call, grants: GrantSet) -> Result:
        what, caller = call.admission.method.offers, call.caller
        if what is None:
            raise MethodUnknown(call.admission.method.name)
        binding = f"{caller.principal.key} {caller.view}"
        return await self._lists.page(caller.view, grants, what, cursor_of(call), binding)

    # What a server answers -----------------------------------------------------------------------------------------

    async def _to_server(self, call: Call, grants: GrantSet) -> None:
        subject, name = subject_of(call)
        route = self._route(call.caller.view, grants, subject, name)
        if route is None:
            route = await call.patiently(self._decided(call, grants))
        found, decision = route
        server = found.server
        call.decision, call.server, call.native = decision, server, found.native
        call.numbers = numbers = self._metrics.server(server.id).tally
        numbers.in_flight += 1
        if call.mirror is not None and found.item is not None and subject is Subject.TOOL:
            headers.check_mirrored(found.item.raw, call.admission.params.get("arguments"), call.mirror)
        if call.said is not None and self._parking.resume(call):
            if call.said.log_level is not None and call.exchange is not None:
                self._interest.hear(call.request_id, call.said.log_level, call.exchange.link)
            return
        if call.said is not None or "task" in call.admission.params:
            self._tasks.prepare(call, found, grants)
        key = link_key(server, call.caller.principal.key, call.scope)
        if call.admission.method.answers is Answers.INTEREST:
            if self._interested(call, key):
                return
            key = self._pool.lasting(key)
        if subject is Subject.TOOL and server.transport == "http":
            call.repeat = self._repeat
        link = self._pool.ready(key)
        if link is None:
            link = await self._relief.link(call, key, min(server.timeout, RESTART_WAIT))
        if call.said is not None and (level := call.said.log_level) is not None:
            another = partial(self._pool.link, key, RESTART_WAIT, call.caller.capabilities)
            link = await call.patiently(self._interest.attuned(call.request_id, level, link, another))
        call.opened(link.open(opening_of(call, found, link, self._interest)), server.timeout)

    async def _repeat(self, call: Call, refusal: Failure) -> None:
        """Open a call again whose server has refused its headers, with those that its list of tools asks for by now.

        Raises: UpstreamBroken (it was opened again before, or has got on already), ToolUnknown, ServerUnavailable,
        ServerBusy. Source: MCP 2026-07-28 basic/transports/streamable-http, "Client Behavior".
        """
        caller, server = call.caller, call.server
        assert server is not None
        if call.repeated or call.asks is not None:
            raise UpstreamBroken(server.id, f"it refuses the headers of the call: {refusal.message[:MAX_NAMED]}")
        call.repeated = True
        await self._offers.renewed(server.id, Offered.TOOLS, RESTART_WAIT)
        grants = self._grants.cached(caller.principal) or await self._grants.of(caller.principal)
        found, call.decision = await self._decided(call, grants)
        key = link_key(server, caller.principal.key, call.scope)
        link = await self._pool.link(key, RESTART_WAIT, caller.capabilities)
        call.opened(link.open(opening_of(call, found, link, self._interest)), server.timeout)

    def _route(self, view: View, grants: GrantSet, subject: Subject, name: str) -> tuple[Found, Decision] | None:
        """What this name leads to for these grants, if it may be used; kept until anything in the catalog changes."""
        if self._serial != self._catalog.serial:
            self._renew()
        key = (view, grants.fingerprint, subject, name)
        route = self._routes.get(key)
        if route is None:
            found = self._catalog.find(view, subject, name)
            if found is None or found.pending:
                return None
            decision = decide(grants, of_found(found, subject))
            if not decision.allowed:
                return None
            route = (found, decision)
            if len(name) <= MAX_NAMED:  # a URI may be as long as a body
                if len(self._routes) >= MOST_ROUTES:
                    self._renew()
                self._routes[key] = route
        return route

    def _renew(self) -> None:
        """Forget routes and doors: something in the catalog has changed, or they are too many."""
        self._serial = self._catalog.serial
        self._routes.clear()
        self._doors.clear()

    async def _decided(self, call: Call, grants: GrantSet) -> tuple[Found, Decision]:
        """What the call is about, if its caller may use it; waits for a server that was never seen before.

        Raises: ToolUnknown, PromptUnknown, ResourceUnknown (absent and refused alike), ServerUnavailable.
        """
        subject, name = subject_of(call)
        call.native = name[:MAX_NAMED]  # until it is found: the log says what was asked for
        found = self._catalog.find(call.caller.view, subject, name)
        if found is not None and found.pending and decide(grants, whole(found.server)).allowed:
            wait = min(found.server.timeout, RESTART_WAIT)
            await self._offers.settled((found.server.id,), wait)
            found = self._catalog.find(call.caller.view, subject, name)
            if found is not None and found.pending:
                raise ServerUnavailable(found.server.id, wait)
        if found is None or found.pending:
            raise unknown(call)
        call.decision = decide(grants, of_found(found, subject))
        if not call.decision.allowed:
            call.asked, call.native = found.server.id, found.native
            raise unknown(call)
        return found, call.decision

    def _interested(self, call: Call, key: LinkKey) -> bool:
        """Whether a subscription could be answered without asking the server."""
        session, uri = call.caller.session, call.native
        if call.admission.method.name == "resources/unsubscribe":
            self._interest.remove(session, key, uri)
            call.answer(EMPTY)
            return True
        if self._interest.count(session) >= MAX_WANTED:
            raise InvalidParams(f"at most {MAX_WANTED} resources can be subscribed in one session")
        if self._interest.heard(key, uri):
            call.answer(EMPTY)
            return True
        return False
