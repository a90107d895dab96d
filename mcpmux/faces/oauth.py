"""What an MCP client needs to know before it has a token: RFC 9728 metadata, and the challenge that leads to it.

Owns the text of `/.well-known/oauth-protected-resource[/path]` and of `WWW-Authenticate`. Rules of the file: every
URL is built from the configured public address (or the address really bound), never from a header of the request;
the answer for `/servers/{id}/…` depends on the form of the id alone, so that nobody learns here which servers
exist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import orjson
from aiohttp import web

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

# The endpoints of design section 2: the aggregate, one server's and one tenant's, over both transports.
_ENDPOINT: Final = re.compile(r"/(?:(?:servers|tenants)/[A-Za-z0-9][A-Za-z0-9._-]{0,127}/)?(?:mcp|sse|messages)")

# RFC 6750 section 3: what `error_description` may hold; anything else would end the quoted string.
_UNSAFE: Final = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")


def metadata_url(base: str, path: str) -> str:
    """Where the metadata of the endpoint `path` is found, `base` being the public address without a final slash.

    Spec: RFC 9728 section 3.1, the well-known part stands between the host and the path.
    """
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path.rstrip('/')}{path}"


def challenge(resource_metadata_url: str, *, error: str | None = None, description: str | None = None) -> str:
    """The value of `WWW-Authenticate` for an endpoint whose metadata is at `resource_metadata_url`.

    Without `error` when the request carried no token at all (RFC 6750 section 3.1).
    Spec: RFC 9728 section 5.1, MCP basic/authorization.
    """
    said = [("error", error), ("error_description", description), ("resource_metadata", resource_metadata_url)]
    return "Bearer " + ", ".join(f'{name}="{_UNSAFE.sub(" ", value)}"' for name, value in said if value is not None)


class ResourceMetadata:
    """Answers `/.well-known/oauth-protected-resource`, with or without the path of an endpoint."""

    __slots__ = ("_issuers", "_prefix", "base")

    def __init__(self, base: str, issuers: Sequence[str]) -> None:
        """`base` is the public address; `issuers` the configured ones, none when the development issuer signs."""
        self.base = base.rstrip("/")
        self._issuers = tuple(issuers)
        self._prefix = urlsplit(self.base).path

    def document(self, path: str) -> bytes | None:
        """The metadata of the endpoint `path` ("" is the gateway as a whole), None where there is no endpoint."""
        if self._prefix and path.startswith(self._prefix):
            # A proxy that puts a path of its own before ours passes the metadata URL on as the client sent it.
            path = path[len(self._prefix) :]
        if path.rstrip("/") and _ENDPOINT.fullmatch(path) is None:
            return None
        told: dict[str, object] = {
            "resource": self.base + path.rstrip("/"),
            "resource_name": "mcpmux",
            "bearer_methods_supported": ["header"],
        }
        if self._issuers:
            # RFC 9728 section 2: left out, never empty, where no authorization server can be named.
            told["authorization_servers"] = self._issuers
        return orjson.dumps(told)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """GET: 200 with the document, or 404 with nothing that tells one absent endpoint from another."""
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="Method Not Allowed", headers={"Allow": "GET, HEAD"})
        document = self.document(request.raw_path.partition("?")[0].removeprefix(WELL_KNOWN))
        if document is None:
            return web.Response(status=404, text="Not Found")
        headers = {"Cache-Control": "public, max-age=300"}
        return web.Response(body=document, content_type="application/json", headers=headers)
