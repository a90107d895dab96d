"""Endpoint: one MCP endpoint over HTTP as `mcpmux stdio` reaches it.

Owns the address, the token and every single HTTP request: who may be asked again without harm, and what a failed
request means. It knows nothing of sessions, eras or messages.

Rules of the file:
* The token goes to the one address that was given, or that our own mcpmux told through its control socket. No
  redirect is followed.
* What never left (no connection) and what was refused before anything was done (401) is sent again; what may have
  been carried out only where that does no harm (`again`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from yarl import URL

from mcpmux.config.bearer import Bearer
from mcpmux.errors import (
    AnswerLost,
    EndpointRefused,
    EndpointUnreachable,
    InvalidRequest,
    MalformedMessage,
    NotRunning,
)
from mcpmux.links import http
from mcpmux.links.event_stream import EventStream
from mcpmux.links.lines import Oversized
from mcpmux.observe.log import logger
from mcpmux.outbound import Outbound
from mcpmux.protocol import envelope
from mcpmux.protocol.envelope import Reply

Where = Callable[[], Awaitable[str]]
"""Gives the address. Raises: NotRunning."""

FIRST_PAUSE: Final = 0.1  # seconds between two tries to connect
LONGEST_PAUSE: Final = 1.0
DELETE_LIMIT: Final = 0.5
DOWN_LIMIT: Final = 64 * 1024 * 1024  # bytes of one message of the endpoint; a list may hold thousands of tools
LAST_EVENT: Final = "Last-Event-ID"

_NEVER_LEFT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
log = logger("faces")


class Endpoint:
    """Requests to one MCP endpoint; a failed one waits up to `patience` seconds for a connection."""

    __slots__ = ("_bearer", "_outbound", "_patience", "_url", "_where")

    def __init__(self, outbound: Outbound, where: Where, bearer: Bearer, patience: float) -> None:
        self._outbound = outbound
        self._where = where
        self._bearer = bearer
        self._patience = patience
        self._url: URL | None = None

    @asynccontextmanager
    async def post(
        self, wire: bytes, headers: Mapping[str, str], *, again: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One message; leaving early closes the connection. `again`: to repeat it does no harm.

        Raises: EndpointUnreachable, EndpointRefused (it redirects), AnswerLost.
        """
        said = {"Accept": f"{http.JSON}, {http.EVENTS}", "Content-Type": http.JSON, **headers}
        answer = await self._patiently(wire, said, again=again)
        async with answer:
            yield answer

    @asynccontextmanager
    async def get(self, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """An event stream, tried once.

        Raises: EndpointUnreachable, EndpointRefused (it redirects), AnswerLost.
        """
        try:
            answer = await self._authorized("GET", None, {"Accept": http.EVENTS, **headers})
        except _NEVER_LEFT as error:
            raise self._unreachable(error) from error
        except NotRunning as error:
            raise EndpointUnreachable("it is not running") from error
        except http.FAULTS as error:
            raise AnswerLost from error
        async with answer:
            yield answer

    async def delete(self, headers: Mapping[str, str]) -> None:
        """A DELETE, if it can be had soon."""
        try:
            async with asyncio.timeout(DELETE_LIMIT):
                (await self._sent("DELETE", None, headers)).close()
        except (NotRunning, EndpointRefused, *http.FAULTS) as error:
            log.debug("session_left", reason=type(error).__name__)

    async def _patiently(self, wire: bytes, headers: Mapping[str, str], *, again: bool) -> aiohttp.ClientResponse:
        """The response to a POST, over as many tries as are harmless."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._authorized("POST", wire, headers)
            except _NEVER_LEFT as error:
                failure = self._unreachable(error)
                if isinstance(error, aiohttp.ClientSSLError) or loop.time() + pause > deadline:
                    raise failure from error
            except NotRunning as error:
                if loop.time() + pause > deadline:
                    raise EndpointUnreachable("it is not running") from error
            except http.FAULTS as error:
                if not again:
                    raise AnswerLost from error
                again = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _authorized(self, method: str, wire: bytes | None, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """The response, for the token that is good now if the first one no longer is."""
        shown = self._bearer.current
        answer = await self._sent(method, wire, headers)
        if answer.status != 401 or await asyncio.to_thread(self._bearer.other_than, shown) is None:
            return answer
        answer.close()
        return await self._sent(method, wire, headers)

    async def _sent(self, method: str, wire: bytes | None, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        if self._url is None:
            self._url = URL(await self._where())
        # A body that may inflate a thousandfold is not worth what compression saves.
        said = {**headers, "Accept-Encoding": "identity", "Authorization": f"Bearer {self._bearer.current.reveal()}"}
        session = self._outbound.session
        try:
            answer = await session.request(method, self._url, data=wire, headers=said, allow_redirects=False)
        except _NEVER_LEFT:
            self._url = None  # it may have come back with another one
            raise
        except aiohttp.RedirectClientError as error:
            raise refusal(302) from error
        if answer.status in http.REDIRECTS:
            answer.close()
            raise refusal(answer.status)
        return answer

    def _unreachable(self, error: BaseException) -> EndpointUnreachable:
        return EndpointUnreachable(http.problem_of_fault(error))


def refusal(status: int, retry_after: float | None = None) -> EndpointRefused:
    """What an HTTP status that is no answer means for the person at the client; `retry_after` in seconds, if told."""
    later = f"try again in {retry_after:g} s" if retry_after else "try again in a moment"
    said = {
        401: "mcpmux refused the access token: renew it where MCPMUX_TOKEN or --token-file has it",
        403: "mcpmux does not let you use this endpoint (HTTP status 403)",
        404: "There is no MCP endpoint at this address (HTTP status 404): look at --url",
        413: "The message is larger than mcpmux takes (limits.body)",
        429: f"mcpmux has too much to do for you: {later}",
        503: f"mcpmux is shutting down or busy: {later}",
    }
    if 300 <= status < 400:
        text = f"The address redirects (HTTP status {status}): give --url the one that is meant"
    elif status >= 500:
        text = f"mcpmux failed (HTTP status {status}): {later}"
    else:
        text = f"mcpmux refused the message (HTTP status {status})"
    return EndpointRefused(status, said.get(status, text))


async def messages(answer: aiohttp.ClientResponse, events: EventStream) -> AsyncIterator[bytes]:
    """The messages of one connection of an event stream, as they come. Raises: `http.FAULTS`."""
    async for chunk in answer.content.iter_any():
        for event in events.feed(chunk):
            if isinstance(event, Oversized):
                log.warning("message_dropped", reason="it is too large", size=event.size)
            elif event.name == "message":
                yield event.data


async def reply_in(answer: aiohttp.ClientResponse) -> Reply:
    """The reply in a response of either form, to a request of our own. Raises: EndpointRefused, AnswerLost."""
    if answer.status >= 300:
        raise refusal(answer.status)
    try:
        if answer.content_type == http.EVENTS:
            found = [data async for data in messages(answer, EventStream(DOWN_LIMIT))]
        else:
            found = [await http.read_body(answer, DOWN_LIMIT)]
        replies = [message for message in map(envelope.parse, found) if isinstance(message, Reply)]
    except (MalformedMessage, InvalidRequest, http.TooLarge, *http.FAULTS) as error:
        raise AnswerLost from error
    if not replies:
        raise AnswerLost
    return replies[-1]
