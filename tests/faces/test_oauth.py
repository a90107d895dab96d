"""RFC 9728 metadata and the challenge that leads to it."""

from __future__ import annotations

import json

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import RawTestServer

from mcpmux.faces.oauth import WELL_KNOWN, ResourceMetadata, challenge, metadata_url

BASE = "https://mcp.example.com"
ISSUER = "https://login.example.com/v2.0"

ENDPOINTS = [
    "/mcp", "/sse", "/servers/github/mcp", "/servers/github/sse", "/servers/no-such-server/mcp", "/tenants/legal/mcp",
    "/tenants/legal/sse",
]  # fmt: skip
NO_ENDPOINTS = [
    "/", "/admin", "/mcp/x", "/servers/github", "/servers//mcp", "/servers/a/b/mcp", "/servers/../mcp",
    "/servers/a\n/mcp", "/servers/" + "a" * 200 + "/mcp", "/metrics",
]  # fmt: skip


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_endpoint_has_a_document_of_its_own(path: str) -> None:
    document = ResourceMetadata(BASE, [ISSUER]).document(path)
    assert document is not None
    assert json.loads(document) == {
        "resource": BASE + path,
        "resource_name": "mcpmux",
        "bearer_methods_supported": ["header"],
        "authorization_servers": [ISSUER],
    }


@pytest.mark.parametrize("path", [path for path in NO_ENDPOINTS if path != "/"])
def test_what_is_no_endpoint_has_none(path: str) -> None:
    assert ResourceMetadata(BASE, [ISSUER]).document(path) is None


def test_the_gateway_as_a_whole_has_one() -> None:
    document = ResourceMetadata(BASE + "/", [ISSUER]).document("")
    assert document is not None
    assert json.loads(document)["resource"] == BASE


def test_a_development_issuer_is_no_authorization_server() -> None:
    document = ResourceMetadata(BASE, []).document("/mcp")
    assert document is not None
    assert "authorization_servers" not in json.loads(document)


def test_the_metadata_url_stands_between_host_and_path() -> None:
    assert metadata_url(BASE, "/mcp") == f"{BASE}{WELL_KNOWN}/mcp"
    assert metadata_url("https://example.com/tools", "/mcp") == f"https://example.com{WELL_KNOWN}/tools/mcp"


def test_a_public_address_with_a_path_is_found_as_the_client_asks_for_it() -> None:
    metadata = ResourceMetadata("https://example.com/tools", [ISSUER])
    for path in ("/tools/mcp", "/mcp"):
        document = metadata.document(path)
        assert document is not None
        assert json.loads(document)["resource"] == "https://example.com/tools/mcp"


def test_a_challenge_without_a_token_names_no_error() -> None:
    assert challenge("https://h/x") == 'Bearer resource_metadata="https://h/x"'


def test_a_challenge_after_a_bad_token_says_invalid_token() -> None:
    said = challenge("https://h/x", error="invalid_token", description="The access token is invalid or expired")
    assert said == (
        'Bearer error="invalid_token", error_description="The access token is invalid or expired", '
        'resource_metadata="https://h/x"'
    )


def test_nothing_can_break_out_of_the_quotes_of_a_challenge() -> None:
    said = challenge("https://h/x", error="e", description='a"\r\nSet-Cookie: x=1\\é')
    assert said == 'Bearer error="e", error_description="a   Set-Cookie: x=1  ", resource_metadata="https://h/x"'


async def test_over_http_an_endpoint_answers_and_everything_else_looks_alike() -> None:
    metadata = ResourceMetadata(BASE, [ISSUER])

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return await metadata.answer(request)

    async with RawTestServer(handler) as server, ClientSession() as client:
        async with client.get(
            server.make_url(f"{WELL_KNOWN}/servers/github/mcp"), headers={"Host": "evil.example"}
        ) as r:
            assert (r.status, r.content_type) == (200, "application/json")
            assert (await r.json())["resource"] == f"{BASE}/servers/github/mcp"
        seen = set()
        for path in ("/admin", "/servers/UP PER/mcp", "/nothing"):
            async with client.get(server.make_url(f"{WELL_KNOWN}{path}")) as r:
                seen.add((r.status, await r.text()))
        assert seen == {(404, "Not Found")}
        async with client.post(server.make_url(f"{WELL_KNOWN}/mcp")) as r:
            assert r.status == 405
            assert r.headers["Allow"] == "GET, HEAD"
