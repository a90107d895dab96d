"""Content blocks as a client's revision knows them: a kind that is younger than the revision becomes text.

The kinds of blocks are a closed list in each schema, and a client of an older revision would refuse the whole result
for one block that is not in its list. Servers speak a revision of their own and need not know. All other members that
a revision does not have stay: its schema lets them pass.

Source: `Content` and `ContentBlock` of the JSON Schemas: audio came with 2025-03-26, resource links with 2025-06-18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import DecodeError, Raw

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope

COMPLETE: Final = "2025-06-18"  # from this revision on every kind is known
_SINCE: Final = {"audio": "2025-03-26", "resource_link": COMPLETE}
_ARRAY: Final = msgspec.json.Decoder(list[Raw])


def as_known(method: str, result: Raw, revision: str) -> Raw:
    """The result of `method` with blocks of this revision alone; the very same if there are no others."""
    younger = [kind for kind, since in _SINCE.items() if revision < since]
    data = bytes(result)
    if not any(f'"{kind}"'.encode() in data for kind in younger):
        return result
    try:
        match method:
            case "tools/call":
                return _within(result, "content", lambda content: _each(content, revision))
            case "prompts/get":
                return _within(result, "messages", lambda messages: _of_messages(messages, revision))
    except (InvalidRequest, MalformedMessage, DecodeError):
        pass  # Not in the form of a result: the client's to judge.
    return result


def _within(raw: Raw, name: str, change: Callable[[Raw], Raw]) -> Raw:
    found = envelope.members(raw)
    if name not in found:
        return raw
    return Raw(envelope.encode({**found, name: change(found[name])}))


def _of_messages(messages: Raw, revision: str) -> Raw:
    changed = [_within(one, "content", lambda block: _known(block, revision)) for one in _ARRAY.decode(messages)]
    return Raw(envelope.encode(changed))


def _each(content: Raw, revision: str) -> Raw:
    return Raw(envelope.encode([_known(block, revision) for block in _ARRAY.decode(content)]))


def _known(block: Raw, revision: str) -> Raw:
    found = envelope.members(block)
    kind = envelope.text(found.get("type"))
    if kind is None or revision >= _SINCE.get(kind, ""):
        return block
    kept = {"annotations": found["annotations"]} if "annotations" in found else {}
    return Raw(envelope.encode({"type": "text", "text": _said(kind, found), **kept}))


def _said(kind: str, block: dict[str, Raw]) -> str:
    if kind == "audio":
        return (
            f"[audio, {envelope.text(block.get('mimeType')) or 'of unknown type'}: not known to this client's protocol]"
        )
    name = envelope.text(block.get("title")) or envelope.text(block.get("name")) or "Resource"
    return f"{name}: {envelope.text(block.get('uri')) or 'without a URI'}"
