"""The whole core, clients of both eras in front and links of each kind behind, without any I/O.

Whatever calls, cancellations, questions, lost links, broken streams, repeated and unknown ids come in whatever order:
each client gets exactly its own messages, exactly once, in order, and in the end nothing is left in any table.

Between the cores stands `Gateway`: the few lines that faces and links are, when sockets, tasks and clocks are taken
away. Every message has a number of its own, so that none can be taken for another. A link that is lost is followed by
another that draws its ids from where the lost one did, so what was said of a call can come to a link that never had it.
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
from mcpmux.protocol import envelope, headers, rounds
from mcpmux.protocol.downstream import modern
from mcpmux.protocol.downstream.legacy import Admission, Greeting, SessionCore
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.downstream.replay import Replay, place
from mcpmux.protocol.envelope import Notification, Reply, Request
from mcpmux.protocol.events import (
    ENDS,
    Ask,
    Changed,
    Event,
    Failure,
    InputRequired,
    Offered,
    Opening,
    Result,
    Withdrawn,
)
from mcpmux.protocol.upstream import LinkCore, ModernCore, numbers
from mcpmux.protocol.upstream.asking import ROUNDS
from mcpmux.protocol.upstream.received import Deliver, Later, Received, Resend, Send, Stray
from tests.protocol.test_downstream_modern import META
from tests.protocol.test_upstream_legacy import answer, note, refusal, welcome, wire

Json = dict[str, object]
LOST: Final = Failure(-32603, "the link was lost")
FORM: Final = {"mode": "form", "message": "?", "requestedSchema": {"type": "object", "properties": {}}}
DISCOVERED: Final = {
    "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {"listChanged": True}, "logging": {}},
    "resultType": "complete", "ttlMs": 0, "cacheScope": "public",
}  # fmt: skip
IDS: Final = st.sampled_from([1, 2, "1", "a"])  # few, so that they come twice
CLIENTS: Final = ("ana", "ben", "cleo")
OLDER: Final = ("pipe", "http")
MODERN: Final = ("modern pipe", "modern http")
LINKS: Final = OLDER + MODERN
ABLE: Final = {"elicitation": {"form": {}}}
Link = LinkCore["Flight"] | ModernCore["Flight"]


@dataclass(eq=False)
class Flight:
    """One call: who waits for it, where it is, what its client must read, and what it has read."""

    client: Client
    link: str
    core: SessionCore | RequestCore
    admission: Admission
    replies: int  # the stream that its client reads
    logs: bool = False  # it wants log messages of a modern server
    request: int = 0  # upstream
    rounds: int = 0  # how often a modern server has asked
    keys: dict[int, str] = field(default_factory=dict)  # what it asks just now: our number -> its key
    asked: tuple[list[str], str] = ([], "")  # the keys and the state of that
    expected: list[Json] = field(default_factory=list)
    read: list[Json] = field(default_factory=list)
    seen: int = 0  # number of the last event that was read
    listens: bool = True
    over: bool = False

    @property
    def legacy(self) -> bool:
        return isinstance(self.core, SessionCore)

    @property
    def stream(self) -> int | None:
        """On which stream its server answers."""
        return self.request if _streamed(self.link) else None


@dataclass(eq=False)
class Client:
    """One person with one legacy session, who sends modern requests as well."""

    name: str
    session: SessionCore
    able: dict[str, Raw]
    replay: Replay = field(default_factory=Replay)
    flights: list[Flight] = field(default_factory=list)
    questions: dict[int, tuple[Flight, int]] = field(default_factory=dict)  # id on the wire -> whose, the server's id
    answered: list[int] = field(default_factory=list)


class Gateway(RuleBasedStateMachine):
    """Everything at once, beside a model of who must read what."""

    @initialize()
    def begin(self) -> None:
        able = {name: Raw(envelope.encode(value)) for name, value in ABLE.items()}
        self.clients = {name: Client(name, SessionCore(Greeting("2025-11-25", able, name)), able) for name in CLIENTS}
        self.ids = {name: numbers.source() for name in LINKS}
        self.links: dict[str, Link] = {}
        self.listens: dict[str, tuple[int, bool]] = {}  # by modern link: its subscription, and whether it has begun
        for name in LINKS:
            self.connect(name)
        self.flights: list[Flight] = []
        self.dead: list[tuple[str, int]] = []  # (link, id) of what is not in flight there any more
        self.number = 0
        self.paused: list[tuple[Flight, list[str], str]] = []  # modern calls whose clients may go on: keys and state

    # Clients -----------------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(CLIENTS), link=st.sampled_from(LINKS), id_=IDS, progress=st.booleans(), logs=st.booleans()
    )
    def a_session_calls(self, name: str, link: str, id_: int | str, progress: bool, logs: bool) -> None:
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
        self.opened(Flight(client, link, client.session, admission, self.next(), logs))

    @rule(
        name=st.sampled_from(CLIENTS), link=st.sampled_from(LINKS), id_=IDS, progress=st.booleans(), logs=st.booleans()
    )
    def a_modern_client_calls(self, name: str, link: str, id_: int | str, progress: bool, logs: bool) -> None:
        meta = ({"progressToken": 7} if progress else {}) | ({modern.LOG_LEVEL: "info"} if logs else {})
        core = _admitted(id_, meta, {})
        self.opened(Flight(self.clients[name], link, core, core.admission, self.next(), logs))

    @precondition(lambda self: self.paused)
    @rule(data=st.data(), id_=IDS)
    def a_modern_client_goes_on(self, data: st.DataObject, id_: int | str) -> None:
        former, keys, state = self.paused.pop(data.draw(st.integers(0, len(self.paused) - 1)))
        answers = {key: {"action": "accept", "content": {"of": key}} for key in keys}
        core = _admitted(id_, {}, {"inputResponses": answers, "requestState": f"sealed {state}"})
        sent = self.opened(Flight(former.client, former.link, core, core.admission, self.next()))
        assert (sent["inputResponses"], sent["requestState"]) == (answers, state)

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
        sent = self.links[flight.link].answer(flight.request, found.ask, found.end)
        if flight.link in MODERN:
            del flight.keys[found.ask]
            assert bool(sent) == (not flight.keys)
            for again in sent:
                self.resent(flight, again)
            return
        (back,) = sent
        assert isinstance(back, Send)
        assert json.loads(back.wire) == {"jsonrpc": "2.0", "id": theirs, "result": {"action": "accept"}}

    @rule(data=st.data(), name=st.sampled_from(CLIENTS), other=st.integers(-3, 10**6))
    def a_client_answers_what_nobody_asked(self, data: st.DataObject, name: str, other: int) -> None:
        client = self.clients[name]
        number = data.draw(st.sampled_from([*client.answered, other]))
        if number not in client.questions:
            assert isinstance(client.session.answered(Reply(number, result=Raw(b"{}"))), str)

    # Servers -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.at_work())
    @rule(data=st.data())
    def progress_comes(self, data: st.DataObject) -> None:
        flight, number = data.draw(st.sampled_from(self.at_work())), self.next()
        said = note("notifications/progress", progressToken=flight.request, progress=number)
        if flight.admission.token is None:
            self.nobody(flight.link, said, flight.request)
            return
        params = {"progressToken": flight.admission.token, "progress": number}
        flight.expected.append({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        self.receive(flight.link, said, flight)

    @precondition(lambda self: self.at_work())
    @rule(data=st.data(), fails=st.booleans())
    def an_answer_comes(self, data: st.DataObject, fails: bool) -> None:
        flight, number = data.draw(st.sampled_from(self.at_work())), self.next()
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

    @precondition(lambda self: self.at_work(MODERN))
    @rule(data=st.data(), count=st.integers(0, 3))
    def a_modern_server_wants_to_know_first(self, data: st.DataObject, count: int) -> None:
        """Its client is asked as a legacy one is asked, or is told what to bring when it comes again."""
        flight, number = data.draw(st.sampled_from(self.at_work(MODERN))), self.next()
        if flight.rounds == ROUNDS:
            return
        keys, state = [f"{number}.{each}" for each in range(count)], f"state {number}"
        asks = {key: {"method": "elicitation/create", "params": FORM} for key in keys}
        result = {"resultType": "input_required", "inputRequests": asks, "requestState": state}
        self.dead.append((flight.link, flight.request))
        flight.rounds, flight.asked = flight.rounds + 1, (keys, state)
        if not flight.legacy:
            shown = {**result, "requestState": f"sealed {state}"}
            flight.expected.append({"jsonrpc": "2.0", "id": flight.admission.id, "result": shown})
            self.receive(flight.link, answer(flight.request, result), flight)
            self.paused.append((flight, keys, state))
            return
        found = self.links[flight.link].receive(answer(flight.request, result), flight.stream, 0.0)
        if not count:
            (again,) = found
            self.resent(flight, again)
            return
        for key, each in zip(keys, found, strict=True):
            assert isinstance(each, Deliver) and each.owner is flight and isinstance(each.event, Ask)
            flight.keys[each.event.id] = key
            self.ask(flight, each.event, number)

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), kind=st.sampled_from(["answer", "progress", "ask"]))
    def something_comes_for_a_call_that_is_over(self, data: st.DataObject, kind: str) -> None:
        link, request = data.draw(st.sampled_from(self.dead))
        if kind == "answer":
            self.nobody(link, answer(request, {"number": self.next()}), request)
        elif kind == "progress":
            self.nobody(link, note("notifications/progress", progressToken=request, progress=self.next()), request)
        elif link != "pipe":
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
        for found in self.links[link].receive(line, flight.stream if flight else None, 0.0):
            if not isinstance(found, Deliver):
                continue
            self.certain(found.owner, flight, link)
            assert link in OLDER or found.owner.logs
            if found.owner.legacy or found.owner.logs:  # a modern client wants none unless it says so
                params = {"level": "info", "data": number}
                found.owner.expected.append({"jsonrpc": "2.0", "method": "notifications/message", "params": params})
            self.take(found)

    @rule(data=st.data(), link=st.sampled_from(LINKS))
    def a_server_asks(self, data: st.DataObject, link: str) -> None:
        flight, number = self.about(data, link), self.next()
        for found in self.links[link].receive(_elicits(number), flight.stream if flight else None, 0.0):
            if not isinstance(found, Deliver):
                continue
            assert link in OLDER  # a modern server may not ask so
            self.certain(found.owner, flight, link)
            assert isinstance(found.event, Ask)
            if not found.owner.legacy:
                declined = Failure(-32601, "not today")
                (sent,) = self.links[link].answer(found.owner.request, found.event.id, declined)
                assert isinstance(sent, Send)
                assert json.loads(sent.wire)["id"] == number
                continue
            self.ask(found.owner, found.event, number)

    @rule(link=st.sampled_from(MODERN), of=st.sampled_from(["ours", "none", "another"]))
    def a_list_changes(self, link: str, of: str) -> None:
        request, begun = self.listens[link]
        subscription = {"ours": request, "none": None, "another": request + 10**6}[of]
        meta = {} if subscription is None else {"_meta": {modern.SUBSCRIPTION: subscription}}
        found = self.links[link].receive(note("notifications/tools/list_changed", **meta), None, 0.0)
        told = of == "none" or (of == "ours" and begun)
        assert found == ([Changed(Offered.TOOLS)] if told else found[:1])
        assert told or isinstance(found[0], Stray)

    @rule(link=st.sampled_from(MODERN))
    def a_subscription_is_acknowledged(self, link: str) -> None:
        request, begun = self.listens[link]
        said = {"notifications": {"toolsListChanged": True}, "_meta": {modern.SUBSCRIPTION: request}}
        found = self.links[link].receive(note("notifications/subscriptions/acknowledged", **said), None, 0.0)
        assert all(isinstance(each, Stray if begun else Changed) for each in found)
        self.listens[link] = (request, True)

    @rule(link=st.sampled_from(MODERN))
    def a_subscription_ends(self, link: str) -> None:
        core, (request, _) = self.links[link], self.listens[link]
        found = core.receive(answer(request, {}), request if _streamed(link) else None, 0.0)
        assert isinstance(found[-1], Later)
        self.dead.append((link, request))
        (begun,) = core.resume()
        assert isinstance(begun, Send) and begun.request
        self.listens[link] = (begun.request, False)

    @rule(link=st.sampled_from(LINKS))
    def a_link_is_lost(self, link: str) -> None:
        lost = self.links[link].lose()
        assert sorted(flight.request for flight in lost) == sorted(f.request for f in self.flights if f.link == link)
        for flight in lost:
            error = {"code": LOST.code, "message": LOST.message}
            flight.expected.append({"jsonrpc": "2.0", "id": flight.admission.id, "error": error})
            self.take(Deliver(flight, LOST))
            self.dead.append((link, flight.request))
        assert self.links[link].leftovers == 0
        self.connect(link)

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
            asked = sum(flight.link == name for flight, _ in self.questions())
            assert len(link.asks) == (asked if name in OLDER else 0)
        for client in getattr(self, "clients", {}).values():
            assert client.session.in_flight == sum(flight.legacy for flight in client.flights)
            assert client.session.asked == len(client.questions)

    def teardown(self) -> None:
        for flight in list(getattr(self, "flights", ())):
            self.come_back(flight)
            self.cancelled(flight)
        for link in getattr(self, "links", {}).values():
            assert link.leftovers == 0
            assert not link.lose()
        for client in getattr(self, "clients", {}).values():
            assert client.session.in_flight == client.session.asked == len(client.flights) == 0

    # Faces and links, without I/O --------------------------------------------------------------------------------

    def connect(self, name: str) -> None:
        """Another link in the place of the former one."""
        core: Link
        if name in MODERN:
            core = ModernCore(streamed=_streamed(name), version="1", ids=self.ids[name])
            request, *_ = core.greet()
            found = core.receive(answer(request, DISCOVERED), request if _streamed(name) else None, 0.0)
            assert isinstance(found[-1], Send) and found[-1].request
            self.listens[name] = (found[-1].request, False)
        else:
            core = LinkCore(streamed=_streamed(name), version="1", ids=self.ids[name])
            request, *_ = core.greet()
            core.receive(welcome(request), request if _streamed(name) else None, 0.0)
        self.links[name] = core

    def opened(self, flight: Flight) -> Json:
        """Begin a call; what its server gets."""
        admission, core = flight.admission, flight.core
        params = admission.params
        if isinstance(core, RequestCore):
            state = None if core.state is None else core.state.removeprefix("sealed ")
            params = rounds.again(params, core.responses, state)
        opening = Opening(
            "tools/call", params, flight.client.name, admission.token is not None,
            client=flight.client.able, log_level="info" if flight.logs else None, resumes=not flight.legacy,
        )  # fmt: skip
        flight.request, sent, _ = self.links[flight.link].open(opening, flight)
        message = json.loads(sent)
        assert message["id"] == flight.request
        assert message["params"]["name"] == "t"
        self.flights.append(flight)
        flight.client.flights.append(flight)
        found: Json = message["params"]
        return found

    def ask(self, flight: Flight, ask: Ask, number: int) -> None:
        """Ask a session what the server wants to know; `number` is the server's id of it, where it has one."""
        client = flight.client
        asked = client.session.ask(flight.admission, ask)
        assert isinstance(asked, bytes)
        message = json.loads(asked)
        client.questions[message["id"]] = (flight, number)
        flight.expected.append({**message, "method": "elicitation/create", "params": FORM})
        self.send(flight, asked)

    def resent(self, flight: Flight, again: Received[Flight]) -> None:
        """The call goes up once more, with all that was answered."""
        assert isinstance(again, Resend) and again.owner is flight
        message, (keys, state) = json.loads(again.wire), flight.asked
        assert message["id"] == again.request != flight.request
        assert message["params"].get("inputResponses", {}) == {key: {"action": "accept"} for key in keys}
        assert (message["params"]["name"], message["params"]["requestState"]) == ("t", state)
        flight.request = again.request

    def receive(self, link: str, data: bytes, flight: Flight) -> None:
        found = self.links[link].receive(data, flight.stream, 0.0)
        assert [each.owner for each in found if isinstance(each, Deliver)] == [flight]
        for each in found:
            self.take(each)

    def nobody(self, link: str, data: bytes, request: int | None) -> None:
        found = self.links[link].receive(data, request if _streamed(link) else None, 0.0)
        assert not [each for each in found if isinstance(each, Deliver | Resend)]

    def take(self, found: Received[Flight]) -> None:
        assert isinstance(found, Deliver)
        flight, event = found.owner, found.event
        ends = isinstance(event, ENDS)
        if isinstance(event, Result) and not flight.legacy and (asked := rounds.asked(event.result)) is not None:
            sealed = f"sealed {envelope.text(asked[rounds.STATE])}"
            event = InputRequired(Raw(envelope.encode({**asked, rounds.STATE: sealed})))
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
        event_id = flight.client.replay.add(flight.replies, told, 0.0)
        if flight.listens:
            self.reads(flight, event_id, told)

    def come_back(self, flight: Flight) -> None:
        if not flight.listens:
            flight.listens = True
            for event_id, told in flight.client.replay.after(flight.replies, flight.seen):
                self.reads(flight, event_id, told)

    def reads(self, flight: Flight, event_id: str, told: bytes) -> None:
        found = place(event_id)
        assert found is not None
        assert found[0] == flight.replies
        assert found[1] > flight.seen
        flight.seen = found[1]
        flight.read.append(json.loads(told))

    def cancelled(self, flight: Flight) -> None:
        sent = self.links[flight.link].cancel(flight.request, "enough", 0.0)
        # In the modern era nothing has to be said where a stream is closed, or while nothing is under way.
        assert (sent is None) == (flight.link == "modern http" or bool(flight.keys))
        assert sent is None or json.loads(sent)["params"]["requestId"] == flight.request
        self.dead.append((flight.link, flight.request))
        self.over(flight)

    def over(self, flight: Flight, *, alive: bool = True) -> None:
        """The call is out of every table; what was asked in it is void: its client is told, and its server if alive."""
        flight.over = True
        self.flights.remove(flight)
        flight.client.flights.remove(flight)
        void = {number: theirs for number, (of, theirs) in flight.client.questions.items() if of is flight}
        orphans = [json.loads(each)["id"] for each in self.links[flight.link].orphaned()]
        assert sorted(orphans) == (sorted(void.values()) if alive and flight.link in OLDER else [])
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

    def at_work(self, links: tuple[str, ...] = LINKS) -> list[Flight]:
        """The calls on these links of which their servers may still say something."""
        return [flight for flight in self.flights if flight.link in links and not flight.keys]

    def about(self, data: st.DataObject, link: str) -> Flight | None:
        """Which call a message is about that says so by its stream alone, if there is any on this link."""
        there = [flight for flight in self.flights if flight.link == link]
        return data.draw(st.sampled_from(there)) if there else None

    def certain(self, owner: Flight, meant: Flight | None, link: str) -> None:
        """A message without an address may reach its own call, or nobody."""
        if _streamed(link):
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


def _streamed(link: str) -> bool:
    return link.endswith("http")


def _admitted(id_: int | str, meta: Json, more: Json) -> RequestCore:
    """A call of the modern era that was let in."""
    whole = {"name": "t", **more, "_meta": {**META, modern.CAPABILITIES: ABLE, **meta}}
    params = {name: Raw(envelope.encode(value)) for name, value in whole.items()}
    said = headers.standard("tools/call", params, "2026-07-28")
    return modern.admit(Request(id_, "tools/call", params), lambda header: [said[header]])


def _elicits(number: int) -> bytes:
    return wire({"jsonrpc": "2.0", "id": number, "method": "elicitation/create", "params": FORM})


def _told(flight: Flight, event: Event) -> bytes | None:
    if isinstance(event, Withdrawn | Ask):
        raise AssertionError(event)
    if isinstance(flight.core, SessionCore):
        return flight.core.encode(flight.admission, event)
    return flight.core.encode(event)
