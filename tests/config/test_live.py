"""Watching the file: every way in which editors, orchestrators and people change it, with real files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mcpmux.config import live
from mcpmux.config.live import Live
from mcpmux.config.load import load
from mcpmux.config.schema import Snapshot
from mcpmux.errors import ConfigInvalid

EMPTY = "servers: {}\n"
ONE = "servers: {one: {command: [x]}}\n"
TWO = "servers: {one: {command: [x]}, two: {command: [y]}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "servers.yaml"
    file.write_text(EMPTY)
    return file


@pytest.fixture
async def watching(path: Path) -> AsyncIterator[asyncio.Queue[Snapshot | ConfigInvalid]]:
    """What one Live yields for the file, which starts out empty of servers."""
    async with _watched(Live(path, {}, first=load(path, {}))) as news:
        yield news


class _watched:
    """Iterates a Live in a task; a change that it must see may be made at once."""

    def __init__(self, watcher: Live) -> None:
        self._watcher = watcher
        self.news: asyncio.Queue[Snapshot | ConfigInvalid] = asyncio.Queue()

    async def __aenter__(self) -> asyncio.Queue[Snapshot | ConfigInvalid]:
        self._task = asyncio.get_running_loop().create_task(self._iterate())
        return self.news

    async def _iterate(self) -> None:
        async for outcome in self._watcher.snapshots():
            self.news.put_nowait(outcome)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


async def servers_in(news: asyncio.Queue[Snapshot | ConfigInvalid]) -> set[str]:
    """The servers of the next Snapshot."""
    outcome = await following(news)
    assert isinstance(outcome, Snapshot), outcome
    return set(outcome.servers)


async def following(news: asyncio.Queue[Snapshot | ConfigInvalid]) -> Snapshot | ConfigInvalid:
    async with asyncio.timeout(5):
        return await news.get()


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed_over(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def moved_away_first(path: Path, text: str) -> None:
    path.replace(path.with_suffix(".bak"))
    path.write_text(text)


def deleted_first(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("save", [in_place, renamed_over, moved_away_first, deleted_first])
async def test_a_saved_file_is_a_new_snapshot_however_the_editor_saves(
    path: Path, watching: asyncio.Queue[Snapshot | ConfigInvalid], save: Callable[[Path, str], None]
) -> None:
    save(path, ONE)
    assert await servers_in(watching) == {"one"}
    save(path, TWO)
    assert await servers_in(watching) == {"one", "two"}


async def test_a_broken_file_is_said_once_and_mending_it_is_news_only_if_it_says_something_new(
    path: Path, watching: asyncio.Queue[Snapshot | ConfigInvalid]
) -> None:
    path.write_text("servers: {one: {}}\n")
    broken = await following(watching)
    assert isinstance(broken, ConfigInvalid)
    assert "servers.one.command: missing" in str(broken)
    path.write_text("servers: {one: {}}\n# more\n")
    path.write_text("servers: {one: {}}\n# and more\n")
    path.write_text(ONE)
    assert await servers_in(watching) == {"one"}


async def test_a_deleted_file_is_invalid_and_comes_back(
    path: Path, watching: asyncio.Queue[Snapshot | ConfigInvalid]
) -> None:
    path.unlink()
    assert "does not exist" in str(await following(watching))
    path.write_text(ONE)
    assert await servers_in(watching) == {"one"}


async def test_a_file_half_written_is_never_read(path: Path, watching: asyncio.Queue[Snapshot | ConfigInvalid]) -> None:
    lines = ["servers:\n"] + [f"  s{n}: {{command: [x]}}\n" for n in range(12)]
    with path.open("w") as file:
        for line in lines:
            file.write(line)
            file.flush()
            # Slower than a program writes, quicker than the time in which a file counts as settled.
            await asyncio.sleep(0.1)
    assert len(await servers_in(watching)) == 12


async def test_a_changed_comment_is_no_news(path: Path, watching: asyncio.Queue[Snapshot | ConfigInvalid]) -> None:
    path.write_text("# said\n" + EMPTY)
    path.write_text(ONE)
    assert await servers_in(watching) == {"one"}


async def test_a_secret_file_is_watched_from_unset_through_set_to_rotated(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "secrets"
    path.write_text(f"servers: {{one: {{command: [x], env: {{T: '${{file:{folder}/token}}'}}}}}}\n")
    first = load(path, {})
    assert first.servers["one"].missing == (f"{folder}/token",)
    async with _watched(Live(path, {}, first=first)) as news:
        folder.mkdir()
        (folder / "token").write_text("first")
        assert await _token(news) == "first"
        renamed_over(folder / "token", "later")
        assert await _token(news) == "later"
        (folder / "token").unlink()
        outcome = await following(news)
        assert isinstance(outcome, Snapshot)
        assert outcome.servers["one"].unconfigured


async def _token(news: asyncio.Queue[Snapshot | ConfigInvalid]) -> str:
    outcome = await following(news)
    assert isinstance(outcome, Snapshot)
    return outcome.servers["one"].env["T"].reveal()


async def test_the_swapped_links_of_a_kubernetes_configmap_are_seen(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for name, text in (("..v1", EMPTY), ("..v2", ONE)):
        (mount / name).mkdir(parents=True)
        (mount / name / "servers.yaml").write_text(text)
    (mount / "..data").symlink_to("..v1")
    path = mount / "servers.yaml"
    path.symlink_to("..data/servers.yaml")
    async with _watched(Live(path, {}, first=load(path, {}))) as news:
        (mount / "..data_tmp").symlink_to("..v2")
        (mount / "..data_tmp").replace(mount / "..data")
        assert await servers_in(news) == {"one"}


async def test_a_file_behind_a_link_is_watched_where_it_really_is(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.yaml"
    real.parent.mkdir()
    real.write_text(EMPTY)
    path = tmp_path / "servers.yaml"
    path.symlink_to(real)
    async with _watched(Live(path, {}, first=load(path, {}))) as news:
        real.write_text(ONE)
        assert await servers_in(news) == {"one"}


async def test_what_changed_before_watching_began_is_not_lost(path: Path) -> None:
    first = load(path, {})
    path.write_text(ONE)
    async with _watched(Live(path, {}, first=first)) as news:
        assert await servers_in(news) == {"one"}


async def test_reload_yields_also_what_is_no_news(path: Path) -> None:
    watcher = Live(path, {}, first=load(path, {}))
    async with _watched(watcher) as news:
        watcher.reload()
        assert await servers_in(news) == set()
        watcher.reload()
        assert await servers_in(news) == set()
        path.write_text(ONE)
        assert await servers_in(news) == {"one"}


async def test_a_change_is_seen_without_events_from_the_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")  # what inotify says at its limit

    monkeypatch.setattr(live, "awatch", none_left)
    watcher = Live(path, {}, first=load(path, {}))
    async with _watched(watcher) as news:
        path.write_text(ONE)
        assert await servers_in(news) == {"one"}
        watcher.reload()
        assert await servers_in(news) == {"one"}


async def test_nothing_is_left_when_watching_ends(path: Path) -> None:
    def watches() -> int:
        return sum("inotify" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd))

    before = watches()
    for text in (ONE, TWO):
        async with _watched(Live(path, {}, first=load(path, {}))) as news:
            path.write_text(text)
            await servers_in(news)
    async with asyncio.timeout(5):
        while watches() > before:
            await asyncio.sleep(0.02)


def _open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")
