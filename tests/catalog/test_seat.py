"""Seats: what is due comes once and in time, pauses grow but stay bounded, and waiting ends when it is of no use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mcpmux.catalog.items import Offer
from mcpmux.catalog.seat import KEEP, Due, Pace, Seat
from mcpmux.config.schema import Server
from mcpmux.links.states import State
from mcpmux.protocol.events import Offered

PACE = Pace()
DUE = st.sampled_from([*Offered, KEEP])


def seat(before: Seat | None = None) -> Seat:
    return Seat(Server(id="s"), b"digest", before)


class Agenda(RuleBasedStateMachine):
    """What is wanted or has failed is done once, when its time has come, and nothing else is."""

    def __init__(self) -> None:
        super().__init__()
        self.seat = seat()
        self.now = 0.0
        self.wanted: dict[Due, float] = {}

    @rule(what=DUE)
    def want(self, what: Due) -> None:
        self.seat.want([what], self.now)
        self.wanted[what] = self.now
        assert self.seat.hurry.is_set()

    @rule(what=DUE, chance=st.floats(0, 1))
    def fail(self, what: Due, chance: float) -> None:
        pause = self.seat.failed(what, PACE, self.now, chance)
        assert PACE.retry / 2 <= pause <= PACE.longest
        self.wanted.setdefault(what, self.now + pause)

    @rule(what=DUE)
    def succeed(self, what: Due) -> None:
        self.seat.succeeded(what)

    @rule()
    def take(self) -> None:
        due = self.seat.take_due(self.now)
        assert set(due) == {what for what, at in self.wanted.items() if at <= self.now}
        assert due == sorted(due, key=[*Offered, KEEP].index)
        self.wanted = {what: at for what, at in self.wanted.items() if at > self.now}

    @rule(what=DUE)
    def take_one(self, what: Due) -> None:
        due = self.wanted.get(what, self.now + 1) <= self.now
        assert self.seat.take(what, self.now) == due
        if due:
            del self.wanted[what]

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def says_when_to_look_again(self) -> None:
        assert self.seat.next_due == min(self.wanted.values(), default=None)


TestAgenda = Agenda.TestCase


@given(chance=st.floats(0, 1))
def test_pauses_double_up_to_a_limit_and_begin_anew_after_success(chance: float) -> None:
    one = seat()
    pauses = [one.failed(KEEP, PACE, 0, chance) for _ in range(100)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= PACE.longest
    one.succeeded(KEEP)
    assert one.failed(KEEP, PACE, 0, chance) == pauses[0]
    one.greeted()
    assert one.failed(KEEP, PACE, 0, chance) == pauses[0]


def test_a_server_is_given_up_until_it_is_ready_again() -> None:
    one = seat()
    assert not one.note_state(State.STARTING)
    assert one.note_state(State.FAILED)
    assert one.settled
    assert not one.note_state(State.STARTING)
    assert one.given_up
    assert one.note_state(State.READY)
    assert not one.settled


def test_a_changed_section_starts_with_the_offer_before_and_waits_for_its_link() -> None:
    old = seat()
    old.offer = Offer("s", {}, {}, None, None, 1)
    old.note_state(State.FAILED)
    new = seat(old)
    assert new.offer is old.offer
    assert new.awaits_link
    assert not new.given_up
    new.greeted()
    assert not new.awaits_link


def test_a_list_is_too_old_once_and_only_where_somebody_said_so() -> None:
    one = seat()
    assert not one.aged(Offered.TOOLS, 1e9)
    one.ages(Offered.TOOLS, 10.0)
    assert not one.aged(Offered.TOOLS, 9.9)
    assert not one.aged(Offered.PROMPTS, 10.0)
    assert one.aged(Offered.TOOLS, 10.0)
    assert not one.aged(Offered.TOOLS, 10.0)
    one.ages(Offered.TOOLS, 20.0)
    one.greeted()
    assert not one.aged(Offered.TOOLS, 30.0)
