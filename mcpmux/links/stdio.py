"""The stdio transport: a server as a child process, messages as lines on its pipes, its stderr as lines of our log.

Reading is done in the event loop's callback, line by line, without a task. What the child does not take waits in
the transport's buffer, which is bounded and which nobody waits for: a full one refuses new calls. A line over the
limit is thrown away while it comes.

The end, from either side: the calls in flight fail as soon as the output has ended (which a dead group's does at
once), so that an answer that was written before the end still counts. `close()` then leaves no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import IO, Final

from mcpmux.config.schema import Server
from mcpmux.credentials import static
from mcpmux.links import process
from mcpmux.links.lines import LineSplitter, Oversized
from mcpmux.links.link import Link
from mcpmux.links.surroundings import Surroundings
from mcpmux.links.throttle import Throttle
from mcpmux.observe.log import logger
from mcpmux.observe.redaction import redact
from mcpmux.protocol.envelope import one_line
from mcpmux.protocol.upstream.received import Headers
from mcpmux.seal import Secret

OUT_LIMIT: Final = 8 * 1024 * 1024  # bytes waiting for the child; over it new calls are refused
STDERR_LINE: Final = 8 * 1024  # bytes; longer lines are cut
LAST_WORDS: Final = 16  # stderr lines kept for the reason of a failure
TURN: Final = 64  # lines taken in one turn of the loop
GRACE: Final = 1.0  # seconds for the output to end after the process has

# Last lines that say nothing: where in the source, which Node it was.
_NOISE: Final = re.compile(r"\s*(at .*|Node\.js v.*|[\])}]*|npm (error|ERR!) A complete log.*|npm notice.*)\s*\Z")

log = logger("links")


@asynccontextmanager
async def opened(link: Link, server: Server, ground: Surroundings) -> AsyncIterator[StdioTransport]:
    """A running child process for `link`; leaving ends it with all its descendants. Raises: LinkFailed."""
    transport = StdioTransport(link, static.secrets(server), ground.limits.upstream_message)
    transport.child = process.start(server, ground.data_dir, ground.environ, ground.guardian, transport.child_ended)
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()


class StdioTransport:
    """The pipes of one child process; see the module."""

    __slots__ = (
        "_all_closed", "_backlog", "_died", "_errors", "_input", "_last_words", "_lines", "_link", "_loop",
        "_open_input", "_open_pipes", "_paused", "_readers", "_secrets", "_tally", "_throttle",
        "_unconnected", "child",
    )  # fmt: skip

    child: process.Child

    def __init__(self, link: Link, secrets: tuple[Secret, ...], limit: int) -> None:
        self._link = link
        self._tally = link.metrics.tally
        self._loop = link.loop
        self._secrets = secrets
        self._lines = LineSplitter(limit)
        self._errors = LineSplitter(STDERR_LINE)
        self._throttle = Throttle(self._loop, self._say_held_back)
        self._last_words: deque[bytes] = deque(maxlen=LAST_WORDS)
        self._paused = False
        self._input: asyncio.WriteTransport | None = None
        self._backlog: deque[bytes | Oversized] = deque()
        self._readers: list[asyncio.ReadTransport] = []
        self._open_pipes = 0
        self._open_input = False
        self._died = False  # it ended before we wanted it to
        self._unconnected: list[IO[bytes]] = []
        self._all_closed = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The leader of the process group."""
        return self.child.pid

    @property
    def congested(self) -> bool:
        """Whether the child has let more than `OUT_LIMIT` pile up."""
        return self._paused and self._input is not None and self._input.get_write_buffer_size() > OUT_LIMIT

    async def connect(self) -> None:
        """Take over the pipes."""
        stdin, stdout, stderr = self._unconnected = list(self.child.pipes)
        await self._connect(stdout, _Reader(self._read, self._output_ended))
        await self._connect(stderr, _Reader(self._read_errors, self._pipe_ended))
        with self._handing_over(stdin):
            self._input, _ = await self._loop.connect_write_pipe(lambda: _Writer(self), stdin)
        self._open_input = True

    async def _connect(self, pipe: IO[bytes], reader: _Reader) -> None:
        with self._handing_over(pipe):
            transport, _ = await self._loop.connect_read_pipe(lambda: reader, pipe)
        self._readers.append(transport)
        self._open_pipes += 1
        self._all_closed.clear()

    @contextlib.contextmanager
    def _handing_over(self, pipe: IO[bytes]) -> Iterator[None]:
        """From here on the transport closes the pipe, also when connecting fails or is cancelled."""
        self._unconnected.remove(pipe)
        try:
            yield
        except BaseException:
            # uvloop has closed the descriptor behind the object's back: closed again later, it might be another's.
            with contextlib.suppress(OSError):
                pipe.close()
            raise

    def send(self, wire: bytes, _request: int | None, _headers: Headers | None = None) -> None:
        """Write one message; uvloop makes one system call of all that one turn of the loop writes."""
        pipe = self._input
        if pipe is None or pipe.is_closing():
            return
        data = one_line(wire) + b"\n"
        self._tally.sent += len(data)
        pipe.write(data)
        if self._paused and pipe.get_write_buffer_size() > 2 * OUT_LIMIT:
            self._link.end("it does not read its input")

    async def confirm(self, wire: bytes, _revision: str) -> None:
        """A pipe keeps the order by itself."""
        if wire:
            self.send(wire, None)

    def forget(self, _request: int) -> None:
        """Nothing is held per request."""

    def describe(self, problem: str) -> str:
        """`problem` with what the process left behind: how it ended, and the last line it wrote to stderr.

        If it was us who ended it, its exit code says nothing, and if it had been ready, neither do its last words.
        """
        code = self.child.code
        died = self._died and not self.child.signalled
        if died and code is not None:
            problem = f"exited with code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        lines = [line.decode("utf-8", "replace") for line in self._last_words]
        last = next((line for line in reversed(lines) if not _NOISE.match(line)), "")
        telling = last and (died or self._link.greeting is None)
        return redact(f"{problem}: {last.strip()}" if telling else problem, self._secrets)

    async def close(self) -> None:
        """End the process group: input closed, SIGTERM, SIGKILL. Bounded; afterwards nothing of it is left."""
        try:
            await self._end_politely()
            self.child.reap()
            if not await self.child.wait(process.KILL_LIMIT):
                log.error("process_stuck", server=self._link.key.server, pid=self.child.pid)
            await self._closed_within(GRACE)
        finally:
            # Also when we were cancelled on the way: this needs no time.
            self.child.reap()
            for reader in self._readers:
                reader.close()
            if self._input is not None and self._open_input:
                self._input.abort()
            for pipe in self._unconnected:
                pipe.close()
            self._throttle.close()

    async def _end_politely(self) -> None:
        self._link.end("it was ended by mcpmux")
        if self._input is not None:
            self._input.close()
        if await self._closed_within(process.CLOSE_LIMIT):
            return
        self.child.send_signal(signal.SIGTERM)
        await self._closed_within(process.TERM_LIMIT)

    async def _closed_within(self, seconds: float) -> bool:
        """Whether the process and everybody who holds its output has ended by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_closed.wait()
        return self._all_closed.is_set()

    # Callbacks of the loop -------------------------------------------------------------------------------------

    def child_ended(self) -> None:
        """The leader has ended. What it left of its group is of no use without it."""
        if self._link.lost is None:
            self.child.reap()
        self._check_closed()
        # The output of a dead group ends at once, unless a process that left the group holds it.
        self._loop.call_later(GRACE, self._die, "its process ended")

    def writing_paused(self, paused: bool) -> None:
        """Whether the pipe is full."""
        self._paused = paused

    def input_ended(self) -> None:
        """The child has closed its input: it may still answer what it has read."""
        self._open_input = False
        self._loop.call_later(GRACE, self._die, "it closed its input")

    def _read(self, data: bytes) -> None:
        self._tally.received += len(data)
        lines = self._lines.feed(data)
        if len(lines) <= TURN and not self._backlog:
            for line in lines:
                self._take(line)
            return
        # One read may hold ten thousand lines of garbage: other servers get their turn in between.
        idle = not self._backlog
        self._backlog.extend(lines)
        if idle:
            self._readers[0].pause_reading()
            self._work_off()

    def _work_off(self) -> None:
        for _ in range(min(TURN, len(self._backlog))):
            self._take(self._backlog.popleft())
        if self._backlog:
            self._loop.call_soon(self._work_off)
        elif not self._readers[0].is_closing():
            self._readers[0].resume_reading()

    def _take(self, line: bytes | Oversized) -> None:
        if isinstance(line, Oversized):
            self._link.receive_oversized(*line)
        elif line and not line.isspace():
            self._link.receive(line)

    def _output_ended(self) -> None:
        for line in self._lines.close():
            self._take(line)
        self._die("it closed its output")
        self._pipe_ended()

    def _read_errors(self, data: bytes) -> None:
        for line in self._errors.feed(data):
            text = line if isinstance(line, bytes) else line.head + b" ..."
            if not text.isspace() and text:
                self._last_words.append(text)
                if self._throttle.passes():
                    shown = redact(text.decode("utf-8", "replace").rstrip(), self._secrets)
                    log.info("server_stderr", server=self._link.key.server, line=shown)

    def _die(self, problem: str) -> None:
        if self._link.lost is None:
            self._died = True
            self._link.end(problem)

    def _pipe_ended(self) -> None:
        self._open_pipes -= 1
        self._check_closed()

    def _check_closed(self) -> None:
        if self._open_pipes <= 0 and self.child.ended.is_set():
            self._all_closed.set()

    def _say_held_back(self, count: int) -> None:
        log.warning("server_stderr_unlogged", server=self._link.key.server, count=count)


class _Reader(asyncio.Protocol):
    """One pipe from the child."""

    __slots__ = ("_ended", "_read")

    def __init__(self, read: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._read = read
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._read(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended()


class _Writer(asyncio.BaseProtocol):
    """The pipe to the child."""

    __slots__ = ("_transport",)

    def __init__(self, transport: StdioTransport) -> None:
        self._transport = transport

    def pause_writing(self) -> None:
        self._transport.writing_paused(True)

    def resume_writing(self) -> None:
        self._transport.writing_paused(False)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport.input_ended()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
