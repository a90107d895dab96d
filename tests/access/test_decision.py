"""THE decision: deny by default, disabled for all, levels, patterns that fail closed, and words for every step."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.access.decision import ALL_TOOLS, RANK, Grant, GrantSet, Kind, Level, Target, decide, visible_tool
from mcpmux.access.grants import ADMINISTRATOR
from mcpmux.config.schema import ToolRules

EVERYTHING = ToolRules()


def grant(server: str = "github", level: Level = "write", tools: Sequence[str] = ALL_TOOLS, tenant: str = "") -> Grant:
    return Grant(tenant or server, server, level, tuple(tools), "group MCP-Test")


def held(*grants: Grant) -> GrantSet:
    return GrantSet.made(grants)


def tool(
    name: str = "create_issue",
    *,
    server: str = "github",
    enabled: bool = True,
    read_only: bool | None = False,
    rules: ToolRules = EVERYTHING,
) -> Target:
    return Target(server, enabled, "tool", name, read_only, rules)


def thing(kind: Kind, *, enabled: bool = True) -> Target:
    return Target("github", enabled, kind, "github", False, EVERYTHING)


NOBODY = held()


@pytest.mark.parametrize("target", [tool(), tool(read_only=True), thing("server"), thing("resource"), thing("prompt")])
def test_what_is_not_granted_is_denied(target: Target) -> None:
    for grants in (NOBODY, held(grant("jira")), held(grant("githu"), grant("github2"), grant("GitHub"))):
        decision = decide(grants, target)
        assert (decision.allowed, decision.level, decision.tenant, decision.reason) == (False, None, None, "no_grant")


@pytest.mark.parametrize("grants", [ADMINISTRATOR, held(grant(level="admin")), held(grant(level="read"))])
@pytest.mark.parametrize("kind", ["server", "tool", "resource", "prompt"])
def test_a_disabled_server_is_disabled_for_everyone(grants: GrantSet, kind: Kind) -> None:
    decision = decide(grants, thing(kind, enabled=False))
    assert (decision.allowed, decision.reason) == (False, "disabled")


@pytest.mark.parametrize("kind", ["server", "tool", "resource", "prompt"])
def test_the_administrators_group_may_use_every_enabled_server(kind: Kind) -> None:
    decision = decide(ADMINISTRATOR, thing(kind))
    assert (decision.allowed, decision.level, decision.tenant) == (True, "admin", "github")


@pytest.mark.parametrize("level", ["read", "write", "admin"])
@pytest.mark.parametrize("kind", ["server", "resource", "prompt"])
def test_every_level_allows_the_server_its_resources_and_prompts(level: Level, kind: Kind) -> None:
    decision = decide(held(grant(level=level, tools=["nothing"])), thing(kind))
    assert (decision.allowed, decision.level, decision.tenant) == (True, level, "github")


@pytest.mark.parametrize(
    ("level", "read_only", "allowed"),
    [
        ("read", True, True),
        ("read", False, False),
        ("read", None, False),
        ("write", False, True),
        ("write", None, True),
        ("admin", False, True),
    ],
)
def test_level_read_allows_only_tools_that_say_they_only_read(
    level: Level, read_only: bool | None, allowed: bool
) -> None:
    decision = decide(held(grant(level=level)), tool(read_only=read_only))
    assert decision.allowed is allowed
    assert decision.reason == ("granted" if allowed else "not_read_only")


@pytest.mark.parametrize(
    ("patterns", "name", "allowed"),
    [
        (["*"], "anything", True),
        (["get_*"], "get_issue", True),
        (["get_*"], "Get_issue", False),
        (["get_*"], "forget_it", False),
        (["get_*", "list_*"], "list_issues", True),
        (["get_?"], "get_a", True),
        (["get_?"], "get_ab", False),
        (["[gl]et_x"], "let_x", True),
        ([], "get_issue", False),
        (["get_issue"], "get_issue\n", False),
        (["get_*"], "get_a\nb", True),
    ],
)
def test_patterns_of_a_grant_are_matched_exactly_on_the_native_name(
    patterns: list[str], name: str, allowed: bool
) -> None:
    decision = decide(held(grant(tools=patterns)), tool(name))
    assert decision.allowed is allowed
    assert decision.reason == ("granted" if allowed else "tool_not_granted")


def test_grants_add_up_and_the_highest_that_allows_it_counts() -> None:
    grants = held(
        grant(level="read", tenant="readers"),
        grant(level="write", tools=["create_*"], tenant="writers"),
        grant(level="admin", tools=["admin_*"], tenant="admins"),
    )
    found = decide(grants, tool("create_issue", read_only=True))
    assert (found.level, found.tenant) == ("write", "writers")
    found = decide(grants, tool("get_issue", read_only=True))
    assert (found.level, found.tenant) == ("read", "readers")
    assert not decide(grants, tool("delete_issue")).allowed
    assert decide(grants, thing("server")).level == "admin"


# The config's rules ---------------------------------------------------------------------------------------------

NO_DELETE = ToolRules(deny=("delete_*",))


@pytest.mark.parametrize("grants", [ADMINISTRATOR, held(grant(level="admin"))])
def test_what_the_config_hides_is_hidden_from_administrators_too(grants: GrantSet) -> None:
    for target in (tool("delete_x", rules=NO_DELETE), tool("x", rules=ToolRules(allow=("get_*",)))):
        decision = decide(grants, target)
        assert (decision.allowed, decision.reason) == (False, "tool_hidden")
    assert decide(grants, tool("get_x", rules=ToolRules(allow=("get_*",), deny=("delete_*",)))).allowed


@pytest.mark.parametrize(
    "name",
    [
        "delete_x",
        "Delete_x",
        "DELETE_X",
        "dElEtE_",
        "delete\u200b_x",  # zero width space
        "\u200bdelete_x",
        "delete_x\u00ad",
        "d\u0435lete_x",  # Cyrillic е
        "\uff44\uff45\uff4c\uff45\uff54\uff45_x",  # full width
        "delete\u005f\u0332x",
        "dele\u0301te_x",
        "\u202edelete_x",
        "delete\u2010x",
        " delete_x",
        "delete _x",
        "delete_x\n",
        "\tdelete_x",
        "\x00delete_x",
        "delete\x1b[0m_x",
        "\ud800delete_x",
        "d\u0117lete_x",
        "dele\u017fte_x",  # long s
    ],
)
def test_a_deny_pattern_cannot_be_evaded_by_spelling(name: str) -> None:
    assert not decide(ADMINISTRATOR, tool(name, rules=NO_DELETE)).allowed
    assert not visible_tool(NO_DELETE, name)


def test_without_deny_patterns_odd_names_are_nobodys_business() -> None:
    for name in ("löschen", "削除", "a b", ""):
        assert decide(ADMINISTRATOR, tool(name)).allowed


def test_what_is_not_denied_stays() -> None:
    for name in ("undelete_x", "create_delete_x", "delete-x", "delet_x", ""):
        assert decide(ADMINISTRATOR, tool(name, rules=NO_DELETE)).allowed


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12))
def test_no_mixture_of_cases_evades_any_deny_pattern(pattern: str) -> None:
    """Whatever the pattern: a name that it denies is denied in every mixture of cases."""
    rules = ToolRules(deny=(pattern,))
    for name in (pattern, pattern.replace("*", "x"), pattern.lower(), "delete_x", "Ax"):
        if visible_tool(rules, name) or "[" in pattern:  # a set may name one case on purpose: `[!a-z]*`
            continue
        assert not visible_tool(rules, name.upper())
        assert not visible_tool(rules, name.lower())
        assert not visible_tool(rules, name.swapcase())


def test_a_set_of_characters_in_a_deny_pattern_denies_as_it_is_written_too() -> None:
    rules = ToolRules(deny=("[!a-z]*",))
    assert not visible_tool(rules, "Ax")
    assert not visible_tool(rules, "_x")
    assert visible_tool(rules, "ax")
    assert not visible_tool(ToolRules(deny=("[A-Z]*",)), "ax")


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_as_pattern_and_name_gives_a_decision(pattern: str, name: str) -> None:
    rules = ToolRules(allow=(pattern,), deny=(pattern,))
    assert not decide(ADMINISTRATOR, tool(name, rules=rules)).allowed
    decide(held(grant(tools=[pattern, name])), tool(name))


def test_a_hostile_name_or_pattern_costs_little() -> None:
    start = time.process_time()
    rules = ToolRules(deny=("*a*a*a*a*a*a*b", "a" * 100))
    decide(held(grant(tools=["*a" * 50 + "b"])), tool("a" * 20_000, rules=rules))
    assert time.process_time() - start < 1


# Sets -----------------------------------------------------------------------------------------------------------

SERVERS = st.sampled_from(["github", "jira", "time"])
TOOLS = st.lists(st.sampled_from(["*", "get_*", "list_*", "create_issue"]), max_size=3).map(tuple)
GRANTS = st.lists(
    st.builds(
        Grant,
        tenant=st.sampled_from(["github", "eng", "ops"]),
        server=SERVERS,
        level=st.sampled_from(list(RANK)),
        tools=TOOLS,
        via=st.sampled_from(["user ana@example.com", "group MCP-Eng"]),
    ),
    max_size=6,
)
TARGETS = st.builds(
    Target,
    server=SERVERS,
    enabled=st.just(True),
    kind=st.sampled_from(["server", "tool", "resource", "prompt"]),
    name=st.sampled_from(["get_issue", "list_x", "create_issue", "delete_x"]),
    read_only=st.sampled_from([True, False, None]),
    rules=st.sampled_from([EVERYTHING, NO_DELETE, ToolRules(allow=("get_*",))]),
)


@given(GRANTS, TARGETS)
def test_one_of_several_grants_allows_exactly_what_it_allows_alone(grants: list[Grant], target: Target) -> None:
    together = decide(held(*grants), target)
    alone = [decide(held(grant), target) for grant in grants]
    assert together.allowed == any(decision.allowed for decision in alone)
    if together.allowed:
        assert RANK[together.level or "read"] == max(RANK[d.level] for d in alone if d.level is not None)


@given(st.lists(GRANTS, min_size=2, max_size=40), st.lists(TARGETS, min_size=1, max_size=10))
def test_equal_fingerprints_mean_equal_decisions(holders: list[list[Grant]], targets: list[Target]) -> None:
    seen: dict[str, list[tuple[bool, Level | None]]] = {}
    for grants in holders:
        decided = [decide(held(*grants), target) for target in targets]
        outcome = [(decision.allowed, decision.level) for decision in decided]
        assert seen.setdefault(held(*grants).fingerprint, outcome) == outcome


@given(GRANTS)
def test_the_fingerprint_does_not_depend_on_order_repetition_or_the_way(grants: list[Grant]) -> None:
    mixed = [
        Grant(grant.tenant + "x", grant.server, grant.level, tools, "user ben@example.com")
        for grant in reversed(grants)
        for tools in ([grant.tools[::-1]] + [(pattern,) for pattern in grant.tools])
    ]
    assert held(*grants).fingerprint == held(*mixed, *mixed).fingerprint


def test_a_grant_that_another_one_includes_does_not_change_the_fingerprint() -> None:
    wide = held(grant())
    assert held(grant(), grant(level="read")).fingerprint == wide.fingerprint
    assert held(grant(), grant(tools=["get_*"])).fingerprint == wide.fingerprint
    assert held(grant(), grant(level="admin", tools=["get_*"])).fingerprint != wide.fingerprint
    assert held(grant(tools=["get_*"])).fingerprint != wide.fingerprint
    assert held(grant("jira")).fingerprint != wide.fingerprint
    assert NOBODY.fingerprint != ADMINISTRATOR.fingerprint


def test_a_set_names_the_servers_that_it_reaches() -> None:
    assert held(grant("jira"), grant("time")).servers(["github", "jira", "time"]) == ("jira", "time")
    assert ADMINISTRATOR.servers(["b", "a"]) == ("b", "a")
    assert NOBODY.servers(["a"]) == ()
    assert [g.level for g in held(grant(level="read"), grant(level="admin")).of("github")] == ["admin", "read"]
    assert ADMINISTRATOR.of("anything")[0].level == "admin"


# Words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grants", "target", "words"),
    [
        (NOBODY, tool(), ["is enabled", "No grant reaches server github"]),
        (ADMINISTRATOR, tool(enabled=False), ["disabled", "administrators included"]),
        (ADMINISTRATOR, tool(), ["MCP-Admin", "every enabled server"]),
        (held(grant()), tool(), ["group MCP-Test", "tenant github at level write", "own tenant", "allows tool"]),
        (held(grant(tenant="eng")), tool(), ["tenant eng at level write, which has server github"]),
        (held(grant(level="read")), tool(), ["marked readOnlyHint, and create_issue is not"]),
        (held(grant(level="read")), tool(read_only=None), ["is not known"]),
        (held(grant(level="read")), tool(read_only=True), ["it is marked readOnlyHint"]),
        (held(grant(tools=["get_*"])), tool(), ["other tools (get_*), not create_issue"]),
        (held(grant(tools=[])), tool(), ["other tools (none)"]),
        (held(grant()), tool("delete_x", rules=NO_DELETE), ["deny pattern delete_* matches"]),
        (held(grant()), tool("x\u200b", rules=NO_DELETE), ["anything but visible ASCII"]),
        (held(grant()), tool(rules=ToolRules(allow=("get_*",))), ["no allow pattern matches"]),
        (held(grant()), thing("server"), ["allows the use of server github"]),
        (held(grant()), thing("resource"), ["allows its resources"]),
        (held(grant()), thing("prompt"), ["allows its prompts"]),
    ],
)
def test_every_step_is_said_in_plain_words(grants: GrantSet, target: Target, words: list[str]) -> None:
    said = "\n".join(decide(grants, target).chain)
    for word in words:
        assert word in said


@given(GRANTS, TARGETS)
def test_every_decision_has_words(grants: list[Grant], target: Target) -> None:
    assert all(step.endswith(".") for step in decide(held(*grants), target).chain)


def test_a_list_of_fifteen_hundred_tools_is_decided_in_milliseconds() -> None:
    """Beside the same number of plain function calls with a look-up, in the same run: machines differ."""
    grants = held(*(grant(f"s{n}", "read" if n % 2 else "write", ["get_*", "list_*"]) for n in range(30)))
    rules = ToolRules(deny=("delete_*", "drop_*"))

    def ours() -> None:
        for number in range(1500):
            decide(grants, Target(f"s{number % 30}", True, "tool", f"get_thing_{number}", True, rules))

    def bare() -> None:
        seen: dict[str, object] = {}
        for number in range(1500):
            seen.setdefault(f"s{number % 30}", tool(f"get_thing_{number}"))

    def cost(function: object) -> float:
        assert callable(function)
        start = time.process_time()
        function()
        return time.process_time() - start

    assert min(cost(ours) for _ in range(9)) < 12 * min(cost(bare) for _ in range(9))
