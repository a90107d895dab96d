"""What is counted on the way of every call, as plain numbers, and how Prometheus gets to see them.

A child of prometheus-client takes a lock for each increment and is asked for seven of them by one call; these cost a
tenth of that. They are written by the event loop alone and read, when Prometheus asks, by whatever thread makes the
page: single numbers, each of them whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

OTHER: Final = "other"

# Seconds: from a look-up in memory to an agent at work. Each one is a line of the page for every server and method.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0)
_BOUNDS: Final = tuple(str(floatToGoString(bound)) for bound in (*BUCKETS, float("inf")))  # type: ignore[no-untyped-call]


class Durations:
    """How long the calls of one method took."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)
        self.seconds = 0.0


class Traffic:
    """Bytes of messages from and to clients."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class Ended:
    """How many calls of one method ended in one way; `durations` are those of the method."""

    __slots__ = ("count", "durations")

    def __init__(self, durations: Durations) -> None:
        self.count = 0
        self.durations = durations


class Tally:
    """The numbers of one server: count into `in_flight`, `sent` and `received` (bytes) directly.

    `methods` and `outcomes` are closed sets; what is in neither counts as `other`.
    """

    __slots__ = ("_durations", "_ended", "_methods", "_outcomes", "in_flight", "received", "sent", "server")

    def __init__(self, server: str, methods: Collection[str], outcomes: Collection[str]) -> None:
        self.server = server
        self.in_flight = 0
        self.sent = 0
        self.received = 0
        self._methods = methods
        self._outcomes = outcomes
        self._ended: dict[tuple[str, str], Ended] = {}
        self._durations: dict[str, Durations] = {}

    def call(self, method: str, outcome: str, seconds: float) -> None:
        """Count one call that ended."""
        ended = self._ended.get((method, outcome)) or self._other(method, outcome)
        ended.count += 1
        durations = ended.durations
        durations.counts[bisect_left(BUCKETS, seconds)] += 1
        durations.seconds += seconds

    def _other(self, method: str, outcome: str) -> Ended:
        """The numbers of what was not counted by these words before."""
        method = method if method in self._methods else OTHER
        key = (method, outcome if outcome in self._outcomes else OTHER)
        ended = self._ended.get(key)
        if ended is None:
            ended = self._ended[key] = Ended(self._durations.setdefault(method, Durations()))
        return ended

    def tell(self, page: _Page) -> None:
        """Put the numbers on the page."""
        for (method, outcome), ended in list(self._ended.items()):
            page.calls.add_metric([self.server, method, outcome], ended.count)
        for method, durations in list(self._durations.items()):
            sums = list(zip(_BOUNDS, accumulate(durations.counts), strict=True))
            page.durations.add_metric([self.server, method], buckets=sums, sum_value=durations.seconds)
        page.in_flight.add_metric([self.server], self.in_flight)
        page.bytes.add_metric([self.server, "sent"], self.sent)
        page.bytes.add_metric([self.server, "received"], self.received)


class _Page:
    """The families of one answer to Prometheus."""

    def __init__(self) -> None:
        self.calls = CounterMetricFamily(
            "mcpmux_calls", "Calls that ended, by how they ended.", labels=["server", "method", "outcome"]
        )
        self.durations = HistogramMetricFamily(
            "mcpmux_call_duration_seconds", "From the arrival of a call to its end.", labels=["server", "method"]
        )
        self.in_flight = GaugeMetricFamily("mcpmux_calls_in_flight", "Calls at work now.", labels=["server"])
        self.bytes = CounterMetricFamily(
            "mcpmux_bytes", "Bytes to (sent) and from (received) servers.", labels=["server", "direction"]
        )
        self.traffic = CounterMetricFamily(
            "mcpmux_http_bytes", "Bytes of messages from (received) and to (sent) clients.", labels=["direction"]
        )


class Tallies(Collector):
    """Tells the numbers of all servers; `servers` gives those that are there now."""

    def __init__(self, servers: Callable[[], Iterable[Tally]], traffic: Traffic) -> None:
        self._servers = servers
        self._traffic = traffic

    def collect(self) -> Iterable[Metric]:
        """The families, made anew for each answer."""
        page = _Page()
        for tally in self._servers():
            tally.tell(page)
        page.traffic.add_metric(["received"], self._traffic.received)
        page.traffic.add_metric(["sent"], self._traffic.sent)
        return [page.calls, page.durations, page.in_flight, page.bytes, page.traffic]
