"""Three people with different grants at the same time: each sees and calls exactly theirs."""

from __future__ import annotations

import asyncio
import json

import mcp_types as types
import pytest

from tests.gateway_process import Gateway
from tests.journeys.clients import FACES, Heard, Person, all_tools, lines, refusal, said, until
from tests.schemas.watched import watching

READ_ONLY = {
    *("echo", "slow", "progress", "log", "fail", "refuse", "big", "structured", "links", "whereami"),
}
EVERY = READ_ONLY | {"count", "touch", "offer", "withdraw", "ask", "stderr", "spawn", "die", "delete_all"}


def of(server: str, names: set[str]) -> set[str]:
    return {f"{server}__{name}" for name in names}


@pytest.fixture
def theirs(ana: Person, ben: Person, cem: Person, dan: Person) -> dict[Person, set[str]]:
    """Who sees which tools."""
    beta = of("beta", EVERY - {"delete_all"})
    return {
        ana: of("alpha", EVERY),
        ben: of("alpha", READ_ONLY) | beta,
        cem: of("alpha", EVERY) | beta | of("gamma", EVERY),
        dan: set(),
    }


@pytest.mark.parametrize("face", FACES)
async def test_each_sees_exactly_the_tools_that_they_may_call(face: str, theirs: dict[Person, set[str]]) -> None:
    together = asyncio.Barrier(len(theirs))

    async def look(person: Person, wanted: set[str]) -> None:
        async with person.connected(face=face) as client:
            await together.wait()
            for _ in range(5):
                names = await all_tools(client)
                assert len(names) == len(set(names))
                assert set(names) == wanted, person.email

    async with asyncio.TaskGroup() as tasks:
        for person, wanted in theirs.items():
            tasks.create_task(look(person, wanted))


@pytest.mark.parametrize("face", FACES)
async def test_calls_are_allowed_and_denied_by_the_same_decision_as_lists(
    face: str, theirs: dict[Person, set[str]], tmp_path
) -> None:
    gate = tmp_path / "open"
    gate.touch()
    arguments = {"echo": {"text": "hello"}, "slow": {"gate": str(gate)}, "structured": {"number": 3}}

    async def call(person: Person, mine: set[str]) -> None:
        async with person.connected(face=face) as client:
            for server in ("alpha", "beta", "gamma", "off"):
                for tool, given in {**arguments, "count": {}, "delete_all": {}}.items():
                    name = f"{server}__{tool}"
                    if name in mine:
                        assert not (await client.call_tool(name, given)).is_error
                    else:
                        error = await refusal(client.call_tool(name, given))
                        assert (error.code, error.message) == (-32602, f"Unknown tool: {name}")

    async with asyncio.TaskGroup() as tasks:
        for person, mine in theirs.items():
            tasks.create_task(call(person, mine))


async def test_answers_never_cross_between_people_who_call_at_once(ana: Person, ben: Person, cem: Person) -> None:
    async def call(person: Person, number: int) -> None:
        async with person.connected() as client:
            for turn in range(25):
                text = f"{person.email} {number} {turn}"
                assert said(await client.call_tool("alpha__echo", {"text": text})) == text

    async with asyncio.TaskGroup() as tasks:
        for person in (ana, ben, cem):
            for number in range(4):
                tasks.create_task(call(person, number))


async def test_a_slow_call_of_one_delays_nobody_else(ana: Person, ben: Person, tmp_path) -> None:
    gate = tmp_path / "gate"
    async with ana.connected() as hers, ben.connected() as his, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(hers.call_tool("alpha__slow", {"gate": str(gate)})) for _ in range(8)]
        await until(lambda: lines(tmp_path / "gate.entered") == 8)
        assert said(await his.call_tool("alpha__echo", {"text": "meanwhile"})) == "meanwhile"
        assert not any(one.done() for one in waiting)
        gate.touch()
    assert {said(one.result()) for one in waiting} == {f"{gate} is open"}


async def test_resources_prompts_and_completion_carry_the_servers_name_and_are_granted_alike(
    ana: Person, dan: Person
) -> None:
    async with ana.connected() as client:
        assert [str(one.uri) for one in (await client.list_resources()).resources] == ["alpha+counter://value"]
        templates = (await client.list_resource_templates()).resource_templates
        assert [one.uri_template for one in templates] == ["alpha+counter://note/{id}"]
        read = await client.read_resource("alpha+counter://note/7")
        assert (str(read.contents[0].uri), read.contents[0].text) == ("alpha+counter://note/7", "note 7")
        assert [one.name for one in (await client.list_prompts()).prompts] == ["alpha__greet"]
        prompt = await client.get_prompt("alpha__greet", {"who": "Ben"})
        assert prompt.messages[0].content.text == "Greet Ben warmly."
        reference = types.PromptReference(name="alpha__greet")
        completed = await client.complete(reference, {"name": "who", "value": "an"})
        assert completed.completion.values == ["ana", "anton"]
        linked = await client.call_tool("alpha__links", {})
        assert str(linked.content[0].uri) == "alpha+counter://note/1"
        assert str(linked.content[1].resource.uri) == "alpha+counter://value"
    async with dan.connected() as client:
        assert (await client.list_resources()).resources == []
        assert (await client.list_prompts()).prompts == []
        for uri in ("alpha+counter://value", "nobody+counter://value"):
            assert (await refusal(client.read_resource(uri))).code == -32002
        error = await refusal(client.get_prompt("alpha__greet", {"who": "Ben"}))
        assert (error.code, error.message) == (-32602, "Unknown prompt: alpha__greet")


@pytest.mark.parametrize("face", FACES)
async def test_one_servers_endpoint_has_its_native_names(ana: Person, face: str) -> None:
    async with ana.connected("/servers/alpha", face) as client:
        assert set(await all_tools(client)) == EVERY
        assert said(await client.call_tool("echo", {"text": "native"})) == "native"
        assert (await client.read_resource("counter://value")).contents[0].uri == "counter://value"
        assert client.instructions == "alpha counts."


async def test_an_endpoint_that_is_unknown_disabled_or_not_granted_gives_one_answer(
    gateway: Gateway, ana: Person
) -> None:
    answers: set[tuple[int, str]] = set()
    async with watching(headers={"Authorization": f"Bearer {ana.token}"}) as http:
        for server in ("nowhere", "off", "gamma"):
            message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": GREETING}
            async with http.post(f"{gateway.url}/servers/{server}/mcp", json=message, headers=ACCEPT) as answer:
                text = (await answer.text()).replace(server, "X").replace(answer.headers.get("X-Request-Id", "-"), "R")
                answers.add((answer.status, text))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 403


ACCEPT = {"Accept": "application/json, text/event-stream"}
GREETING = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


async def test_a_session_of_somebody_else_does_not_exist(gateway: Gateway, ana: Person, cem: Person) -> None:
    """With another principal's token a session id gets the same answer as one that was never given out."""
    url = f"{gateway.url}/mcp"
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": GREETING}
    async with watching(headers=ACCEPT) as http:
        hers = {"Authorization": f"Bearer {ana.token}"}
        async with http.post(url, json=message, headers=hers) as answer:
            session = answer.headers["Mcp-Session-Id"]
        for method, asked in (
            ("POST", {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}),
            ("GET", None),
            ("DELETE", None),
        ):
            seen: set[tuple[int, str]] = set()
            for id_ in (session, "0" * len(session)):
                headers = {"Authorization": f"Bearer {cem.token}", "Mcp-Session-Id": id_}
                async with http.request(method, url, json=asked, headers=headers) as answer:
                    text = (await answer.text()).replace(answer.headers.get("X-Request-Id", "-"), "R")
                    seen.add((answer.status, text))
            assert len(seen) == 1, method
            assert next(iter(seen))[0] == 404
        asked = {"jsonrpc": "2.0", "id": 3, "method": "tools/list"}
        async with http.post(url, json=asked, headers={**hers, "Mcp-Session-Id": session}) as answer:
            assert answer.status == 200, "the owner still has it"
        async with http.delete(url, headers={**hers, "Mcp-Session-Id": session}):
            pass


async def test_an_event_stream_session_of_somebody_else_does_not_exist(
    gateway: Gateway, ana: Person, cem: Person
) -> None:
    async with watching() as http:
        hers = {"Authorization": f"Bearer {ana.token}"}
        async with http.get(f"{gateway.url}/sse", headers=hers) as stream:
            assert (await stream.content.readline()).startswith(b"event: endpoint")
            path = (await stream.content.readline()).decode().partition("data: ")[2].strip()
            assert path.startswith("/messages?session_id=")
            message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            foreign = {"Authorization": f"Bearer {cem.token}"}
            invented = path[: -len(path.partition("=")[2])] + "0" * len(path.partition("=")[2])
            statuses = []
            for target in (path, invented):
                async with http.post(gateway.url + target, json=message, headers=foreign) as answer:
                    statuses.append(answer.status)
            assert statuses == [404, 404]
            async with http.post(gateway.url + path, json=message, headers=hers) as answer:
                assert answer.status == 202


async def test_no_header_about_the_user_replaces_or_changes_the_token(gateway: Gateway, dan: Person) -> None:
    claims = {"X-OpenWebUI-User-Email": "cem@example.com", "X-Auth-Source": "trusted", "X-Forwarded-User": "cem"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": GREETING}
    async with watching(headers={**ACCEPT, **claims}) as http:
        async with http.post(f"{gateway.url}/mcp", json=message) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        headers = {"Authorization": f"Bearer {dan.token}"}
        async with http.post(f"{gateway.url}/servers/alpha/mcp", json=message, headers=headers) as answer:
            assert answer.status == 403


async def test_what_the_server_sees_of_its_surroundings_holds_no_token_of_the_caller(cem: Person) -> None:
    async with cem.connected() as client:
        where = json.loads(said(await client.call_tool("gamma__whereami", {})))
    assert cem.token not in json.dumps(where)
    assert where["cwd"].endswith("/data/servers/gamma")
    allowed = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
    allowed |= {"CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
    proxies = {f"{kind}_proxy" for kind in ("http", "https", "no", "all", "ftp")}
    strange = {name for name in where["environment"] if name not in allowed and not name.startswith("LC_")}
    assert {name for name in strange if name.lower() not in proxies} == set()


async def test_a_call_refused_is_logged_with_its_reason_and_says_nothing_to_the_caller(
    gateway: Gateway, dan: Person
) -> None:
    heard = Heard()
    async with dan.connected(heard=heard) as client:
        await refusal(client.call_tool("alpha__echo", {"text": "let me in"}))
    refused = gateway.wait_for(
        lambda: [
            event
            for event in gateway.logged("call_refused", server="alpha", tool="echo")
            if "dan" in str(event["principal"])
        ]
    )
    assert refused[-1]["request_id"]
    assert refused[-1]["reason"]
    assert "let me in" not in json.dumps(refused)
