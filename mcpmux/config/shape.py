"""What the hints of `schema.py` say, as plain values.

Owns the reading of type hints, so that the checks (`check.py`) and the JSON Schema (`describe.py`) see the same
fields, bounds and words. A hint that it does not know is a programming error and raises at once.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from msgspec import NODEFAULT, Meta
from msgspec.structs import FieldInfo, fields

from mcpmux.config.schema import Section
from mcpmux.seal import Secret

Kind = Literal["truth", "number", "bytes", "seconds", "text", "secret", "path", "choice", "list", "map", "section"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What one value may be. Bounds are of the number, or of the length for texts and lists."""

    kind: Kind
    optional: bool = False  # null is fine
    choices: tuple[str, ...] = ()
    item: Shape | None = None  # of lists and maps
    key_pattern: str | None = None  # of maps
    section: type[Section] | None = None
    pattern: str | None = None
    form: str | None = None  # a function of forms.py
    low: float | None = None
    above: float | None = None  # exclusive, unlike low
    high: float | None = None
    shortest: int | None = None
    longest: int | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a section."""

    name: str
    shape: Shape
    required: bool
    default: object  # None where required


@cache
def fields_of(section: type[Section]) -> tuple[Field, ...]:
    """The keys of a section in the order of its class."""
    return tuple(_field(info) for info in fields(section))


def _field(info: FieldInfo) -> Field:
    if info.default is not NODEFAULT:
        return Field(info.name, shape_of(info.type), False, info.default)
    if info.default_factory is not NODEFAULT:
        return Field(info.name, shape_of(info.type), False, info.default_factory())
    return Field(info.name, shape_of(info.type), True, None)


def shape_of(hint: object) -> Shape:
    """The shape of one type hint.

    Raises: TypeError for a hint that no file could fill.
    """
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        shape = shape_of(base)
        for note in notes:
            shape = _noted(shape, note)
        return shape
    if get_origin(hint) in (Union, UnionType):
        (base,) = [part for part in get_args(hint) if part is not type(None)]
        return replace(shape_of(base), optional=True)
    if get_origin(hint) is Literal:
        return Shape("choice", choices=get_args(hint))
    if get_origin(hint) is tuple:
        return Shape("list", item=shape_of(get_args(hint)[0]))
    if get_origin(hint) is MappingABC:
        key, item = get_args(hint)
        return Shape("map", item=shape_of(item), key_pattern=shape_of(key).pattern)
    if isinstance(hint, type) and issubclass(hint, Section):
        return Shape("section", section=hint)
    return Shape(_plain_kind(hint))


def _plain_kind(hint: object) -> Kind:
    kinds: tuple[tuple[object, Kind], ...] = (
        (bool, "truth"),
        (int, "number"),
        (str, "text"),
        (Secret, "secret"),
        (Path, "path"),
    )
    for type_, kind in kinds:
        if hint is type_:
            return kind
    # A bare float has no unit, which no field may have.
    if hint is float:
        return "seconds"
    raise TypeError(f"no such thing can stand in a file: {hint!r}")


def _noted(shape: Shape, note: object) -> Shape:
    if not isinstance(note, Meta):
        return shape
    if note.extra is not None and "unit" in note.extra:
        shape = replace(shape, kind=note.extra["unit"])
    if note.extra is not None and "form" in note.extra:
        shape = replace(shape, form=note.extra["form"])
    return replace(
        shape,
        pattern=note.pattern or shape.pattern,
        low=shape.low if note.ge is None else note.ge,
        above=shape.above if note.gt is None else note.gt,
        high=shape.high if note.le is None else note.le,
        shortest=shape.shortest if note.min_length is None else note.min_length,
        longest=shape.longest if note.max_length is None else note.max_length,
        said=note.description or shape.said,
    )
