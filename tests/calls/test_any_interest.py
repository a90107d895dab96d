"""Who hears of which resource, whatever comes in whatever order: real links and cores of both eras, without I/O.

Sessions and subscriptions of clients want resources of an older and of a newer server and lose interest again, servers
agree, refuse, tell, are slow and are lost. Each client hears exactly of what it wants, once; a server is asked for what
somebody wants; and in the end nothing is left, here or there.

The loop has a clock of its own and turns only when the machine lets it, so a server's answer can come at any moment.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from mcpmux.calls.interest import Interest
from mcpmux.credentials import LinkKey
from mcpmux.errors import MuxError, ServerUnavailable
from mcpmux.links import Exchange, Link
from mcpmux.links.bulkhead import Bulkhead
from mcpmux.links.changes import ChangeFeed, LinkGone, LinkReady, ResourceUpdated
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol.events import News, Opening, Result, Updated
from mcpmux.protocol.methods import REQUESTS
from mcpmux.protocol.upstream import Core, LinkCore, ModernCore, numbers
from mcpmux.protocol.upstream.received import Headers

Json = dict[str, object]
SERVERS: Final = ("older", "newer")
CLIENTS: Final = ("ana", "ben", "cleo")
REFUSED: Final = "u:refused"
URIS: Final = ("u:1", "u:1/part", "u:10", REFUSED)  # few, so that they meet
SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
CAPABILITIES: Final = {"resources": {"subscribe": True}}
MOST_TURNS: Final = 200
PAUSE: Final = 100.0  # seconds, longer than any pause of a link


class Clock(asyncio.SelectorEventLoop):
    """A loop that turns when it is let, on a day of its own."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def turn(self, times: int = 20) -> None:
        """Let everything happen that can."""
        for _ in range(times):
            self.call_soon(self.stop)
            self.run_forever()


class Server:
    """One server's side of one link, and the transport of ours; it answers what it was sent when it is let."""

    pid = None
    congested = False

    def __init__(self, name: str, streamed: bool) -> None:
        self.modern = name == "newer"
        self.streamed = streamed
        self.link: Link | None = None
        self.unread: list[Json] = []
        self.asked = asyncio.Event()
        self.closed: set[int] = set()  # streams that we have closed
        self.subscribed: set[str] = set()  # an older one's
        self.listens: dict[int, list[str]] = {}  # a newer one's: subscription -> resources

    # As our transport --------------------------------------------------------------------------------------------

    def send(self, wire: bytes, _request: int | None, _headers: Headers | None = None) -> None:
        self.unread.append(json.loads(wire))
        self.asked.set()

    async def confirm(self, wire: bytes, _revision: str) -> None:
        if wire:
            self.send(wire, None)

    def forget(self, request: int) -> None:
        if self.streamed:
            self.closed.add(request)
            self.listens.pop(request, None)

    def describe(self, problem: str) -> str:
        return problem

    # As a server -------------------------------------------------------------------------------------------------

    @property
    def tells_of(self) -> set[str]:
        return self.subscribed | {uri for uris in self.listens.values() for uri in uris}

    def greet(self) -> None:
        """Answer the greeting."""
        request = self.unread.pop(0)["id"]
        more: Json = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "x", "version": "1"}}
        if self.modern:
            more = {"supportedVersions": ["2026-07-28"], "resultType": "complete", "ttlMs": 0, "cacheScope": "public"}
        assert isinstance(request, int)
        self.say({"id": request, "result": {"capabilities": CAPABILITIES, **more}}, request)

    def work(self) -> None:
        """Answer the oldest message."""
        message = self.unread.pop(0)
        params, request = message.get("params"), message.get("id")
        assert isinstance(params, dict) or params is None
        params = params or {}
        match message["method"]:
            case "resources/subscribe" if params["uri"] == REFUSED:
                self.say({"id": request, "error": {"code": -32602, "message": "no"}})
            case "resources/subscribe":
                self.subscribed.add(params["uri"])
                self.say({"id": request, "result": {}})
            case "resources/unsubscribe":
                self.subscribed.discard(params["uri"])
                self.say({"id": request, "result": {}})
            case "subscriptions/listen" if request not in self.closed:
                assert isinstance(request, int)
                wanted = params["notifications"].get("resourceSubscriptions", [])
                self.listens[request] = [uri for uri in wanted if uri != REFUSED]
                said = {"notifications": {"resourceSubscriptions": self.listens[request]}}
                self.tell("subscriptions/acknowledged", request, **said)
            case "notifications/cancelled":
                self.listens.pop(params["requestId"], None)

    def tell(self, method: str, request: int | None, **params: object) -> None:
        meta = {} if request is None else {"_meta": {SUBSCRIPTION: request}}
        self.say({"method": f"notifications/{method}", "params": {**params, **meta}}, request)

    def say(self, message: Json, stream: int | None = None) -> None:
        assert self.link is not None
        where = stream if self.streamed else None
        self.link.receive(json.dumps({"jsonrpc": "2.0", **message}).encode(), where)


class Links:
    """The links of both servers, as `Interest` sees them in the pool."""

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self.ids = {name: numbers.source() for name in SERVERS}
        self.servers: dict[str, Server] = {}
        self.feeds: list[ChangeFeed] = []
        self.kept: Counter[LinkKey] = Counter()
        self.metrics = Metrics(REQUESTS)

    def connect(self, name: str) -> None:
        """Begin a link; its server has to answer the greeting."""
        streamed = self.streamed and name == "newer"
        server = self.servers[name] = Server(name, streamed)
        made: type[LinkCore[Exchange]] | type[ModernCore[Exchange]] = ModernCore if server.modern else LinkCore
        core: Core[Exchange] = made(streamed=streamed, version="1", ids=self.ids[name])

        def changed(what: News | None) -> None:
            if isinstance(what, Updated):
                self.publish(ResourceUpdated(name, LinkKey(name), what.uri, what.params))

        metrics = self.metrics.server(name)
        server.link = Link(LinkKey(name), core, Bulkhead(name, 64), metrics, changed)

    async def greet(self, name: str) -> None:
        """Make it ready."""
        server = self.servers[name]
        assert server.link is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.link.greet(server))
            await server.asked.wait()
            server.greet()
        server.unread.clear()
        self.publish(LinkReady(name, LinkKey(name)))

    def lose(self, name: str) -> None:
        """It ends, and is not there any more."""
        link = self.servers.pop(name).link
        assert link is not None
        link.end("lost")
        self.publish(LinkGone(name, LinkKey(name)))

    def publish(self, change: ResourceUpdated | LinkReady | LinkGone) -> None:
        for feed in self.feeds:
            feed.put(change)

    # As the pool -------------------------------------------------------------------------------------------------

    def changes(self) -> ChangeFeed:
        self.feeds.append(ChangeFeed())
        return self.feeds[-1]

    def common(self, server: str) -> list[LinkKey]:
        return [LinkKey(server)]

    def lives(self, key: LinkKey) -> bool:
        return key.server in self.servers

    def lasting(self, key: LinkKey) -> LinkKey:
        return key

    def keep(self, key: LinkKey) -> None:
        self.kept[key] += 1

    def let_go(self, key: LinkKey) -> None:
        del self.kept[key]

    async def link(self, key: LinkKey, _wait: float) -> Link:
        server = self.servers.get(key.server)
        if server is None or server.link is None:
            raise ServerUnavailable(key.server)
        return server.link


class Subscribers(RuleBasedStateMachine):
    """Clients, servers, and between them what decides who hears what."""

    @initialize(streamed=st.booleans())
    def begin(self, streamed: bool) -> None:
        self.loop = Clock()
        self.links = Links(streamed)
        self.interest = Interest(self.links)  # type: ignore[arg-type]
        self.heard: list[tuple[str, str, str]] = []
        self.wants: dict[str, set[tuple[str, str]]] = {name: set() for name in CLIENTS}
        self.calls: list[tuple[str, asyncio.Task[None], Exchange]] = []
        self.tasks = [self.loop.create_task(self.interest.run()), self.loop.create_task(self.listen())]
        self.loop.turn()
        for name in SERVERS:
            self.a_link_comes_back(name)

    async def listen(self) -> None:
        async for told in self.interest.updates():
            self.heard.append(told)

    # Clients -----------------------------------------------------------------------------------------------------

    @rule(client=st.sampled_from(CLIENTS), server=st.sampled_from(SERVERS), uris=st.sets(st.sampled_from(URIS)))
    def a_client_subscribes(self, client: str, server: str, uris: set[str]) -> None:
        for uri in sorted(uris):
            if self.interest.heard(LinkKey(server), uri):
                self.agreed(client, server, uri)
            elif server in self.links.servers:
                self.loop.run_until_complete(self.subscribe(client, server, uri))
        self.loop.turn()

    async def subscribe(self, client: str, server: str, uri: str) -> None:
        """As the router does: the server is asked, and the interest counts when it has agreed."""
        link = self.links.servers[server].link
        assert link is not None
        exchange = link.open(Opening("resources/subscribe", {"uri": Raw(json.dumps(uri).encode())}, client))

        async def answered() -> None:
            try:
                event = await exchange.next()
            except MuxError:
                self.interest.given_up(LinkKey(server), uri)
            else:
                if isinstance(event, Result):
                    self.agreed(client, server, uri)

        self.calls.append((client, self.loop.create_task(answered()), exchange))

    def agreed(self, client: str, server: str, uri: str) -> None:
        self.interest.add(client, LinkKey(server), uri)
        self.wants[client].add((server, uri))

    @precondition(lambda self: any(self.wants.values()))
    @rule(data=st.data(), count=st.integers(1, 2))
    def a_client_has_heard_enough(self, data: st.DataObject, count: int) -> None:
        client = data.draw(st.sampled_from([client for client in CLIENTS if self.wants[client]]))
        for server, uri in data.draw(st.permutations(sorted(self.wants[client])))[:count]:
            self.interest.remove(client, LinkKey(server), uri)
            self.wants[client].discard((server, uri))
        self.loop.turn()

    @rule(client=st.sampled_from(CLIENTS), server=st.sampled_from(SERVERS))
    def a_client_has_heard_enough_of_what_it_never_wanted(self, client: str, server: str) -> None:
        self.interest.remove(client, LinkKey(server), "u:other")
        self.loop.turn()

    @rule(client=st.sampled_from(CLIENTS), seldom=st.integers(0, 3))
    def a_client_leaves(self, client: str, seldom: int = 0) -> None:
        if seldom:
            return
        for of, _, exchange in self.calls:
            if of == client:
                exchange.cancel("gone")
        self.loop.turn()
        self.interest.drop(client)
        self.wants[client].clear()
        self.loop.turn()

    # Servers -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(server.unread for server in self.links.servers.values()))
    @rule(data=st.data(), count=st.integers(1, 4))
    def a_server_works(self, data: st.DataObject, count: int) -> None:
        at_work = [server for server in self.links.servers.values() if server.unread]
        server = data.draw(st.sampled_from(at_work))
        for _ in range(min(count, len(server.unread))):
            server.work()
        self.loop.turn()

    @rule(name=st.sampled_from(SERVERS), uri=st.sampled_from(URIS))
    def a_resource_changes(self, name: str, uri: str) -> None:
        """An older server says so once, a newer one on each subscription that holds it."""
        server = self.links.servers.get(name)
        if server is None:
            return
        of = {uri, uri.removesuffix("/part")}
        told = bool(of & server.subscribed)
        if told:
            server.tell("resources/updated", None, uri=uri)
        for request, uris in list(server.listens.items()):
            if of & set(uris):
                server.tell("resources/updated", request, uri=uri)
                told = told or self.counts(server, request)
        self.hear({(client, name, uri) for client in CLIENTS if of & self.of(client, name)} if told else set())

    def counts(self, server: Server, request: int) -> bool:
        """Whether a newer server's word on this subscription counts: it does on the one it has agreed to last."""
        return request == max(server.listens)

    @rule(name=st.sampled_from(SERVERS), uri=st.sampled_from(URIS), request=st.integers(1, 10**6))
    def a_server_tells_of_a_subscription_that_is_none(self, name: str, uri: str, request: int) -> None:
        server = self.links.servers.get(name)
        if server is None or not server.modern or request in server.listens:
            return
        server.tell("resources/updated", request, uri=uri)
        self.hear(set())

    @rule(name=st.sampled_from(SERVERS), seldom=st.integers(0, 3))
    def a_link_is_lost(self, name: str, seldom: int) -> None:
        if name in self.links.servers and not seldom:
            self.links.lose(name)
            self.loop.turn()

    @rule(name=st.sampled_from(SERVERS))
    def a_link_comes_back(self, name: str) -> None:
        if name not in self.links.servers:
            self.loop.run_until_complete(self.connect(name))
            self.loop.turn()

    async def connect(self, name: str) -> None:
        self.links.connect(name)
        await self.links.greet(name)

    @precondition(lambda self: self.links.servers.get("newer") and self.links.servers["newer"].listens)
    @rule()
    def a_server_ends_a_subscription(self) -> None:
        server = self.links.servers["newer"]
        request = max(server.listens)
        del server.listens[request]
        meta = {"_meta": {SUBSCRIPTION: request}}
        server.say({"id": request, "result": {"resultType": "complete", **meta}}, request)
        self.loop.turn()

    @rule(seldom=st.integers(0, 3))
    def all_is_said_and_done(self, seldom: int = 0) -> None:
        """When every server has answered, each tells of exactly what somebody wants."""
        if seldom:
            return
        self.work_off()
        self.loop.now += PAUSE
        self.loop.turn()
        self.work_off()
        for name, server in self.links.servers.items():
            assert server.tells_of == {uri for client in CLIENTS for uri in self.of(client, name)}
            assert len(server.listens) <= 1

    def work_off(self) -> None:
        """Let the servers answer until there is nothing to answer."""
        for _ in range(MOST_TURNS):
            at_work = [server for server in self.links.servers.values() if server.unread]
            if not at_work:
                return
            at_work[0].work()
            self.loop.turn()
        raise AssertionError("it goes round without end")

    # What must hold ----------------------------------------------------------------------------------------------

    def of(self, client: str, server: str) -> set[str]:
        return {uri for at, uri in self.wants[client] if at == server}

    def hear(self, expected: set[tuple[str, str, str]]) -> None:
        """Exactly these are told of a change, each once."""
        self.heard.clear()
        self.loop.turn()
        assert Counter(self.heard) == Counter(expected)

    @invariant()
    def everybody_is_known(self) -> None:
        for client, wanted in getattr(self, "wants", {}).items():
            assert self.interest.count(client) == len(wanted)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for client in CLIENTS:
            self.a_client_leaves(client)
        for name in SERVERS:
            self.a_link_comes_back(name)
        self.all_is_said_and_done()
        assert self.interest.leftovers == 0
        assert not self.links.kept
        assert all(task.done() for _, task, _ in self.calls)
        for name in SERVERS:
            self.links.lose(name)
        for task in self.tasks:
            task.cancel()
        self.loop.turn()
        self.loop.close()


TestWhoHearsWhat = Subscribers.TestCase
TestWhoHearsWhat.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
