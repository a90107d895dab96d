"""What machines ask mcpmux about itself: `/healthz`, `/readyz`, `/metrics`.

Owns the answers and the phase that `/readyz` tells. `/healthz` is 200 as long as the event loop turns: restarting
is the only cure for what it finds. `/readyz` is 200 from `ready` on and 503 while draining. A lost database leaves
it at 200, on purpose: sessions go on from the grants in memory, what needs the database says so call by call, and
taking every replica out of the load balancer for it would make of a partial outage a whole one. `mcpmux_store_up`
is there for the alert.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import orjson
from aiohttp import web

from mcpmux.observe.metrics import Metrics

Phase = Literal["starting", "ready", "draining"]

# Raises TokenMissing, TokenRefused or AuthorizationMalformed when the request's bearer token is not good here.
Admit = Callable[[web.BaseRequest], Awaitable[None]]

_NO_STORE: Final = {"Cache-Control": "no-store"}


class Health:
    """The three answers; `phase` is set by the gateway alone."""

    __slots__ = ("_admit", "_metrics", "phase")

    def __init__(self, metrics: Metrics, admit: Admit | None) -> None:
        """`admit` guards `/metrics`; None leaves it open (`metrics.public`)."""
        self._metrics = metrics
        self._admit = admit
        self.phase: Phase = "starting"

    async def healthz(self, request: web.BaseRequest) -> web.StreamResponse:
        """200 as long as this process can answer anything at all."""
        return _method_refused(request) or _told(200, "alive")

    async def readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        """200 while new sessions are taken, 503 before `ready` and while draining."""
        return _method_refused(request) or _told(200 if self.phase == "ready" else 503, self.phase)

    async def metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        """The Prometheus exposition.

        Raises: TokenMissing, TokenRefused, AuthorizationMalformed, unless `metrics.public`.
        """
        if refused := _method_refused(request):
            return refused
        if self._admit is not None:
            await self._admit(request)
        # In a thread: with seventy servers in use it takes longer than a call may wait.
        body, content_type = await asyncio.to_thread(self._metrics.render, request.headers.get("Accept"))
        return web.Response(body=body, headers={"Content-Type": content_type} | _NO_STORE)


def _told(status: int, word: str) -> web.Response:
    body = orjson.dumps({"status": word})
    return web.Response(status=status, body=body, content_type="application/json", headers=_NO_STORE)


def _method_refused(request: web.BaseRequest) -> web.Response | None:
    if request.method in ("GET", "HEAD"):
        return None
    return web.Response(status=405, text="Method Not Allowed\n", headers={"Allow": "GET, HEAD"})
