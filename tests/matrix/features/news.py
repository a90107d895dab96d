"""What comes while a call is at work, or beside every call."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import nullcontext
from pathlib import Path

from tests.matrix.clients import WAIT
from tests.matrix.features.meeting import PREFIX, VALUE, Meeting, feature, text


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
