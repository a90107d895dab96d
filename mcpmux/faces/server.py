"""The HTTP server: aiohttp's, with its limits and switches set on purpose.

Two things are ours. Header fields may be 32 KiB long, because a token with 200 groups is 12 kB. And whatever the
parser refuses is answered and logged with a fixed text: aiohttp's own answer and log line would repeat the
beginning of the offending header, which may be the token, where no handler sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics

MAX_FIELD: Final = 32 * 1024
MAX_LINE: Final = 8190
KEEPALIVE: Final = 75.0

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpServer:
    """One listening socket."""

    def __init__(self, handle: Handle, metrics: Metrics, body_limit: int) -> None:
        self._handle = handle
        self._metrics = metrics
        self._body_limit = body_limit
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; the URL really bound.

        Raises: OSError (the address is taken or not ours).
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
        site = web.TCPSite(self._runner, host, port, reuse_address=True, backlog=1024)
        await site.start()
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
        self, message: Any, payload: Any, protocol: RequestHandler, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=self._body_limit)


class _Connection(RequestHandler):
    """One connection; says nothing of what the parser choked on."""

    __slots__ = ()

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
        logger("faces").info("request_unreadable", status=status, reason=type(exc).__name__)
        response = web.Response(status=status, text=text + "\n", headers={"Server": "mcpmux"})
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log that a connection broke, and the class of what broke it; never its text."""
        found = kw.get("exc_info")
        logger("faces").warning("connection_failed", reason=type(found).__name__)
