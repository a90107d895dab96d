"""The official conformance suite: installed once per version into the cache folder, run, read check by check."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SUITE = "@modelcontextprotocol/conformance"
VERSION = "0.2.0-alpha.12"
NODE = "node@22"  # The suite needs Node 22; the npm package carries its binary.
LEGACY = "2025-11-25"
MODERN = "2026-07-28"
CHECKS = 84  # what the suite asks at the legacy revision
MODERN_CHECKS = 115  # what it can ask of a legacy server at the modern one, and all of it passes

ORDER = ("INFO", "SUCCESS", "SKIPPED", "WARNING", "FAILURE")  # INFO is a note, no check.

Checks = dict[str, str]


def installed() -> Path:
    """The folder with node 22 and the suite; installed at the first call on a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcpmux-tests"
    place = cache / f"conformance-{VERSION}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=cache, prefix="installing-"))
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", building, NODE, f"{SUITE}@{VERSION}"]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
        try:
            building.rename(place)
        except OSError:  # Another run was faster: its installation is as good.
            shutil.rmtree(building)
    return place


async def run(url: str, results: Path, revision: str = LEGACY) -> Checks:
    """Every check of every scenario of a revision against one URL: `scenario/check` -> its status (`ORDER`)."""
    place = installed() / "node_modules"
    suite = place / SUITE / "dist" / "index.js"
    command = [place / "node" / "bin" / "node", suite, "server", "--url", url, "--suite", "all"]
    process = await asyncio.create_subprocess_exec(
        *command, "--spec-version", revision, "-o", results,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    (results / "output.txt").write_bytes(output)
    return read(results)


def read(results: Path) -> Checks:
    """The checks in a folder of results; of checks with one name the worst counts."""
    found: Checks = {}
    for file in sorted(results.glob("*/checks.json")):
        scenario = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", file.parent.name.removeprefix("server-"))
        for check in json.loads(file.read_text()):
            name = f"{scenario}/{check['id']}"
            found[name] = max(found.get(name, ORDER[0]), check["status"], key=ORDER.index)
    return found
