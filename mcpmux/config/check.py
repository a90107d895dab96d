"""One section of the file against its class in `schema.py`: every problem found, every value in its own unit.

Owns types, bounds, unknown keys and the filling in of references. Rules of the file: whatever is wrong is added to
`Problems` and the walk goes on, so that a person mends a file once. A value that came out of a variable or a secret
file is never repeated, and if it is wrong, the file is still right: under `servers:` it makes that one server
`unconfigured` (`reasons`), under `gateway:` it is an error, as an unset variable is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Final

from msgspec import UNSET

from mcpmux.config.document import Branch, Entry, Leaf, Mark, Node, Problems, Table, join, read_integer
from mcpmux.config.expand import Expander, ReferenceMalformed
from mcpmux.config.forms import FORMS, PATTERN_WORDS
from mcpmux.config.schema import KIB, MIB, Section, read_bytes, read_seconds
from mcpmux.config.shape import Field, Shape, fields_of
from mcpmux.seal import Secret

Scalar = str | int | float | bool | None

# Keys of other programs' configurations, which spelling alone does not lead to ours.
_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "args": "the arguments in `command`, behind the program",
        "arguments": "the arguments in `command`, behind the program",
        "type": "`transport`",
        "disabled": "`enabled: false`",
        "environment": "`env`",
        "mcpServers": "`servers`",
        "mcp_servers": "`servers`",
        "<<": "the fields themselves",
    }
)

_TYPE_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "truth": "true or false",
        "number": "a whole number",
        "bytes": "a size such as 4MiB",
        "seconds": "a duration such as 60s or 30m",
        "text": "text (quote numbers, true and false)",
        "secret": "text (quote numbers, true and false)",
        "path": "a path",
        "choice": "one word",
        "list": "a list",
        "map": "names with values",
        "section": "a section with keys",
    }
)


class Walk:
    """Checks one part of the file; what it learnt beside the values stays here for the rules that follow."""

    __slots__ = ("_expander", "_forgiving", "_marks", "_problems", "missing", "reasons", "unusable")

    def __init__(self, problems: Problems, expander: Expander, *, forgiving: bool) -> None:
        self._problems = problems
        self._expander = expander
        self._forgiving = forgiving
        self._marks: dict[str, Mark] = {}
        self.missing: dict[str, None] = {}  # a set that keeps its order
        self.reasons: list[str] = []
        self.unusable: set[str] = set()  # places whose value is not known: said already, so no rule need look

    def given(self, where: str) -> bool:
        """Whether the file has this place."""
        return where in self._marks

    def complain(self, where: str, text: str) -> None:
        """Add a problem at a place of the file, or at the closest one above it."""
        at = where
        while at not in self._marks and "." in at:
            at = at.rpartition(".")[0]
        self._problems.add(self._marks.get(at, Mark(1, 1)), where, text)

    def section(self, kind: type[Section], node: Node, where: str, mark: Mark) -> object:
        """A dict with the good values of one section; UNSET if it is none or lacks what it must have."""
        self._marks.setdefault(where, mark)
        if isinstance(node, Leaf) and node.value is None:
            # All its lines commented out.
            node = Table(node.mark, {})
        if not isinstance(node, Table):
            return self._wrong_type("section", node, where, mark)
        fields = {field.name: field for field in fields_of(kind)}
        values: dict[str, object] = {}
        for name, entry in node.entries.items():
            place = join(where, name)
            if name not in fields:
                self._problems.add(entry.mark, place, f"unknown key, {meant(name, tuple(fields))}")
                continue
            value = self.value(fields[name].shape, entry.node, place, entry.mark)
            if value is not UNSET:
                values[name] = value
        return values if self._complete(fields, values, node, where, mark) else UNSET

    def _complete(
        self, fields: Mapping[str, Field], values: Mapping[str, object], node: Table, where: str, mark: Mark
    ) -> bool:
        absent = [field for field in fields.values() if field.required and field.name not in values]
        for field in absent:
            if field.name not in node.entries:
                self._problems.add(mark, join(where, field.name), f"missing, expected: {field.shape.said}")
        return not absent

    def value(self, shape: Shape, node: Node, where: str, mark: Mark) -> object:
        """The value in our units, with references filled in; UNSET if it cannot be used."""
        self._marks[where] = mark
        if isinstance(node, Leaf) and node.value is None and shape.optional:
            return None
        if shape.kind == "section" and shape.section is not None:
            return self.section(shape.section, node, where, mark)
        if shape.kind == "list":
            return self._list(shape, node, where, mark)
        if shape.kind == "map":
            return self._map(shape, node, where, mark)
        if not isinstance(node, Leaf) or node.value is None:
            return self._wrong_type(shape.kind, node, where, mark)
        return self._leaf(shape, node, where)

    def _list(self, shape: Shape, node: Node, where: str, mark: Mark) -> object:
        # Nothing is not an empty list: `allow:` with every line commented out must not mean "all".
        if not isinstance(node, Branch) or shape.item is None:
            return self._wrong_type("list", node, where, mark)
        if shape.shortest is not None and len(node.items) < shape.shortest:
            return self._refuse(where, f"an empty list, expected {shape.shortest} or more entries", False)
        values = [self.value(shape.item, item, join(where, at), item.mark) for at, item in enumerate(node.items)]
        good = tuple(value for value in values if value is not UNSET)
        return UNSET if shape.shortest is not None and len(good) < shape.shortest else good

    def _map(self, shape: Shape, node: Node, where: str, mark: Mark) -> object:
        if isinstance(node, Leaf) and node.value is None:
            return {}
        if not isinstance(node, Table) or shape.item is None:
            return self._wrong_type("map", node, where, mark)
        values: dict[str, object] = {}
        for name, entry in node.entries.items():
            if self.good_key(shape.key_pattern or "", name, join(where, name), entry):
                values[name] = self.value(shape.item, entry.node, join(where, name), entry.mark)
        return {name: value for name, value in values.items() if value is not UNSET}

    def good_key(self, pattern: str, name: str, where: str, entry: Entry) -> bool:
        """Whether a name of a map may be one; adds the problem if not."""
        if re.fullmatch(pattern[1:-1], name) is not None:
            return True
        self._problems.add(entry.mark, where, f"not a name that can stand here, expected {PATTERN_WORDS[pattern]}")
        return False

    def _leaf(self, shape: Shape, leaf: Leaf, where: str) -> object:
        if not isinstance(leaf.value, str):
            return self._typed(shape, leaf.value, where, referred=False)
        try:
            expanded = self._expander.expand(leaf.value)
        except ReferenceMalformed as malformed:
            return self._refuse(where, str(malformed), False)
        if not expanded.missing and expanded.trouble is None:
            return self._typed(shape, expanded.text, where, referred=expanded.referred)
        self._lack(where, expanded.missing, expanded.trouble)
        # Texts keep the reference, so that the field still counts as given.
        return _as_kind(shape, leaf.value) if shape.kind in ("text", "secret", "path") else UNSET

    def _lack(self, where: str, missing: tuple[str, ...], trouble: str | None) -> None:
        self.unusable.add(where)
        if self._forgiving:
            self.missing.update(dict.fromkeys(missing))
            if trouble is not None:
                self.reasons.append(f"{where}: {trouble}")
            return
        for name in missing:
            kind = "file" if "/" in name or "." in name else "variable"
            self.complain(where, f"the {kind} {name} is not set or empty, expected a value: the gateway needs it")
        if trouble is not None:
            self.complain(where, f"{trouble}, expected a readable text file")

    def _typed(self, shape: Shape, value: Scalar, where: str, *, referred: bool) -> object:
        read = _READERS[shape.kind](value, referred)
        if read is None:
            wanted = "one of " + ", ".join(shape.choices) if shape.choices else _TYPE_WORDS[shape.kind]
            return self._refuse(where, f"{_found(value, referred)}, expected {wanted}", referred)
        wrong = _out_of_bounds(shape, read) or _malformed(shape, read, referred)
        if wrong is not None:
            return self._refuse(where, wrong, referred)
        return _as_kind(shape, read) if isinstance(read, str) else read

    def _refuse(self, where: str, text: str, referred: bool) -> object:
        self.unusable.add(where)
        if referred and self._forgiving:
            self.reasons.append(f"{where}: {text}")
        else:
            self.complain(where, text)
        return UNSET

    def _wrong_type(self, kind: str, node: Node, where: str, mark: Mark) -> object:
        self.unusable.add(where)
        found = (
            _found(node.value, False)
            if isinstance(node, Leaf)
            else "a list"
            if isinstance(node, Branch)
            else "a section"
        )
        self._problems.add(mark, where, f"{found}, expected {_TYPE_WORDS[kind]}")
        return UNSET


def meant(name: str, known: tuple[str, ...]) -> str:
    """What a person who wrote an unknown key may have wanted."""
    if name in _ELSEWHERE:
        return f"expected {_ELSEWHERE[name]}"
    close = get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"expected one of {', '.join(known)}"


def _found(value: Scalar, referred: bool) -> str:
    """What stands there, without repeating it."""
    if referred:
        return "the value of a reference that does not fit"
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "text"
    return "a number"


def _as_kind(shape: Shape, text: str) -> object:
    if shape.kind == "secret":
        return Secret(text)
    return Path(text).absolute() if shape.kind == "path" else text


# Readers: what stands in the file -> the value in our unit, None if it is none. A referred value is always text. -----


def _read_truth(value: Scalar, referred: bool) -> bool | None:
    if referred and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _read_number(value: Scalar, referred: bool) -> int | None:
    if referred and isinstance(value, str):
        try:
            return read_integer(value)
        except ValueError:
            return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_bytes(value: Scalar, referred: bool) -> int | None:
    number = _read_number(value, referred)
    if number is None and isinstance(value, str):
        return read_bytes(value)
    return number


def _read_seconds(value: Scalar, referred: bool) -> float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    number = _read_number(value, referred)
    if number is None:
        return read_seconds(value) if isinstance(value, str) else None
    # A float of a number with hundreds of digits would overflow.
    return float(number) if abs(number) < 2**53 else None


def _read_text(value: Scalar, _referred: bool) -> str | None:
    return value if isinstance(value, str) else None


_READERS: Final[Mapping[str, Callable[[Scalar, bool], bool | int | float | str | None]]] = MappingProxyType(
    {
        "truth": _read_truth,
        "number": _read_number,
        "bytes": _read_bytes,
        "seconds": _read_seconds,
        "text": _read_text,
        "secret": _read_text,
        "path": _read_text,
        "choice": _read_text,
    }
)


def _out_of_bounds(shape: Shape, value: bool | int | float | str) -> str | None:
    """What is wrong with the size of a number or the length of a text."""
    if isinstance(value, str):
        if shape.shortest is not None and len(value) < shape.shortest:
            return "too short, expected some text"
        if shape.longest is not None and len(value) > shape.longest:
            return f"{len(value)} characters, expected at most {shape.longest}"
        return None
    if shape.low is not None and value < shape.low:
        return f"too small, expected at least {_measure(shape, shape.low)}"
    if shape.above is not None and value <= shape.above:
        return f"too small, expected more than {_measure(shape, shape.above)}"
    if shape.high is not None and value > shape.high:
        return f"too large, expected at most {_measure(shape, shape.high)}"
    return None


def _measure(shape: Shape, bound: float) -> str:
    if shape.kind == "seconds":
        return f"{bound:g}s"
    if shape.kind == "bytes":
        unit, size = next((u, n) for u, n in (("MiB", MIB), ("KiB", KIB), ("B", 1)) if bound % n == 0)
        return f"{bound / size:g}{unit}"
    return f"{bound:g}"


def _malformed(shape: Shape, value: bool | int | float | str, referred: bool) -> str | None:
    """What is wrong with a text beyond its length."""
    if not isinstance(value, str):
        return None
    # No argument, variable, path or header can carry either.
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return "a NUL character or half a character pair, expected valid text"
    if shape.choices and value not in shape.choices:
        shown = f"`{value}`" if not referred and re.fullmatch(r"[A-Za-z0-9-]{1,24}", value) else "not a word known here"
        return f"{shown}, expected one of {', '.join(shape.choices)}"
    if shape.pattern is not None and re.fullmatch(shape.pattern[1:-1], value) is None:
        return f"does not fit, expected {PATTERN_WORDS[shape.pattern]}"
    if shape.kind == "path" and not value:
        return "an empty path, expected a path"
    return None if shape.form is None else FORMS[shape.form](value)
