"""YAML text as a tree in which every key and value knows its line and column.

Owns syntax and nothing else: encodings, duplicate keys, tags, aliases and their bounds. What the keys mean is
`check.py`'s. Rules of the file: a problem never repeats a value of the file, because any of them may be a secret
(an unquoted password that begins with `*` is an alias to YAML); lines and columns count from 1, columns in characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Final, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode
from ruamel.yaml.reader import ReaderError

MAX_FILE: Final = 1024 * 1024
MAX_NODES: Final = 50_000  # after aliases are followed: a "billion laughs" file is small before
MAX_DEPTH: Final = 24
MAX_PROBLEMS: Final = 200

_TAG: Final = "tag:yaml.org,2002:"
# Timestamps and `=` are no types of YAML 1.2: text.
_TEXT_TAGS: Final = frozenset({_TAG + "str", _TAG + "timestamp", _TAG + "value", _TAG + "merge"})
_READABLE_KEY: Final = re.compile(r"[A-Za-z0-9_.*-]{1,64}")

_SYNTAX: Final = (
    ("character '\\t'", "a tab, expected spaces for indentation"),
    ("undefined alias", "an alias (*name) without an anchor, expected quotes around text that begins with *"),
    ("tag handle", "a tag (!name), expected quotes around text that begins with !"),
    ("mapping values are not allowed", "a colon where no key may stand, expected other indentation or quotes"),
    ("another document", "a second YAML document (---), expected one in the file"),
    ("maximum depth", f"nested too deeply, expected at most {MAX_DEPTH} levels"),
    ("unexpected end of stream", "a quote that is never closed, expected it before the end of the file"),
)


class Mark(NamedTuple):
    """A place in the file, counted from 1."""

    line: int
    column: int


TOP: Final = Mark(1, 1)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar. `value` is what YAML 1.2 makes of it, `text` what stands there."""

    mark: Mark
    value: str | int | float | bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A list."""

    mark: Mark
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping; `mark` is the key's."""

    mark: Mark
    node: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping with text keys, each once, in the order of the file."""

    mark: Mark
    entries: Mapping[str, Entry]


Node = Leaf | Branch | Table


class Problems:
    """What is wrong with one file, collected; lines come out in the order of the file."""

    __slots__ = ("_file", "_found")

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: set[tuple[Mark, str]] = set()

    def add(self, mark: Mark, where: str, text: str) -> None:
        """Remember one problem at `mark`; `where` is the path of keys, empty for the file as a whole."""
        self._found.add((mark, f"{where}: {text}" if where else text))

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> tuple[str, ...]:
        """`file:line:column: key.path: what is wrong, expected what`, one a problem."""
        found = sorted(self._found)
        lines = [f"{self._file}:{mark.line}:{mark.column}: {text}" for mark, text in found[:MAX_PROBLEMS]]
        if len(found) > MAX_PROBLEMS:
            lines.append(
                f"{self._file}:1:1: {len(found) - MAX_PROBLEMS} more problems, expected these to be mended first"
            )
        return tuple(lines)


def join(where: str, key: str | int) -> str:
    """The path of a key or list place under `where`; a key that may be a misplaced secret is not shown."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    shown = key if _READABLE_KEY.fullmatch(key) else "(unreadable key)"
    return f"{where}.{shown}" if where else shown


def read_document(data: bytes, problems: Problems) -> Node | None:
    """The tree of one YAML 1.2 document; None if there is none, with the problem added."""
    if len(data) > MAX_FILE:
        problems.add(TOP, "", f"{len(data)} bytes, expected at most {MAX_FILE}")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as broken:
        before = data[: broken.start].decode("utf-8", "replace")
        problems.add(_mark_after(before), "", "a byte that is not UTF-8, expected a text file in UTF-8")
        return None
    root = _compose(text, problems)
    if root is None:
        if not problems:
            problems.add(TOP, "", "the file is empty, expected `gateway:` and `servers:`")
        return None
    return _Planter(problems).plant(root, "", 0)


def _compose(text: str, problems: Problems) -> YamlNode | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    # It would print the name of an anchor used twice, which may be part of an unquoted password.
    yaml.composer.warn_double_anchors = False
    try:
        root = yaml.compose(StringIO(text))
    except MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        place = TOP if mark is None else Mark(mark.line + 1, mark.column + 1)
        problems.add(place, "", f"not good YAML: {_explain(str(broken.problem or broken.context))}")
        return None
    except ReaderError as broken:
        problems.add(_mark_after(text[: broken.position]), "", "a control character, expected printable text")
        return None
    except RecursionError:
        problems.add(TOP, "", f"nested too deeply, expected at most {MAX_DEPTH} levels")
        return None
    except (YAMLError, ValueError):
        problems.add(TOP, "", "not YAML, expected keys and values as in the shipped config/servers.yaml")
        return None
    return root if isinstance(root, YamlNode) else None


def _explain(problem: str) -> str:
    for part, text in _SYNTAX:
        if part in problem:
            return text
    # Single characters and token names such as '<block end>' help; any other quoted part may come from the file.
    shown = re.sub(r"'([^']*)'", lambda found: found.group() if _harmless(found.group(1)) else "something", problem)
    return shown.removeprefix("found ")


def _harmless(quoted: str) -> bool:
    return len(quoted) <= 1 or re.fullmatch(r"<[a-z ]+>", quoted) is not None


def _mark_after(text: str) -> Mark:
    return Mark(text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1)


def _mark(node: YamlNode) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


class _Planter:
    """Turns ruamel's node graph, in which aliases are shared, into a bounded tree."""

    __slots__ = ("_left", "_problems")

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._left = MAX_NODES

    def plant(self, node: YamlNode, where: str, depth: int) -> Node | None:
        """The tree below `node`; None where it cannot be used, with the problem added."""
        self._left -= 1
        # An alias inside its own anchor is endless, so the depth finds it as well.
        if self._left < 0 or depth > MAX_DEPTH:
            text = f"too much after aliases are followed, expected at most {MAX_NODES} values and {MAX_DEPTH} levels"
            self._problems.add(TOP, "", text)
            self._left = -1
            return None
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self._table(node, where, depth)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            items = [
                self.plant(item, join(where, at), depth + 1) for at, item in enumerate(node.value) if self._left >= 0
            ]
            return Branch(_mark(node), tuple(item for item in items if item is not None))
        if isinstance(node, ScalarNode):
            return self._leaf(node, where)
        self._problems.add(_mark(node), where, "a YAML tag, expected plain values")
        return None

    def _table(self, node: MappingNode, where: str, depth: int) -> Table:
        entries: dict[str, Entry] = {}
        for key, value in node.value:
            if self._left < 0:
                break
            mark = _mark(key)
            if not isinstance(key, ScalarNode) or key.tag not in _TEXT_TAGS:
                self._problems.add(mark, where, "a key that is not text, expected a name (quote numbers and true)")
                continue
            path = join(where, key.value)
            if key.tag == _TAG + "merge" or (key.value == "<<" and key.style is None):
                self._problems.add(mark, where, "a merge key (<<), expected the fields themselves")
                continue
            if key.value in entries:
                first = entries[key.value].mark.line
                self._problems.add(mark, path, f"given twice, expected once (the first is in line {first})")
                continue
            planted = self.plant(value, path, depth + 1)
            # A key without a usable value keeps its place, so that it is not reported as missing too.
            entries[key.value] = Entry(mark, planted or Leaf(mark, None, ""))
        return Table(_mark(node), entries)

    def _leaf(self, node: ScalarNode, where: str) -> Leaf | None:
        mark, text, tag = _mark(node), node.value, node.tag
        if tag in _TEXT_TAGS:
            return Leaf(mark, text, text)
        try:
            if tag == _TAG + "null":
                return Leaf(mark, None, text)
            if tag == _TAG + "bool":
                return Leaf(mark, {"true": True, "false": False}[text.lower()], text)
            if tag == _TAG + "int":
                return Leaf(mark, read_integer(text), text)
            if tag == _TAG + "float":
                return Leaf(mark, float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan")), text)
        except (ValueError, KeyError):
            self._problems.add(mark, where, "a number or truth value that cannot be read, expected a plain one")
            return None
        self._problems.add(mark, where, "a YAML tag, expected plain values")
        return None


def read_integer(text: str) -> int:
    """A whole number as YAML 1.2 writes it (`10`, `0x1f`, `0o17`).

    Raises: ValueError.
    """
    digits = text.replace("_", "")
    if re.match(r"[-+]?0[xo]", digits):
        return int(digits, 0)
    return int(digits, 10)
