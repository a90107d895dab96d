"""Names and URIs inside list items, params and results, exchanged at the places where MCP has them.

Owns these places and nothing else: which name stands for which is `names.py`'s. Pure. Works on raw members: whatever
holds no name travels on as the bytes it came in, and a result without one is not even taken apart. Whatever is taken
apart is written anew from members that stand once each, so that nobody reads another name than the one we changed.

A server's URIs get that server's prefix always, also when they already look like ours: `admin+x://y` from `github`
becomes `github+admin+x://y`, and leads back to `github`.

Source: MCP server/tools, server/prompts, server/resources, server/utilities/completion; MCP Apps (`_meta.ui`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw

from mcpmux.catalog.names import public_uri
from mcpmux.errors import InvalidParams, InvalidRequest, MalformedMessage, UpstreamBroken
from mcpmux.protocol.envelope import encode, members, one_line, text
from mcpmux.protocol.events import Offered
from mcpmux.protocol.methods import Method, Subject

# The member of a list item that names it.
NAMED_BY: Final[dict[Offered, str]] = {
    Offered.TOOLS: "name",
    Offered.PROMPTS: "name",
    Offered.RESOURCES: "uri",
    Offered.TEMPLATES: "uriTemplate",
}

# What a `ref` of completion/complete may be, and the member that holds its name.
_REFERENCES: Final = {"ref/prompt": (Subject.PROMPT, "name"), "ref/resource": (Subject.RESOURCE, "uri")}

_ARRAY: Final = msgspec.json.Decoder(list[Raw])


def listed(what: Offered, item: dict[str, Raw], server: str, public: str) -> bytes:
    """A list item of `server` as an aggregate shows it, on one line; `public` is its name or URI there.

    Raises: MalformedMessage (a name twice in its `_meta`).
    """
    shown = {**item, NAMED_BY[what]: _raw(public)}
    if what is Offered.TOOLS and "_meta" in item:
        shown["_meta"] = _within(item["_meta"], "ui", lambda ui: _prefixed(ui, "resourceUri", server))
    return one_line(encode(shown))


def reference(params: dict[str, Raw]) -> tuple[Subject, str]:
    """What the `ref` of completion/complete is about: `PROMPT` and its name, or `RESOURCE` and its URI (template).

    Raises: InvalidParams.
    """
    subject, _, name, _ = _reference(params)
    return subject, name


def params(method: Method, sent: dict[str, Raw], native: str) -> dict[str, Raw]:
    """The params of a request as its server has to see them: `native` where the client named something.

    Raises: InvalidParams (a `ref` that is none).
    """
    if method.member is None:
        return sent
    if method.subject is not Subject.REFERENCE:
        return {**sent, method.member: Raw(encode(native))}
    _, member, _, ref = _reference(sent)
    # The member that the other kind of reference would use is left out: nobody decided on it.
    others = {other for _, other in _REFERENCES.values()} - {member}
    kept = {name: value for name, value in ref.items() if name not in others}
    return {**sent, method.member: Raw(encode({**kept, member: _raw(native)}))}


def result(method: str, raw: Raw, server: str) -> Raw:
    """A result of `server` as an aggregate passes it on; the same `raw` where no URI is in it.

    Raises: UpstreamBroken (a name twice where we have to read).
    """
    rewrite = _RESULTS.get(method)
    if rewrite is None:
        return raw
    try:
        return rewrite(raw, server)
    except MalformedMessage as exc:
        raise UpstreamBroken(server) from exc


def is_error(raw: Raw) -> bool:
    """Whether a result of tools/call says that the tool failed."""
    try:
        found = members(raw)
    except (InvalidRequest, MalformedMessage):
        return False
    return bytes(found.get("isError", b"")) == b"true"


# The results that hold URIs -----------------------------------------------------------------------------------


def _tool_result(raw: Raw, server: str) -> Raw:
    if not _may_link(bytes(raw)):
        return raw
    return _within(raw, "content", lambda content: _each(content, lambda block: _block(block, server)))


def _task(raw: Raw, server: str) -> Raw:
    return _within(raw, "result", lambda result: _tool_result(result, server)) if _may_link(bytes(raw)) else raw


def _prompt_result(raw: Raw, server: str) -> Raw:
    if not _may_link(bytes(raw)):
        return raw

    def message(of: Raw) -> Raw:
        return _within(of, "content", lambda content: _each_or_one(content, lambda block: _block(block, server)))

    return _within(raw, "messages", lambda messages: _each(messages, message))


def _contents(raw: Raw, server: str) -> Raw:
    return _within(raw, "contents", lambda contents: _each(contents, lambda one: _prefixed(one, "uri", server)))


_RESULTS: Final[dict[str, Callable[[Raw, str], Raw]]] = {
    "tools/call": _tool_result,
    "tasks/result": _tool_result,
    "tasks/get": _task,
    "prompts/get": _prompt_result,
    "resources/read": _contents,
}


def _may_link(data: bytes) -> bool:
    """Whether a content block of type `resource` or `resource_link` can be in `data`: a search, no parsing.

    A letter may be spelt as an escape, `"\\u0072esource"`; nobody honest does, so each such text is taken apart.
    """
    if b'"resource' in data:
        return True
    start = data.find(b"\\u00")
    while start >= 0:
        if data[start + 4 : start + 5] in (b"4", b"5", b"6", b"7"):
            return True
        start = data.find(b"\\u00", start + 4)
    return False


def _block(raw: Raw, server: str) -> Raw:
    found = _members(raw)
    match text(found.get("type")) if found else None:
        case "resource_link":
            return _prefixed(raw, "uri", server)
        case "resource":
            return _within(raw, "resource", lambda resource: _prefixed(resource, "uri", server))
        case _:
            return raw


# Taking apart and putting together; each returns the very `raw` that it got if nothing changed -----------------


def _within(raw: Raw, name: str, change: Callable[[Raw], Raw]) -> Raw:
    found = _members(raw)
    if found is None or name not in found:
        return raw
    changed = change(found[name])
    return raw if changed is found[name] else Raw(encode({**found, name: changed}))


def _each(raw: Raw, change: Callable[[Raw], Raw]) -> Raw:
    if bytes(raw)[:1] != b"[":
        return raw
    entries = _ARRAY.decode(raw)
    changed = [change(entry) for entry in entries]
    if all(new is old for new, old in zip(changed, entries, strict=True)):
        return raw
    return Raw(encode(changed))


def _each_or_one(raw: Raw, change: Callable[[Raw], Raw]) -> Raw:
    return _each(raw, change) if bytes(raw)[:1] == b"[" else change(raw)


def _prefixed(raw: Raw, name: str, server: str) -> Raw:
    def change(uri: Raw) -> Raw:
        native = text(uri)
        return uri if native is None else _raw(public_uri(server, native))

    return _within(raw, name, change)


def _members(raw: Raw) -> dict[str, Raw] | None:
    """The members of an object; None if it is something else, which then stays as it is."""
    try:
        return members(raw)
    except InvalidRequest:
        return None


def _reference(sent: dict[str, Raw]) -> tuple[Subject, str, str, dict[str, Raw]]:
    """Subject, the member that names it, the name, and all members of the `ref` in params."""
    try:
        ref = members(sent.get("ref", Raw(b"null")))
    except (InvalidRequest, MalformedMessage) as exc:
        raise InvalidParams('"ref" must be an object with each name once') from exc
    subject, member = _REFERENCES.get(text(ref.get("type")) or "", (None, ""))
    name = text(ref.get(member))
    if subject is None or name is None:
        raise InvalidParams('"ref" must be a ref/prompt with a name or a ref/resource with a uri')
    return subject, member, name, ref


def _raw(value: str) -> Raw:
    return Raw(encode(value))
