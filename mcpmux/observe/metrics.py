"""The numbers that Prometheus fetches, in a registry of our own.

Owns the names, help texts and labels of every metric; the rooms above say what happened, in methods with their
words, and never see prometheus-client. It measures nothing itself.

Labels come from closed sets: server ids of the config, methods of `protocol/methods.py`, words of our own code.
What is none of these becomes `other`: a caller must not be able to make a time series. Users, tools and URLs are no
labels.

Children are made once and kept; what every call counts is in `tally.py`. A server that is removed takes its series
with it (`forget`), and what its last calls still count is lost rather than bringing them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sized
from typing import Final, Generic, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from mcpmux.observe.tally import OTHER, Tallies, Tally, Traffic

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES: Final = frozenset(
    {"ok", "tool_error", "rpc_error", "refused", "unavailable", "timeout", "cancelled", "lost", "busy", "invalid"}
    | {"internal", "input_required"}
)

# What becomes of what a server asks. `passed`: it was told to a client of the modern era by a server of that era, which
# alone learns the answer; `displaced`: another call needed the place; `void`: the call ended first.
ASK_OUTCOMES: Final = frozenset(
    {"answered", "declined", "displaced", "expired", "passed", "refused", "void", "withdrawn"}
)
SERVER_REQUESTS: Final = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})

_WORD: Final = re.compile(r"[a-z][A-Za-z0-9_/ -]{0,39}|[45][0-9]{2}")
_MOST_WORDS: Final = 64


class Metrics:
    """All the numbers of one process; made once by the gateway.

    `methods` is the closed set of JSON-RPC methods, all others count as `other`.
    """

    def __init__(self, methods: Iterable[str], version: str = "unknown") -> None:
        # A second series of the time of birth for each counter doubles the page and answers nothing that we ask.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._methods = frozenset(methods)
        self._servers: dict[str, ServerMetrics] = {}
        self._traffic = Traffic()
        self._registry.register(Tallies(lambda: [known.tally for known in list(self._servers.values())], self._traffic))
        self._families = _Families(self._registry)
        self._by_word = _ByWord(self._registry)
        self._single = _Single(self._registry)
        build = Gauge("mcpmux_build_info", "The version that runs; always 1.", ["version"], registry=self._registry)
        build.labels(version).set(1)
        ProcessCollector(registry=self._registry)

    def server(self, server: str) -> ServerMetrics:
        """The numbers of one server by its id, the same object each time; `""` is what mcpmux answers itself."""
        if (known := self._servers.get(server)) is None:
            known = self._servers[server] = ServerMetrics(server, self._families, self._methods)
        return known

    def forget(self, server: str) -> None:
        """Take the series of a removed server away."""
        if (known := self._servers.pop(server, None)) is not None:
            known.end()

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """The page for Prometheus and its content type: OpenMetrics for whoever accepts it, else the older text.

        Some 40 ms for seventy servers in use: call it in a thread (`asyncio.to_thread`), it may be.
        """
        # Decided here, because `choose_encoder` writes the caller's version and escaping into our header.
        kinds = [entry.split(";")[0].strip().lower() for entry in (accept or "").split(",")]
        if "application/openmetrics-text" in kinds:
            page: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return page, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self._registry), _TEXT

    def session_opened(self, transport: str) -> None:
        self._by_word.sessions_opened.of(transport).inc()
        self._by_word.sessions.of(transport).inc()

    def session_closed(self, transport: str) -> None:
        self._by_word.sessions.of(transport).dec()

    def stream_opened(self, kind: str) -> None:
        self._by_word.streams.of(kind).inc()

    def stream_closed(self, kind: str) -> None:
        self._by_word.streams.of(kind).dec()

    def token_refused(self, reason: str) -> None:
        self._by_word.tokens_refused.of(reason).inc()

    def http_refused(self, status: int) -> None:
        self._by_word.http_refused.of(str(status) if 400 <= status <= 599 else OTHER).inc()

    def http_received(self, size: int) -> None:
        """Bytes of a message from a client."""
        self._traffic.received += size

    def http_sent(self, size: int) -> None:
        """Bytes of a message to a client."""
        self._traffic.sent += size

    def list_encoded(self, method: str) -> None:
        self._by_word.lists.of(method if method in self._methods else OTHER).inc()

    def fence_failed(self, loop: str) -> None:
        self._by_word.fences.of(loop).inc()

    def config_applied(self) -> None:
        self._single.applied.inc()
        self._single.valid.set(1)

    def config_refused(self) -> None:
        self._single.refused.inc()
        self._single.valid.set(0)

    def grants_reloaded(self) -> None:
        self._single.grants.inc()

    def store_up(self, up: bool) -> None:
        self._single.store.set(up)


class ServerMetrics:
    """The numbers of one server; what every call counts is in `tally`."""

    __slots__ = ("_asks", "_families", "_links", "_parked", "_restarts", "_server", "_strays", "_there", "tally")

    def __init__(self, server: str, families: _Families, methods: frozenset[str]) -> None:
        self.tally = Tally(server, methods, OUTCOMES)
        self._server = server
        self._families = families
        self._there = True
        self._links: dict[str, Gauge] = {}
        self._strays: dict[str, Counter] = {}
        self._restarts = families.restarts.labels(server)
        self._asks: dict[tuple[str, str], Counter] = {}
        self._parked: Gauge | None = None

    def link_restarted(self) -> None:
        self._restarts.inc()

    def links(self, counts: Mapping[str, int]) -> None:
        """How many links of the server are in each state now; a state that is left out has none."""
        for state in counts.keys() - self._links.keys():
            if self._there and _closed(state, self._links) == state:
                self._links[state] = self._families.links.labels(self._server, state)
        for state, gauge in self._links.items():
            gauge.set(counts.get(state, 0))

    def message_stray(self, reason: str) -> None:
        """Count a message of the server that belongs to nobody."""
        if (counter := self._strays.get(reason)) is None:
            if not self._there:
                return
            reason = _closed(reason, self._strays)
            counter = self._strays[reason] = self._families.strays.labels(self._server, reason)
        counter.inc()

    def asked(self, method: str, outcome: str) -> None:
        """Count something that the server has asked of a client, by how that ended."""
        if (counter := self._asks.get((method, outcome))) is None:
            if not self._there:
                return
            key = (method if method in SERVER_REQUESTS else OTHER, outcome if outcome in ASK_OUTCOMES else OTHER)
            counter = self._asks[key] = self._families.asks.labels(self._server, *key)
        counter.inc()

    def parked(self, change: int) -> None:
        """So many more calls of the server wait for their clients to come back."""
        if self._parked is None and self._there:
            self._parked = self._families.parked.labels(self._server)
        if self._parked is not None:
            self._parked.inc(change)

    def end(self) -> None:
        """Take all series of the server away; what comes later counts nowhere."""
        self._there = False
        families = self._families
        families.restarts.remove(self._server)
        for state in self._links:
            families.links.remove(self._server, state)
        for reason in self._strays:
            families.strays.remove(self._server, reason)
        for asked in self._asks:
            families.asks.remove(self._server, *asked)
        if self._parked is not None:
            families.parked.remove(self._server)


class _Families:
    """The metrics that have a label for the server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.links = Gauge("mcpmux_links", "Links by the state they are in.", ["server", "state"], registry=registry)
        self.restarts = Counter(
            "mcpmux_link_restarts", "Links started again after they were lost.", ["server"], registry=registry
        )
        self.strays = Counter(
            "mcpmux_messages_stray",
            "Messages of servers that belonged to nobody.",
            ["server", "reason"],
            registry=registry,
        )
        self.asks = Counter(
            "mcpmux_asks",
            "What servers asked of clients in the middle of calls, by how it ended.",
            ["server", "method", "outcome"],
            registry=registry,
        )
        self.parked = Gauge(
            "mcpmux_calls_parked", "Calls that wait for their clients to come back.", ["server"], registry=registry
        )


class _Single:
    """The metrics without labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.valid = Gauge(
            "mcpmux_config_valid", "Whether the config file can be used as it is now.", registry=registry
        )
        self.applied = Counter("mcpmux_config_applied", "Config files applied, the first included.", registry=registry)
        self.refused = Counter("mcpmux_config_refused", "Config files refused for errors in them.", registry=registry)
        self.grants = Counter(
            "mcpmux_grants_reloaded", "Times that grants were dropped from memory.", registry=registry
        )
        self.store = Gauge("mcpmux_store_up", "Whether PostgreSQL answers.", registry=registry)


_Metric = TypeVar("_Metric", Counter, Gauge)


class _Words(Generic[_Metric]):
    """The children of a metric whose one label is a word of our code: few, whatever is asked for."""

    __slots__ = ("_children", "_metric")

    def __init__(self, metric: _Metric) -> None:
        self._metric: _Metric = metric
        self._children: dict[str, _Metric] = {}

    def of(self, word: str) -> _Metric:
        if (child := self._children.get(word)) is None:
            word = _closed(word, self._children)
            child = self._children[word] = self._metric.labels(word)
        return child


class _ByWord:
    """The metrics that have one label, a word."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, label: str) -> _Words[Counter]:
            return _Words(Counter(name, text, [label], registry=registry))

        def gauge(name: str, text: str, label: str) -> _Words[Gauge]:
            return _Words(Gauge(name, text, [label], registry=registry))

        self.sessions = gauge("mcpmux_sessions", "Sessions that are open.", "transport")
        self.sessions_opened = counter("mcpmux_sessions_opened", "Sessions ever opened.", "transport")
        self.streams = gauge("mcpmux_streams", "Event streams that are open.", "kind")
        self.tokens_refused = counter("mcpmux_tokens_refused", "Bearer tokens refused, by cause.", "reason")
        self.http_refused = counter("mcpmux_http_refused", "HTTP requests refused, by status.", "status")
        self.lists = counter("mcpmux_lists_encoded", "Lists encoded, not answered from memory.", "method")
        self.fences = counter("mcpmux_fence_failures", "Failures that a loop survived by starting over.", "loop")


def _closed(word: str, known: Sized) -> str:
    """The word itself if it can be one of ours and there are not too many yet; `other` otherwise."""
    return word if len(known) < _MOST_WORDS and _WORD.fullmatch(word) else OTHER
