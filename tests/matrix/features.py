"""What a client and a server can do together: one feature after the other, each asked of every pair in the matrix.

A feature has a function that shows it where both sides have it. Where one of them does not, another one shows that it
is refused, or is not there and hurts nobody. Both fail by an exception that says what was wrong.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.faces.client import Session, old_session, request
from tests.matrix.clients import ACCEPTED, ROOTS, SAID, SEEN, USED, WAIT, Client, Json, Kind, Refused
from tests.schemas import MODERN

PREFIX = "io.modelcontextprotocol/"
VALUE = "counter://value"
TOOLS = {"echo", "progress", "structured", "contents", "meta", "inquire", "revision"}


@dataclass(frozen=True)
class Meeting:
    """One client at one server; `own` connects it to the same server with a link for this client alone."""

    client: Client
    kind: Kind
    upstream: str  # the revision that the server speaks
    gateway: str
    server: str
    token: str
    folder: Path
    own: Callable[[], AbstractAsyncContextManager[Client]]

    @property
    def revision(self) -> str:
        """The client's."""
        return self.client.revision

    @property
    def modern(self) -> bool:
        """Whether the client has no session."""
        return self.revision == MODERN

    async def call(self, tool: str, _meta: Json | None = None, **arguments: object) -> Json:
        """A tool's result."""
        more = {} if _meta is None else {"_meta": _meta}
        return await self.client.ask("tools/call", {"name": tool, "arguments": arguments, **more})

    async def said(self, tool: str, **arguments: object) -> str:
        """The text of a tool's result."""
        return text(await self.call(tool, **arguments))

    def heard(self, method: str) -> list[Json]:
        """The params of all notifications of a method so far."""
        return [one.get("params") or {} for one in self.client.log.heard if one["method"] == method]

    async def everything(self, method: str, member: str) -> list[Json]:
        """All entries of a list, over all its pages."""
        page = await self.client.ask(method)
        found = list(page[member])
        while cursor := page.get("nextCursor"):
            page = await self.client.ask(method, {"cursor": cursor})
            found += page[member]
        return found


Check = Callable[[Meeting], Awaitable[None]]


@dataclass(frozen=True)
class Feature:
    """One row of the matrix. `until` is the last revision of clients that has it."""

    name: str
    since: str
    until: str
    works: Check
    absent: Check | None
    clients_alone: bool  # whatever the server speaks

    def exists(self, at: Meeting) -> bool:
        """Whether both sides have it."""
        has = self.since <= at.revision <= self.until
        return has and (self.clients_alone or self.since <= at.upstream)


FEATURES: Final[list[Feature]] = []


def feature(
    name: str, since: str = "2024-11-05", until: str = MODERN, absent: Check | None = None, clients_alone: bool = False
) -> Callable[[Check], Check]:
    """Make a row of this function."""

    def made(works: Check) -> Check:
        FEATURES.append(Feature(name, since, until, works, absent, clients_alone))
        return works

    return made


def text(result: Json) -> str:
    """The text of a tool's result."""
    return "".join(block.get("text", "") for block in result["content"])


async def refused(asking: Awaitable[object]) -> Refused:
    """The error that this ends with."""
    try:
        answer = await asking
    except Refused as error:
        return error
    raise AssertionError(f"answered instead of refused: {answer}")


# Tools -----------------------------------------------------------------------------------------------------------


@feature("tools")
async def _tools(at: Meeting) -> None:
    names = {tool["name"] for tool in await at.everything("tools/list", "tools")}
    assert names >= TOOLS, names
    assert await at.said("echo", text="héllo") == "héllo"
    assert (await at.call("fail", text="no"))["isError"] is True
    error = await refused(at.call("refuse"))
    # From 2026-07-28 on this code is one of those that are the specification's own.
    assert (error.code, error.data) == (-32603 if at.modern else -32050, {"why": "because"}), error
    assert (await refused(at.call("nothing"))).code == -32602


async def _only_text(at: Meeting) -> None:
    assert json.loads(await at.said("structured", number=4)) == {"number": 4}


@feature("structured content", since="2025-06-18", absent=_only_text)
async def _structured(at: Meeting) -> None:
    listed = {tool["name"]: tool for tool in await at.everything("tools/list", "tools")}
    assert listed["structured"]["outputSchema"]["required"] == ["number"]
    result = await at.call("structured", number=4)
    assert result["structuredContent"] == {"number": 4}
    assert json.loads(text(result)) == {"number": 4}


async def _block(at: Meeting, kind: str) -> Json:
    content = (await at.call("contents", kind=kind))["content"]
    assert len(content) == 1, content
    assert isinstance(content[0], dict)
    return content[0]


@feature("images, embedded resources")
async def _blocks(at: Meeting) -> None:
    for kind in ("text", "image", "resource"):
        assert (await _block(at, kind))["type"] == kind
    assert (await _block(at, "text"))["annotations"]["audience"] == ["user"]
    assert (await _block(at, "resource"))["resource"]["uri"] == VALUE


def _no_block(kind: str) -> Check:
    async def check(at: Meeting) -> None:
        assert (await _block(at, kind))["type"] == "text"

    return check


@feature("audio", since="2025-03-26", absent=_no_block("audio"))
async def _audio(at: Meeting) -> None:
    assert (await _block(at, "audio"))["mimeType"] == "audio/wav"


@feature("resource links", since="2025-06-18", absent=_no_block("resource_link"))
async def _links(at: Meeting) -> None:
    assert (await _block(at, "resource_link"))["uri"] == "counter://note/1"


# Prompts, resources, completion ----------------------------------------------------------------------------------


@feature("prompts")
async def _prompts(at: Meeting) -> None:
    listed = {prompt["name"]: prompt for prompt in await at.everything("prompts/list", "prompts")}
    assert listed["greet"]["arguments"][0]["required"] is True
    got = await at.client.ask("prompts/get", {"name": "greet", "arguments": {"who": "Ana"}})
    assert got["messages"][0]["content"]["text"] == "Greet Ana warmly."
    await refused(at.client.ask("prompts/get", {"name": "nothing"}))


@feature("resources")
async def _resources(at: Meeting) -> None:
    assert VALUE in [one["uri"] for one in await at.everything("resources/list", "resources")]
    contents = (await at.client.ask("resources/read", {"uri": VALUE}))["contents"]
    assert [(one["uri"], one["text"]) for one in contents] == [(VALUE, "0")]
    await refused(at.client.ask("resources/read", {"uri": "counter://nothing"}))


@feature("resource templates")
async def _templates(at: Meeting) -> None:
    listed = await at.everything("resources/templates/list", "resourceTemplates")
    assert "counter://note/{id}" in [one["uriTemplate"] for one in listed]
    contents = (await at.client.ask("resources/read", {"uri": "counter://note/7"}))["contents"]
    assert contents[0]["text"] == "note 7"


@feature("completion")
async def _completion(at: Meeting) -> None:
    for ref in ({"type": "ref/prompt", "name": "greet"}, {"type": "ref/resource", "uri": "counter://note/{id}"}):
        asked = {"ref": ref, "argument": {"name": "who", "value": "an"}}
        assert (await at.client.ask("completion/complete", asked))["completion"]["values"] == ["ana", "anton"]


@feature("pagination")
async def _pagination(at: Meeting) -> None:
    names = [tool["name"] for tool in await at.everything("tools/list", "tools")]
    assert len(names) == len(set(names)) > 7, names
    assert (await refused(at.client.ask("tools/list", {"cursor": "made up"}))).code == -32602


# What comes while a call is at work, or beside every call --------------------------------------------------------


@feature("progress")
async def _progress(at: Meeting) -> None:
    before, gate = len(at.heard("reported")), at.folder / secrets.token_hex(8)
    asked = {"name": "progress", "arguments": {"steps": 3, "gate": str(gate)}}
    async with asyncio.TaskGroup() as tasks:
        # The TypeScript SDK forgets a report that comes together with the result.
        answer = tasks.create_task(at.client.ask("tools/call", asked, progress=True))
        await at.client.log.until(lambda: len(at.heard("reported")) >= before + 3)
        gate.touch()
    assert text(answer.result()) == "3 steps"
    assert [(one["progress"], one["total"]) for one in at.heard("reported")[before:]] == [(1, 3), (2, 3), (3, 3)]


@feature("logging")
async def _logging(at: Meeting) -> None:
    word = secrets.token_hex(4)
    meta = {PREFIX + "logLevel": "warning"} if at.modern else None
    if not at.modern:
        await at.client.ask("logging/setLevel", {"level": "warning"})

    def said() -> list[str]:
        return [one["level"] for one in at.heard("notifications/message") if word in str(one)]

    for level in ("info", "warning"):
        await at.call("log", _meta=meta, level=level, text=f"{word} {level}")
    await at.client.log.until(said)
    assert said() == ["warning"]


@feature("resource subscriptions")
async def _subscriptions(at: Meeting) -> None:
    def updates() -> int:
        return len([one for one in at.heard("notifications/resources/updated") if one["uri"] == VALUE])

    before = updates()
    if at.modern:
        async with at.client.listening({"resourceSubscriptions": [VALUE]}):
            assert await at.said("touch", uri=VALUE) == "subscribed"
            await at.client.log.until(lambda: updates() > before)
        return
    await at.client.ask("resources/subscribe", {"uri": VALUE})
    assert await at.said("touch", uri=VALUE) == "subscribed"
    await at.client.log.until(lambda: updates() > before)
    await at.client.ask("resources/unsubscribe", {"uri": VALUE})


@feature("changed lists")
async def _changes(at: Meeting) -> None:
    wanted = {f"{kind}ListChanged": True for kind in ("tools", "prompts", "resources")}
    async with at.client.listening(wanted) if at.modern else nullcontext():
        await _changing(at)


async def _changing(at: Meeting) -> None:
    name = f"added_{secrets.token_hex(4)}"
    kinds = ("tools", "prompts", "resources")

    def told() -> list[int]:
        return [len(at.heard(f"notifications/{kind}/list_changed")) for kind in kinds]

    async def listed(kind: str) -> bool:
        return name in [entry["name"] for entry in await at.everything(f"{kind}/list", kind)]

    for kind in kinds:
        assert not await listed(kind)
    before = told()
    for kind in kinds:
        await at.call("offer", kind=kind, name=name)
    try:
        # All at once: mcpmux tells of many changes in a second as of one. The first may be of what the client before
        # this one took away.
        await at.client.log.until(lambda: all(now > then for now, then in zip(told(), before, strict=True)))
        seen = -1
        while not all([await listed(kind) for kind in kinds]):
            await at.client.log.until(lambda seen=seen: len(at.client.log.heard) > seen)
            seen = len(at.client.log.heard)
    finally:
        for kind in kinds:
            await at.call("withdraw", kind=kind, name=name)


@feature("cancellation")
async def _cancellation(at: Meeting) -> None:
    gate = at.folder / secrets.token_hex(8)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(at.call("slow", gate=str(gate)))
        await _appears(gate.with_suffix(".entered"))
        waiting.cancel()
        await _appears(gate.with_suffix(".cancelled"))
    assert await at.said("echo", text="still here") == "still here"


async def _appears(path: Path) -> None:
    async with asyncio.timeout(WAIT):
        while not path.exists():
            await asyncio.sleep(0.005)


# Servers ask clients ---------------------------------------------------------------------------------------------


async def _inquiry(at: Meeting, what: str) -> tuple[Json, list[Json]]:
    """What the server was answered, and what this client was asked."""
    before = len(at.client.log.asked)
    answer: Json = json.loads(await at.said("inquire", what=what))
    return answer, at.client.log.asked[before:]


async def _answered(at: Meeting, what: str, method: str, wanted: Json) -> None:
    answer, asked = await _inquiry(at, what)
    assert "result" in answer, answer["error"]
    assert {key: answer["result"].get(key) for key in wanted} == wanted, answer
    assert [one["method"] for one in asked] == [method]


def _not_asked(what: str) -> Check:
    async def check(at: Meeting) -> None:
        before = len(at.client.log.asked)
        try:
            answer, _ = await _inquiry(at, what)
        except Refused:
            # A server of the modern era cannot be answered by an error: its call ends with one,
            assert at.upstream == MODERN
        else:
            # or, where the schema has a word for it, it is told that nobody answers.
            told = answer["result"]["action"] == "cancel" if at.upstream == MODERN else answer["error"]["message"]
            assert told, answer
        assert at.client.log.asked[before:] == []

    return check


@feature("elicitation by form", since="2025-06-18", absent=_not_asked("form"))
async def _form(at: Meeting) -> None:
    await _answered(at, "form", "elicitation/create", ACCEPTED)


@feature("elicitation by URL", since="2025-11-25", absent=_not_asked("url"))
async def _url(at: Meeting) -> None:
    await _answered(at, "url", "elicitation/create", SEEN)


@feature("sampling")
async def _sampling(at: Meeting) -> None:
    await _answered(at, "sampling", "sampling/createMessage", SAID)


@feature("sampling with tools", since="2025-11-25", absent=_not_asked("sampling tools"))
async def _tools_in_sampling(at: Meeting) -> None:
    await _answered(at, "sampling tools", "sampling/createMessage", USED)


@feature("roots")
async def _roots(at: Meeting) -> None:
    async with at.own() as alone:
        answer = json.loads(text(await alone.ask("tools/call", {"name": "inquire", "arguments": {"what": "roots"}})))
        assert answer.get("result") == ROOTS, answer


# What passes untouched -------------------------------------------------------------------------------------------


@feature("`_meta` both ways")
async def _meta(at: Meeting) -> None:
    result = await at.call("meta", _meta={"example.com/question": {"deep": [1]}})
    assert json.loads(text(result))["example.com/question"] == {"deep": [1]}
    assert result["_meta"]["example.com/answer"] == {"deep": [1, 2]}


@feature("trace context")
async def _trace(at: Meeting) -> None:
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", "tracestate": "a=b", "baggage": "c=d"
    }  # fmt: skip
    passed = json.loads(text(await at.call("meta", _meta=trace)))
    assert {key: passed.get(key) for key in trace} == trace


LISTS = {
    "tools/list": "tools", "prompts/list": "prompts", "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}  # fmt: skip


@feature("annotations")
async def _annotations(at: Meeting) -> None:
    for resource in await at.everything("resources/list", "resources"):
        assert resource["annotations"] == {"audience": ["user"], "priority": 0.5}
    if min(at.revision, at.upstream) >= "2025-03-26":
        for tool in await at.everything("tools/list", "tools"):
            assert "readOnlyHint" in tool["annotations"], tool


async def _no_member(at: Meeting, member: str) -> None:
    for method, name in LISTS.items():
        for entry in await at.everything(method, name):
            # A newer server's words may come along for an older client, who overlooks what it does not know.
            assert member not in entry or at.upstream > at.revision, entry


async def _no_titles(at: Meeting) -> None:
    await _no_member(at, "title")


@feature("titles", since="2025-06-18", absent=_no_titles)
async def _titles(at: Meeting) -> None:
    for method, member in LISTS.items():
        for entry in await at.everything(method, member):
            assert entry["name"].startswith("added") or entry["title"] == f"The {entry['name']}"


async def _no_icons(at: Meeting) -> None:
    await _no_member(at, "icons")


@feature("icons", since="2025-11-25", absent=_no_icons)
async def _icons(at: Meeting) -> None:
    for method, member in LISTS.items():
        for entry in await at.everything(method, member):
            assert entry["name"].startswith("added") or entry["icons"][0]["sizes"] == ["48x48"]


async def _no_apps(at: Meeting) -> None:
    await _no_member(at, "_meta")


@feature("pages of tools (MCP Apps)", since="2025-06-18", absent=_no_apps)
async def _apps(at: Meeting) -> None:
    listed = {tool["name"]: tool for tool in await at.everything("tools/list", "tools")}
    shown = listed["panel"]["_meta"]["ui"]
    assert shown == {"resourceUri": "ui://counter/panel", "visibility": ["model", "app"]}
    resources = {one["uri"]: one for one in await at.everything("resources/list", "resources")}
    listing = resources[shown["resourceUri"]]
    assert listing["mimeType"] == "text/html;profile=mcp-app"
    contents = (await at.client.ask("resources/read", {"uri": listing["uri"]}))["contents"]
    assert [(one["uri"], one["mimeType"], one["text"]) for one in contents] == [
        (listing["uri"], listing["mimeType"], "<p>panel</p>")
    ]
    csp = {"ui": {"csp": {"connectDomains": ["https://example.com"]}}}
    assert listing["_meta"] == contents[0]["_meta"] == csp
    assert await at.said("panel") == "shown"


# What an era or a revision has alone -----------------------------------------------------------------------------


async def _no_ping(at: Meeting) -> None:
    await refused(at.client.ask("ping"))


@feature("ping", until="2025-11-25", absent=_no_ping, clients_alone=True)
async def _ping(at: Meeting) -> None:
    assert await at.client.ask("ping") == {}


async def _batch(at: Meeting) -> list[Json]:
    """The answers to a batch, which no SDK can send: a session of the client's revision beside it."""
    batch = [request("ping", None, "one"), request("tools/list", {}, "two")]
    who = {"Authorization": f"Bearer {at.token}"}
    async with aiohttp.ClientSession() as http:
        if at.kind.face == "sse":
            async with old_session(http, at.gateway, who, f"/servers/{at.server}", at.revision) as old:
                if (await old.post(batch)).status == 400:
                    return []
                return [await old.events.message() for _ in batch]
        url = f"{at.gateway}/servers/{at.server}/mcp"
        if at.modern:
            session = Session(http, url, {**who, "Accept": "application/json, text/event-stream"})
            answer = await session.post(batch, **{"MCP-Protocol-Version": MODERN})
        else:
            session = await Session.opened(http, url, who, at.revision)
            answer = await session.post(batch)
        assert answer.status in (200, 400), answer
        return [one for one in answer.messages if "method" not in one] if answer.status == 200 else []


async def _no_batches(at: Meeting) -> None:
    assert await _batch(at) == []


@feature("batches", since="2025-03-26", until="2025-03-26", absent=_no_batches, clients_alone=True)
async def _batches(at: Meeting) -> None:
    answers = await _batch(at)
    assert {one["id"] for one in answers} == {"one", "two"}
    assert all("result" in one for one in answers)


# After everything else of a pair ---------------------------------------------------------------------------------


@feature("every message as in the schema")
async def _schema(at: Meeting) -> None:
    assert not at.client.log.problems, "\n".join(at.client.log.problems[:3])
