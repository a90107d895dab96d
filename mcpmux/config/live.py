"""The config file while mcpmux runs: a new Snapshot, or ConfigInvalid, each time it says something new.

Owns the watching of the file and of every `${file:…}` named in it. Does not apply anything. Editing is not built yet.

The theory. What counts is a look at the files (`_Look`: what `stat` says of each, links followed), never an event: an
event from the folders only says that it is time to look, and a slow poll looks as well, for file systems that send no
events (network shares, containers out of inotify watches). So a rename over the file, delete and recreate, and the
swapped links of a Kubernetes ConfigMap are all the same thing. A file is read only when two looks are alike: half a
file is often valid YAML, and applying it would end servers for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final

from watchfiles import awatch

from mcpmux.config.load import NO_OVERRIDES, read
from mcpmux.config.schema import Overrides, Snapshot
from mcpmux.errors import ConfigInvalid

SETTLE: Final = 0.2  # seconds that the files must stay alike before they are read
PATIENCE: Final = 25  # looks at files that never settle, before they are read as they are
POLL: Final = 1.0  # seconds between looks where no event comes

_STEP: Final = 100  # milliseconds between the watching thread's own looks for events

# What `stat` says of each file; an errno where it says nothing.
_Look = dict[Path, tuple[int, ...]]


class Live:
    """The owner of watching one config file; one task iterates `snapshots()`."""

    __slots__ = ("_environ", "_files", "_forced", "_last", "_overrides", "_path", "_wake")

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        *,
        overrides: Overrides = NO_OVERRIDES,
        first: Snapshot | None = None,
    ) -> None:
        """`first` is the Snapshot that is applied already: what is equal to it is no news."""
        self._path = path
        self._environ = environ
        self._overrides = overrides
        self._last: Snapshot | ConfigInvalid | None = first
        self._files: frozenset[Path] = frozenset()
        self._forced = False
        self._wake = asyncio.Event()

    def reload(self) -> None:
        """Read now and yield whatever it is, news or not (SIGHUP). From the loop's own thread only."""
        self._forced = True
        self._wake.set()

    async def snapshots(self) -> AsyncIterator[Snapshot | ConfigInvalid]:
        """What the file says, each time that differs from what it said before; never ends by itself."""
        # watchfiles logs every change in the watched folders at info, and such a folder may be a busy one.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        while True:
            forced, self._forced = self._forced, False
            look, outcome = await self._settled()
            if forced or not _alike(self._last, outcome):
                self._last = outcome
                yield outcome
            await self._change(look)

    async def _settled(self) -> tuple[_Look, Snapshot | ConfigInvalid]:
        """The files as they were when they had settled, and what was read from them."""
        before = await asyncio.to_thread(_look, {self._path, *self._files})
        for _ in range(PATIENCE):
            await asyncio.sleep(SETTLE)
            now = await asyncio.to_thread(_look, before)
            if now == before:
                after, outcome = await self._read()
                # Files that were not named before are new in it.
                if all(after.get(file, seen) == seen for file, seen in before.items()):
                    return after, outcome
                now = after
            before = now
        return await self._read()

    async def _read(self) -> tuple[_Look, Snapshot | ConfigInvalid]:
        # In a thread: a large file takes longer than a call may wait.
        reading = await asyncio.to_thread(read, self._path, self._environ, overrides=self._overrides)
        self._files = reading.files
        return await asyncio.to_thread(_look, {self._path, *self._files}), reading.outcome

    async def _change(self, look: _Look) -> None:
        """Return when the files are no longer as they were at `look`, or at `reload()`."""
        self._wake = asyncio.Event()
        try:
            folders = await asyncio.to_thread(_folders, look)
            async with aclosing(self._ticks(folders)) as ticks:
                async for _ in ticks:
                    if await asyncio.to_thread(_look, look) != look:
                        return
        except OSError:
            # No watch to be had: a folder that just went away, or the system's limit on watches.
            while not self._forced and await asyncio.to_thread(_look, look) == look:
                await self._pause()

    async def _ticks(self, folders: set[Path]) -> AsyncGenerator[None, None]:
        """One None at once, at each event in the folders and each POLL; ends at `reload()`.

        Raises: OSError if the system gives no watch.
        """
        if self._forced:
            return
        yield
        watching = awatch(
            *folders,
            watch_filter=None,
            debounce=4 * _STEP,
            step=_STEP,
            stop_event=self._wake,
            rust_timeout=int(POLL * 1000),
            yield_on_timeout=True,
            force_polling=False,
            recursive=False,
            ignore_permission_denied=True,
        )
        async with aclosing(watching):
            async for _ in watching:
                yield

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL):
                await self._wake.wait()
        except TimeoutError:
            return


def _look(files: Iterable[Path]) -> _Look:
    """What `stat` says of each file now."""
    return {file: _stat(file) for file in files}


def _stat(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError as absent:
        return (absent.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _folders(files: Iterable[Path]) -> set[Path]:
    """The folders in which a change of any of the files shows: its own, and the one that a link leads to."""
    folders = {folder for file in files for folder in (file.absolute().parent, file.resolve().parent)}
    return {folder for folder in folders if folder.is_dir()}


def _alike(last: Snapshot | ConfigInvalid | None, now: Snapshot | ConfigInvalid) -> bool:
    """Whether the file says the same as last time."""
    if isinstance(last, ConfigInvalid) and isinstance(now, ConfigInvalid):
        return last.problems == now.problems
    return isinstance(last, Snapshot) and isinstance(now, Snapshot) and last == now
