"""`calls/interest.py`: subscriptions and log levels, counted over sessions; a server is told what it must know, once.

Source: MCP server/resources (subscriptions), server/utilities/logging; design section 3.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from mcpmux.calls.interest import LEVEL_WAIT, LINGERING, Interest
from mcpmux.config.schema import Server
from tests.calls.conftest import Place
from tests.calls.upstream import WAIT, Json, Witness, params, until
from tests.faces.client import Session, bearer, error_of, notification, old_session, request
from tests.faces.modern import Modern, asking
from tests.gateway_process import Gateway, running
from tests.links import harness as links

Http = aiohttp.ClientSession


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A gateway of its own: what it tells its servers is counted.

    `rude` never answers what it is told aside, `slow` no subscription.
    """
    folder = tmp_path_factory.mktemp("interest")
    servers = {name: Witness(name, folder) for name in ("alpha", "beta", "calm", "rude", "slow")}
    sections = {name: witness.section() for name, witness in servers.items()}
    sections["slow"] = servers["slow"].section("--silent", "resources/subscribe")
    sections["rude"] = servers["rude"].section("--silent", "logging/setLevel", "resources/unsubscribe")
    with running(folder, sections) as gateway:
        for name in sections:
            gateway.grant(f"MCP-{name}", name)
        for name in sections:
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 20, name)
        yield Place(gateway, servers, sections)


def about(witness: Witness, method: str, uri: str) -> list[Json]:
    """What a server was told of a resource."""
    return [one for one in witness.heard(method) if params(one)["uri"] == uri]


async def told(witness: Witness, uri: str, subscribed: int, unsubscribed: int) -> None:
    """Wait until it has heard so many subscriptions and their ends, and see that it was not more."""
    wanted = (subscribed, unsubscribed)

    def counts() -> tuple[int, int]:
        return len(about(witness, "resources/subscribe", uri)), len(about(witness, "resources/unsubscribe", uri))

    await until(lambda: counts() == wanted, f"{wanted} of {uri}, not {counts()}")


def levels(witness: Witness) -> list[object]:
    """The levels that a server was told."""
    return [params(one)["level"] for one in witness.heard("logging/setLevel")]


async def leveled(witness: Witness, *expected: str) -> None:
    """Wait until these are the levels that a server was told, in this order."""
    await until(lambda: levels(witness) == list(expected), f"{expected}, not {levels(witness)}")


# Subscriptions ------------------------------------------------------------------------------------------------------


async def test_the_first_of_two_sessions_subscribes_and_the_last_ends_it(place: Place, http: Http) -> None:
    alpha, uri = place.servers["alpha"], "counter://note/shared"
    one, two = [await place.session(http, name, "alpha") for name in ("ana", "ben")]
    for session in (one, two, one):
        assert (await session.ask("resources/subscribe", {"uri": f"alpha+{uri}"}))["result"] == {}
    await told(alpha, uri, 1, 0)
    assert (await one.ask("resources/unsubscribe", {"uri": f"alpha+{uri}"}))["result"] == {}
    async with two.listening() as events:
        await one.call("alpha__touch", uri=uri)
        assert params(await events.message())["uri"] == f"alpha+{uri}"
    await told(alpha, uri, 1, 0)
    assert (await two.ask("resources/unsubscribe", {"uri": f"alpha+{uri}"}))["result"] == {}
    await told(alpha, uri, 1, 1)
    # Nobody's any more: ending it again tells nobody anything.
    assert (await two.ask("resources/unsubscribe", {"uri": f"alpha+{uri}"}))["result"] == {}
    assert await one.call("alpha__touch", uri=uri) == "nobody is subscribed"
    await told(alpha, uri, 1, 1)


async def test_sessions_that_end_take_their_interest_with_them(place: Place, http: Http) -> None:
    alpha, uri = place.servers["alpha"], "counter://note/ended"
    stays = await place.session(http, "ana", "alpha")
    ends = await place.session(http, "ben", "alpha")
    async with old_session(http, place.url, place.person("cem", "alpha")) as old:
        for session in (stays, ends, old):
            await session.ask("resources/subscribe", {"uri": f"alpha+{uri}"})
        await ends.delete()
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_streams", kind="sse") == 0)
    assert await stays.call("alpha__touch", uri=uri) == "subscribed"
    await told(alpha, uri, 1, 0)
    await stays.delete()
    await told(alpha, uri, 1, 1)


async def test_a_refused_subscription_is_nobodys_interest(place: Place, http: Http) -> None:
    dan = await place.session(http, "dan", "beta")
    asked = {"uri": "alpha+counter://note/secret"}
    assert error_of(await dan.ask("resources/subscribe", asked))[0] == -32002
    ana = await place.session(http, "ana", "alpha")
    await ana.ask("resources/subscribe", asked)
    async with dan.listening() as hers:
        await hers.next()
        assert await ana.call("alpha__touch", uri="counter://note/secret") == "subscribed"
        await dan.ask("resources/subscribe", {"uri": "beta+counter://value"})
        await dan.call("beta__touch", uri="counter://value")
        # Had she been told of the other one, that would have come first.
        assert params(await hers.message())["uri"] == "beta+counter://value"
    await ana.delete()
    await dan.delete()


async def test_who_loses_the_right_hears_no_more_of_what_was_subscribed(place: Place, http: Http) -> None:
    await asyncio.to_thread(place.gateway.grant, "eva@example.com", "alpha")
    eva = await place.session(http, "eva", "beta")
    ana = await place.session(http, "ana", "alpha")
    for session in (ana, eva):
        await session.ask("resources/subscribe", {"uri": "alpha+counter://note/lost"})
    async with eva.listening() as hers, ana.listening() as his:
        await ana.call("alpha__touch", uri="counter://note/lost")
        assert params(await hers.message())["uri"] == "alpha+counter://note/lost"
        assert params(await his.message())["uri"] == "alpha+counter://note/lost"
        await asyncio.to_thread(place.gateway.revoke, "eva@example.com", "alpha")
        changed = [await hers.message() for _ in range(3)]
        assert {str(one["method"]).split("/")[1] for one in changed} == {"tools", "prompts", "resources"}
        await ana.call("alpha__touch", uri="counter://note/lost")
        assert params(await his.message())["uri"] == "alpha+counter://note/lost"
        await eva.ask("resources/subscribe", {"uri": "beta+counter://value"})
        await eva.call("beta__touch", uri="counter://value")
        assert params(await hers.message())["uri"] == "beta+counter://value"
    await ana.delete()
    await eva.delete()


async def test_after_a_restart_a_server_is_subscribed_anew(place: Place, http: Http) -> None:
    beta, uri = place.servers["beta"], "counter://note/again"
    session = await place.session(http, "ana", "beta")
    await session.ask("resources/subscribe", {"uri": f"beta+{uri}"})
    await session.ask("tools/call", {"name": "beta__die", "arguments": {"code": 1}})
    await told(beta, uri, 2, 0)
    async with session.listening() as events:
        assert await session.call("beta__touch", uri=uri) == "subscribed"
        while (message := await events.message())["method"] != "notifications/resources/updated":
            pass
        assert params(message)["uri"] == f"beta+{uri}"
    await session.delete()
    await told(beta, uri, 2, 1)


async def test_a_part_of_what_was_subscribed_is_told_too_and_a_namesake_is_not(place: Place, http: Http) -> None:
    """MCP server/resources: an update may name a sub-resource."""
    session = await place.session(http, "ana", "alpha")
    for uri in ("counter://dir", "counter://dir/one", "counter://directory"):
        await session.ask("resources/subscribe", {"uri": f"alpha+{uri}"})
    await session.ask("resources/unsubscribe", {"uri": "alpha+counter://dir/one"})
    await told(place.servers["alpha"], "counter://dir/one", 1, 1)
    await session.ask("resources/unsubscribe", {"uri": "alpha+counter://directory"})
    await told(place.servers["alpha"], "counter://directory", 1, 1)
    ended = await session.call("alpha__touch", uri="counter://directory")
    assert ended == "nobody is subscribed"
    async with session.listening() as events:
        await session.call("alpha__touch", uri="counter://dir")
        assert params(await events.message())["uri"] == "alpha+counter://dir"
    await session.delete()


async def test_a_server_that_does_not_answer_keeps_no_other_from_being_told(place: Place, http: Http) -> None:
    """`rude` leaves the end of a subscription unanswered; beta hears of its own at once."""
    session = await place.session(http, "ana", "rude", "beta")
    await session.ask("resources/subscribe", {"uri": "rude+counter://note/r"})
    await session.ask("resources/subscribe", {"uri": "beta+counter://note/b"})
    await session.ask("resources/unsubscribe", {"uri": "rude+counter://note/r"})
    await told(place.servers["rude"], "counter://note/r", 1, 1)
    await session.ask("resources/unsubscribe", {"uri": "beta+counter://note/b"})
    await told(place.servers["beta"], "counter://note/b", 1, 1)
    await session.delete()


async def test_a_subscription_that_is_given_up_is_ended_at_the_server_too(place: Place, http: Http) -> None:
    slow, uri = place.servers["slow"], "counter://note/late"
    session = await place.session(http, "ana", "slow")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.post(request("resources/subscribe", {"uri": f"slow+{uri}"}, "late")))
        await told(slow, uri, 1, 0)
        await session.post(notification("notifications/cancelled", {"requestId": "late"}))
        await told(slow, uri, 1, 1)
    await session.delete()


async def test_who_comes_while_another_leaves_is_subscribed_in_the_end(place: Place, http: Http) -> None:
    alpha = place.servers["alpha"]
    for number in range(20):
        uri = f"counter://note/race{number}"
        leaves, comes = [await place.session(http, name, "alpha") for name in ("ana", "ben")]
        await leaves.ask("resources/subscribe", {"uri": f"alpha+{uri}"})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leaves.ask("resources/unsubscribe", {"uri": f"alpha+{uri}"}))
            tasks.create_task(comes.ask("resources/subscribe", {"uri": f"alpha+{uri}"}))

        async def subscribed(uri: str = uri, comes: Session = comes) -> bool:
            return await comes.call("alpha__touch", uri=uri) == "subscribed"

        async with asyncio.timeout(5):
            while not await subscribed():
                pass
        await leaves.delete()
        await comes.delete()
    await until(lambda: len(alpha.heard("resources/unsubscribe")) >= 20, "the end of all of them")


# Log levels ---------------------------------------------------------------------------------------------------------


async def test_a_server_runs_at_the_lowest_level_that_any_session_wants(tmp_path: Path, http: Http) -> None:
    alpha, beta = Witness("alpha", tmp_path), Witness("beta", tmp_path)
    with running(tmp_path / "levels", {"alpha": alpha.section(), "beta": beta.section()}) as gateway:
        for name in ("alpha", "beta"):
            gateway.grant(f"MCP-{name}", name)
        await gateway.ready()
        one, two = [await opened(gateway, http, name, "MCP-alpha") for name in ("ana", "ben")]
        nobody = await opened(gateway, http, "dan")
        await one.ask("logging/setLevel", {"level": "error"})
        await leveled(alpha, "error")
        await two.ask("logging/setLevel", {"level": "info"})
        await leveled(alpha, "error", "info")
        await one.ask("logging/setLevel", {"level": "critical"})
        await nobody.ask("logging/setLevel", {"level": "debug"})
        await two.ask("logging/setLevel", {"level": "warning"})
        # Nothing of the two in between: one is above the lowest, the other has no right to any server.
        await leveled(alpha, "error", "info", "warning")
        await two.delete()
        await leveled(alpha, "error", "info", "warning", "critical")
        assert levels(beta) == []
        await one.ask("tools/call", {"name": "alpha__die", "arguments": {"code": 1}})
        await leveled(alpha, "error", "info", "warning", "critical", "critical")


async def opened(gateway: Gateway, http: Http, name: str, *groups: str) -> Session:
    """A session of somebody in these groups."""
    return await Session.opened(http, f"{gateway.url}/mcp", bearer(gateway, f"{name}@example.com", *groups))


async def test_a_session_gets_what_it_wants_to_hear_and_no_more(place: Place, http: Http) -> None:
    """Nobody else ever asks `calm`, so that what it says is hers for certain."""
    session = await place.session(http, "fay", "calm")

    async def logged(level: str) -> int:
        message = {"name": "calm__log", "arguments": {"level": level, "text": "x", "times": 2}}
        found = (await session.post(request("tools/call", message))).messages
        return len([one for one in found if one.get("method") == "notifications/message"])

    assert await logged("debug") == 2  # until it says otherwise: all (MCP server/utilities/logging)
    await session.ask("logging/setLevel", {"level": "warning"})
    assert [await logged(level) for level in ("debug", "info", "notice", "warning", "emergency")] == [0, 0, 0, 2, 2]
    await session.ask("logging/setLevel", {"level": "emergency"})
    assert [await logged(level) for level in ("warning", "alert", "emergency")] == [0, 0, 2]
    await session.delete()


# Calls that say their level themselves ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Older servers of each isolation; `mute` never answers what it is told of levels, `plain` has no logging."""
    folder = tmp_path_factory.mktemp("levels")
    servers = {name: Witness(name, folder) for name in ("shared", "pooled", "session", "mute")}
    sections = {name: witness.section(isolation=name) for name, witness in servers.items() if name != "mute"}
    sections["mute"] = servers["mute"].section("--silent", "logging/setLevel")
    with running(folder, sections) as gateway:
        for name in sections:
            gateway.wait_for(lambda name=name: gateway.logged("offer_changed", server=name, live=True), 20, name)
        yield Place(gateway, servers, sections)


def person(place: Place, http: Http) -> Modern:
    """A client of the modern era that may use all of them."""
    return Modern(http, f"{place.url}/mcp", bearer(place.gateway, "ana@example.com", "MCP-Admin"))


async def logs(client: Modern, server: str, at: str, wanted: str | None) -> int:
    """How many messages of level `at` a call gets that wants them from `wanted` on."""
    call = {"name": f"{server}__log", "arguments": {"level": at, "text": "x", "times": 2}}
    answer = await client.post(asking("tools/call", call, **({} if wanted is None else {"log": wanted})))
    return sum(message.get("method") == "notifications/message" for message in answer.messages)


@pytest.mark.parametrize("server", ["shared", "pooled", "session"])
async def test_a_server_is_told_before_it_gets_a_call_that_wants_to_hear_more(
    modern: Place, http: Http, server: str
) -> None:
    witness, ana = modern.servers[server], person(modern, http)
    assert await logs(ana, server, "debug", None) == 0
    assert levels(witness) == []
    assert await logs(ana, server, "error", "warning") == 2
    assert await logs(ana, server, "info", "info") == 2
    assert await logs(ana, server, "notice", "warning") == 0
    told = levels(witness)
    # One process for all, a few that take turns, one for each call.
    assert {"shared": told == ["warning", "info"], "session": told == ["warning", "info", "warning"]}.get(server, True)
    order = [str(one["method"]) for one in witness.heard() if one.get("method") in ("logging/setLevel", "tools/call")]
    assert order.index("logging/setLevel") == 1
    assert await logs(ana, server, "info", "info") == 2
    if server == "shared":
        assert levels(witness) == ["warning", "info"]  # what calls want outlasts them a while


async def test_a_server_that_does_not_answer_keeps_a_call_waiting_once_and_not_for_long(
    modern: Place, http: Http
) -> None:
    ana = person(modern, http)
    begun = time.monotonic()
    assert await logs(ana, "mute", "debug", "debug") == 2
    assert time.monotonic() - begun >= LEVEL_WAIT
    lines = len(modern.servers["mute"].heard("tools/call"))
    for _ in range(3):
        await logs(ana, "mute", "debug", "info")
    assert len(modern.servers["mute"].heard("tools/call")) == lines + 3
    assert levels(modern.servers["mute"]) == ["debug"]
    assert time.monotonic() - begun < 2 * LEVEL_WAIT + WAIT


async def test_what_calls_want_counts_beside_what_sessions_want_and_is_forgotten(tmp_path: Path) -> None:
    server = Witness("alpha", tmp_path)
    config = links.with_section(Server(id="alpha", command=tuple(server.section()["command"])))  # type: ignore[arg-type]
    async with links.running(tmp_path, config) as pool, asyncio.TaskGroup() as tasks:
        interest, link = Interest(pool), await links.link_of(pool, "alpha")
        running_ = tasks.create_task(interest.run())
        interest.set_level("session", "error", ["alpha"])
        another = partial(pool.link, link.key, WAIT)
        for call, level in (("one", "debug"), ("two", "debug"), ("three", "info")):
            assert await interest.attuned(call, level, link, another) is link
        await leveled(server, "error", "debug")
        for call in ("one", "two", "three", "one", "nobody"):
            interest.let_go(call)
        interest.sweep(time.monotonic())
        assert await interest.attuned("four", "info", link, another) is link
        await leveled(server, "error", "debug")
        interest.sweep(time.monotonic() + LINGERING)
        await leveled(server, "error", "debug", "info")
        interest.let_go("four")
        interest.sweep(time.monotonic() + LINGERING)
        await leveled(server, "error", "debug", "info", "error")
        running_.cancel()
