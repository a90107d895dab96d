"""What a server asks in the middle of a call: it reaches that call's client, and the answer goes back.

Source: MCP client/elicitation, client/sampling, basic/utilities/cancellation; design section 3.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.calls.conftest import Place
from tests.calls.upstream import Json, params, until
from tests.faces.client import Events, Session, calling, notification, old_session, said

Http = aiohttp.ClientSession

ABLE = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {"listChanged": True}}
FORM = {"message": "N\u00e4me?", "requestedSchema": {"type": "object", "properties": {"a": {"type": "string"}}}}
MODEL = {"messages": [{"role": "user", "content": {"type": "text", "text": "Say"}}], "maxTokens": 5}
URL = {"mode": "url", "message": "Go", "url": "https://x.example/a", "elicitationId": "e-1"}
ASKED = {"elicitation/create": FORM, "sampling/createMessage": MODEL}
REFUSED = -32601


@pytest.fixture
async def asker(place: Place, http: Http) -> Session:
    """A session of the one caller of `asker`."""
    return await place.session(http, "ada", "asker", able=ABLE)


def asking(method: str = "elicitation/create", asked: object = FORM, id_: object = 1) -> Json:
    """A call that makes the server ask that."""
    return calling("asker__ask", {"method": method, "params": asked}, id_)


def replying(asked: Json, result: object) -> Json:
    """The client's answer to what it was asked."""
    return {"jsonrpc": "2.0", "id": asked["id"], "result": result}


def heard(message: Json) -> Json:
    """What the server says that the client answered."""
    found = json.loads(said(message))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("method", ASKED)
@pytest.mark.parametrize("result", [{"action": "decline"}, {"deep": [1, {"x": None}], "text": "\u00e9\n"}])
async def test_the_client_is_asked_on_the_stream_of_its_call_and_its_answer_goes_back(
    method: str, result: object, asker: Session
) -> None:
    async with asker.streaming(asking(method, ASKED[method])) as events:
        asked = await events.message()
        assert (asked["method"], asked["params"]) == (method, ASKED[method])
        assert (await asker.post(replying(asked, result))).status == 202
        found = heard((await events.messages())[-1])
    assert found["result"] == result


async def test_the_same_over_the_old_transport(place: Place, http: Http) -> None:
    who = place.person("ada", "asker")
    async with old_session(http, place.url, who, revision="2025-11-25", able=ABLE) as session:
        assert (await session.post(asking())).status == 202
        asked = await session.events.message()
        assert asked["method"] == "elicitation/create"
        assert (await session.post(replying(asked, {"action": "cancel"}))).status == 202
        assert heard(await session.events.message())["result"] == {"action": "cancel"}


async def test_an_error_of_the_client_reaches_the_server_verbatim(asker: Session) -> None:
    async with asker.streaming(asking("sampling/createMessage", MODEL)) as events:
        asked = await events.message()
        error = {"code": -1, "message": "User rejected sampling request", "data": [1]}
        await asker.post({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        assert heard((await events.messages())[-1])["error"] == error


@pytest.mark.parametrize(
    ("revision", "able", "method", "asked"),
    [
        ("2025-11-25", {}, "elicitation/create", FORM),
        ("2025-11-25", {"elicitation": {}}, "elicitation/create", URL),
        ("2025-06-18", ABLE, "elicitation/create", URL),
        ("2025-03-26", ABLE, "elicitation/create", FORM),
        ("2025-11-25", {"sampling": {}}, "sampling/createMessage", {**MODEL, "tools": []}),
        ("2025-11-25", {"elicitation": {}}, "sampling/createMessage", MODEL),
        ("2025-11-25", ABLE, "roots/list", {}),  # no shared link announces roots
    ],
)
async def test_a_client_that_cannot_is_not_asked_and_the_server_is_told(
    revision: str, able: Json, method: str, asked: object, place: Place, http: Http
) -> None:
    session = await place.session(http, "ada", "asker", revision=revision, able=able)
    answer = await session.post(asking(method, asked))
    assert [one.get("method") for one in answer.messages] == [None]
    error = heard(answer.messages[0])["error"]
    assert isinstance(error, dict)
    assert error["code"] == REFUSED
    assert "The client" in str(error["message"])


async def test_an_answer_counts_once_and_only_in_its_own_session(place: Place, http: Http, asker: Session) -> None:
    same_person = await place.session(http, "ada", "asker", able=ABLE)
    another = await place.session(http, "eve", "asker", able=ABLE)
    async with asker.streaming(asking()) as events:
        asked = await events.message()
        for stranger in (same_person, another):
            assert (
                await stranger.post(replying(asked, {"action": "accept", "content": {"a": "forged"}}))
            ).status == 202
        for unknown in (0, -1, 10**9, str(asked["id"])):
            assert (await asker.post({**replying(asked, {}), "id": unknown})).status == 202
        await asker.post(replying(asked, {"action": "accept", "content": {"a": "hers"}}))
        await asker.post(replying(asked, {"action": "accept", "content": {"a": "again"}}))
        assert heard((await events.messages())[-1])["result"] == {"action": "accept", "content": {"a": "hers"}}
    await place.gateway.soon(lambda: len(place.gateway.logged("answer_strayed")) >= 7)


@pytest.mark.parametrize("garbage", [None, [], "accept", 5])
async def test_an_answer_that_is_no_object_is_an_error_to_the_server(garbage: object, asker: Session) -> None:
    async with asker.streaming(asking()) as events:
        asked = await events.message()
        assert (await asker.post(replying(asked, garbage))).status == 202
        error = heard((await events.messages())[-1])["error"]
        assert isinstance(error, dict)
        assert "not an object" in str(error["message"])


async def test_what_is_no_message_leaves_the_question_open(asker: Session) -> None:
    async with asker.streaming(asking()) as events:
        asked = await events.message()
        id_ = json.dumps(asked["id"]).encode()
        for broken in (b'{"jsonrpc":"2.0","id":%b,"result":{}' % id_, b'{"jsonrpc":"2.0","id":%b}' % id_):
            assert (await asker.post(broken)).status == 400
        await asker.post(replying(asked, {"action": "accept"}))
        assert heard((await events.messages())[-1])["result"] == {"action": "accept"}


async def test_a_question_survives_the_loss_of_its_stream(asker: Session) -> None:
    async with asker.streaming(asking()) as events:
        asked = await events.message()
        last = events.last
    async with asker.listening(last) as events:
        await asker.post(replying(asked, {"action": "accept"}))
        assert heard((await events.messages())[-1])["result"] == {"action": "accept"}


async def test_what_the_server_takes_back_is_cancelled_at_the_client(asker: Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with asker.streaming(calling("asker__retract", {"gate": str(gate)})) as events:
        asked = await events.message()
        gate.touch()
        cancelled, end = await events.messages()
    assert (cancelled["method"], params(cancelled)) == ("notifications/cancelled", {"requestId": asked["id"]})
    assert said(end) == "taken back"
    assert (await asker.post(replying(asked, {"action": "accept"}))).status == 202


async def test_an_end_of_the_call_voids_what_is_open_on_both_sides(place: Place, asker: Session) -> None:
    found = (await asker.post(calling("asker__forget"))).messages
    # The question may come before the answer does; then it is taken back.
    methods = [one.get("method") for one in found]
    assert methods in (["elicitation/create", "notifications/cancelled", None], [None])
    await until(lambda: answers(place, "forget"), "the answer to what was forgotten")
    error = answers(place, "forget")[-1]["error"]
    assert isinstance(error, dict)
    assert "has ended" in str(error["message"])


async def test_a_call_that_its_client_cancels_voids_what_is_open(place: Place, asker: Session, tmp_path: Path) -> None:
    before = len(answers(place, "retract"))
    async with asker.streaming(calling("asker__retract", {"gate": str(tmp_path / "gate")}, 9)) as events:
        asked = await events.message()
        await asker.post(notification("notifications/cancelled", {"requestId": 9}))
        (cancelled,) = await events.messages()
    assert params(cancelled) == {"requestId": asked["id"]}
    await until(lambda: len(answers(place, "retract")) > before, "an error for the question")
    assert "error" in answers(place, "retract")[-1]
    await until((tmp_path / "gate.cancelled").exists, "the cancellation")


async def test_a_session_that_ends_voids_what_is_open(place: Place, http: Http, tmp_path: Path) -> None:
    session = await place.session(http, "ada", "asker", able=ABLE)
    before = len(answers(place, "retract"))
    async with session.streaming(calling("asker__retract", {"gate": str(tmp_path / "gate")}, 9)) as events:
        await events.message()
        await session.delete()
        await events.messages()
    await until(lambda: len(answers(place, "retract")) > before, "an error for the question")


async def test_while_the_client_is_asked_the_servers_timeout_stands_still(
    place: Place, http: Http, tmp_path: Path
) -> None:
    """`hasty` has one second for a call; a person may take longer."""
    session = await place.session(http, "ada", "hasty", able=ABLE)
    message = calling("hasty__ask", {"method": "elicitation/create", "params": FORM})
    async with session.streaming(message) as events:
        asked = await events.message()
        begun = asyncio.get_running_loop().time()
        other = await place.session(http, "eve", "brief")
        # A call that is not asked anything has its second, and is timed out meanwhile.
        slow = await other.post(calling("brief__slow", {"gate": str(tmp_path / "gate")}))
        assert "did not answer" in said(slow.messages[-1])
        assert asyncio.get_running_loop().time() - begun > 0.9
        await session.post(replying(asked, {"action": "accept"}))
        assert heard((await events.messages())[-1])["result"] == {"action": "accept"}


async def test_with_its_server_a_question_ends_and_the_client_is_told(place: Place, http: Http) -> None:
    session = await place.session(http, "ada", "hasty", able=ABLE)
    message = calling("hasty__ask", {"method": "elicitation/create", "params": FORM})
    async with session.streaming(message) as events:
        asked = await events.message()
        await session.post(calling("hasty__die", {"code": 3}, 2))
        cancelled, end = await events.messages()
    assert params(cancelled) == {"requestId": asked["id"]}
    assert "stopped while it worked on this call" in said(end)
    assert (await session.post(replying(asked, {"action": "accept"}))).status == 202


async def test_with_two_callers_the_server_gets_an_error_and_the_log_says_what_helps(
    place: Place, http: Http, tmp_path: Path
) -> None:
    one, other = [await place.session(http, name, "gamma", able=ABLE) for name in ("mia", "noa")]
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(other.post(calling("gamma__slow", {"gate": str(gate)})))
        await until((tmp_path / "gate.entered").exists, "the other call at the server")
        answer = await one.post(calling("gamma__ask", {"method": "elicitation/create", "params": FORM}))
        gate.touch()
    assert [one.get("method") for one in (*answer.messages, *slow.result().messages)] == [None, None]
    error = heard(answer.messages[0])["error"]
    assert isinstance(error, dict)
    assert "shared by several clients" in str(error["message"])
    await place.gateway.soon(lambda: place.gateway.logged("ask_unattributed", server="gamma"))
    line = place.gateway.logged("ask_unattributed", server="gamma")[-1]
    assert "isolation: pooled or session" in str(line["advice"])


# The end of an elicitation ---------------------------------------------------------------------------------------


async def completed(events: Events) -> object:
    """The id of the elicitation whose end comes next."""
    while (message := await events.message()).get("method") != "notifications/elicitation/complete":
        pass
    return params(message)["elicitationId"]


async def test_the_end_of_an_elicitation_is_told_to_the_session_that_began_it(place: Place, http: Http) -> None:
    hers, his = [await place.session(http, name, "asker", able=ABLE) for name in ("ada", "eve")]
    async with hers.listening() as her_events, his.listening() as his_events:
        async with hers.streaming(asking(asked=URL)) as events:
            asked = await events.message()
            assert asked["params"] == URL
            await hers.post(replying(asked, {"action": "accept"}))
            await events.messages()
        refused = await his.post(calling("asker__require", {"elicitation": "e-2"}))
        assert refused.code == -32042
        for elicitation in ("unknown", "e-1", "e-2", "e-1", "e-2"):
            await his.call("asker__complete", elicitation=elicitation)
        assert await completed(her_events) == "e-1"
        assert await completed(his_events) == "e-2"
        # Neither the other's end nor its own a second time stands in between.
        for session, events, name in ((hers, her_events, "e-3"), (his, his_events, "e-4")):
            await session.post(calling("asker__require", {"elicitation": name}))
            await session.call("asker__complete", elicitation=name)
            assert await completed(events) == name


def answers(place: Place, id_: str) -> list[Json]:
    """What `asker` heard as the answers to its request of that id."""
    return [one for one in place.servers["asker"].heard() if one.get("id") == id_ and "method" not in one]
