"""The page that Prometheus fetches: right by its own checker, bounded whatever is counted, cheap where it is hot."""

from __future__ import annotations

import re
import subprocess
import time

import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mcpmux.observe.metrics import OUTCOMES, Metrics
from tests.observe.promtool import promtool

METHODS = ("tools/call", "tools/list", "initialize")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(METHODS, "0.1.0")


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample of the page as `name{label="value",…}`, labels in order of their names."""
    page, _ = metrics.render(None)
    found: dict[str, float] = {}
    for family in parse_text(page.decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()) if value)
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def used(metrics: Metrics) -> Metrics:
    """Every metric with at least one child."""
    server = metrics.server("github")
    for outcome in OUTCOMES:
        server.tally.call("tools/call", outcome, 0.2)
    server.tally.in_flight += 1
    server.tally.sent += 10
    server.tally.received += 20
    server.link_restarted()
    server.links({"ready": 1, "failed": 0})
    server.message_stray("unknown_id")
    metrics.session_opened("streamable")
    metrics.stream_opened("get")
    metrics.token_refused("expired")
    metrics.http_refused(413)
    metrics.http_received(100)
    metrics.http_sent(7)
    metrics.list_encoded("tools/list")
    metrics.fence_failed("grants")
    metrics.config_applied()
    metrics.config_refused()
    metrics.grants_reloaded()
    metrics.store_up(True)
    return metrics


def test_what_is_counted_is_on_the_page_under_the_agreed_names(metrics: Metrics) -> None:
    found = values(used(metrics))
    assert found['mcpmux_calls_total{method="tools/call",outcome="ok",server="github"}'] == 1
    assert found['mcpmux_call_duration_seconds_count{method="tools/call",server="github"}'] == len(OUTCOMES)
    assert found['mcpmux_call_duration_seconds_bucket{le="0.1",method="tools/call",server="github"}'] == 0
    assert found['mcpmux_call_duration_seconds_bucket{le="0.25",method="tools/call",server="github"}'] == len(OUTCOMES)
    assert found['mcpmux_calls_in_flight{server="github"}'] == 1
    assert found['mcpmux_bytes_total{direction="sent",server="github"}'] == 10
    assert found['mcpmux_bytes_total{direction="received",server="github"}'] == 20
    assert found['mcpmux_link_restarts_total{server="github"}'] == 1
    assert found['mcpmux_links{server="github",state="ready"}'] == 1
    assert found['mcpmux_messages_stray_total{reason="unknown_id",server="github"}'] == 1
    assert found['mcpmux_sessions{transport="streamable"}'] == 1
    assert found['mcpmux_sessions_opened_total{transport="streamable"}'] == 1
    assert found['mcpmux_streams{kind="get"}'] == 1
    assert found['mcpmux_tokens_refused_total{reason="expired"}'] == 1
    assert found['mcpmux_http_refused_total{status="413"}'] == 1
    assert found['mcpmux_http_bytes_total{direction="received"}'] == 100
    assert found['mcpmux_http_bytes_total{direction="sent"}'] == 7
    assert found['mcpmux_lists_encoded_total{method="tools/list"}'] == 1
    assert found['mcpmux_fence_failures_total{loop="grants"}'] == 1
    assert found["mcpmux_config_applied_total"] == found["mcpmux_config_refused_total"] == 1
    assert found["mcpmux_config_valid"] == 0
    assert found["mcpmux_grants_reloaded_total"] == 1
    assert found["mcpmux_store_up"] == 1
    assert found['mcpmux_build_info{version="0.1.0"}'] == 1
    assert found["process_open_fds"] > 0


def test_what_ends_is_taken_back(metrics: Metrics) -> None:
    used(metrics)
    metrics.server("github").tally.in_flight -= 1
    metrics.session_closed("streamable")
    metrics.stream_closed("get")
    metrics.server("github").links({"draining": 2})
    metrics.config_applied()
    found = values(metrics)
    assert found['mcpmux_calls_in_flight{server="github"}'] == 0
    assert found['mcpmux_sessions{transport="streamable"}'] == 0
    assert found['mcpmux_sessions_opened_total{transport="streamable"}'] == 1
    assert found['mcpmux_streams{kind="get"}'] == 0
    assert found['mcpmux_links{server="github",state="ready"}'] == 0
    assert found['mcpmux_links{server="github",state="draining"}'] == 2
    assert found["mcpmux_config_valid"] == 1


def test_a_removed_server_takes_its_series_with_it_and_its_last_calls_bring_none_back(metrics: Metrics) -> None:
    server = used(metrics).server("github")
    metrics.forget("github")
    server.tally.call("tools/call", "lost", 1.0)
    server.tally.call("tools/list", "lost", 1.0)
    server.tally.in_flight -= 1
    server.tally.sent += 1
    server.links({"ready": 1, "degraded": 1})
    server.message_stray("another")
    assert not [name for name in values(metrics) if "github" in name]
    metrics.forget("github")
    metrics.server("github").tally.call("tools/call", "ok", 0.1)
    assert values(metrics)['mcpmux_calls_total{method="tools/call",outcome="ok",server="github"}'] == 1


def test_callers_cannot_make_series(metrics: Metrics) -> None:
    server = metrics.server("github")
    for number in range(500):
        server.tally.call(f"evil/{number}", "ok", 0.1)
        server.tally.call("tools/call", f"outcome {number}", 0.1)
        server.message_stray(f"Reason {number}")
        metrics.token_refused(f"because_{number}")
        metrics.http_refused(number)
        metrics.session_opened(f'"}}{number}')
        metrics.list_encoded(f"list/{number}")
    found = values(metrics)
    assert found['mcpmux_calls_total{method="other",outcome="ok",server="github"}'] == 500
    assert found['mcpmux_calls_total{method="tools/call",outcome="other",server="github"}'] == 500
    assert found['mcpmux_messages_stray_total{reason="other",server="github"}'] == 500
    assert found['mcpmux_sessions{transport="other"}'] == 500
    assert found['mcpmux_lists_encoded_total{method="other"}'] == 500
    assert len(found) < 400
    assert sum(name.startswith("mcpmux_calls_total{") for name in found) == 2


def test_a_word_that_came_too_late_is_still_counted(metrics: Metrics) -> None:
    for number in range(100):
        metrics.token_refused(f"cause_{number}")
    refused = {name: value for name, value in values(metrics).items() if name.startswith("mcpmux_tokens_refused")}
    assert sum(refused.values()) == 100
    assert refused['mcpmux_tokens_refused_total{reason="other"}'] > 0


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        ("application/openmetrics-text;version=nonsense", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_prometheus_gets_the_form_that_it_asks_for(metrics: Metrics, accept: str | None, kind: str) -> None:
    page, content_type = used(metrics).render(accept)
    assert content_type.startswith(kind)
    text = page.decode()
    if "openmetrics" in kind:
        assert text.endswith("# EOF\n")
        families = {family.name for family in parse_openmetrics(text)}
    else:
        families = {family.name for family in parse_text(text)}
    assert {"mcpmux_calls", "mcpmux_call_duration_seconds", "mcpmux_links"} <= families


def test_two_processes_in_one_do_not_share_their_numbers() -> None:
    """A registry of our own: prometheus-client's global one would refuse the second."""
    first, second = Metrics(METHODS), Metrics(METHODS)
    first.grants_reloaded()
    assert values(second)["mcpmux_grants_reloaded_total"] == 0
    assert not [family for family in prometheus_client.REGISTRY.collect() if family.name.startswith("mcpmux")]


# Checked -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(660)
def test_prometheus_own_checker_finds_nothing(metrics: Metrics) -> None:
    page, _ = used(metrics).render(None)
    if (tool := promtool()) is None:
        assert lint(page.decode()) == []
        return
    done = subprocess.run([tool, "check", "metrics"], input=page, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_our_own_lint_finds_nothing_either(metrics: Metrics) -> None:
    assert lint(used(metrics).render(None)[0].decode()) == []


def test_our_own_lint_would_find_something() -> None:
    page = (
        "# HELP a_counter Text.\n# TYPE a_counter counter\na_counter 1\n"
        "# TYPE camelCase gauge\ncamelCase 1\n"
        "# HELP some_milliseconds Text.\n# TYPE some_milliseconds gauge\nsome_milliseconds 1\n"
        "# HELP wrong_total Text.\n# TYPE wrong_total gauge\nwrong_total 1\n"
    )
    assert len(lint(page)) == 5


UNITS = re.compile(r"_(milliseconds|minutes|hours|kilobytes|megabytes|kib|mib|percent|ms|celcius|bits)(_|$)")


def lint(page: str) -> list[str]:
    """What `promtool check metrics` looks for, for where it cannot be had; the parser refuses what is malformed."""
    problems: list[str] = []
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    helps = set(re.findall(r"^# HELP (\S+) \S", page, re.MULTILINE))
    for family in parse_text(page):
        for sample in family.samples:
            if len(set(sample.labels)) != len(sample.labels):
                problems.append(f"{sample.name}: label twice")
    for name, kind in types.items():
        if name not in helps:
            problems.append(f"{name}: no help")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            problems.append(f"{name}: not snake case")
        if kind == "counter" and not name.endswith("_total"):
            problems.append(f"{name}: a counter without _total")
        if kind != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket")):
            problems.append(f"{name}: a suffix of another type")
        if UNITS.search(name):
            problems.append(f"{name}: not a base unit")
    return problems


# What it costs -------------------------------------------------------------------------------------------------


def test_counting_a_call_costs_what_its_two_children_cost(metrics: Metrics) -> None:
    server = metrics.server("github")
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("a", "b", registry=registry)
    histogram = prometheus_client.Histogram("c", "d", buckets=(0.005, 0.01, 0.025, 0.1, 0.25, 1.0), registry=registry)

    def ours() -> None:
        server.tally.call("tools/call", "ok", 0.0123)

    def bare() -> None:
        counter.inc()
        histogram.observe(0.0123)

    def cost(function: object) -> float:
        assert callable(function)
        start = time.process_time()
        for _ in range(20_000):
            function()
        return time.process_time() - start

    ours_cost, bare_cost = min(cost(ours) for _ in range(5)), min(cost(bare) for _ in range(5))
    assert ours_cost < 2 * bare_cost
