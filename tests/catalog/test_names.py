"""Names on an aggregate: always fit for an LLM API, never two alike, and every URI comes back byte for byte."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mcpmux.catalog.names import name_table, public_name, public_uri, split_name, split_uri

SERVERS = st.from_regex(r"[a-z][a-z0-9-]{0,23}", fullmatch=True)
LIMITS = st.integers(40, 128)
# Whole ones, ones with every kind of odd character, half surrogate pairs, and ones far too long.
NATIVES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,80}", fullmatch=True),
    st.text(st.characters(codec=None), max_size=200),
    st.builds(lambda head, tail: head * 60 + tail, st.sampled_from(["ab", "_", "-", "é"]), st.text(max_size=3)),
)
URIS = st.one_of(
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9+.-]{0,10}:[!-~]{0,40}", fullmatch=True),
    st.from_regex(r"ui://[!-~]{0,40}", fullmatch=True),
    st.text(max_size=60),
)
PUBLIC = re.compile(r"[A-Za-z0-9_-]+")


@given(server=SERVERS, native=NATIVES, limit=LIMITS)
def test_a_public_name_always_fits_and_leads_to_its_server(server: str, native: str, limit: int) -> None:
    name = public_name(server, native, limit)
    assert PUBLIC.fullmatch(name)
    assert len(name) <= limit
    found = split_name(name, {server})
    assert found is not None
    assert found[0] == server


@given(server=SERVERS, native=st.from_regex(r"[A-Za-z0-9_-]{1,60}", fullmatch=True), limit=LIMITS)
def test_a_name_that_fits_is_shown_whole_and_splits_back(server: str, native: str, limit: int) -> None:
    assume(len(server) + 2 + len(native) <= limit)
    name = public_name(server, native, limit)
    assert name == f"{server}__{native}"
    assert split_name(name, {server}) == (server, native)


@given(server=SERVERS, natives=st.lists(NATIVES, max_size=30), limit=LIMITS)
def test_a_table_holds_every_name_once_and_none_alike(server: str, natives: list[str], limit: int) -> None:
    table = name_table(server, natives, limit)
    assert sorted(table.values()) == sorted(set(natives))
    assert all(PUBLIC.fullmatch(name) and len(name) <= limit for name in table)


@given(server=SERVERS, natives=st.lists(NATIVES, max_size=12), limit=LIMITS, data=st.data())
def test_a_table_does_not_depend_on_the_order_of_the_list(
    server: str, natives: list[str], limit: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(natives))
    assert name_table(server, natives, limit) == name_table(server, shuffled, limit)


@given(server=SERVERS, natives=st.lists(NATIVES, max_size=12, unique=True), limit=LIMITS)
def test_names_are_the_same_alone_and_in_a_table_unless_somebody_crafts_a_collision(
    server: str, natives: list[str], limit: int
) -> None:
    alone = {public_name(server, native, limit): native for native in natives}
    assume(len(alone) == len(natives))
    assert name_table(server, natives, limit) == alone


@given(server=SERVERS, native=NATIVES, limit=LIMITS, steps=st.integers(1, 5))
def test_a_tool_that_takes_the_shortened_name_of_another_keeps_it_and_both_stay(
    server: str, native: str, limit: int, steps: int
) -> None:
    assume(public_name(server, native, limit) != f"{server}__{native}")
    natives = [native]
    for _ in range(steps):
        # A server that knows the rule gives a tool of its own just the name that the other one is shown with.
        shown = next(name for name, of in name_table(server, natives, limit).items() if of == native)
        crafted = shown.removeprefix(f"{server}__")
        natives.append(crafted)
        table = name_table(server, natives, limit)
        assert table[shown] == crafted
        assert sorted(table.values()) == sorted(natives)


def test_two_long_names_with_one_hash_are_still_two_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    # One character of base32: collisions abound, as they would for somebody with time to compute them.
    monkeypatch.setattr("mcpmux.catalog.names._HASH", 1)
    natives = [f"{'same head ' * 8}{number}" for number in range(28)]
    table = name_table("s", natives, 56)
    assert sorted(table.values()) == sorted(natives)


@given(servers=st.lists(SERVERS, min_size=2, max_size=2, unique=True), natives=st.tuples(NATIVES, NATIVES))
def test_names_of_two_servers_are_never_alike(servers: list[str], natives: tuple[str, str]) -> None:
    one, other = (public_name(server, native, 56) for server, native in zip(servers, natives, strict=True))
    assert one != other


def test_a_name_is_split_at_the_first_mark_after_a_known_id() -> None:
    servers = {"a", "a-b"}
    assert split_name("a__b__c", servers) == ("a", "b__c")
    assert split_name("a-b__c", servers) == ("a-b", "c")
    assert split_name("a___x", servers) == ("a", "_x")
    for name in ("__c", "a__", "a", "", "c__x", "A__x", " a__x", "a-b-c__d", "b__c"):
        assert split_name(name, servers) is None


def test_names_that_only_look_alike_stay_two_tools() -> None:
    twins = ["caf\u00e9", "cafe\u0301", "caf\u0435", "\u202eefac", "cafe\u200b", ""]
    assert len(name_table("s", twins, 56)) == len(twins)


def test_our_own_tools_cannot_be_shadowed() -> None:
    for native in ("search_tools", "describe_tool", "call_tool"):
        assert public_name("s", native, 56) == f"s__{native}"


def test_a_long_name_stays_readable_and_is_the_same_in_every_release() -> None:
    assert public_name("github", "list.repositories/of organisation", 56) == (
        "github__list_repositories_of_organisation_g5rcilnf"
    )


@given(server=SERVERS, uri=URIS)
@example(server="github", uri="ui://widget")
@example(server="ui", uri="ui://ui+x")
@example(server="github", uri="github+x://y")
@example(server="files", uri="file:///a%2F..%00/\\b?c=+#d")
def test_a_uri_comes_back_byte_for_byte(server: str, uri: str) -> None:
    public = public_uri(server, uri)
    assert split_uri(public, {server}) == (server, uri)
    assert public.startswith("ui://") == uri.startswith("ui://")


@given(uri=st.one_of(URIS, st.from_regex(r"(ui://)?(ui|files|git-hub)\+(ui://)?[!-~]{0,20}", fullmatch=True)))
def test_whatever_uri_is_understood_is_spelt_as_we_spell_it(uri: str) -> None:
    found = split_uri(uri, {"ui", "files", "git-hub"})
    assert found is None or public_uri(*found) == uri


@given(one=st.tuples(SERVERS, URIS), other=st.tuples(SERVERS, URIS))
def test_two_resources_never_share_a_uri(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    assert public_uri(*one) != public_uri(*other)


@given(server=SERVERS, uri=st.from_regex(r"[a-z][a-z0-9+.-]{0,10}:[!-z]{0,40}", fullmatch=True))
def test_a_prefixed_uri_is_still_a_uri(server: str, uri: str) -> None:
    # RFC 3986 section 3.1.
    assert re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", public_uri(server, uri))


@pytest.mark.parametrize(
    ("template", "public"),
    [
        ("repo://{owner}/{name}", "github+repo://{owner}/{name}"),
        ("{+path}", "github+{+path}"),
        ("file:///{path*}{?q,r:3}{#s}", "github+file:///{path*}{?q,r:3}{#s}"),
        ("ui://{page}/x", "ui://github+{page}/x"),
    ],
)
def test_a_prefixed_template_has_the_same_expressions(template: str, public: str) -> None:
    assert public_uri("github", template) == public
    assert re.findall(r"\{[^}]*\}", public) == re.findall(r"\{[^}]*\}", template)


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "GITHUB+file:///etc/passwd",
        "github%2Bfile:///etc/passwd",
        "githu+file:///x",
        " github+x://y",
        "ui://x",
        "ui://GITHUB+x",
        "github+ui://x",
        "UI://github+x",
        "github",
        "",
    ],
)
def test_a_uri_that_we_would_not_spell_so_leads_nowhere(uri: str) -> None:
    assert split_uri(uri, {"github", "other"}) is None


def test_the_prefix_of_a_uri_is_parsed_once() -> None:
    servers = {"github", "other"}
    assert split_uri("other+github+x://y", servers) == ("other", "github+x://y")
    assert split_uri("github++x", servers) == ("github", "+x")
    assert split_uri("ui://other+github+x", servers) == ("other", "ui://github+x")
