"""The HTTP server: aiohttp's, with its limits and switches set on purpose.

Three things are ours. Header fields may be 32 KiB long, because a token with 200 groups is 12 kB. Whatever the parser
refuses is answered and logged with a fixed text: aiohttp's own answer and log line would repeat the beginning of the
offending header, which may be the token, where no handler sees it. And a connection serves its requests in one task:
aiohttp's loop makes a task for each, for context variables that nobody here uses, and lets the parser look for more
after each body (`bench/call.py`: a seventh of a call).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from mcpmux.faces.entry import answer_headers
from mcpmux.faces.reply import WireReply, taken_in_time
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics

MAX_FIELD: Final = 32 * 1024
MAX_LINE: Final = 8190
KEEPALIVE: Final = 75.0

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpServer:
    """What listens."""

    def __init__(self, handle: Handle, metrics: Metrics, body_limit: int) -> None:
        self._handle = handle
        self._metrics = metrics
        self._body_limit = body_limit
        self._runner: web.ServerRunner | None = None

    async def start(self, sockets: Sequence[socket.socket]) -> str:
        """Listen on sockets that are bound, and close them in the end; the URL of the first.

        Raises: OSError (somebody else listens there since).
        """
        server = _Server(
            self._handle,
            self._metrics,
            self._body_limit,
            # A client that goes away ends its handler; what it asked for may go on (see faces/streamable.py).
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE,
            max_field_size=MAX_FIELD,
            max_line_size=MAX_LINE,
        )
        self._runner = web.ServerRunner(server, handle_signals=False)
        await self._runner.setup()
        for one in sockets:
            await web.SockSite(self._runner, one, backlog=1024).start()
        bound = self._runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"http://{shown}:{bound[1]}"

    async def close(self, limit: float) -> None:
        """Stop listening; end every connection after at most `limit` seconds."""
        if self._runner is not None:
            self._runner._shutdown_timeout = limit
            await self._runner.cleanup()


class _Server(web.Server):
    def __init__(self, handle: Handle, metrics: Metrics, body_limit: int, **switches: Any) -> None:
        super().__init__(handle, request_factory=self._request, **switches)
        self.metrics = metrics
        self._body_limit = body_limit

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def _request(
        self, message: RawRequestMessage, payload: StreamReader, protocol: RequestHandler,
        writer: AbstractStreamWriter, task: asyncio.Task[None],
    ) -> web.BaseRequest:  # fmt: skip
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=self._body_limit)


class _Connection(RequestHandler):
    """One connection; says nothing of what the parser choked on."""

    __slots__ = ()

    async def start(self) -> None:
        """Serve one request after the other until the connection is to close."""
        loop, manager = self._loop, self._manager
        assert isinstance(manager, _Server)
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                message, payload = self._messages[0]
                if not isinstance(message, RawRequestMessage):
                    # What the parser refused: aiohttp answers it, by `handle_error`, and closes.
                    await super().start()
                    return
                self._take_message()
                manager.requests_count += 1
                assert self._task_handler is not None
                request = manager._request(message, payload, self, StreamWriter(self, loop), self._task_handler)
                goes_on = await self._serve(request)
                del message, request  # a connection that waits for the next one would keep the token
                if not goes_on:
                    break
                if not payload.is_eof() and not await self._read_rest(payload):
                    break
                self._next_keepalive_close_time = closes = loop.time() + KEEPALIVE
                if self._keepalive_handle is None:
                    self._keepalive_handle = loop.call_at(closes, self._process_keepalive)
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as exc:  # noqa: BLE001 (this is the edge)
            self.log_exception(exc_info=exc)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading if it was stopped; aiohttp asks for it after every body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _take_message(self) -> None:
        self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    async def _serve(self, request: web.BaseRequest) -> bool:
        """Answer one request; whether the connection may have another one."""
        assert self._request_handler is not None
        self._request_in_progress = True
        try:
            self._current_request = request
            try:
                response = await self._request_handler(request)
            finally:
                self._current_request = None
            if type(response) is WireReply and not self._upgraded:
                await response.prepare(request)
            else:
                async with taken_in_time(request.transport, _size(response)):
                    if (await self.finish_response(request, response, None))[1]:
                        return False
        except ConnectionError:
            return False  # the client is gone, or does not read
        finally:
            request._task = None  # type: ignore[assignment] # as aiohttp does: no cycle with the traceback
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        self._keepalive = bool(response.keep_alive)
        return self._keepalive and not self._close and not self._force_close

    async def _read_rest(self, payload: StreamReader) -> bool:
        """Read what is left of a body that nobody wanted, so that the client gets to read our answer (RFC 9112, 9.6).

        Whether it came to its end in time.
        """
        try:
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof():
                    await payload.readany()
        except TimeoutError:
            return False
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP request that we take; it closes the connection."""
        if isinstance(exc, LineTooLong):
            status = 431
        text = {431: "Request Header Fields Too Large", 400: "Bad Request"}.get(status, "Internal Server Error")
        if isinstance(self._manager, _Server):
            self._manager.metrics.http_refused(status)
        request_id = secrets.token_hex(8)
        logger("faces").info("request_unreadable", status=status, reason=type(exc).__name__, request_id=request_id)
        response = web.Response(status=status, text=text + "\n", headers=answer_headers(request_id, {}))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log that a connection broke, and the class of what broke it; never its text."""
        found = kw.get("exc_info")
        logger("faces").warning("connection_failed", reason=type(found).__name__)


def _size(response: web.StreamResponse) -> int:
    """How much of it is still to be sent; of an event stream that is its end."""
    return len(response.body) if isinstance(response, web.Response) and isinstance(response.body, bytes) else 0
