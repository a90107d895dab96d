"""All that comes in over HTTP: routes, limits, Host and Origin, the principal on entry, faults into responses.

Built on aiohttp's low-level server: one handler, one dict of paths, no middleware. Rules of the file: `Host` and
`Origin` are checked before anything else, the token before anything about the endpoint; nothing is built from a
header of the request; a path is matched as it was sent, never decoded or normalized first.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from mcpmux.calls import Router
from mcpmux.catalog.view import View
from mcpmux.config.schema import Gateway
from mcpmux.errors import AuthorizationMalformed, HttpRefused, MuxError, TokenMissing, TokenRefused
from mcpmux.faces.entry import JSON, RETRY_AFTER, Entry, answer_headers
from mcpmux.faces.oauth import challenge, metadata_url
from mcpmux.faces.origin import Origins
from mcpmux.faces.refusal import plainly
from mcpmux.faces.server import HttpServer
from mcpmux.faces.sessions import Sessions
from mcpmux.faces.sse import LegacySse
from mcpmux.faces.streamable import Streamable
from mcpmux.identity.principal import Verified
from mcpmux.identity.verifier import Verifier, bearer
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, faults
from mcpmux.protocol.events import Failure

PlainHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Face = Callable[[Entry], Awaitable[web.StreamResponse]]

_ENDPOINT: Final = re.compile(r"/(?:servers/([a-z][a-z0-9-]{0,23})/)?(mcp|sse|messages)\Z", re.ASCII)
_SCOPED: Final = re.compile(r"/(?:servers|tenants)/[^/]{1,256}/(?:mcp|sse|messages)\Z")
_ALL: Final = View("all", "")

# The view of an endpoint that cannot exist: it is refused like one that is not granted.
_NOWHERE: Final = View("server", "")


@dataclass(frozen=True, slots=True)
class _Route:
    """One MCP endpoint: what it shows, and who serves which HTTP method there."""

    view: View
    faces: Mapping[str, Face]


class Application:
    """The HTTP face as a whole."""

    def __init__(
        self, gateway: Gateway, verifier: Verifier, router: Router, sessions: Sessions, metrics: Metrics
    ) -> None:
        self._gateway = gateway
        self._verifier = verifier
        self._metrics = metrics
        self._router = router
        self._sessions = sessions
        self._log = logger("faces")
        self._plain: dict[str, PlainHandler] = {}
        self._prefixes: tuple[tuple[str, PlainHandler], ...] = ()
        self._routes: dict[str, _Route] = {}
        self._base = ""
        self._origins = Origins(gateway.listen.host, gateway.public_url, gateway.cors.origins)
        self._boot = secrets.token_hex(4)
        self._count = 0
        self._server: HttpServer | None = None
        limit = gateway.limits.body
        streamable = Streamable(sessions, router, metrics, limit)
        sse = LegacySse(sessions, router, metrics, limit, urlsplit(gateway.public_url or "").path)
        self._faces: Mapping[str, Mapping[str, Face]] = {
            "mcp": {"POST": streamable.post, "GET": streamable.get, "DELETE": streamable.delete},
            "sse": {"GET": sse.stream},
            "messages": {"POST": sse.message},
        }

    async def start(self, sockets: Sequence[socket.socket]) -> str:
        """Listen on sockets that are bound; the base URL of the first.

        Raises: OSError.
        """
        self._server = HttpServer(self.handle, self._metrics, self._gateway.limits.body)
        bound = await self._server.start(sockets)
        self._base = (self._gateway.public_url or bound).rstrip("/")
        return bound

    def mount(self, plain: Mapping[str, PlainHandler], prefixes: Mapping[str, PlainHandler]) -> None:
        """Serve what is no MCP endpoint: exact paths, and everything below a prefix."""
        self._plain.update(plain)
        self._prefixes = tuple(prefixes.items())

    @property
    def base(self) -> str:
        """The public address without a final slash."""
        return self._base

    def drain(self) -> None:
        """Take no new sessions and calls."""
        self._sessions.drain()

    async def close(self, limit: float) -> None:
        """End every session and connection, waiting at most `limit` seconds for answers on their way."""
        self._sessions.close()
        if self._server is not None:
            await self._server.close(limit)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request; nothing leaves here but a response."""
        self._count += 1
        request_id = f"{self._boot}-{self._count:x}"
        cors: Mapping[str, str] = {}
        try:
            cors = self._origins.check(request)
            path = request.raw_path
            route = self._routes.get(path)
            face = None if route is None else route.faces.get(request.method)
            if route is None or face is None:
                return await self._unusual(request, request_id, cors)
            verified = self._known(request) or await self._verified(request)
            if route.view.kind != "all":
                await self._router.enter(verified.principal, route.view)
            return await face(Entry(request, request_id, verified.principal, verified.expires, route.view, path, cors))
        except MuxError as error:
            return self._refused(request, error, request_id, cors)
        except Exception as error:  # noqa: BLE001 (this is the edge)
            self._log.exception("request_failed", method=request.method, request_id=request_id)
            return self._refused(request, error, request_id, cors)

    async def admit(self, request: web.BaseRequest) -> None:
        """Let the request in if its token is good, for faces that need a principal but no endpoint.

        Raises: TokenMissing, TokenRefused, AuthorizationMalformed.
        """
        await self._verified(request)

    async def _unusual(self, request: web.BaseRequest, request_id: str, cors: Mapping[str, str]) -> web.StreamResponse:
        """What is no known endpoint with one of its methods."""
        path, headers = _path(request), answer_headers(request_id, cors)
        if request.method == "OPTIONS":
            return self._origins.preflight(request, headers)
        plain = self._plain.get(path) or self._below(path)
        if plain is not None:
            response = await plain(request)
            if not response.prepared:
                response.headers.update({name: value for name, value in headers.items() if name != "Cache-Control"})
            return response
        route = self._route(path)
        if route is None:
            return plainly(request, 404, request_id, headers, self._metrics)
        verified = await self._verified(request)
        face = route.faces.get(request.method)
        if face is None:
            headers["Allow"] = ", ".join(route.faces)
            return plainly(request, 405, request_id, headers, self._metrics)
        if route.view.kind != "all":
            await self._router.enter(verified.principal, route.view)
        return await face(Entry(request, request_id, verified.principal, verified.expires, route.view, path, cors))

    def _known(self, request: web.BaseRequest) -> Verified | None:
        """The caller, if this very token was verified before: then its form was checked as well."""
        values = request.headers.getall(hdrs.AUTHORIZATION, ())
        if len(values) != 1 or not values[0].startswith("Bearer "):
            return None
        return self._verifier.known(values[0][7:])

    async def _verified(self, request: web.BaseRequest) -> Verified:
        return await self._verifier.verify(bearer(request.headers.getall(hdrs.AUTHORIZATION, ())))

    def _below(self, path: str) -> PlainHandler | None:
        return next((handler for prefix, handler in self._prefixes if path.startswith(prefix)), None)

    def _route(self, path: str) -> _Route | None:
        found = _ENDPOINT.match(path)
        if found is None:
            # An id that no server can have is refused after the token, as one that is not granted.
            kind = path.rpartition("/")[2]
            return _Route(_NOWHERE, self._faces[kind]) if _SCOPED.match(path) else None
        view = View("server", found[1]) if found[1] else _ALL
        route = _Route(view, self._faces[found[2]])
        if found[1] is None or self._router.knows(found[1]):
            self._routes[path] = route
        return route

    def _refused(
        self, request: web.BaseRequest, error: Exception, request_id: str, cors: Mapping[str, str]
    ) -> web.Response:
        headers = answer_headers(request_id, cors)
        status = faults.fault(error).status
        if status == 200:
            status = 400
        failed = faults.failure(error, request_id)
        if isinstance(error, TokenMissing | TokenRefused):
            headers["WWW-Authenticate"] = self._challenge(request, error)
            self._metrics.token_refused(error.cause if isinstance(error, TokenRefused) else error.reason)
        elif isinstance(error, AuthorizationMalformed):
            headers["WWW-Authenticate"] = self._challenge(request, error)
        if status == 429 or status == 503:
            headers["Retry-After"] = RETRY_AFTER
        self._metrics.http_refused(status)
        reason = error.reason if isinstance(error, MuxError) else "internal"
        write = self._log.debug if reason == "missing" else self._log.info
        write("request_refused", status=status, reason=reason, method=request.method, request_id=request_id)
        wire = _wire(getattr(error, "request_id", None), failed)
        response = web.Response(body=wire, status=status, headers={**headers, "Content-Type": JSON})
        if isinstance(error, HttpRefused) and status == 413:
            response.force_close()
        return response

    def _challenge(self, request: web.BaseRequest, error: TokenMissing | TokenRefused | AuthorizationMalformed) -> str:
        path = _path(request)
        url = metadata_url(self._base, path if _ENDPOINT.match(path) and not path.endswith("messages") else "")
        if isinstance(error, TokenMissing):
            return challenge(url)
        word = "invalid_token" if isinstance(error, TokenRefused) else "invalid_request"
        return challenge(url, error=word, description=str(error))


def _wire(message_id: int | str | None, failed: Failure) -> bytes:
    """The body of a refusal; without an id if there is none to name.

    Source: MCP 2025-11-25 basic/transports, "Sending Messages to the Server" ("an error response that has no id").
    """
    if message_id is None:
        return envelope.unaddressed(failed.code, failed.message, failed.data)
    return envelope.error(message_id, failed.code, failed.message, failed.data)


def _path(request: web.BaseRequest) -> str:
    """The path of the request's target as it was sent, which may be a whole URL (RFC 9112 section 3.2.2)."""
    path = request.raw_path.partition("?")[0]
    if path.startswith(("http://", "https://")):
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path
