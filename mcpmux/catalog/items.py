"""What one server offers, as frozen values: an `Item` for each entry of its lists, an `Offer` for all of them.

Pure. Owns which entries are fit to be shown. An aggregate is one list for the client, and most clients throw a whole
list away when one entry of it is malformed: so an entry that MCP's schema refuses is left out here, or one careless
server would take everybody's tools away. The same goes for a name that stands twice in one list.

Each item holds its bytes twice, once as the server spells it and once as an aggregate shows it: 17 MB for the 3,886
tools of 137 real servers, and nothing to compute when a list is encoded.

Source: MCP schema 2025-11-25, `Tool`, `Prompt`, `Resource`, `ResourceTemplate`; null for an absent member is what SDKs
in other languages send, and what strict clients refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
from msgspec import Raw, Struct

from mcpmux.catalog.names import name_table, public_name, public_uri
from mcpmux.catalog.rewrite import NAMED_BY, listed
from mcpmux.errors import AnnotationInvalid, InvalidRequest, MalformedMessage
from mcpmux.protocol import headers, tasks
from mcpmux.protocol.envelope import members, one_line, text
from mcpmux.protocol.events import Offered

_NULL: Final = b"null"


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a list of one server.

    `native` is its name, URI or URI template as the server knows it, `public` as an aggregate shows it; `raw` and
    `shown` are the whole entry, as JSON on one line, under these two. `read_only` only if a tool says so literally;
    `task`: a tool can be a task (`tasks.OPTIONAL`), or is one or nothing (`tasks.REQUIRED`).
    """

    server: str
    native: str
    public: str
    read_only: bool
    raw: bytes
    shown: bytes
    task: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What one link of a server offers; a kind that is not in `items` has never been heard of yet.

    `serial` is another one whenever anything in it changed. `server_info` and `capabilities` as it greeted us;
    `tasked`: they have tasks of 2025-11-25.
    """

    server: str
    items: Mapping[Offered, tuple[Item, ...]]
    capabilities: Mapping[str, Raw]
    instructions: str | None
    server_info: Raw | None
    serial: int
    _native: Mapping[Offered, Mapping[str, Item]] = field(init=False, repr=False, compare=False)
    _public: Mapping[Offered, Mapping[str, Item]] = field(init=False, repr=False, compare=False)
    tasked: bool = field(init=False, repr=False, compare=False)
    _extended: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        native = {what: {item.native: item for item in items} for what, items in self.items.items()}
        public = {what: {item.public: item for item in items} for what, items in self.items.items()}
        object.__setattr__(self, "_native", native)
        object.__setattr__(self, "_public", public)
        object.__setattr__(self, "tasked", tasks.announced(self.capabilities).calls)
        object.__setattr__(self, "_extended", tasks.is_extended(self.capabilities))

    def native(self, what: Offered, name: str) -> Item | None:
        """The item that the server calls `name`."""
        return self._native.get(what, {}).get(name)

    def public(self, what: Offered, name: str) -> Item | None:
        """The item that an aggregate calls `name`."""
        return self._public.get(what, {}).get(name)

    def awaited(self, item: Item) -> bool:
        """Whether a call of this tool may be a task at its server although its client wants none."""
        return self._extended or (self.tasked and item.task == tasks.REQUIRED)

    def same_as(self, other: Offer) -> bool:
        """Whether a client could see no difference; the order of the entries, which some servers shuffle, is none."""
        return (
            self.items.keys() == other.items.keys()
            and all(_contents(items) == _contents(other.items[what]) for what, items in self.items.items())
            and _bytes(self.capabilities) == _bytes(other.capabilities)
            and self.instructions == other.instructions
            and bytes(self.server_info or b"") == bytes(other.server_info or b"")
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """The fit entries of one list, in the server's order, and the names of the others for the log.

    `unfit`: what the schema refuses, with the reason; `twice`: names that stood in the list before; `displaced`:
    names that are shown with another hash than usual, because another tool has that very name.
    """

    items: tuple[Item, ...]
    unfit: tuple[str, ...]
    twice: tuple[str, ...]
    displaced: tuple[str, ...]


def read_items(what: Offered, server: str, entries: Iterable[bytes], limit: int) -> Reading:
    """Read the entries of one list; `limit` is the longest public name of a tool or prompt."""
    found: dict[str, tuple[bytes, dict[str, Raw]]] = {}
    unfit: list[str] = []
    twice: list[str] = []
    for entry in entries:
        try:
            parts = _checked(what, entry)
        except (MalformedMessage, InvalidRequest, msgspec.DecodeError) as exc:
            unfit.append(f"{_label(what, entry)}: {exc}")
            continue
        name = text(parts[NAMED_BY[what]]) or ""
        if name in found:
            twice.append(name)
        else:
            found[name] = (entry, parts)
    publics = _publics(what, server, found, limit)
    items: list[Item] = []
    for name, (entry, parts) in found.items():
        try:
            items.append(_item(what, server, (name, publics[name]), entry, parts))
        except MalformedMessage as exc:
            unfit.append(f"{name}: {exc}")
    return Reading(tuple(items), tuple(unfit), tuple(twice), _displaced(what, server, publics, limit))


def without_headers_amiss(reading: Reading) -> Reading:
    """A reading of tools without those that no client over Streamable HTTP may use: their `x-mcp-header` is invalid.

    Source: MCP 2026-07-28 basic/transports/streamable-http, "Schema Extension".
    """
    fit: list[Item] = []
    unfit = list(reading.unfit)
    for item in reading.items:
        try:
            headers.mirrored(item.raw)
        except AnnotationInvalid as exc:
            unfit.append(f"{item.native}: {exc}")
        else:
            fit.append(item)
    return replace(reading, items=tuple(fit), unfit=tuple(unfit))


def is_read_only(tool: dict[str, Raw]) -> bool:
    """Whether a tool is annotated `readOnlyHint: true`, once and literally; anything else might write.

    Source: MCP server/tools, `ToolAnnotations`; design section 1, access level `read`.
    """
    try:
        annotations = members(tool.get("annotations", Raw(_NULL)))
    except (MalformedMessage, InvalidRequest):
        return False
    return bytes(annotations.get("readOnlyHint", b"")) == b"true"


def _item(what: Offered, server: str, names: tuple[str, str], entry: bytes, parts: dict[str, Raw]) -> Item:
    native, public = names
    present = {name: value for name, value in parts.items() if bytes(value) != _NULL}
    read_only = what is Offered.TOOLS and is_read_only(parts)
    task = tasks.support(entry) if what is Offered.TOOLS else ""
    return Item(server, native, public, read_only, one_line(entry), listed(what, present, server, public), task)


def _publics(what: Offered, server: str, natives: Iterable[str], limit: int) -> dict[str, str]:
    """Native name → public name."""
    if what in (Offered.TOOLS, Offered.PROMPTS):
        return {native: public for public, native in name_table(server, natives, limit).items()}
    return {native: public_uri(server, native) for native in natives}


def _displaced(what: Offered, server: str, publics: Mapping[str, str], limit: int) -> tuple[str, ...]:
    if what not in (Offered.TOOLS, Offered.PROMPTS):
        return ()
    return tuple(native for native, public in publics.items() if public != public_name(server, native, limit))


# Which entries are fit -----------------------------------------------------------------------------------------

_Object = dict[str, Raw]


class _Entry(Struct):
    """What all four kinds have."""

    name: str
    title: str | None = None
    description: str | None = None
    icons: list[_Object] | None = None
    annotations: _Object | None = None
    meta: _Object | None = msgspec.field(name="_meta", default=None)


class _Tool(_Entry, kw_only=True):
    inputSchema: _Object
    outputSchema: _Object | None = None


class _Argument(Struct):
    name: str
    description: str | None = None
    required: bool | None = None


class _Prompt(_Entry, kw_only=True):
    arguments: list[_Argument] | None = None


class _Resource(_Entry, kw_only=True):
    uri: str
    mimeType: str | None = None
    size: float | None = None


class _Template(_Entry, kw_only=True):
    uriTemplate: str
    mimeType: str | None = None


_SHAPES: Final[dict[Offered, msgspec.json.Decoder[_Tool | _Prompt | _Resource | _Template]]] = {
    Offered.TOOLS: msgspec.json.Decoder(_Tool),
    Offered.PROMPTS: msgspec.json.Decoder(_Prompt),
    Offered.RESOURCES: msgspec.json.Decoder(_Resource),
    Offered.TEMPLATES: msgspec.json.Decoder(_Template),
}


def _checked(what: Offered, entry: bytes) -> dict[str, Raw]:
    """The members of a fit entry.

    Raises: MalformedMessage, InvalidRequest, msgspec.DecodeError.
    """
    found = members(entry)
    _SHAPES[what].decode(entry)
    return found


def _label(what: Offered, entry: bytes) -> str:
    """What the log may call an unfit entry."""
    try:
        return text(members(entry).get(NAMED_BY[what])) or "(unnamed)"
    except (MalformedMessage, InvalidRequest):
        return "(unreadable)"


def _contents(items: tuple[Item, ...]) -> dict[str, bytes]:
    return {item.native: item.raw for item in items}


def _bytes(raws: Mapping[str, Raw]) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in raws.items()}
