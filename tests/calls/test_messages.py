"""What a server says beside its answers reaches exactly the call that it belongs to, or nobody.

Source: design section 3; MCP basic/utilities/progress, server/utilities/logging. Attacks 67 and 86.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.calls.conftest import Place
from tests.calls.upstream import Json, params, until
from tests.faces.client import Session, calling, said

Http = aiohttp.ClientSession


def progress(messages: list[Json]) -> list[object]:
    """The progress among these messages."""
    return [params(one)["progress"] for one in messages if one.get("method") == "notifications/progress"]


async def test_progress_tokens_are_rewritten_on_the_way_up_and_back_in_their_type(place: Place, http: Http) -> None:
    sessions = [await place.session(http, name, "alpha") for name in ("ana", "ben", "cem")]
    tokens: list[object] = ["1", 1, "a token with \u00fc and \n"]
    for session, token in zip(sessions, tokens, strict=True):
        async with session.streaming(calling("alpha__progress", {"steps": 2}, 7, token)) as events:
            found = await events.messages()
        got = [params(one)["progressToken"] for one in found[:-1]]
        assert got == [token, token]
        assert all(type(one) is type(token) for one in got)
    upstream = [params(one)["_meta"]["progressToken"] for one in place.servers["alpha"].tools("progress")[-3:]]  # type: ignore[index]
    assert len(set(upstream)) == 3, "two calls had one token at their server"
    assert not set(map(str, upstream)) & set(map(str, tokens[2:]))


async def test_progress_of_calls_with_one_token_is_kept_apart(place: Place, http: Http, tmp_path: Path) -> None:
    """Both clients use the same id and the same token, and their steps are interleaved at the server."""
    one, other = [await place.session(http, name, "alpha") for name in ("ana", "ben")]
    folders = [tmp_path / name for name in ("ana", "ben")]
    for folder in folders:
        folder.mkdir()
        (folder / "1").touch()
    messages = [calling("alpha__walk", {"folder": str(folder), "steps": 3}, 1, 1) for folder in folders]
    async with one.streaming(messages[0]) as hers, other.streaming(messages[1]) as his:
        for step in (2, 3):
            for folder in folders:
                await until((folder / f"{step}.entered").exists, f"step {step}")
                (folder / str(step)).touch()
        (folders[1] / "end").touch()
        found = await his.messages()
        assert (progress(found), said(found[-1])) == ([1, 2, 3], "walked 3")
        (folders[0] / "end").touch()
        found = await hers.messages()
        assert (progress(found), said(found[-1])) == ([1, 2, 3], "walked 3")


async def test_without_a_token_of_the_client_the_server_is_not_asked_for_progress(place: Place, http: Http) -> None:
    session = await place.session(http, "ana", "alpha")
    assert await session.call("alpha__progress", steps=3) == "3 steps"
    assert "_meta" not in params(place.servers["alpha"].tools("progress")[-1])


async def test_what_else_stands_in_meta_passes(place: Place, http: Http) -> None:
    session = await place.session(http, "ana", "alpha")
    message = calling("alpha__progress", {"steps": 1}, 1, "t")
    params(message)["_meta"] = {"progressToken": "t", "vendor/key": {"a": [1, 2.50]}, "traceparent": "00-x"}
    async with session.streaming(message) as events:
        assert len(await events.messages()) == 2
    meta = params(place.servers["alpha"].tools("progress")[-1])["_meta"]
    assert isinstance(meta, dict)
    assert {name: value for name, value in meta.items() if name != "progressToken"} == {
        "vendor/key": {"a": [1, 2.5]},
        "traceparent": "00-x",
    }
    assert meta["progressToken"] != "t"


async def test_a_log_message_reaches_its_call_while_it_is_certainly_its(place: Place, http: Http) -> None:
    """`delta` is asked by nobody else: then a message is the only caller's for certain."""
    session = await place.session(http, "lea", "delta")
    for number in range(3):
        async with session.streaming(
            calling("delta__log", {"level": "error", "text": f"hers {number}"}, number)
        ) as events:
            found = await events.messages()
        assert [params(one).get("data") for one in found[:-1]] == [{"text": f"hers {number}", "number": 0}]


async def test_with_two_callers_on_one_link_a_log_message_reaches_nobody(
    place: Place, http: Http, tmp_path: Path
) -> None:
    """On a shared pipe it could be about either of them; our own log alone has it."""
    one, other = [await place.session(http, name, "gamma") for name in ("mia", "noa")]
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(collected(other, calling("gamma__slow", {"gate": str(gate)}, 1)))
        await until((tmp_path / "gate.entered").exists, "the other call at the server")
        hers = await collected(one, calling("gamma__log", {"level": "alert", "text": "whose?", "times": 3}, 1))
        gate.touch()
    # Also just after the other call: a tool may work on for a while.
    hers += await collected(one, calling("gamma__log", {"level": "alert", "text": "whose?"}, 2))
    for found in (hers, slow.result()):
        assert [message for message in found if message.get("method") == "notifications/message"] == []
    assert len([message for message in hers if "result" in message]) == 2
    await place.gateway.soon(
        lambda: place.gateway.metric("mcpmux_messages_stray_total", server="gamma", reason="unattributed") >= 4
    )


async def collected(session: Session, message: Json) -> list[Json]:
    """Every message of an answer, in whichever form it comes."""
    return (await session.post(message)).messages


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "roots/list", "ping"])
async def test_what_a_server_asks_meanwhile_is_answered_by_us_and_reaches_no_client(
    method: str, place: Place, http: Http
) -> None:
    session = await place.session(http, "ana", "alpha")
    async with session.listening() as events:
        await events.next()
        answer = await collected(session, calling("alpha__ask", {"method": method}, 1, 1))
        assert [one.get("method") for one in answer] == [None]
        assert '"error"' in said(answer[0]) or method == "ping"
        await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
        await session.call("alpha__touch", uri="counter://value")
        assert (await events.message())["method"] == "notifications/resources/updated"
    await session.delete()
