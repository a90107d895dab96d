"""What a server of a legacy era asks of a client of the modern one, and what is left of it: `calls/parked.py`.

Source: MCP 2026-07-28 basic/patterns/mrtr; design section 3.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.calls.asker import (
    ACCEPTED,
    FITTING,
    NEVER_OURS,
    SAMPLED,
    Asker,
    fitting,
    heard,
    needed,
    person,
    requests,
    shown,
)
from tests.calls.upstream import Json, Witness, params, until
from tests.faces.client import bearer
from tests.gateway_process import Gateway, running

URL = {"mode": "url", "message": "Go", "url": "https://x.example/a", "elicitationId": "e-1"}
SECTIONS: Mapping[str, Json] = {
    "pooled": {"isolation": "pooled"},
    "own": {"isolation": "session", "max_links": 4},
    "shared": {},
}


@dataclass(frozen=True)
class Place:
    """A running mcpmux and its servers."""

    gateway: Gateway
    servers: Mapping[str, Witness]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server of each isolation."""
    folder = tmp_path_factory.mktemp("parked")
    servers = {name: Witness(name, folder) for name in SECTIONS}
    with running(folder, {name: one.section(**SECTIONS[name]) for name, one in servers.items()}) as gateway:
        for name in servers:
            gateway.grant(f"MCP-{name}", name)
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
        yield Place(gateway, servers)


@pytest.fixture(scope="module")
def ana(place: Place) -> Asker:
    return person(place.gateway, "ana", *SECTIONS)


@pytest.fixture(scope="module")
def ben(place: Place) -> Asker:
    return person(place.gateway, "ben", "pooled", "own")


@pytest.fixture(autouse=True)
async def _nothing_is_left(place: Place) -> AsyncIterator[None]:
    """What a test leaves behind on purpose it takes away itself."""
    yield
    await place.gateway.soon(lambda: parked(place.gateway) == 0)


def parked(gateway: Gateway) -> float:
    """How many calls wait for their clients."""
    return sum(number for number in gateway.metrics().get("mcpmux_calls_parked", {}).values())


# The way there and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", SECTIONS)
@pytest.mark.parametrize("method", FITTING)
async def test_what_a_server_asks_is_the_result_and_the_answer_goes_back(server: str, method: str, ana: Asker) -> None:
    if method == "roots/list" and server != "own":
        pytest.skip("only the link of one client announces roots")
    asked = await ana.asked(f"{server}__ask", method=method)
    ((key, one),) = requests(asked).items()
    assert one["method"] == method
    answer = await ana.answered(f"{server}__ask", asked, {key: FITTING[method]}, method=method)
    assert heard(answer)["result"] == FITTING[method]  # type: ignore[index]


async def test_what_is_asked_at_once_is_asked_at_once_and_what_is_not_answered_again(ana: Asker) -> None:
    asked = await ana.asked("pooled__both")
    assert sorted(str(one["method"]) for one in requests(asked).values()) == [
        "elicitation/create",
        "sampling/createMessage",
    ]
    keys = {str(one["method"]): key for key, one in requests(asked).items()}
    some = {keys["elicitation/create"]: ACCEPTED, "unknown": {"action": "accept"}}
    again = needed(await ana.answered("pooled__both", asked, some))
    assert requests(again) == {keys["sampling/createMessage"]: requests(asked)[keys["sampling/createMessage"]]}
    assert again["requestState"] != asked["requestState"]
    nothing = needed(await ana.ask("pooled__both", {}, {"requestState": again["requestState"]}))
    assert requests(nothing) == requests(again)
    elicited, sampled = heard(await ana.answered("pooled__both", nothing, fitting(nothing)))  # type: ignore[misc]
    assert (elicited["result"], sampled["result"]) == (ACCEPTED, SAMPLED)


async def test_a_call_goes_on_on_the_stream_of_the_request_that_is_made_again(ana: Asker) -> None:
    first = await ana.ask("pooled__talk", {}, progressToken="one")
    assert [params(one)["progressToken"] for one in first.messages[:-1]] == ["one"]
    asked = needed(first)
    again = {"inputResponses": fitting(asked), "requestState": asked["requestState"]}
    second = await ana.ask("pooled__talk", {}, again, progressToken="two")
    assert [(params(one)["progressToken"], params(one)["progress"]) for one in second.messages[:-1]] == [("two", 2)]
    assert heard(second)["result"] == ACCEPTED  # type: ignore[index]


async def test_one_question_after_the_other_has_names_of_its_own(ana: Asker) -> None:
    asked = await ana.asked("pooled__twice")
    more = needed(await ana.answered("pooled__twice", asked, fitting(asked)))
    assert requests(more).keys().isdisjoint(requests(asked))
    stale = needed(await ana.answered("pooled__twice", more, fitting(asked)))
    assert requests(stale) == requests(more)
    assert heard(await ana.answered("pooled__twice", stale, fitting(stale))) == [ACCEPTED, ACCEPTED]


async def test_two_people_are_asked_at_once_each_for_their_own_call(ana: Asker, ben: Asker) -> None:
    hers, his = await ana.asked("pooled__talk"), await ben.asked("pooled__talk")
    theirs = {"action": "accept", "content": {"a": "his"}}
    async with asyncio.TaskGroup() as tasks:
        his_end = tasks.create_task(ben.answered("pooled__talk", his, dict.fromkeys(requests(his), theirs)))
        her_end = tasks.create_task(ana.answered("pooled__talk", hers, fitting(hers)))
    assert heard(her_end.result())["result"] == ACCEPTED  # type: ignore[index]
    assert heard(his_end.result())["result"] == theirs  # type: ignore[index]


async def test_where_nobody_shares_a_link_it_lives_until_its_client_is_back_and_then_ends(
    place: Place, ana: Asker
) -> None:
    def live() -> int:
        """How many links there are but for the one that lists."""
        links = place.gateway.status()["own"]["links"]
        assert isinstance(links, list)
        return len(links) - 1

    await place.gateway.soon(lambda: not live())
    asked = await ana.asked("own__talk")
    assert live() == 1
    heard(await ana.answered("own__talk", asked, fitting(asked)))
    await place.gateway.soon(lambda: not live())


async def test_what_happens_meanwhile_is_there_when_the_client_is_back(ana: Asker, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    asked = await ana.asked("pooled__retract", gate=gate)
    Path(gate).touch()
    answer = await ana.answered("pooled__retract", asked, fitting(asked), gate=gate)
    assert "taken back" in str(answer.json["result"])


async def test_a_server_that_ends_meanwhile_is_told_of(place: Place, ana: Asker) -> None:
    asked = await ana.asked("shared__talk")
    await ana.ask("shared__die", {"code": 3})
    answer = await ana.answered("shared__talk", asked, fitting(asked))
    assert "stopped while it worked on this call" in str(answer.json["result"])
    await place.gateway.soon(lambda: len(place.gateway.logged("link_ready", server="shared")) > 1, 20)


async def test_what_comes_before_the_question_leaves_its_stream_open_until_then(ana: Asker) -> None:
    answer = await ana.ask("pooled__talk", {}, progressToken=1)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    heard(await ana.answered("pooled__talk", needed(answer), fitting(needed(answer))))


# Who cannot be asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("able", "method", "asked"),
    [
        ({}, "elicitation/create", None),
        ({"sampling": {}}, "elicitation/create", None),
        ({"elicitation": {"form": {}}}, "elicitation/create", URL),
        ({"sampling": {}}, "sampling/createMessage", {"messages": [], "maxTokens": 1, "tools": []}),
        ({"elicitation": {}}, "sampling/createMessage", None),
    ],
)
async def test_a_client_that_cannot_is_not_asked_and_the_server_is_told(
    able: Json, method: str, asked: object, place: Place, ana: Asker
) -> None:
    unable = Asker(place.gateway, ana.who, able)
    arguments = {"method": method} | ({} if asked is None else {"params": asked})
    error = heard(await unable.ask("pooled__ask", arguments))["error"]  # type: ignore[index]
    assert error["code"] == -32601
    assert "The client does not support" in error["message"]


async def test_a_url_goes_to_a_client_that_can_open_it_without_an_id_that_the_era_has_not(ana: Asker) -> None:
    arguments: Json = {"method": "elicitation/create", "params": URL}
    asked = needed(await ana.ask("pooled__ask", arguments))
    ((key, one),) = requests(asked).items()
    assert one["params"] == {name: value for name, value in URL.items() if name != "elicitationId"}
    again = {"inputResponses": {key: {"action": "accept"}}, "requestState": asked["requestState"]}
    assert heard(await ana.ask("pooled__ask", arguments, again))["result"] == {"action": "accept"}  # type: ignore[index]


# A page that must be visited first ---------------------------------------------------------------------------------

VISIT = {"mode": "url", "message": "Go there", "url": "https://x.example/"}


async def test_a_page_that_must_be_visited_first_is_asked_for_and_the_request_goes_up_again(
    place: Place, ana: Asker
) -> None:
    shared = place.servers["shared"]
    before = len(shared.heard())
    asked = await ana.asked("shared__require", elicitation="e-1")
    ((key, one),) = requests(asked).items()
    assert one == {"method": "elicitation/create", "params": VISIT}
    again = needed(await ana.answered("shared__require", asked, {key: {"action": "accept"}}, elicitation="e-1"))
    assert requests(again) == requests(asked)
    got = [params(message) for message in shared.heard()[before:] if message.get("method") == "tools/call"]
    assert [(call["name"], call["arguments"]) for call in got] == [("require", {"elicitation": "e-1"})] * 2
    assert not any({"inputResponses", "requestState"} & call.keys() for call in got)


async def test_a_visit_that_is_declined_ends_the_call_without_its_server(place: Place, ana: Asker) -> None:
    asked = await ana.asked("shared__require", elicitation="e-1")
    before = len(place.servers["shared"].heard())
    (key,) = requests(asked)
    answer = await ana.answered("shared__require", asked, {key: {"action": "decline"}}, elicitation="e-1")
    result = answer.messages[-1]["result"]
    assert isinstance(result, dict)
    assert result["isError"] is True
    assert "was declined" in result["content"][0]["text"]
    assert [one for one in place.servers["shared"].heard()[before:] if one.get("method") == "tools/call"] == []


async def test_a_visit_is_asked_of_nobody_who_cannot_and_of_nobody_else(place: Place, ana: Asker) -> None:
    forms = Asker(place.gateway, ana.who, able={"elicitation": {"form": {}}})
    refused = await forms.ask("shared__require", {"elicitation": "e-1"})
    assert (refused.status, refused.code) == (400, -32021)
    assert refused.error["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}
    asked = await ana.asked("shared__require", elicitation="e-1")
    other = person(place.gateway, "eve", "shared")
    stolen = await other.answered("shared__require", asked, {"1": {"action": "accept"}}, elicitation="e-1")
    assert shown(stolen) == NEVER_OURS


# What is not accepted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"action": "perhaps"}, {"content": {}}, SAMPLED, {}])
async def test_what_is_no_answer_is_refused_and_can_be_mended(wrong: Json, ana: Asker) -> None:
    asked = await ana.asked("pooled__talk")
    answer = await ana.answered("pooled__talk", asked, dict.fromkeys(requests(asked), wrong))
    assert answer.code == -32602
    assert "elicitation/create" in str(answer.error["message"])
    heard(await ana.answered("pooled__talk", asked, fitting(asked)))


@pytest.mark.parametrize("wrong", [7, None, [], {"1": 7}, "x"])
async def test_what_cannot_be_answers_is_refused_and_can_be_mended(wrong: object, ana: Asker) -> None:
    asked = await ana.asked("pooled__talk")
    answer = await ana.ask("pooled__talk", {}, {"inputResponses": wrong, "requestState": asked["requestState"]})
    assert answer.code == -32602
    heard(await ana.answered("pooled__talk", asked, fitting(asked)))


async def test_a_state_is_good_for_one_person_one_endpoint_and_one_request(
    place: Place, ana: Asker, ben: Asker
) -> None:
    asked = await ana.asked("pooled__ask", method="elicitation/create")
    elsewhere = Asker(place.gateway, ana.who, path="/servers/pooled")
    state = str(asked["requestState"])
    again = {"inputResponses": fitting(asked), "requestState": state}
    same: Json = {"method": "elicitation/create"}
    tampered = [
        state[:-1] + ("A" if state[-1] != "A" else "B"),
        state + "-TAMPERED",
        state[:-8],
        "",
        "made-up",
        "A" * 200,
    ]
    refused = [
        await ben.ask("pooled__ask", same, again),
        await elsewhere.ask("ask", same, again),
        await ana.ask("pooled__ask", {"method": "sampling/createMessage"}, again),
        await ana.ask("pooled__talk", {}, again),
        await ana.ask("own__ask", same, again),
        *[await ana.ask("pooled__ask", same, {**again, "requestState": one}) for one in tampered],
    ]
    assert [shown(one) for one in refused] == [NEVER_OURS] * len(refused)
    assert heard(await ana.ask("pooled__ask", same, again))["result"] == ACCEPTED  # type: ignore[index]
    assert shown(await ana.ask("pooled__ask", same, again)) == NEVER_OURS


async def test_of_two_that_come_back_at_once_one_goes_on(ana: Asker) -> None:
    asked = await ana.asked("pooled__talk")
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(ana.answered("pooled__talk", asked, fitting(asked))) for _ in range(2)]
    ends = sorted((one.result() for one in both), key=lambda answer: "error" in answer.json)
    assert heard(ends[0])["result"] == ACCEPTED  # type: ignore[index]
    assert shown(ends[1]) == NEVER_OURS


async def test_params_count_as_values_whatever_their_order(ana: Asker) -> None:
    arguments: Json = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": SCHEMA}}
    asked = needed(await ana.ask("pooled__ask", arguments))
    turned: Json = {"params": {"requestedSchema": SCHEMA, "message": "?"}, "method": "elicitation/create"}
    again = {"requestState": asked["requestState"], "inputResponses": fitting(asked)}
    assert heard(await ana.ask("pooled__ask", turned, again))["result"] == ACCEPTED  # type: ignore[index]


SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "string"}}}


async def test_closing_the_request_that_is_made_again_cancels_the_call(
    place: Place, ana: Asker, tmp_path: Path
) -> None:
    gate = str(tmp_path / "gate")
    asked = await ana.asked("pooled__talk", gate=gate)
    async with asyncio.TaskGroup() as tasks:
        again = tasks.create_task(ana.answered("pooled__talk", asked, fitting(asked), gate=gate))
        await until(Path(f"{gate}.entered").exists, "the call at its gate")
        again.cancel()
    await until(Path(f"{gate}.cancelled").exists, "the cancellation")


# Who may not any more ----------------------------------------------------------------------------------------------


async def test_what_was_revoked_is_cancelled_at_its_server_and_looks_like_absent(place: Place) -> None:
    place.gateway.grant("eve@example.com", "pooled")
    eve = person(place.gateway, "eve")
    asked = await eve.asked("pooled__talk")
    before = len(place.servers["pooled"].heard("notifications/cancelled"))
    place.gateway.revoke("eve@example.com", "pooled")
    await until(lambda: len(place.servers["pooled"].heard("notifications/cancelled")) > before, "the cancellation")
    answer = await eve.answered("pooled__talk", asked, fitting(asked))
    assert shown(answer) == (200, -32602, "Unknown tool: pooled__talk")
    (line,) = place.gateway.logged("parked_dropped", server="pooled", tool="talk")[-1:]
    assert line["reason"] == "the client may not use this any more"


# What operators see ------------------------------------------------------------------------------------------------


async def test_asks_and_parked_calls_are_counted(place: Place) -> None:
    cleo = person(place.gateway, "cleo", "pooled")

    def asks(outcome: str) -> float:
        return place.gateway.metric("mcpmux_asks_total", server="pooled", method="elicitation/create", outcome=outcome)

    before = {outcome: asks(outcome) for outcome in ("answered", "declined", "refused")}
    for answer in (ACCEPTED, {"action": "decline"}):
        asked = await cleo.asked("pooled__talk")
        assert place.gateway.metric("mcpmux_calls_parked", server="pooled") == 1
        await cleo.answered("pooled__talk", asked, dict.fromkeys(requests(asked), answer))
    await Asker(place.gateway, cleo.who, {}).ask("pooled__talk", {})
    assert {outcome: asks(outcome) - before[outcome] for outcome in before} == dict.fromkeys(before, 1)
    assert place.gateway.metric("mcpmux_calls_parked", server="pooled") == 0

    def outcomes() -> list[str]:
        # Sorted: lines of calls that went well are written in crowds.
        return sorted(
            str(line["outcome"]) for line in place.gateway.logged("call_finished", principal="cleo@example.com")
        )

    await place.gateway.soon(lambda: outcomes() == ["input_required", "input_required", "ok", "ok", "ok"])


# The end -----------------------------------------------------------------------------------------------------------


async def test_with_mcpmux_every_call_that_was_left_ends_at_once_and_its_state_is_void(tmp_path: Path) -> None:
    server = Witness("alone", tmp_path)
    with running(tmp_path, {"alone": server.section(isolation="pooled")}) as gateway:
        await gateway.ready("alone")
        ana = Asker(gateway, bearer(gateway, "ana@example.com", "MCP-Admin"))
        asked = await ana.asked("alone__talk")
        gateway.end(signal.SIGTERM)
        assert gateway.logged("parked_dropped", tool="talk")
        assert server.heard("notifications/cancelled")
        assert not gateway.logged("calls_cut")
        gateway.start()
        await gateway.ready("alone")
        assert shown(await ana.answered("alone__talk", asked, fitting(asked))) == NEVER_OURS
