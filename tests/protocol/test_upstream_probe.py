"""ProbeCore: which of the two greetings decides, and what becomes of the answer to the other one."""

from __future__ import annotations

import pytest

from mcpmux.protocol.upstream import Core, LinkCore, ModernCore, ProbeCore, numbers
from mcpmux.protocol.upstream.received import Greeted, Received, Send, Stray
from tests.protocol.test_upstream_legacy import refusal, welcome
from tests.protocol.test_upstream_modern import answer, discovered

LATE = Stray("late", "greeting")


def probing() -> ProbeCore[str]:
    ids = numbers.source()
    modern = ModernCore[str](streamed=False, version="1", ids=ids)
    return ProbeCore(modern, LinkCore[str](streamed=False, version="1", ids=ids))


def hurried(core: ProbeCore[str]) -> tuple[int, int]:
    """Both greetings are on their way: the ids of the newer and of the older one."""
    discover, *_ = core.greet()
    (begun,) = core.hurry()
    assert isinstance(begun, Send) and begun.request
    return discover, begun.request


def chosen(core: ProbeCore[str], data: bytes) -> Core[str]:
    """What goes on after this answer."""
    found: list[Received[str]] = core.receive(data, None, 0.0)
    assert isinstance(found[0], Greeted)
    return core.settled()


@pytest.mark.parametrize("code", [-32022, -32601])
def test_the_refusal_of_an_older_greeting_may_come_late(code: int) -> None:
    probe = probing()
    discover, initialize = hurried(probe)
    core = chosen(probe, answer(discover, discovered(capabilities={})))
    assert isinstance(core, ModernCore)
    assert core.receive(refusal(initialize, code, "no"), None, 0.0) == [LATE]
    assert core.receive(refusal(initialize, code, "no"), None, 0.0) != [LATE]  # once


def test_the_answer_to_the_newer_greeting_may_come_late() -> None:
    probe = probing()
    discover, initialize = hurried(probe)
    core = chosen(probe, welcome(initialize))
    assert isinstance(core, LinkCore)
    assert core.receive(answer(discover, discovered()), None, 0.0) == [LATE]


def test_the_newest_of_the_older_greetings_is_the_one_that_may_come_late() -> None:
    probe = probing()
    discover, initialize = hurried(probe)
    (again,) = probe.receive(refusal(initialize, -32602, "Unsupported protocol version"), None, 0.0)
    assert isinstance(again, Send) and again.request
    core = chosen(probe, answer(discover, discovered(capabilities={})))
    assert core.receive(refusal(again.request, -32601, "no"), None, 0.0) == [LATE]


def test_what_was_answered_in_time_is_answered_twice() -> None:
    probe = probing()
    discover, *_ = probe.greet()
    (begun,) = probe.receive(refusal(discover, -32601, "no"), None, 0.0)
    assert isinstance(begun, Send) and begun.request
    core = chosen(probe, welcome(begun.request))
    (stray,) = core.receive(refusal(discover, -32601, "no"), None, 0.0)
    assert isinstance(stray, Stray) and stray != LATE


def test_links_of_one_server_never_have_an_id_in_common() -> None:
    ids = numbers.source()
    one, other = (LinkCore[str](streamed=False, version="1", ids=ids) for _ in range(2))
    third = ModernCore[str](streamed=True, version="1", ids=ids)
    taken = [core.greet()[0] for core in (one, other, third, one, third)]
    assert taken == list(range(numbers.FIRST, numbers.FIRST + 5))
