"""Lists of modern servers that do not tell of their changes: asked for again when they are old and somebody looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mcpmux.config.schema import Server
from mcpmux.protocol.events import Offered
from mcpmux.store import Database
from tests.catalog.harness import BRISK, room
from tests.links.harness import link_of, stdio, until

AT_ONCE = replace(BRISK, fresh=0.0)


def modern(seen: Path, *options: str) -> Server:
    return stdio("modern", "modern_server.py", "stdio", "--seen", str(seen), *options)


def asked(seen: Path) -> int:
    """How often it was asked for its tools."""
    return seen.read_text().count('"tools/list"') if seen.exists() else 0


async def test_a_list_that_is_old_is_asked_for_again_when_somebody_looks_at_it(
    tmp_path: Path, database: Database
) -> None:
    seen = tmp_path / "seen"
    async with room(tmp_path, database, modern(seen, "--unannounced"), pace=AT_ONCE) as shown:
        await shown.until(lambda: shown.names("modern"))
        await shown.call("modern", "offer", kind="tools", name="new")
        assert asked(seen) == 1
        shown.offers.looked_at(["modern"], Offered.TOOLS)
        shown.offers.looked_at(["modern", "nobody"], Offered.TOOLS)
        await shown.until(lambda: "new" in (shown.names("modern") or []))
        assert asked(seen) == 2
        shown.offers.looked_at(["modern"], Offered.TOOLS)
        await until(lambda: asked(seen) == 3)


async def test_a_list_that_is_good_or_of_whose_changes_we_hear_is_not(tmp_path: Path, database: Database) -> None:
    for number, options in enumerate((("--unannounced", "--ttl", "60000"), ())):
        seen = tmp_path / f"seen{number}"
        async with room(tmp_path / f"{number}", database, modern(seen, *options), pace=AT_ONCE) as shown:
            await shown.until(lambda shown=shown: shown.names("modern"))
            shown.offers.looked_at(["modern"], Offered.TOOLS)
            await shown.call("modern", "echo", text="x")
            assert asked(seen) == 1


@pytest.mark.parametrize("tells", ["less", "refuses"])
async def test_a_list_whose_changes_are_announced_and_never_told_grows_old_too(
    tmp_path: Path, database: Database, tells: str
) -> None:
    seen = tmp_path / "seen"
    async with room(tmp_path, database, modern(seen, "--tells", tells), pace=AT_ONCE) as shown:
        await shown.until(lambda: shown.names("modern"))
        link = await link_of(shown.pool, "modern")
        await until(lambda: link.ages(Offered.TOOLS))
        await shown.call("modern", "offer", kind="tools", name="new")
        shown.offers.looked_at(["modern"], Offered.TOOLS)
        await shown.until(lambda: "new" in (shown.names("modern") or []))


async def test_five_seconds_are_not_too_long_for_any_list(tmp_path: Path, database: Database) -> None:
    seen = tmp_path / "seen"
    async with room(tmp_path, database, modern(seen, "--unannounced")) as shown:
        await shown.until(lambda: shown.names("modern"))
        shown.offers.looked_at(["modern"], Offered.TOOLS)
        await shown.call("modern", "echo", text="x")
        assert asked(seen) == 1
