"""The pure parts of links: lines, event streams, states, backoff; and what a child process is given."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.config.schema import Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkFailed
from mcpmux.links import backoff, process, states
from mcpmux.links.backoff import Backoff
from mcpmux.links.changes import MAX_PENDING, ChangeFeed, ResourceUpdated, StateChanged
from mcpmux.links.event_stream import EventStream, ServerEvent
from mcpmux.links.lines import LineSplitter, Oversized
from mcpmux.links.states import TRANSITIONS, Happened, State
from mcpmux.links.throttle import BURST, Throttle
from mcpmux.seal import Secret

# Lines -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30)), st.data())
def test_lines_are_the_same_however_they_are_cut(chunks: list[bytes], data: st.DataObject) -> None:
    whole = b"\n".join(chunks)
    splitter = LineSplitter(1000)
    found: list[bytes | Oversized] = []
    rest = whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += splitter.feed(rest[:size])
        rest = rest[size:]
    found += splitter.close()
    expected = whole.split(b"\n")
    assert found == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("chunk", [1, 7, 64, 100_000])
def test_a_line_over_the_limit_is_not_held_and_the_next_one_is_whole(chunk: int) -> None:
    splitter = LineSplitter(100)
    stream = b"A" * 600 + b"x" * 5000 + b"Z" * 600 + b"\nnext\n" + b"y" * 100 + b"\n"
    found: list[bytes | Oversized] = []
    for start in range(0, len(stream), chunk):
        found += splitter.feed(stream[start : start + chunk])
        held = sum(len(part) for part in splitter._parts) + len(splitter._head or b"") + len(splitter._tail)
        assert held <= 1124 + chunk
    first, *others = found
    assert isinstance(first, Oversized)
    assert first.size == 6200
    assert set(first.tail) == {ord("Z")}
    assert set(first.head) == {ord("A")}
    assert others == [b"next", b"y" * 100]


# Event streams ---------------------------------------------------------------------------------------------------

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b"id: e1\nretry: 1500\ndata:\n\n"
    b"event: message\r\ndata: {\"a\":1}\r\nid:e2\r\n\r\n"
    b"data: first\rdata: second\r\r"
    b"event: endpoint\ndata: /here\nunknown: x\nnocolon\n\n"
    b"data: never finished"
)  # fmt: skip


@given(st.lists(st.integers(1, len(STREAM)), max_size=12))
def test_events_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    events = EventStream(1000)
    found: list[ServerEvent | Oversized] = []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(places):
        found += events.feed(STREAM[start:end]) if start < end else []
    assert found == [
        ServerEvent("message", b'{"a":1}'),
        ServerEvent("message", b"first\nsecond"),
        ServerEvent("endpoint", b"/here"),
    ]
    assert events.last_id == "e2"
    assert events.retry == 1.5


def test_an_event_over_the_limit_is_named_and_not_held() -> None:
    events = EventStream(100)
    found = events.feed(
        b"data: HEAD" + b"x" * 900 + b"\n\n" + b"data: " + b"y" * 60 + b"\ndata: " + b"y" * 60 + b"\n\n"
    )
    assert [type(event) for event in found] == [Oversized, Oversized]
    assert found[0].head.startswith(b"HEADx")  # type: ignore[union-attr]
    assert events.feed(b"data: fine\n\n") == [ServerEvent("message", b"fine")]


def test_a_new_connection_forgets_what_was_incomplete_and_keeps_the_id() -> None:
    events = EventStream(100)
    events.feed(b"id: 1\ndata: a\n\nid: 2\ndata: incompl")
    events.reconnect()
    assert events.last_id == "1"
    assert events.feed(b"data: b\n\n") == [ServerEvent("message", b"b")]
    assert events.last_id == "1"


def test_an_id_that_could_not_stand_in_a_header_is_ignored() -> None:
    events = EventStream(100)
    events.feed(b"id: good\ndata: a\n\n" + b"id: b\x00ad\ndata: b\n\n" + b"id: " + b"x" * 2000 + b"\ndata: c\n\n")
    assert events.last_id == "good"


# States ----------------------------------------------------------------------------------------------------------


def test_every_state_that_is_supervised_can_be_left_and_retired() -> None:
    supervised = set(State) - {State.DISABLED, State.UNCONFIGURED}
    assert {state for state, _ in TRANSITIONS} == supervised
    for state in supervised:
        assert states.next(state, Happened.RETIRED) is State.DRAINING
    reached = {states.initial(enabled=True, unconfigured=False)}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == supervised


def test_what_is_not_in_the_table_cannot_happen() -> None:
    with pytest.raises(ValueError, match="a failed server cannot have greeted"):
        states.next(State.FAILED, Happened.GREETED)


@pytest.mark.parametrize(
    ("enabled", "unconfigured", "state"),
    [(False, False, State.DISABLED), (False, True, State.DISABLED), (True, True, State.UNCONFIGURED)],
)
def test_a_server_begins_where_its_config_says(enabled: bool, unconfigured: bool, state: State) -> None:
    assert states.initial(enabled=enabled, unconfigured=unconfigured) is state


# Backoff ---------------------------------------------------------------------------------------------------------


def pauses(memory: Backoff, count: int, **facts: bool) -> list[tuple[float, bool]]:
    said = {"refused": False, "slow_start": False} | facts
    found = [memory.after(0.0, chance=0.5, **said) for _ in range(count)]
    return [(round(retry.pause, 2), retry.failed) for retry in found]


def test_tries_come_soon_then_later_then_slowly() -> None:
    assert pauses(Backoff(), 8) == [
        (0.25, False),
        (0.75, False),
        (2.25, False),
        (6.75, False),
        (60.0, True),
        (120.0, True),
        (240.0, True),
        (300.0, True),
    ]


def test_a_server_that_was_ready_before_is_given_longer() -> None:
    memory = Backoff()
    memory.after(5.0, refused=False, slow_start=False, chance=0.5)
    found = pauses(memory, 7)
    assert [failed for _, failed in found] == [False] * 6 + [True]
    assert 45 < sum(pause for pause, _ in found[:-1]) < 60


def test_a_server_that_refuses_us_is_asked_a_few_hundred_times_a_day() -> None:
    memory, seconds, dials = Backoff(), 0.0, 0
    while seconds < 86_400:
        seconds += memory.after(0.0, refused=True, slow_start=False, chance=0.0).pause
        dials += 1
    assert dials < 400


def test_a_link_that_lasted_makes_everything_new() -> None:
    memory = Backoff()
    pauses(memory, 6)
    retry = memory.after(backoff.STEADY_AFTER, refused=False, slow_start=False, chance=0.5)
    assert (retry.pause, retry.failed, memory.failed) == (backoff.FIRST, False, False)


def test_three_starts_that_took_all_their_time_are_enough() -> None:
    assert [failed for _, failed in pauses(Backoff(), 3, slow_start=True)] == [False, False, True]


def test_pauses_differ_by_chance_so_that_servers_do_not_start_in_step() -> None:
    found = [Backoff().after(0.0, refused=True, slow_start=False, chance=chance).pause for chance in (0.0, 1.0)]
    assert found == pytest.approx([48.0, 72.0])


# Feeds and throttles ---------------------------------------------------------------------------------------------


async def test_a_feed_is_bounded_and_lets_go_of_uris_first() -> None:
    feed = ChangeFeed()
    key = LinkKey("x")
    feed.put(StateChanged("x", "ready"))
    for number in range(MAX_PENDING + 10):
        feed.put(ResourceUpdated("x", key, f"a://{number}", None))  # type: ignore[arg-type]
    assert await anext(feed) == StateChanged("x", "ready")
    assert (await anext(feed)).uri == "a://11"  # type: ignore[union-attr]


async def test_a_throttle_lets_a_burst_through_and_says_what_it_held_back() -> None:
    said: list[int] = []
    throttle = Throttle(asyncio.get_running_loop(), said.append)
    assert sum(throttle.passes() for _ in range(BURST + 50)) == BURST
    throttle.close()
    assert said == [50]


# What a child process is given -----------------------------------------------------------------------------------

OURS = {
    "PATH": "/bin",
    "HOME": "/root",
    "LANG": "C",
    "LC_ALL": "C",
    "TZ": "UTC",
    "TMPDIR": "/t",
    "https_proxy": "http://proxy",
    "NO_PROXY": "local",
    "SSL_CERT_FILE": "/ca",
    "NODE_EXTRA_CA_CERTS": "/ca",
    "PIP_INDEX_URL": "https://pip",
    "UV_INDEX_URL": "https://uv",
    "npm_config_registry": "https://npm",
    "NPM_CONFIG_CAFILE": "/ca",
    "MCPMUX_DATA_DIR": "/d",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "PYTHONPATH": "/p",
    "LD_PRELOAD": "/l",
}
INSTALLERS = {"PIP_INDEX_URL", "UV_INDEX_URL", "npm_config_registry", "NPM_CONFIG_CAFILE"}
NEVER = {"MCPMUX_DATA_DIR", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD"}


@pytest.mark.parametrize(
    ("program", "installs"), [("npx", True), ("/usr/bin/uvx", True), ("node", False), ("sh", False)]
)
def test_a_child_gets_what_is_allowed_and_nothing_else(program: str, installs: bool) -> None:
    server = Server(id="x", command=(program, "thing"), env={"TOKEN": Secret("t"), "HOME": Secret("/own")})
    found = process.environment(server, OURS)
    expected = set(OURS) - NEVER - (set() if installs else INSTALLERS)
    assert set(found) == expected | {"TOKEN"}
    assert found["HOME"] == "/own"
    assert found["PATH"].startswith("/bin:")


def test_uvx_of_our_own_environment_is_found() -> None:
    path = process.environment(Server(id="x", command=("uvx",)), {})["PATH"]
    assert Path(process._program("uvx", Path("/"), path)).name == "uvx"


def test_a_childs_folder_is_its_own_and_private(tmp_path: Path) -> None:
    found = process.folder(Server(id="x"), tmp_path)
    assert found == tmp_path / "servers" / "x"
    assert found.stat().st_mode & 0o777 == 0o700
    with pytest.raises(LinkFailed, match="does not exist"):
        process.folder(Server(id="x", cwd=tmp_path / "nowhere"), tmp_path)
