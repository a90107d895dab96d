"""`calls/router.py`: what may not be used looks exactly like what is not there, on every method and every endpoint.

Attacks 48, 49, 77, 80 to 82, 84, 85 and 88.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import aiohttp
import pytest

from tests.calls.conftest import Place
from tests.faces.client import ACCEPT, Json, Session, calling, error_of, greeting, old_session, request

Http = aiohttp.ClientSession

# One thing that exists and is granted to somebody else, and one that exists nowhere, of the same length.
PAIRS = {
    "a tool": ("tools/call", "name", "beta__echo", "zeta__echo"),
    "a tool of a disabled server": ("tools/call", "name", "off__echo", "zzz__echo"),
    "a tool that the config hides": ("tools/call", "name", "fussy__count", "fussy__coont"),
    "a tool behind a deny pattern": ("tools/call", "name", "fussy__delete_all", "fussy__dilete_all"),
    "a tool in other letters": ("tools/call", "name", "fussy__DELETE_ALL", "fussy__DILETE_ALL"),
    "a prompt": ("prompts/get", "name", "beta__greet", "zeta__greet"),
    "a prompt of a disabled server": ("prompts/get", "name", "off__greet", "zzz__greet"),
    "a resource": ("resources/read", "uri", "beta+counter://value", "zeta+counter://value"),
    "a resource of a disabled server": ("resources/read", "uri", "off+counter://value", "zzz+counter://value"),
    "a subscription": ("resources/subscribe", "uri", "beta+counter://value", "zeta+counter://value"),
    "the end of a subscription": ("resources/unsubscribe", "uri", "beta+counter://value", "zeta+counter://value"),
}  # fmt: skip
REFERENCES = {
    "a prompt": ({"type": "ref/prompt", "name": "beta__greet"}, {"type": "ref/prompt", "name": "zeta__greet"}),
    "a prompt that is disabled": (
        {"type": "ref/prompt", "name": "off__greet"},
        {"type": "ref/prompt", "name": "zzz__greet"},
    ),
    "a template": (
        {"type": "ref/resource", "uri": "beta+counter://note/{id}"},
        {"type": "ref/resource", "uri": "zeta+counter://note/{id}"},
    ),
}


@pytest.fixture
async def session(place: Place, http: Http) -> Session:
    """Of somebody who has alpha and fussy."""
    return await place.session(http, "ana", "alpha", "fussy", "off")


async def answered(
    session: Session, method: str, params: Mapping[str, object]
) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Status, bytes and headers of the answer, without what is each answer's own."""
    answer = await session.post(request(method, params, "same"))
    own = ("x-request-id", "date", "content-length")
    return answer.status, answer.body, sorted((k.lower(), v) for k, v in answer.headers.items() if k.lower() not in own)


@pytest.mark.parametrize("kind", PAIRS)
async def test_refused_and_absent_are_the_same_bytes(kind: str, place: Place, session: Session) -> None:
    method, member, there, nowhere = PAIRS[kind]
    before = {name: len(one.heard(method)) for name, one in place.servers.items()}
    refused = await answered(session, method, {member: there, "arguments": {}})
    absent = await answered(session, method, {member: nowhere, "arguments": {}})
    assert (refused[0], refused[2]) == (absent[0], absent[2])
    assert refused[1].replace(there.encode(), b"NAME") == absent[1].replace(nowhere.encode(), b"NAME")
    assert {name: len(one.heard(method)) for name, one in place.servers.items()} == before


@pytest.mark.parametrize("kind", REFERENCES)
async def test_completion_of_what_is_refused_tells_nothing(kind: str, place: Place, session: Session) -> None:
    there, nowhere = REFERENCES[kind]
    argument = {"name": "who", "value": "a"}
    refused = await answered(session, "completion/complete", {"ref": there, "argument": argument})
    absent = await answered(session, "completion/complete", {"ref": nowhere, "argument": argument})
    assert (refused[0], refused[2]) == (absent[0], absent[2])
    named = str(there.get("name") or there["uri"]).encode(), str(nowhere.get("name") or nowhere["uri"]).encode()
    assert refused[1].replace(named[0], b"NAME") == absent[1].replace(named[1], b"NAME")
    assert all(one.heard("completion/complete") == [] for one in place.servers.values())


async def test_completion_of_what_is_granted_is_the_servers(place: Place, http: Http) -> None:
    session = await place.session(http, "complete", "gamma")
    argument = {"name": "who", "value": "an"}
    for ref in (
        {"type": "ref/prompt", "name": "gamma__greet"},
        {"type": "ref/resource", "uri": "gamma+counter://note/{id}"},
    ):
        answer = await session.ask("completion/complete", {"ref": ref, "argument": argument})
        assert answer["result"]["completion"]["values"] == ["ana", "anton"]  # type: ignore[index]
    refs = [one["params"]["ref"] for one in place.servers["gamma"].heard("completion/complete")]  # type: ignore[index]
    assert refs == [{"type": "ref/prompt", "name": "greet"}, {"type": "ref/resource", "uri": "counter://note/{id}"}]


async def test_the_words_are_those_of_the_specification(session: Session) -> None:
    assert error_of(await session.ask("tools/call", {"name": "beta__echo"})) == (-32602, "Unknown tool: beta__echo")
    assert error_of(await session.ask("prompts/get", {"name": "beta__greet"})) == (
        -32602,
        "Unknown prompt: beta__greet",
    )
    answer = await session.ask("resources/read", {"uri": "beta+counter://value"})
    assert answer["error"] == {
        "code": -32002,
        "message": "Resource not found: beta+counter://value",
        "data": {"uri": "beta+counter://value"},
    }


async def test_over_the_old_transport_it_is_the_same(place: Place, http: Http) -> None:
    async with old_session(http, place.url, place.person("ana", "alpha", "fussy")) as old:
        for method, member, there, nowhere in PAIRS.values():
            refused, absent = [await old.ask(method, {member: name, "arguments": {}}) for name in (there, nowhere)]
            assert str(refused["error"]).replace(there, "N") == str(absent["error"]).replace(nowhere, "N")


# Disabled means disabled --------------------------------------------------------------------------------------------


async def test_an_administrator_has_everything_but_what_is_disabled(place: Place, http: Http) -> None:
    admin = await place.session(http, "admin", "Admin")
    listed = str(await admin.ask("tools/list"))
    assert "alpha__echo" in listed
    assert "off__" not in listed
    assert "fussy__count" not in listed
    for method, params in (
        ("tools/call", {"name": "off__echo", "arguments": {}}), ("prompts/get", {"name": "off__greet"}),
        ("resources/read", {"uri": "off+counter://value"}), ("resources/subscribe", {"uri": "off+counter://value"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "off__greet"}, "argument": {}}),
        ("tools/call", {"name": "fussy__count", "arguments": {}}), ("tools/call", {"name": "fussy__Delete_all"}),
    ):  # fmt: skip
        assert error_of(await admin.ask(method, params))[0] in (-32602, -32002)
    bare = Session(http, f"{place.url}/servers/off/mcp", {**ACCEPT, **place.person("admin", "Admin")})
    assert (await bare.post(request("initialize", greeting()))).status == 403
    assert place.servers["off"].heard() == []


async def test_a_reader_may_only_call_what_reads(place: Place, http: Http) -> None:
    reader = await place.session(http, "rita", "readers")
    listed = [tool["name"] for tool in (await reader.ask("tools/list"))["result"]["tools"]]  # type: ignore[index]
    assert "delta__echo" in listed
    assert "delta__count" not in listed
    assert await reader.call("delta__echo", text="reads") == "reads"
    refused = await answered(reader, "tools/call", {"name": "delta__count", "arguments": {}})
    absent = await answered(reader, "tools/call", {"name": "delta__coont", "arguments": {}})
    assert refused[1].replace(b"delta__count", b"N") == absent[1].replace(b"delta__coont", b"N")
    assert place.servers["delta"].tools("count") == []


# Names that are nearly right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "counter://value", "ALPHA+counter://value", "alpha%2Bcounter://value", "alpha +counter://value",
        "beta+alpha+counter://value", "alpha", "+counter://value", "ui://alpha", "ui://beta+x",
        "zeta+alpha+x:y",
        "\u0430lpha+counter://value", "file:///etc/passwd", "data:text/plain,x", "//alpha+counter://value", "",
        " alpha+counter://value", "alpha\0+counter://value",
    ],
)  # fmt: skip
async def test_a_uri_that_we_would_not_have_written_leads_nowhere(uri: str, place: Place, session: Session) -> None:
    before = {name: len(one.heard("resources/read")) for name, one in place.servers.items()}
    assert error_of(await session.ask("resources/read", {"uri": uri})) == (-32002, f"Resource not found: {uri}")
    assert {name: len(one.heard("resources/read")) for name, one in place.servers.items()} == before


@pytest.mark.parametrize(
    "uri",
    ["file:///etc/passwd", "../x", "counter://value/%2e%2e/x", "counter://note/..\\..", "beta+counter://value",
    "x" * 5000,
     "counter://note/%00", "http://169.254.169.254/", "counter://note/ü"],
)  # fmt: skip
async def test_what_stands_behind_the_prefix_is_the_servers_own_business_to_the_byte(
    uri: str, place: Place, session: Session
) -> None:
    """mcpmux fetches nothing itself and changes nothing; the server that was granted decides."""
    answer = await session.ask("resources/read", {"uri": f"alpha+{uri}"})
    got = place.servers["alpha"].heard("resources/read")[-1]["params"]
    assert got == {"uri": uri}
    assert "result" in answer or error_of(answer)[0] == -32002


@pytest.mark.parametrize(
    "name", ["alpha__alpha__echo", "alpha__beta__echo", "alpha___echo", "alpha__echo__", "alpha--echo"]
)
async def test_a_name_is_split_once_behind_a_known_server(name: str, place: Place, session: Session) -> None:
    before = len(place.servers["alpha"].heard("tools/call"))
    assert error_of(await session.ask("tools/call", {"name": name, "arguments": {"text": "x"}}))[0] == -32602
    assert len(place.servers["alpha"].heard("tools/call")) == before


async def test_native_names_are_only_known_at_the_servers_own_endpoint(place: Place, http: Http) -> None:
    native = await place.session(http, "ana", "alpha", "fussy", under="/servers/alpha")
    for name in ("alpha__echo", "fussy__echo", "beta__echo"):
        assert error_of(await native.ask("tools/call", {"name": name}))[0] == -32602
    assert await native.call("echo", text="native") == "native"


# No oracle ----------------------------------------------------------------------------------------------------------


async def test_refused_and_absent_take_the_same_time(place: Place, session: Session) -> None:
    """The quickest tenth of many, taken by turns on one connection: a look-up more or less must not show."""
    names = ("beta__echo", "zeta__echo", "off__echo", "alpha__nono")
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(200):
        for name in names[number % 4 :] + names[: number % 4]:
            began = time.perf_counter()
            await session.post(calling(name, {}, number))
            times[name].append(time.perf_counter() - began)
    quickest = [statistics.mean(sorted(found)[: len(found) // 10]) for found in times.values()]
    assert max(quickest) < 1.5 * min(quickest), quickest


async def test_ids_of_an_answer_do_not_depend_on_what_was_refused(session: Session) -> None:
    answer: Json = (await session.post(calling("beta__echo", {"text": "x"}, "mine"))).json
    assert set(answer) == {"jsonrpc", "id", "error"}
    assert set(answer["error"]) == {"code", "message"}  # type: ignore[arg-type]
