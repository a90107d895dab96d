"""`faces/listens.py`: subscriptions of the modern era, each on a stream of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import Witness, params, until
from tests.faces.client import Json, bearer
from tests.faces.conftest import Place, Who
from tests.faces.modern import PREFIX, SUBSCRIPTION, Modern, asking
from tests.gateway_process import running

Http = aiohttp.ClientSession
ALL = {"toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True}
TOOLS = "notifications/tools/list_changed"
PROMPTS = "notifications/prompts/list_changed"
RESOURCES = "notifications/resources/list_changed"
UPDATED = "notifications/resources/updated"


@pytest.mark.parametrize(("kind", "told"), [("tools", TOOLS), ("prompts", PROMPTS), ("resources", RESOURCES)])
async def test_a_change_of_a_list_is_told_with_the_id_of_the_subscription(kind: str, told: str, both: Modern) -> None:
    async with both.listening(ALL, 7) as stream:
        assert stream.honored == ALL
        for tool in ("offer", "withdraw"):
            await both.call(f"beta__{tool}", kind=kind, name="later")
            assert await stream.message() == {
                "jsonrpc": "2.0", "method": told, "params": {"_meta": {SUBSCRIPTION: 7}},
            }  # fmt: skip


async def test_only_what_was_asked_for_is_told(both: Modern) -> None:
    async with both.listening({"promptsListChanged": True}) as stream:
        assert stream.honored == {"promptsListChanged": True}
        for kind in ("tools", "resources", "prompts"):
            await both.call("beta__offer", kind=kind, name="more")
        assert (await stream.message())["method"] == PROMPTS
        for kind in ("tools", "resources", "prompts"):
            await both.call("beta__withdraw", kind=kind, name="more")
        assert (await stream.message())["method"] == PROMPTS


async def test_nobody_hears_of_a_list_that_is_not_theirs(modern: Modern, both: Modern) -> None:
    async with modern.listening(ALL) as hers, both.listening(ALL) as his:
        await both.call("beta__offer", kind="tools", name="his")
        assert (await his.message())["method"] == TOOLS
        await both.call("beta__withdraw", kind="tools", name="his")
        await both.call("alpha__offer", kind="prompts", name="both")
        assert (await hers.message())["method"] == PROMPTS
        await both.call("alpha__withdraw", kind="prompts", name="both")


async def test_a_change_of_a_resource_is_told_to_those_who_subscribed_it(
    place: Place, modern: Modern, both: Modern
) -> None:
    shown = "alpha+counter://value"
    async with (
        modern.listening({"resourceSubscriptions": [shown]}, "a") as hers,
        both.listening({"resourceSubscriptions": [shown, "beta+counter://value"]}, "b") as his,
    ):
        assert hers.honored == {"resourceSubscriptions": [shown]}
        await place.alpha.hears("resources/subscribe", lambda one: params(one) == {"uri": "counter://value"})
        assert await both.call("alpha__touch", uri="counter://value") == "subscribed"
        for stream, id_ in ((hers, "a"), (his, "b")):
            told = await stream.message()
            assert (told["method"], told["params"]) == (UPDATED, {"_meta": {SUBSCRIPTION: id_}, "uri": shown})
        await both.call("beta__touch", uri="counter://value")
        assert params(await his.message())["uri"] == "beta+counter://value"


async def test_the_last_one_who_leaves_ends_the_subscription_at_its_server(place: Place, modern: Modern) -> None:
    def ended() -> int:
        return len([one for one in place.alpha.heard("resources/unsubscribe") if "note/last" in str(one)])

    wanted = {"resourceSubscriptions": ["alpha+counter://note/last"]}
    async with modern.listening(wanted):
        async with modern.listening(wanted, "second"):
            assert ended() == 0
        await until(lambda: place.gateway.metric("mcpmux_streams", kind="listen") == 1, "the end of the second")
        assert ended() == 0
    await until(lambda: ended() == 1, "the end of the subscription")
    assert place.gateway.metric("mcpmux_streams", kind="listen") == 0


async def test_what_may_not_be_seen_is_left_out_like_what_is_not_there(modern: Modern) -> None:
    uris = ["beta+counter://value", "nothing+x://y", "alpha+counter://value", "off+counter://value", "no uri"]
    async with modern.listening({"resourceSubscriptions": uris}) as stream:
        assert stream.honored == {"resourceSubscriptions": ["alpha+counter://value"]}


async def test_the_endpoint_of_one_server_has_native_names(place: Place, http: Http, ana: Who) -> None:
    modern = Modern(http, f"{place.url}/servers/alpha/mcp", ana)
    async with modern.listening({"resourceSubscriptions": ["counter://value"]}) as stream:
        await modern.call("touch", uri="counter://value")
        assert params(await stream.message())["uri"] == "counter://value"


@pytest.mark.parametrize("notifications", [None, [], {"toolsListChanged": "yes"}, {"resourceSubscriptions": [1]}])
async def test_a_filter_that_cannot_be_right_is_refused(notifications: object, modern: Modern) -> None:
    answer = await modern.post(asking("subscriptions/listen", {"notifications": notifications}))
    assert (answer.status, answer.code) == (200, -32602)


async def test_an_endpoint_that_is_not_granted_cannot_be_listened_to(place: Place, http: Http, ana: Who) -> None:
    answer = await Modern(http, f"{place.url}/servers/beta/mcp", ana).post(
        asking("subscriptions/listen", {"notifications": ALL})
    )
    assert answer.status == 403


async def test_the_stream_ends_properly_when_its_token_expires(place: Place, http: Http) -> None:
    who = bearer(place.gateway, "eve@example.com", "MCP-Alpha", ttl=2)
    async with Modern(http, f"{place.url}/mcp", who).listening(ALL, "short") as stream:
        *_, last = await stream.rest()
    assert (last["id"], _closed(last)) == ("short", "short")


async def test_nothing_is_left_of_many_that_came_and_went(place: Place, modern: Modern) -> None:
    async def once(number: int) -> None:
        wanted = {**ALL, "resourceSubscriptions": [f"alpha+counter://note/{number}"]}
        async with modern.listening(wanted, number) as stream:
            assert stream.honored == wanted

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(once(number))
    await until(lambda: place.gateway.metric("mcpmux_streams", kind="listen") == 0, "the end of every stream")
    subscribed = {str(one["params"]) for one in place.alpha.heard("resources/subscribe")}

    def left() -> set[str]:
        return subscribed - {str(one["params"]) for one in place.alpha.heard("resources/unsubscribe")}

    await until(lambda: not left(), "the end of every subscription")
    assert not place.gateway.logged("call_finished", method="resources/subscribe", outcome="cancelled")


async def test_grants_limits_and_the_end_of_mcpmux(tmp_path: Path, http: Http) -> None:
    alpha = Witness("alpha", tmp_path)
    gateway_section = {"limits": {"sessions_per_user": 2}}
    with running(tmp_path / "gateway", {"alpha": alpha.section()}, **gateway_section) as gateway:
        await gateway.ready("alpha")
        gateway.grant("MCP-Alpha", "alpha")
        who = bearer(gateway, "ana@example.com", "MCP-Alpha")
        here, there = Modern(http, f"{gateway.url}/mcp", who), Modern(http, f"{gateway.url}/servers/alpha/mcp", who)
        wanted = {**ALL, "resourceSubscriptions": ["alpha+counter://value"]}
        async with here.listening(wanted, "here") as one, there.listening(ALL, "there") as two:
            answer = await here.post(asking("subscriptions/listen", {"notifications": ALL}))
            assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
            await asyncio.to_thread(gateway.revoke, "MCP-Alpha", "alpha")
            assert (await two.rest())[-1]["id"] == "there", "an endpoint that is gone for its principal"
            told = [(await one.message())["method"] for _ in range(3)]
            assert set(told) == {TOOLS, PROMPTS, RESOURCES}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.to_thread(gateway.end))
                last = (await one.rest())[-1]
            assert (last["id"], _closed(last)) == ("here", "here")


def _closed(message: Json) -> object:
    """The subscription that a result says it ends, and which mcpmux says that it is."""
    result = message["result"]
    assert isinstance(result, dict)
    assert result["resultType"] == "complete"
    assert result["_meta"][PREFIX + "serverInfo"]["name"] == "mcpmux"
    return result["_meta"][SUBSCRIPTION]
