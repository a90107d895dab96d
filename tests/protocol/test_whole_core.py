"""The whole core, clients of both eras in front and links of each kind behind, without any I/O.

Whatever calls, cancellations, lost links, broken streams, repeated and unknown ids come in whatever order: each client
gets exactly its own messages, exactly once, in order, and in the end nothing is left in any table.

Between the cores stands `Gateway`: the few lines that faces and links are, when sockets, tasks and clocks are taken
away. Every message has a number of its own, so that none can be taken for another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.errors import InvalidRequest
from mcpmux.protocol import envelope, headers
from mcpmux.protocol.downstream import modern
from mcpmux.protocol.downstream.legacy import Admission, Greeting, SessionCore
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.downstream.replay import Replay, place
from mcpmux.protocol.envelope import Notification, Reply, Request
from mcpmux.protocol.events import ENDS, Ask, Event, Failure, Opening, Withdrawn
from mcpmux.protocol.upstream import LinkCore
from mcpmux.protocol.upstream.received import Deliver, Received, Send
from tests.protocol.test_downstream_modern import META
from tests.protocol.test_upstream_legacy import answer, note, refusal, welcome, wire

Json = dict[str, object]
LOST: Final = Failure(-32603, "the link was lost")
FORM: Final = {"mode": "form", "message": "?", "requestedSchema": {"type": "object", "properties": {}}}
IDS: Final = st.sampled_from([1, 2, "1", "a"])  # few, so that they come twice
CLIENTS: Final = ("ana", "ben", "cleo")
LINKS: Final = ("pipe", "http")


@dataclass(eq=False)
class Flight:
    """One call: who waits for it, where it is, what its client must read, and what it has read."""

    client: Client
    link: str
    core: SessionCore | RequestCore
    admission: Admission
    stream: int
    request: int = 0  # upstream
    expected: list[Json] = field(default_factory=list)
    read: list[Json] = field(default_factory=list)
    seen: int = 0  # number of the last event that was read
    listens: bool = True
    over: bool = False

    @property
    def legacy(self) -> bool:
        return isinstance(self.core, SessionCore)


@dataclass(eq=False)
class Client:
    """One person with one legacy session, who sends modern requests as well."""

    name: str
    session: SessionCore
    replay: Replay = field(default_factory=Replay)
    flights: list[Flight] = field(default_factory=list)
    questions: dict[int, tuple[Flight, int]] = field(default_factory=dict)  # id on the wire -> whose, the server's id
    answered: list[int] = field(default_factory=list)


class Gateway(RuleBasedStateMachine):
    """Everything at once, beside a model of who must read what."""

    @initialize()
    def begin(self) -> None:
        able = {"elicitation": Raw(b'{"form":{}}')}
        self.clients = {name: Client(name, SessionCore(Greeting("2025-11-25", able, name))) for name in CLIENTS}
        self.links = {"pipe": _link("pipe"), "http": _link("http")}
        self.flights: list[Flight] = []
        self.dead: list[tuple[str, int]] = []  # (link, id) of what is not in flight there any more
        self.number = 0

    # Clients -----------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(CLIENTS), link=st.sampled_from(LINKS), id_=IDS, progress=st.booleans())
    def a_session_calls(self, name: str, link: str, id_: int | str, progress: bool) -> None:
        client = self.clients[name]
        used = any(flight.legacy and flight.admission.id == id_ for flight in client.flights)
        meta = {"_meta": Raw(b'{"progressToken":"mine"}')} if progress else {}
        request = Request(id_, "tools/call", {"name": Raw(b'"t"'), **meta})
        try:
            admission = client.session.admit(request)
        except InvalidRequest:
            assert used
            return
        assert not used
        self.opened(Flight(client, link, client.session, admission, self.next()))

    @rule(name=st.sampled_from(CLIENTS), link=st.sampled_from(LINKS), id_=IDS, progress=st.booleans())
    def a_modern_client_calls(self, name: str, link: str, id_: int | str, progress: bool) -> None:
        token = {"progressToken": 7} if progress else {}
        params = {"name": Raw(b'"t"'), "_meta": Raw(envelope.encode({**META, **token}))}
        said = headers.standard("tools/call", params, "2026-07-28")
        core = modern.admit(Request(id_, "tools/call", params), lambda header: [said[header]])
        self.opened(Flight(self.clients[name], link, core, core.admission, self.next()))

    @rule(name=st.sampled_from(CLIENTS), id_=IDS)
    def a_session_cancels(self, name: str, id_: int | str) -> None:
        client = self.clients[name]
        said = Notification("notifications/cancelled", {"requestId": Raw(envelope.encode(id_))})
        wanted = client.session.cancels(said)
        theirs = [flight for flight in client.flights if flight.legacy and flight.admission.id == id_]
        assert (wanted is not None) == bool(theirs)
        for flight in theirs:
            self.cancelled(flight)

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def a_stream_breaks(self, data: st.DataObject) -> None:
        """A legacy client can come back for what it missed; a modern one has given up."""
        flight = self.drawn(data)
        if flight.legacy:
            flight.listens = False
        else:
            self.cancelled(flight)

    @precondition(lambda self: any(not flight.listens for flight in self.flights))
    @rule(data=st.data())
    def a_client_comes_back(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from([flight for flight in self.flights if not flight.listens]))
        self.come_back(flight)

    @precondition(lambda self: any(client.questions for client in self.clients.values()))
    @rule(data=st.data())
    def a_client_answers(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from([one for one in self.clients.values() if one.questions]))
        number = data.draw(st.sampled_from(sorted(client.questions)))
        flight, theirs = client.questions.pop(number)
        client.answered.append(number)
        found = client.session.answered(Reply(number, result=Raw(b'{"action":"accept"}')))
        assert not isinstance(found, str)
        assert found.request == flight.admission.id
        (sent,) = self.links[flight.link].answer(flight.request, found.ask, found.end)
        assert isinstance(sent, Send)
        assert json.loads(sent.wire) == {"jsonrpc": "2.0", "id": theirs, "result": {"action": "accept"}}

    @rule(data=st.data(), name=st.sampled_from(CLIENTS), other=st.integers(-3, 10**6))
    def a_client_answers_what_nobody_asked(self, data: st.DataObject, name: str, other: int) -> None:
        client = self.clients[name]
        number = data.draw(st.sampled_from([*client.answered, other]))
        if number not in client.questions:
            assert isinstance(client.session.answered(Reply(number, result=Raw(b"{}"))), str)

    # Servers -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def progress_comes(self, data: st.DataObject) -> None:
        flight, number = self.drawn(data), self.next()
        said = note("notifications/progress", progressToken=flight.request, progress=number)
        if flight.admission.token is None:
            self.nobody(flight.link, said, flight.request)
            return
        params = {"progressToken": flight.admission.token, "progress": number}
        flight.expected.append({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        self.receive(flight.link, said, flight)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), fails=st.booleans())
    def an_answer_comes(self, data: st.DataObject, fails: bool) -> None:
        flight, number = self.drawn(data), self.next()
        if fails:
            message: Json = {"error": {"code": -32602, "message": f"refused {number}", "data": None}}
            data_ = refusal(flight.request, -32602, f"refused {number}")
        else:
            more = {} if flight.legacy else {"resultType": "complete"}
            message, data_ = {"result": {**more, "number": number}}, answer(flight.request, {"number": number})
        flight.expected.append({"jsonrpc": "2.0", "id": flight.admission.id, **message})
        self.dead.append((flight.link, flight.request))
        self.receive(flight.link, data_, flight)
        assert flight not in self.flights

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), kind=st.sampled_from(["answer", "progress", "ask"]))
    def something_comes_for_a_call_that_is_over(self, data: st.DataObject, kind: str) -> None:
        link, request = data.draw(st.sampled_from(self.dead))
        if kind == "answer":
            self.nobody(link, answer(request, {"number": self.next()}), request)
        elif kind == "progress":
            self.nobody(link, note("notifications/progress", progressToken=request, progress=self.next()), request)
        elif link == "http":
            self.nobody(link, _elicits(self.next()), request)

    @rule(link=st.sampled_from(LINKS), request=st.integers(10**6, 10**9))
    def an_unknown_id_comes(self, link: str, request: int) -> None:
        self.nobody(link, answer(request, {"number": self.next()}), None)

    @rule(link=st.sampled_from(LINKS), junk=st.binary(max_size=30))
    def junk_comes(self, link: str, junk: bytes) -> None:
        self.nobody(link, junk, None)

    @rule(data=st.data(), link=st.sampled_from(LINKS))
    def a_log_message_comes(self, data: st.DataObject, link: str) -> None:
        flight, number = self.about(data, link), self.next()
        line = note("notifications/message", level="info", data=number)
        for found in self.links[link].receive(line, flight.request if flight and link == "http" else None, 0.0):
            if not isinstance(found, Deliver):
                continue
            self.certain(found.owner, flight, link)
            if found.owner.legacy:  # a modern client wants none unless it says so
                params = {"level": "info", "data": number}
                found.owner.expected.append({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
            self.take(found)

    @rule(data=st.data(), link=st.sampled_from(LINKS))
    def a_server_asks(self, data: st.DataObject, link: str) -> None:
        flight, number = self.about(data, link), self.next()
        stream = flight.request if flight and link == "http" else None
        for found in self.links[link].receive(_elicits(number), stream, 0.0):
            if not isinstance(found, Deliver):
                continue
            self.certain(found.owner, flight, link)
            assert isinstance(found.event, Ask)
            if not found.owner.legacy:
                declined = Failure(-32601, "not today")
                (sent,) = self.links[link].answer(found.owner.request, found.event.id, declined)
                assert isinstance(sent, Send)
                assert json.loads(sent.wire)["id"] == number
                continue
            theirs = found.owner.client
            asked = theirs.session.ask(found.owner.admission, found.event)
            assert isinstance(asked, bytes)
            message = json.loads(asked)
            theirs.questions[message["id"]] = (found.owner, number)
            found.owner.expected.append({**message, "method": "elicitation/create", "params": FORM})
            self.send(found.owner, asked)

    @rule(link=st.sampled_from(LINKS))
    def a_link_is_lost(self, link: str) -> None:
        lost = self.links[link].lose()
        assert sorted(flight.request for flight in lost) == sorted(f.request for f in self.flights if f.link == link)
        for flight in lost:
            error = {"code": LOST.code, "message": LOST.message}
            flight.expected.append({"jsonrpc": "2.0", "id": flight.admission.id, "error": error})
            self.take(Deliver(flight, LOST))
        assert self.links[link].leftovers == 0
        self.links[link] = _link(link)
        self.dead = [(name, request) for name, request in self.dead if name != link]

    # What must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def each_client_has_read_exactly_its_own(self) -> None:
        for flight in getattr(self, "flights", ()):
            if flight.listens:
                assert flight.read == flight.expected
            else:
                assert flight.read == flight.expected[: len(flight.read)]

    @invariant()
    def nothing_is_in_a_table_but_what_is_open(self) -> None:
        for name, link in getattr(self, "links", {}).items():
            assert link.in_flight == sum(flight.link == name for flight in self.flights)
            assert len(link.asks) == sum(flight.link == name for flight, _ in self.questions())
        for client in getattr(self, "clients", {}).values():
            assert client.session.in_flight == sum(flight.legacy for flight in client.flights)
            assert client.session.asked == len(client.questions)

    def teardown(self) -> None:
        for flight in list(getattr(self, "flights", ())):
            self.come_back(flight)
            self.cancelled(flight)
        for link in getattr(self, "links", {}).values():
            assert link.leftovers == 0
        for client in getattr(self, "clients", {}).values():
            assert client.session.in_flight == client.session.asked == len(client.flights) == 0

    # Faces and links, without I/O --------------------------------------------------------------------------------

    def opened(self, flight: Flight) -> None:
        admission = flight.admission
        opening = Opening("tools/call", admission.params, flight.client.name, admission.token is not None)
        flight.request, sent, _ = self.links[flight.link].open(opening, flight)
        message = json.loads(sent)
        assert message["id"] == flight.request
        assert message["params"]["name"] == "t"
        self.flights.append(flight)
        flight.client.flights.append(flight)

    def receive(self, link: str, data: bytes, flight: Flight) -> None:
        found = self.links[link].receive(data, flight.request if link == "http" else None, 0.0)
        assert [each.owner for each in found if isinstance(each, Deliver)] == [flight]
        for each in found:
            self.take(each)

    def nobody(self, link: str, data: bytes, request: int | None) -> None:
        found = self.links[link].receive(data, request if link == "http" else None, 0.0)
        assert not [each for each in found if isinstance(each, Deliver)]

    def take(self, found: Received[Flight]) -> None:
        assert isinstance(found, Deliver)
        flight, event = found.owner, found.event
        ends = isinstance(event, ENDS)
        if ends:
            self.over(flight, alive=event is not LOST)
        told = _told(flight, event)
        if told is not None:
            self.send(flight, told)
        if ends:
            self.come_back(flight)
            assert flight.read == flight.expected

    def send(self, flight: Flight, told: bytes) -> None:
        """What a face does with wire: remember it where the client may come back, and write it if it is there."""
        if not flight.legacy:
            flight.read.append(json.loads(told))
            return
        event_id = flight.client.replay.add(flight.stream, told, 0.0)
        if flight.listens:
            self.reads(flight, event_id, told)

    def come_back(self, flight: Flight) -> None:
        if not flight.listens:
            flight.listens = True
            for event_id, told in flight.client.replay.after(flight.stream, flight.seen):
                self.reads(flight, event_id, told)

    def reads(self, flight: Flight, event_id: str, told: bytes) -> None:
        found = place(event_id)
        assert found is not None
        assert found[0] == flight.stream
        assert found[1] > flight.seen
        flight.seen = found[1]
        flight.read.append(json.loads(told))

    def cancelled(self, flight: Flight) -> None:
        sent = self.links[flight.link].cancel(flight.request, "enough", 0.0)
        assert sent is not None
        assert json.loads(sent)["params"]["requestId"] == flight.request
        self.dead.append((flight.link, flight.request))
        self.over(flight)

    def over(self, flight: Flight, *, alive: bool = True) -> None:
        """The call is out of every table; what was asked in it is void: its client is told, and its server if alive."""
        flight.over = True
        self.flights.remove(flight)
        flight.client.flights.remove(flight)
        void = {number: theirs for number, (of, theirs) in flight.client.questions.items() if of is flight}
        orphans = [json.loads(each)["id"] for each in self.links[flight.link].orphaned()]
        assert sorted(orphans) == (sorted(void.values()) if alive else [])
        if isinstance(flight.core, SessionCore):
            told = [json.loads(each)["params"]["requestId"] for each in flight.core.withdraw(flight.admission)]
            assert sorted(told) == sorted(void)
            flight.core.free(flight.admission)
        for number in void:
            del flight.client.questions[number]
            flight.client.answered.append(number)

    # Choosing ----------------------------------------------------------------------------------------------------

    def drawn(self, data: st.DataObject) -> Flight:
        return data.draw(st.sampled_from(self.flights))

    def about(self, data: st.DataObject, link: str) -> Flight | None:
        """Which call a message is about that says so by its stream alone, if there is any on this link."""
        there = [flight for flight in self.flights if flight.link == link]
        return data.draw(st.sampled_from(there)) if there else None

    def certain(self, owner: Flight, meant: Flight | None, link: str) -> None:
        """A message without an address may reach its own call, or nobody."""
        if link == "http":
            assert owner is meant
        else:
            assert [flight for flight in self.flights if flight.link == link] == [owner]

    def questions(self) -> Iterator[tuple[Flight, int]]:
        for client in self.clients.values():
            yield from client.questions.values()

    def next(self) -> int:
        self.number += 1
        return self.number


TestTheWholeCore = Gateway.TestCase
TestTheWholeCore.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def _link(name: str) -> LinkCore[Flight]:
    core = LinkCore[Flight](streamed=name == "http", version="1")
    request, *_ = core.greet()
    core.receive(welcome(request), request if name == "http" else None, 0.0)
    return core


def _elicits(number: int) -> bytes:
    return wire({"jsonrpc": "2.0", "id": number, "method": "elicitation/create", "params": FORM})


def _told(flight: Flight, event: Event) -> bytes | None:
    if isinstance(event, Withdrawn | Ask):
        raise AssertionError(event)
    if isinstance(flight.core, SessionCore):
        return flight.core.encode(flight.admission, event)
    return flight.core.encode(event)
