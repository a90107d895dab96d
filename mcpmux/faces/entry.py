"""Entry: one HTTP request that was let in, and the small checks on its form.

Source: MCP 2025-11-25 basic/transports ("Sending Messages to the Server", "Listening for Messages from the Server").
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web
from msgspec import Struct
from multidict import istr

from mcpmux.catalog.view import View
from mcpmux.errors import BodyTooLarge, InvalidRequest, MediaTypeUnsupported, NotAcceptable
from mcpmux.faces import reply
from mcpmux.identity.principal import Principal
from mcpmux.protocol import headers as mcp

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"

# A client that sends its body more slowly than this is cut off.
BODY_TIME: Final = 30.0

# What a client is told to wait when there is no room for it now, in seconds.
RETRY_AFTER: Final = "5"

REQUEST_ID: Final = "X-Request-Id"
# Looked up in every request: `istr` has its lower case ready.
SESSION_ID: Final = istr(mcp.SESSION)
VERSION: Final = istr(mcp.VERSION)
CHAT_ID: Final = istr("X-OpenWebUI-Chat-Id")


class Entry(Struct, frozen=True):
    """One request on its way in: who, through which endpoint, until when.

    `expires` is when the token does (unix seconds); `path` is the endpoint's own; `cors` are headers of every answer.
    """

    request: web.BaseRequest
    request_id: str
    principal: Principal
    expires: float
    view: View
    path: str
    cors: Mapping[str, str]

    @property
    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        return answer_headers(self.request_id, self.cors)

    def answer(self, wire: bytes, status: int = 200, extra: Mapping[str, str] | None = None) -> web.StreamResponse:
        """A JSON answer."""
        if status == 200 and extra is None and not self.cors and reply.fits(self.request, wire):
            return reply.WireReply(self.request_id, wire)
        headers = {"Content-Type": JSON, **self.headers}
        if extra is not None:
            headers.update(extra)
        return web.Response(body=wire, status=status, headers=headers)

    def accepted(self) -> web.Response:
        """202: taken, and there is nothing to say to it."""
        return web.Response(status=202, headers=self.headers)


def answer_headers(request_id: str, cors: Mapping[str, str]) -> dict[str, str]:
    """The headers of every answer."""
    return {REQUEST_ID: request_id, "Cache-Control": "no-store", "Server": "mcpmux", **cors}


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """The body of a POST, JSON by its media type.

    Raises: MediaTypeUnsupported, BodyTooLarge, InvalidRequest (it did not come in time).
    """
    headers = request.headers
    if not _is_json(headers.get(hdrs.CONTENT_TYPE, "")) or (
        hdrs.CONTENT_ENCODING in headers and headers[hdrs.CONTENT_ENCODING] != "identity"
    ):
        raise MediaTypeUnsupported
    content = request.content
    if content.is_eof():
        # The usual case: it came together with its headers.
        body = content.read_nowait()
        if len(body) > limit:
            raise BodyTooLarge(limit)
        return body
    if request.content_length is not None and request.content_length > limit:
        raise BodyTooLarge(limit)
    try:
        async with asyncio.timeout(BODY_TIME):
            if headers.get("Expect", "").lower() == "100-continue":
                # RFC 9110 section 10.1.1. aiohttp does it in its router, which we do without.
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0
            return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise BodyTooLarge(limit) from exc
    except TimeoutError as exc:
        raise InvalidRequest("the body did not come in time") from exc


def check_accepts(request: web.BaseRequest, *needed: str) -> bool:
    """Refuse a client that cannot take what the answer may be; whether it names event streams before all else.

    Such a client gets a stream even if there is only one event to send.

    Raises: NotAcceptable.
    """
    accepts, prefers_events = _accepts(request.headers.getall(hdrs.ACCEPT, ()), needed)
    if not accepts:
        raise NotAcceptable(" and ".join(needed))
    return prefers_events


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    media, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    return media.strip().lower() == JSON and charset in ("", "charset=utf-8", "charset=utf8")


def _accepts(given: Sequence[str], needed: tuple[str, ...]) -> tuple[bool, bool]:
    return _accepts_text(given[0] if len(given) == 1 else ",".join(given) or "*/*", needed)


@lru_cache(maxsize=256)
def _accepts_text(given: str, needed: tuple[str, ...]) -> tuple[bool, bool]:
    ranges = set()
    for part in given.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters):
            ranges.add(media)
    accepts = all(ranges & {"*/*", media.split("/")[0] + "/*", media} for media in needed)
    return accepts, given.lstrip().startswith(EVENTS)
