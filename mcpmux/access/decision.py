"""THE decision: may these grants do this? One pure function guards calls and filters lists.

Owns what a grant means. It knows no principal, reads no table and no clock; `grants.py` gathers the grants, `config`
has the rules, and whoever asks (`calls`) turns a refusal into the answer that an absent thing gets.

The rules, in the order in which they are weighed:

1. Deny by default: nothing is allowed but by a grant.
2. A disabled server is disabled for everyone, administrators included.
3. A grant is (tenant, server, level, tool patterns). Every server has a tenant of its own id, which has that server
   with all its tools and needs no row; an explicit row of that tenant for that server takes its place, and may narrow
   it. Group `MCP-Admin` (exactly so) is a grant of level admin on every enabled server.
4. The config's `tools:` say which tools exist at all: one that no `allow` pattern matches, or a `deny` pattern does, is
   there for nobody. Patterns are matched on the server's own name by `fnmatchcase`.
5. Level read allows tools that say `readOnlyHint: true`; write and admin allow all tools of the grant. Every level
   allows the server's resources and prompts: tool patterns are about tools.
6. Several grants add up: the highest level that allows it is the one that counts.

A deny pattern fails closed: `delete_*` also hides `Delete_x` and `DELETE_X`, and where there are deny patterns a tool
is hidden whose name holds anything but visible ASCII, such as a zero-width space or a Cyrillic letter: what it looks
like and what the pattern says cannot be compared. A pattern that cannot be read grants nothing and denies everything.

Speed: a list asks about 1,500 tools at once. So patterns are compiled once, a decision notes its steps as small tuples,
and words are made of them only when somebody reads `chain`. `Target` and `Decision` are Structs because these are made
five times as fast as dataclasses.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import orjson
from msgspec import Struct

from mcpmux.config.schema import Server, ToolRules

Level = Literal["read", "write", "admin"]
Kind = Literal["server", "tool", "resource", "prompt"]

ADMIN_GROUP: Final = "MCP-Admin"
ALL_TOOLS: Final = ("*",)
RANK: Final[Mapping[Level, int]] = {"read": 0, "write": 1, "admin": 2}


@dataclass(frozen=True, slots=True)
class Grant:
    """What lets a principal use one server; `via` says through whom, such as `group MCP-GitHub`."""

    tenant: str
    server: str  # "*" only for MCP-Admin
    level: Level
    tools: tuple[str, ...]
    via: str


@dataclass(frozen=True, slots=True)
class GrantSet:
    """All grants of one principal. Sets of equal effect have equal fingerprints, whoever they belong to."""

    by_server: Mapping[str, tuple[Grant, ...]]
    everywhere: Grant | None
    fingerprint: str

    @classmethod
    def made(cls, grants: Iterable[Grant], everywhere: Grant | None = None) -> GrantSet:
        """The set of these grants; the best of each server first."""
        gathered: dict[str, list[Grant]] = {}
        for grant in grants:
            gathered.setdefault(grant.server, []).append(grant)
        by_server = {server: tuple(sorted(gathered[server], key=_order)) for server in sorted(gathered)}
        return cls(by_server, everywhere, _fingerprint(by_server, everywhere))

    def of(self, server: str) -> tuple[Grant, ...]:
        """The grants that reach this server."""
        own = self.by_server.get(server, ())
        return own if self.everywhere is None else (self.everywhere, *own)

    def servers(self, enabled: Iterable[str]) -> tuple[str, ...]:
        """Which of these (enabled) servers any grant reaches, in their order."""
        return tuple(server for server in enabled if self.everywhere is not None or server in self.by_server)


class Target(Struct, frozen=True, gc=False):
    """What somebody wants to use: a server as a whole, or one thing of it by the server's own name for it.

    `read_only` is a tool's `readOnlyHint`; None when nobody knows, which counts as False.
    """

    server: str
    enabled: bool
    kind: Kind
    name: str
    read_only: bool | None
    rules: ToolRules


def whole(server: Server) -> Target:
    """What is asked about a server as a whole: whether anything of it may be used."""
    return Target(server.id, server.enabled, "server", server.id, False, server.tools)


Reason = Literal["granted", "disabled", "no_grant", "tool_hidden", "tool_not_granted", "not_read_only"]
_Step = tuple[str, Grant | str | None]


class Decision(Struct, frozen=True):
    """Yes or no, and why. `level` and `tenant` are those of the grant that allows it."""

    allowed: bool
    level: Level | None
    tenant: str | None
    reason: Reason
    target: Target
    steps: tuple[_Step, ...]

    @property
    def chain(self) -> tuple[str, ...]:
        """Every step of the decision in plain words."""
        return tuple(_words(step, self.target) for step in self.steps)


def decide(grants: GrantSet, target: Target) -> Decision:
    """Whether these grants may use the target, with every step that led there."""
    server = target.server
    if not target.enabled:
        return Decision(False, None, None, "disabled", target, (("disabled", None),))
    reaching = grants.by_server.get(server, ())
    if grants.everywhere is not None:
        reaching = (grants.everywhere, *reaching)
    if not reaching:
        return Decision(False, None, None, "no_grant", target, (("enabled", None), ("no_grant", None)))
    if target.kind == "tool":
        return _decide_tool(reaching, target)
    best = reaching[0]
    return _granted(best, target, (("enabled", None), ("grant", best), (target.kind, best)))


def visible_tool(rules: ToolRules, name: str) -> bool:
    """Whether the config's rules show a tool of this name to anybody."""
    return _hidden(rules, name) is None


# A tool --------------------------------------------------------------------------------------------------------


def _decide_tool(reaching: tuple[Grant, ...], target: Target) -> Decision:
    hidden = _hidden(target.rules, target.name)
    if hidden is not None:
        return Decision(False, None, None, "tool_hidden", target, (("enabled", None), ("grant", reaching[0]), hidden))
    steps: list[_Step] = [("enabled", None), ("shown", None)]
    reason: Reason = "tool_not_granted"
    for grant in reaching:  # the highest level first
        steps.append(("grant", grant))
        if grant.tools != ALL_TOOLS and not _matcher(grant.tools)(target.name):
            steps.append(("unmatched", grant))
        elif grant.level == "read" and not target.read_only:
            steps.append(("unknown_effect" if target.read_only is None else "writes", grant))
            reason = "not_read_only"
        else:
            steps.append(("reads" if grant.level == "read" else "matched", grant))
            return _granted(grant, target, tuple(steps))
    return Decision(False, None, None, reason, target, tuple(steps))


def _granted(grant: Grant, target: Target, steps: tuple[_Step, ...]) -> Decision:
    # What MCP-Admin uses belongs to the server's own tenant, in the log as in the books.
    tenant = target.server if grant.server == "*" else grant.tenant
    return Decision(True, grant.level, tenant, "granted", target, steps)


def _hidden(rules: ToolRules, name: str) -> _Step | None:
    """The step that says why the config hides a tool from everybody; None when it does not."""
    if rules.deny:
        if not _PLAIN.fullmatch(name):
            return ("odd_name", None)
        if (pattern := _denier(rules.deny)(name)) is not None:
            return ("denied", pattern)
    if rules.allow != ALL_TOOLS and not _matcher(rules.allow)(name):
        return ("not_allowed", None)
    return None


# Patterns ------------------------------------------------------------------------------------------------------

_PLAIN: Final = re.compile(r"[\x21-\x7e]*")
_Match = Callable[[str], object]


@lru_cache(maxsize=4096)
def _matcher(patterns: tuple[str, ...]) -> _Match:
    """A function that says whether any of the patterns matches a name."""
    if "*" in patterns:
        return _always
    readable = [made for pattern in patterns if (made := _regex(pattern)) is not None]
    return re.compile("|".join(readable)).match if readable else _never


@lru_cache(maxsize=4096)
def _denier(patterns: tuple[str, ...]) -> Callable[[str], str | None]:
    """A function that gives the first of the patterns that denies a name, as it is or in any mixture of cases."""
    tests: list[tuple[str, _Match, _Match]] = []
    for pattern in patterns:
        regex = _regex(pattern)
        # Both: ignoring the case, `[!a-z]*` would no longer match `Ax`.
        exact = _always if regex is None else re.compile(regex).match
        folded = _always if regex is None else re.compile(regex, re.IGNORECASE).match
        tests.append((pattern, exact, folded))

    def denies(name: str) -> str | None:
        for pattern, exact, folded in tests:
            if exact(name) or folded(name):
                return pattern
        return None

    return denies


def _regex(pattern: str) -> str | None:
    """The pattern as an expression that matches a whole name; None if it cannot be read."""
    regex = fnmatch.translate(pattern)
    try:
        re.compile(regex)
    except (re.error, OverflowError, RecursionError):
        return None
    return regex


def _always(_name: str) -> bool:
    return True


def _never(_name: str) -> bool:
    return False


# Grant sets ----------------------------------------------------------------------------------------------------


def _order(grant: Grant) -> tuple[int, str, str]:
    return (-RANK[grant.level], grant.tenant, grant.via)


def _fingerprint(by_server: Mapping[str, tuple[Grant, ...]], everywhere: Grant | None) -> str:
    """A digest of what the grants allow, without through whom and by which tenant."""
    if everywhere is not None:
        return "everywhere"
    effects = {server: _effects(grants) for server, grants in by_server.items()}
    return hashlib.sha256(orjson.dumps(effects, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _effects(grants: tuple[Grant, ...]) -> list[tuple[Level, list[str]]]:
    """The patterns of each level, from the highest down, without those that a higher one has already."""
    effects: list[tuple[Level, list[str]]] = []
    above: set[str] = set()
    for level in sorted({grant.level for grant in grants}, key=lambda level: -RANK[level]):
        tools = {pattern for grant in grants if grant.level == level for pattern in grant.tools}
        left = set() if "*" in above else set(ALL_TOOLS) if "*" in tools else tools - above
        if left or not effects:  # the highest level counts even without tools: for resources and prompts
            effects.append((level, sorted(left)))
        above |= tools
    return effects


# Words ---------------------------------------------------------------------------------------------------------


def _words(step: _Step, target: Target) -> str:
    word, subject = step
    if isinstance(subject, Grant):
        return _words_of_grant(word, subject, target)
    return {
        "enabled": f"Server {target.server} is enabled.",
        "disabled": f"Server {target.server} is disabled: nobody may use it, administrators included.",
        "no_grant": f"No grant reaches server {target.server}: what is not granted is denied.",
        "shown": f"The config shows tool {target.name}.",
        "denied": f"The config hides tool {target.name} from everybody: deny pattern {subject} matches it.",
        "not_allowed": f"The config hides tool {target.name} from everybody: no allow pattern matches it.",
        "odd_name": "The config hides tools whose names hold anything but visible ASCII, because it has deny patterns.",
    }[word]


def _words_of_grant(word: str, grant: Grant, target: Target) -> str:
    level, name = grant.level, target.name
    patterns = ", ".join(grant.tools) or "none"
    return {
        "grant": _words_of_way(grant),
        "server": f"Level {level} allows the use of server {target.server}.",
        "resource": f"Level {level} allows its resources.",
        "prompt": f"Level {level} allows its prompts.",
        "unmatched": f"This grant has other tools ({patterns}), not {name}.",
        "writes": f"Level read allows only tools marked readOnlyHint, and {name} is not.",
        "unknown_effect": f"Level read allows only tools marked readOnlyHint; whether {name} is, is not known.",
        "reads": f"Level read allows tool {name}: it is marked readOnlyHint.",
        "matched": f"Level {level} allows tool {name} (granted tools: {patterns}).",
    }[word]


def _words_of_way(grant: Grant) -> str:
    if grant.server == "*":
        return f"Through {grant.via}: level admin on every enabled server."
    way = f"Through {grant.via}: tenant {grant.tenant} at level {grant.level}"
    own = grant.tenant == grant.server
    return f"{way}, the server's own tenant." if own else f"{way}, which has server {grant.server}."
