"""What a server of the modern era asks of a client of that era: passed on, its state inside ours.

Source: MCP 2026-07-28 basic/patterns/mrtr; design section 3.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.calls.asker import ACCEPTED, NEVER_OURS, Asker, fitting, heard, needed, person, requests, shown
from tests.calls.upstream import Json
from tests.faces.client import bearer
from tests.faces.modern import PREFIX
from tests.gateway_process import Gateway, running
from tests.servers import listening, modern

SERVERS = ("pipe", "http")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


@dataclass(frozen=True)
class Place:
    """A running mcpmux in front of servers of the modern era."""

    gateway: Gateway
    sections: Mapping[str, Json]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server on a pipe, and one over HTTP."""
    folder = tmp_path_factory.mktemp("passed")
    with listening("http", program="modern_server") as (url, _):
        sections: Mapping[str, Json] = {"pipe": modern(), "http": {"transport": "http", "url": url}}
        with running(folder, sections) as gateway:
            for name in sections:
                gateway.grant(f"MCP-{name}", name)
                gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
            yield Place(gateway, sections)


@pytest.fixture(scope="module")
def ana(place: Place) -> Asker:
    return person(place.gateway, "ana", *SERVERS)


@pytest.fixture(scope="module")
def ben(place: Place) -> Asker:
    return person(place.gateway, "ben", *SERVERS)


@pytest.mark.parametrize("server", SERVERS)
async def test_names_stay_and_answers_go_up_round_by_round(server: str, ana: Asker) -> None:
    arguments: Json = {"kinds": ["form", "sampling", "roots"], "rounds": 2}
    first = await ana.asked(f"{server}__ask", **arguments)
    assert sorted(requests(first)) == ["form_0", "roots_0", "sampling_0"]
    second = needed(await ana.answered(f"{server}__ask", first, fitting(first), **arguments))
    assert sorted(requests(second)) == ["form_1", "roots_1", "sampling_1"]
    told = heard(await ana.answered(f"{server}__ask", second, fitting(second), **arguments))
    assert told == [fitting(first), fitting(second)]


async def test_what_is_missing_and_what_is_unknown_is_the_servers_business(ana: Asker) -> None:
    first = await ana.asked("pipe__ask")
    again = needed(await ana.answered("pipe__ask", first, {"unknown": {"action": "accept"}}))
    assert requests(again) == requests(first)
    assert heard(await ana.answered("pipe__ask", again, {**fitting(again), "more": ACCEPTED})) == [
        {**fitting(again), "more": ACCEPTED}
    ]


async def test_a_server_that_only_wants_to_be_asked_again_is(ana: Asker) -> None:
    first = await ana.asked("pipe__defer")
    assert "inputRequests" not in first
    answer = await ana.ask("pipe__defer", {}, {"requestState": first["requestState"]})
    assert "done" in str(answer.json["result"])


@pytest.mark.parametrize(
    ("able", "kind", "required"),
    [
        ({}, "form", {"elicitation": {"form": {}}}),
        ({"elicitation": {"form": {}}}, "url", {"elicitation": {"url": {}}}),
        ({"elicitation": {}}, "sampling", {"sampling": {}}),
        ({"sampling": {}}, "roots", {"roots": {}}),
    ],
)
@pytest.mark.parametrize("server", SERVERS)
async def test_what_a_server_demands_of_its_client_is_told_as_the_era_has_it(
    server: str, able: Json, kind: str, required: Json, place: Place, ana: Asker
) -> None:
    answer = await Asker(place.gateway, ana.who, able).ask(f"{server}__ask", {"kinds": [kind]})
    assert (answer.status, answer.code) == (400, -32021)
    assert answer.error["data"] == {"requiredCapabilities": required}


async def test_a_server_hears_what_this_client_can_and_wants(place: Place, ana: Asker) -> None:
    able: Json = {"elicitation": {"form": {}}, "roots": {}}
    answer = await Asker(place.gateway, ana.who, able).ask("pipe__whoami", {}, log="warning", traceparent=TRACE)
    meta = dict(heard(answer)["_meta"])  # type: ignore[index]
    assert meta[PREFIX + "clientCapabilities"] == able
    assert meta[PREFIX + "logLevel"] == "warning"
    assert meta["traceparent"] == TRACE
    assert PREFIX + "logLevel" not in heard(await ana.ask("pipe__whoami", {}))["_meta"]  # type: ignore[index]


async def test_a_state_is_good_for_one_person_one_server_and_one_request(place: Place, ana: Asker, ben: Asker) -> None:
    asked = await ana.asked("pipe__ask")
    state = str(asked["requestState"])
    again = {"inputResponses": fitting(asked), "requestState": state}
    refused = [
        await ben.ask("pipe__ask", {}, again),
        await Asker(place.gateway, ana.who, path="/servers/pipe").ask("ask", {}, again),
        await ana.ask("http__ask", {}, again),
        await ana.ask("pipe__ask", {"rounds": 1}, again),
        await ana.ask("pipe__defer", {}, again),
        await ana.ask("pipe__ask", {}, {**again, "requestState": state + "-TAMPERED"}),
        await ana.ask("pipe__ask", {}, {**again, "requestState": "theirs"}),
    ]
    assert [shown(one) for one in refused] == [NEVER_OURS] * len(refused)
    assert heard(await ana.ask("pipe__ask", {}, again)) == [fitting(asked)]


async def test_what_was_revoked_meanwhile_looks_like_absent(place: Place) -> None:
    place.gateway.grant("eve@example.com", "pipe")
    eve = person(place.gateway, "eve")
    asked = await eve.asked("pipe__ask")
    place.gateway.revoke("eve@example.com", "pipe")
    await place.gateway.soon(lambda: place.gateway.logged("grants_changed")[3:])
    answer = await eve.answered("pipe__ask", asked, fitting(asked))
    assert shown(answer) == (200, -32602, "Unknown tool: pipe__ask")


async def test_a_state_survives_a_restart_and_new_keys_as_long_as_the_old_ones_are_there(tmp_path: Path) -> None:
    old, new = "o" * 40, "n" * 40
    with listening("http", program="modern_server") as (url, _):
        sections = {"http": {"transport": "http", "url": url}}
        with running(tmp_path, sections, keys=[old]) as gateway:
            await gateway.ready("http")
            ana = Asker(gateway, bearer(gateway, "ana@example.com", "MCP-Admin"))
            asked = await ana.asked("http__ask", rounds=2)
            await restarted(gateway, [new, old])
            more = needed(await ana.answered("http__ask", asked, fitting(asked), rounds=2))
            await restarted(gateway, [new])
            assert shown(await ana.answered("http__ask", asked, fitting(asked), rounds=2)) == NEVER_OURS
            told = heard(await ana.answered("http__ask", more, fitting(more), rounds=2))
            assert told == [fitting(asked), fitting(more)]


async def restarted(gateway: Gateway, keys: list[str]) -> None:
    """Another process on the same data, with these keys."""
    gateway.end(signal.SIGTERM)
    gateway.section["keys"] = keys
    gateway.save()
    gateway.start()
    await gateway.ready("http")
