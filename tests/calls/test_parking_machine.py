"""The room of parked calls whatever happens in whatever order: no client gets what is not its own, and nothing stays.

Calls of three people on a server with three lent links, which asks, reports, takes back and answers, or is lost; its
clients come back with all or some of the answers, twice, as somebody else, with other params, too late, or not at all;
they leave, wait for a place, are thrown out, and lose their grants. Asks are bounded so that the bounds are met.
Real are the calls, the rooms of inputs, parking and relief, the links with their cores, and the desk that lends them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.access.decision import Decision, Target
from mcpmux.calls import Call, Caller, Inputs, Parking, inputs, parked
from mcpmux.calls.parked import REVOKED, Parked
from mcpmux.calls.relief import Relief
from mcpmux.catalog.view import View
from mcpmux.config.schema import Server, ToolRules
from mcpmux.credentials import LinkKey
from mcpmux.errors import CallCancelled, MuxError
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.events import ENDS, Event, Failure, InputRequired, Opening, Progress, Result
from mcpmux.protocol.methods import REQUESTS
from mcpmux.seal import Keyring
from tests.calls.machine_server import SERVER, Asked, Pipe, Places
from tests.calls.room import ABLE, KEYS, somebody

PEOPLE = {name: somebody(name) for name in ("ana", "ben", "cem")}
NAMES = st.sampled_from(sorted(PEOPLE))
LINKS = 3
PER_PRINCIPAL, IN_TOTAL = 4, 7


@dataclass(eq=False)
class Attempt:
    """One request of somebody's for the call `number`, and how it went."""

    number: int
    who: str
    call: Call
    task: asyncio.Task[None] = field(init=False)
    end: Event | None = None


@dataclass(eq=False)
class Ticket:
    """What somebody needs to come back: the state, and the keys of what was asked by the ids of the server."""

    number: int
    who: str
    state: str
    keys: dict[str, str]
    parked: Parked | None


@dataclass(eq=False)
class Story:
    """What is known of one call over all its requests."""

    who: str
    told: list[int] = field(default_factory=list)  # progress that its server reported
    heard: list[int] = field(default_factory=list)  # and that its client got
    ends: int = 0


class Room(RuleBasedStateMachine):
    """Everything at once, beside what is known of each call."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(parked, "TOGETHER", 0)
        self.patch.setattr(inputs, "PER_PRINCIPAL", PER_PRINCIPAL)
        self.patch.setattr(inputs, "IN_TOTAL", IN_TOTAL)
        self.loop = asyncio.new_event_loop()
        self.metrics = Metrics(REQUESTS)
        self.count = 0
        self.calls: set[Call] = set()
        self.waiting: set[Call] = set()
        self.attempts: list[Attempt] = []
        self.tickets: list[Ticket] = []
        self.stories: dict[int, Story] = {}
        self.run(self.open_room())

    async def open_room(self) -> None:
        self.places = Places(LINKS, self.metrics.server(SERVER))
        self.parking = Parking(self.places, Inputs(self.places), Keyring(KEYS))  # type: ignore[arg-type]
        self.relief = Relief(self.places, self.parking)  # type: ignore[arg-type]
        for member in self.places.members:
            await member.begin()

    # Clients -----------------------------------------------------------------------------------------------------

    @rule(who=NAMES, asked=st.integers(0, 3))
    def begins(self, who: str, asked: int) -> None:
        number = self.next()
        self.stories[number] = Story(who)
        self.send(number, who)
        for pipe in self.at_work():
            if pipe.work is not None and pipe.work.number == number:
                self.ask(pipe, asked)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), some=st.booleans(), late=st.booleans())
    def comes_back(self, data: st.DataObject, some: bool, late: bool) -> None:
        tickets = [one for one in self.tickets if self.is_left(one) or late]
        if not tickets:
            return
        ticket = data.draw(st.sampled_from(tickets))
        alive = self.is_left(ticket)
        names = {ticket.keys[id_]: id_ for id_ in sorted(ticket.keys)[: 1 if some else None]}
        attempt = self.send(ticket.number, ticket.who, ticket, names)
        assert alive or _refused(attempt)

    @precondition(lambda self: any(map(self.is_left, self.tickets)))
    @rule(data=st.data())
    def comes_back_with_all_that_was_ever_asked(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([one for one in self.tickets if self.is_left(one)]))
        former = [one for one in self.tickets if one.number == ticket.number]
        names = {key: id_ for one in reversed(former) for id_, key in one.keys.items()}
        self.send(ticket.number, ticket.who, ticket, names)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), who=NAMES)
    def another_comes(self, data: st.DataObject, who: str) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        number = ticket.number if who != ticket.who else ticket.number + 1000
        before = self.is_left(ticket)
        assert _refused(self.send(number, who, ticket, {}))
        assert self.is_left(ticket) == before

    @precondition(lambda self: self.under_way())
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.under_way()))
        self.act(attempt.task.cancel)

    @precondition(lambda self: any(map(self.is_left, self.tickets)))
    @rule(data=st.data())
    def leaves_before_it_has_read_what_it_is_asked(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([one for one in self.tickets if self.is_left(one)]))
        (attempt,) = (one for one in self.attempts if one.call.left is ticket.parked)
        self.act(attempt.call.forsake, "the client closed the response")
        assert not self.is_left(ticket)

    # The server --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.at_work())
    @rule(data=st.data(), times=st.integers(1, 3))
    def asks(self, data: st.DataObject, times: int) -> None:
        self.ask(data.draw(st.sampled_from(self.at_work())), times)

    @precondition(lambda self: self.open_asks())
    @rule(data=st.data())
    def takes_back(self, data: st.DataObject) -> None:
        pipe, asked = data.draw(st.sampled_from(self.open_asks()))
        self.act(pipe.withdraw, asked)

    @precondition(lambda self: self.at_work())
    @rule(data=st.data())
    def reports(self, data: st.DataObject) -> None:
        pipe = data.draw(st.sampled_from(self.at_work()))
        assert pipe.work is not None
        progress = self.next()
        self.stories[pipe.work.number].told.append(progress)
        self.act(pipe.report, progress)

    @precondition(lambda self: any(member.pipe.work for member in self.places.members))
    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        busy = [member.pipe for member in self.places.members if member.pipe.work is not None]
        self.act(data.draw(st.sampled_from(busy)).done)

    @precondition(lambda self: self.count % 4 == 0)  # rarely: it ends much
    @rule(data=st.data())
    def is_lost(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.places.members))
        self.act(member.lose)
        self.run(member.begin())
        self.act(str)

    # What mcpmux does by itself ----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.parking))
    @rule(data=st.data())
    def time_is_over(self, data: st.DataObject) -> None:
        late = data.draw(st.sampled_from(sorted(self.parking, key=lambda one: one.deadline)))
        self.act(self.parking.sweep, late.deadline)
        assert all(one.deadline > late.deadline for one in self.parking)

    @precondition(lambda self: self.waiting)
    @rule()
    def gives_way(self) -> None:
        for one in self.parking:
            one.since -= 40
        least = len(self.parking) - len(self.relief)
        self.act(self.relief.sweep, time.monotonic() + 5, self.calls)
        assert len(self.parking) >= least

    @precondition(lambda self: len(self.parking) > 1)
    @rule(who=NAMES)
    def is_revoked(self, who: str) -> None:
        for one in self.parking:
            if one.principal == PEOPLE[who]:
                self.act(self.parking.drop, one, REVOKED)

    # What is true whenever nothing moves -------------------------------------------------------------------------

    @invariant()
    def asks_are_counted_and_bounded(self) -> None:
        each = [(one.principal.key, len(one.asks)) for one in self.parking]
        each += [(call.caller.principal.key, len(call.asks or ())) for call in self.calls]
        assert self.parking.inputs.open == sum(number for _, number in each) <= IN_TOTAL
        for person in PEOPLE.values():
            assert sum(number for key, number in each if key == person.key) <= PER_PRINCIPAL

    @invariant()
    def a_link_is_lent_as_long_as_its_server_is_at_work(self) -> None:
        assert self.places.desk.taken == sum(member.pipe.work is not None for member in self.places.members)

    @invariant()
    def each_question_has_the_answer_of_whose_call_it_is(self) -> None:
        for asked in (asked for member in self.places.members for asked in member.pipe.asks):
            if asked.reply is not None and "result" in asked.reply:
                assert asked.reply["result"] == json.loads(_answer(self.stories[asked.number].who, asked.id))

    @invariant()
    def who_waits_stands_in_line(self) -> None:
        assert len(self.relief) == len(self.waiting) and not (self.waiting and self.places.ready(LinkKey(SERVER)))

    @invariant()
    def each_call_that_is_left_has_its_ticket(self) -> None:
        assert {one.id for one in self.parking} == {one.parked.id for one in self.tickets if self.is_left(one)}  # type: ignore[union-attr]

    def teardown(self) -> None:
        if not hasattr(self, "places"):
            return
        for attempt in self.under_way():
            self.act(attempt.task.cancel)
        self.act(self.parking.close)
        for member in self.places.members:
            if member.pipe.work is not None:
                self.act(member.pipe.done)
        links = [link for member in self.places.members for link in member.links]
        assert [link._core.leftovers + link._core.ghosts for link in links] == [0] * len(links)
        assert (len(self.parking._table), self.parking.inputs._total, self.parking.inputs._open) == (0, 0, {})
        assert (len(self.relief), self.places.desk.taken, self.calls, asyncio.all_tasks(self.loop)) == (
            0,
            0,
            set(),
            set(),
        )
        assert b'mcpmux_calls_parked{server="counter"} 0.0' in self.metrics.render(None)[0] or not self.tickets
        self.loop.close()
        self.patch.undo()

    # How a request goes ------------------------------------------------------------------------------------------

    def send(
        self, number: int, who: str, ticket: Ticket | None = None, answers: Mapping[str, str] | None = None
    ) -> Attempt:
        """A request, as far as it gets now; `answers`: the ids of the questions that are answered, by key."""
        said = {key: Raw(_answer(who, id_)) for key, id_ in (answers or {}).items()}
        params = {"name": Raw(b'"t"'), "arguments": Raw(b'{"n":%d}' % number)}
        admission = Admission(1, REQUESTS["tools/call"], params, 1)
        core = RequestCore(admission, dict(ABLE), "t/1", 8, said or None, None if ticket is None else ticket.state)
        caller = Caller(PEOPLE[who], View("all"), "", ABLE)
        call = Call(caller, admission, f"r-{self.next()}", self.calls.discard, self.parking.inputs, None)
        call.said, call.parking, call.server, call.native = core, self.parking, Server(id=SERVER), "t"
        target = Target(SERVER, True, "tool", "t", False, ToolRules())
        call.decision = Decision(True, "write", SERVER, "granted", target, ())
        self.calls.add(call)
        attempt = Attempt(number, who, call)
        attempt.task = self.loop.create_task(self.goes(attempt))
        self.attempts.append(attempt)
        self.act(str)
        return attempt

    async def goes(self, attempt: Attempt) -> None:
        """What router and face do with a request."""
        call = attempt.call
        try:
            try:
                if not self.parking.resume(call):
                    link = self.places.ready(LinkKey(SERVER)) or await self.waits(call)
                    opening = Opening("tools/call", call.admission.params, call.caller.principal.key, True)
                    call.opened(link.open(opening), 60.0)
            except MuxError as error:
                call.fail(error)
            while not isinstance(attempt.end, ENDS):
                attempt.end = await call.next()
                self.is_told(attempt, attempt.end)
        except CallCancelled:
            pass
        finally:
            call.cancel("the client closed the response")

    async def waits(self, call: Call) -> object:
        self.waiting.add(call)
        try:
            return await self.relief.link(call, LinkKey(SERVER), 1000.0)
        finally:
            self.waiting.discard(call)

    def is_told(self, attempt: Attempt, event: Event) -> None:
        """Each client is told what is its own, in order, and its end once."""
        story = self.stories.get(attempt.number)
        match event:
            case Progress():
                assert story is not None
                story.heard.append(int(bytes(event.params["progress"])))
                assert story.heard == story.told[: len(story.heard)]
            case InputRequired(raw):
                self.is_asked(attempt, json.loads(bytes(raw)))
            case Result(raw) if b'"isError"' not in bytes(raw):
                assert story is not None
                assert json.loads(bytes(raw))["content"][0]["text"] == f"done {attempt.number}"
                assert story.heard == story.told
                story.ends += 1
                assert story.ends == 1

    def is_asked(self, attempt: Attempt, found: dict[str, object]) -> None:
        """A client is asked all that its server has asked and nobody has answered, and nothing else."""
        asked = found["inputRequests"]
        assert isinstance(asked, dict)
        keys = {}
        for key, one in asked.items():
            number, id_ = one["params"]["message"].split()
            assert int(number) == attempt.number
            keys[id_] = key
        waiting = {one.id for _, one in self.open_asks() if one.number == attempt.number}
        assert keys.keys() == waiting
        self.tickets.append(Ticket(attempt.number, attempt.who, str(found["requestState"]), keys, attempt.call.left))

    # Looking -----------------------------------------------------------------------------------------------------

    def is_left(self, ticket: Ticket) -> bool:
        return any(one is ticket.parked for one in self.parking)

    def under_way(self) -> list[Attempt]:
        return [one for one in self.attempts if not one.task.done()]

    def at_work(self) -> list[Pipe]:
        pipes = [member.pipe for member in self.places.members]
        return [pipe for pipe in pipes if pipe.work is not None and not pipe.work.cancelled]

    def open_asks(self) -> list[tuple[Pipe, Asked]]:
        return [(pipe, asked) for pipe in self.at_work() for asked in pipe.asks if asked.open]

    def next(self) -> int:
        self.count += 1
        return self.count

    def ask(self, pipe: Pipe, times: int) -> None:
        """Let a server ask so many things at once."""
        for _ in range(times):
            pipe.ask(f"q{self.next()}")
        self.act(str)

    def act(self, what: Callable[..., object], *arguments: object) -> None:
        """Do something within the loop, and wait until nothing moves."""
        self.run(self.acting(what, *arguments))
        for attempt in self.attempts:
            if attempt.task.done() and not attempt.task.cancelled():
                attempt.task.result()

    async def acting(self, what: Callable[..., object], *arguments: object) -> None:
        what(*arguments)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def run(self, what: Coroutine[None, None, None]) -> None:
        self.loop.run_until_complete(what)


def _answer(who: str, id_: str) -> bytes:
    return json.dumps({"action": "accept", "content": {"who": who, "id": id_}}).encode()


def _refused(attempt: Attempt) -> bool:
    return isinstance(attempt.end, Failure) and attempt.end.code == -32602


TestTheRoomOfParkedCalls = Room.TestCase
TestTheRoomOfParkedCalls.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
