"""Subscriptions of the modern era that are open: who is told what, each as long as its stream.

A listen stands beside the legacy sessions: the same loops (`sessions.py`) tell both. What it hears of is what its
client asked for and may still see: lists are compared with what they were for today's grants, a resource or a task is
decided on again before its change is told. It ends from our side, properly, when the token that opened it expires, when
its endpoint is not there for its principal any more, when a task can be heard of no more, and when mcpmux ends.
Source: MCP 2026-07-28 basic/patterns/subscriptions.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from msgspec import Raw

from mcpmux.calls import Call, Caller, Interest, Lists, Router, Tasks, Told
from mcpmux.catalog import rewrite
from mcpmux.errors import CallCancelled, Draining, EndpointForbidden, ListensExhausted, MuxError
from mcpmux.faces.edge import next_event, opened
from mcpmux.faces.entry import Entry
from mcpmux.faces.inbox import Inbox
from mcpmux.observe.log import logger
from mcpmux.protocol.downstream import Admission
from mcpmux.protocol.downstream.modern import RequestCore, Wanted
from mcpmux.protocol.envelope import encode
from mcpmux.protocol.events import Offered, Result
from mcpmux.protocol.methods import MODERN_REQUESTS, REQUESTS, TASK_GET, TASK_SUBSCRIBE, Method

# How long the acknowledgement waits for servers to take subscriptions: below the 10 s after which clients give up.
ACKNOWLEDGE: Final = 5.0

_SUBSCRIBE: Final = REQUESTS["resources/subscribe"]
_GET: Final = MODERN_REQUESTS[TASK_GET]
_LATE: Final = "the server did not take the subscription in time"


class Listen:
    """One open subscription; `seen` are the digests of the lists that it is told of."""

    __slots__ = ("_inbox", "_listener", "caller", "core", "ended", "id", "seen")

    def __init__(self, entry: Entry, core: RequestCore) -> None:
        self.id = entry.request_id
        self.caller = Caller(entry.principal, entry.view, entry.request_id)
        self.core = core
        self.seen: dict[Offered, bytes] = {}
        self.ended = False
        self._inbox = Inbox()
        self._listener = self._inbox.listen(entry.expires)

    @property
    def expires(self) -> float:
        """When the token does that opened it (unix seconds)."""
        return self._listener.expires

    def tell(self, wire: bytes) -> None:
        """Leave a message for the stream; the same one twice waits once."""
        self._inbox.put(wire)

    async def next(self) -> bytes | None:
        """The next message for the stream; None when it must end."""
        return await self._listener.next()

    def close(self) -> None:
        """End the stream properly."""
        self._listener.close()


class Listens:
    """The table of open subscriptions."""

    def __init__(self, most: int, router: Router, lists: Lists, interest: Interest, tasks: Tasks) -> None:
        """`most` is how many one principal may have open."""
        self._tasks = tasks
        self._most = most
        self._router = router
        self._lists = lists
        self._interest = interest
        self._log = logger("faces")
        self._open: dict[str, Listen] = {}
        self._looking: dict[tuple[str, bytes], bool] = {}  # tasks that are looked at, and whether to look once more
        self._held: Counter[str] = Counter()
        self.draining = False

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, entry: Entry, core: RequestCore, offers: Iterable[Offered]) -> Listen:
        """A new subscription, which is told of these lists from now on.

        Raises: Draining, ListensExhausted, EndpointForbidden, StoreUnavailable.
        """
        grants = await self._router.enter(entry.principal, entry.view)
        if self.draining:
            raise Draining
        if self._held[entry.principal.key] >= self._most:
            raise ListensExhausted
        listen = Listen(entry, core)
        for what in offers:
            listen.seen[what] = self._lists.listing(entry.view, grants, what).digest
        self._open[listen.id] = listen
        self._held[entry.principal.key] += 1
        return listen

    async def subscribe(self, listen: Listen, wanted: Wanted) -> Wanted:
        """Have the resources and tasks subscribed; what came to something.

        Each is a call, decided on and recorded like a client's own. What is refused, absent or not answered in time is
        simply not among them.
        """
        calls: dict[tuple[Method, str], Call] = {}
        honored: list[tuple[Method, str]] = []
        try:
            async with asyncio.timeout(ACKNOWLEDGE):
                for number, (method, name) in enumerate(_things(wanted)):
                    admission = Admission(number, method, {str(method.member): Raw(encode(name))}, None)
                    call = calls[method, name] = self._router.call(listen.caller, admission, listen.id)
                    await opened(self._router, call)
                for thing, call in calls.items():
                    if isinstance(await next_event(call), Result):
                        honored.append(thing)
        except (TimeoutError, CallCancelled):
            self._log.warning("listen_incomplete", request_id=listen.id, principal=listen.caller.principal.label)
        finally:
            for call in calls.values():
                call.cancel(_LATE)  # unless it has ended
        uris, tasks = (tuple(name for of, name in honored if of is method) for method in (_SUBSCRIBE, TASK_SUBSCRIBE))
        return Wanted(wanted.lists, uris, tasks)

    def end(self, listen: Listen) -> None:
        """The subscription is over: forget it, and what it was subscribed to."""
        if listen.ended:
            return
        listen.ended = True
        del self._open[listen.id]
        key = listen.caller.principal.key
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._interest.drop(listen.id)
        self._tasks.news.leave(listen.id)
        self._router.leave(listen.id)

    def sweep(self) -> None:
        """End the streams whose token has expired."""
        now = time.time()
        for listen in self._open.values():
            if listen.expires <= now:
                listen.close()

    def close(self) -> None:
        """End every stream."""
        for listen in self._open.values():
            listen.close()

    # What they are told --------------------------------------------------------------------------------------------

    async def announce(self) -> None:
        """Tell each of the lists that are not what they were."""
        for listen in list(self._open.values()):
            if listen.ended:
                continue
            try:
                grants = await self._router.enter(listen.caller.principal, listen.caller.view)
            except EndpointForbidden:
                listen.close()
            except MuxError as error:
                self._log.warning("lists_unknown", reason=error.reason, principal=listen.caller.principal.label)
            else:
                for what in self._lists.changed(listen.caller.view, grants, listen.seen):
                    listen.tell(listen.core.changed(what))

    async def update(self, listen_id: str, server: str, uri: str) -> None:
        """Tell one that a resource changed, if it may still know of it."""
        listen = self._open.get(listen_id)
        if listen is None:
            return
        try:
            shown = await self._router.shown_uri(listen.caller, server, uri)
        except MuxError as error:
            self._log.warning("update_untold", reason=error.reason, principal=listen.caller.principal.label)
            return
        if shown is not None:
            listen.tell(listen.core.updated(shown))

    async def tell_task(self, told: Told) -> None:
        """Tell one how a task stands, if it may still know of it; end it if nothing can be heard any more."""
        listen = self._open.get(told.session)
        if listen is None:
            return
        if told.params is None:
            listen.close()
        elif await self._tasks.allows(listen.caller, told):
            task = Raw(encode(told.params))
            shown = rewrite.result("tasks/get", task, told.server) if listen.caller.view.aggregate else task
            listen.tell(listen.core.task_told(shown))

    async def look(self, told: Told) -> None:
        """Tell one how a task stands, which its server does not say by itself: by a call like a client's own."""
        named = (told.session, bytes((told.params or {})["taskId"]))
        if named in self._looking:
            self._looking[named] = True
            return
        again = True
        try:
            while again:
                self._looking[named] = again = False
                await self._look(told)
                again = self._looking[named]
        finally:
            del self._looking[named]

    async def _look(self, told: Told) -> None:
        listen = self._open.get(told.session)
        if listen is None:
            return
        caller = replace(listen.caller, capabilities=listen.core.capabilities)
        call = self._router.call(caller, Admission(0, _GET, told.params or {}, None), listen.id)
        try:
            async with asyncio.timeout(ACKNOWLEDGE):
                await opened(self._router, call)
                found = await next_event(call)
        except (TimeoutError, CallCancelled):
            listen.close()
            return
        finally:
            call.cancel(_LATE)  # unless it has ended
        if isinstance(found, Result):
            listen.tell(listen.core.task_told(found.result))
        else:
            listen.close()


def _things(wanted: Wanted) -> list[tuple[Method, str]]:
    """What a subscription wants to hear of by name, with the request that it is asked by."""
    return [*((_SUBSCRIBE, uri) for uri in wanted.uris), *((TASK_SUBSCRIBE, task) for task in wanted.tasks)]
