"""A streaming proxy that adds a bearer token, because the conformance suite has no option for headers.

Everything else passes as it came, `Host` and `Origin` with it: the suite's checks of them are checks of mcpmux. A
client that goes away takes its request upstream with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, ClientTimeout, web

# Belong to one connection (RFC 9110 section 7.6.1), or are made anew by aiohttp.
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length", "accept-encoding"}


@asynccontextmanager
async def bearer_proxy(target: str, token: str) -> AsyncIterator[str]:
    """The URL of a proxy in front of `target` (an origin without a path)."""
    forever = ClientTimeout(total=None, sock_connect=5)
    async with ClientSession(timeout=forever, auto_decompress=False) as upstream:

        async def forward(request: web.Request) -> web.StreamResponse:
            kept = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP]
            sent = [*kept, ("Authorization", f"Bearer {token}")]
            body = await request.read() if request.can_read_body else None
            url = target + request.path_qs
            async with upstream.request(request.method, url, headers=sent, data=body, allow_redirects=False) as got:
                passed = [(name, value) for name, value in got.headers.items() if name.lower() not in HOP]
                answer = web.StreamResponse(status=got.status, headers=passed)
                if got.content_length is not None:
                    answer.content_length = got.content_length
                await answer.prepare(request)
                async for chunk in got.content.iter_any():
                    await answer.write(chunk)
                return answer

        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
