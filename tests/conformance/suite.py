"""The official conformance suite: installed once per version into the cache folder, run, read check by check."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from tests import npm

SUITE = "@modelcontextprotocol/conformance"
VERSION = "0.2.0-alpha.12"
NODE = "node@22"  # The suite needs Node 22; the npm package carries its binary.
LEGACY = "2025-11-25"
MODERN = "2026-07-28"
CHECKS = 84  # what the suite asks at the legacy revision
_BOTH_ERAS = ("tools_call", "json-schema-2020-12-preservation")
CLIENT_SCENARIOS = {
    LEGACY: (*_BOTH_ERAS, "initialize", "elicitation-sep1034-client-defaults", "sse-retry"),
    MODERN: (
        *_BOTH_ERAS, "request-metadata", "sep-2322-client-request-state", "http-standard-headers",
        "http-custom-headers", "http-invalid-tool-headers", "json-schema-ref-no-deref",
    ),
}  # fmt: skip
CLIENT_CHECKS = {LEGACY: 27, MODERN: 36}  # what it sees of a client, at least
TASK_SCENARIOS = (
    "tasks-lifecycle", "tasks-capability-negotiation", "tasks-wire-fields", "tasks-request-state-removal",
    "tasks-mrtr-input", "tasks-request-headers", "tasks-dispatch-and-envelope", "tasks-status-notifications",
    "tasks-required-task-error", "tasks-mrtr-composition",
)  # fmt: skip
TASK_CHECKS = 44  # what they see of a server that has tasks
MODERN_CHECKS = 115  # what it can ask of a legacy server at the modern one, and all of it passes

ORDER = ("INFO", "SUCCESS", "SKIPPED", "WARNING", "FAILURE")  # INFO is a note, no check.

Checks = dict[str, str]


def installed() -> Path:
    """The folder with node 22 and the suite; installed at the first call on a machine."""
    return npm.installed(f"conformance-{VERSION}", NODE, f"{SUITE}@{VERSION}")


async def run(url: str, results: Path, revision: str = LEGACY) -> Checks:
    """Every check of every scenario of a revision against one URL: `scenario/check` -> its status (`ORDER`)."""
    await _run(results, "server", "--url", url, "--suite", "all", "--spec-version", revision)
    return read(results)


async def run_one(url: str, results: Path, scenario: str, revision: str = MODERN) -> Checks:
    """The same for one scenario."""
    await _run(results, "server", "--url", url, "--scenario", scenario, "--spec-version", revision)
    return read(results)


async def run_tasks(url: str, results: Path) -> Checks:
    """The same for the scenarios of the extension `io.modelcontextprotocol/tasks`, which belong to no revision."""
    async with asyncio.TaskGroup() as tasks:
        for scenario in TASK_SCENARIOS:
            more = ("--url", url, "--scenario", scenario, "--spec-version", MODERN, "--force")
            tasks.create_task(_run(results, "server", *more))
    return read(results)


async def run_client(command: str, results: Path, revision: str) -> Checks:
    """The same for clients: the suite has a server for each scenario, and runs `command` with its URL.

    The scenarios in which the client gets itself a token (`auth/`) are left out.
    """
    async with asyncio.TaskGroup() as tasks:
        for scenario in CLIENT_SCENARIOS[revision]:
            more = ("--command", command, "--scenario", scenario, "--spec-version", revision)
            tasks.create_task(_run(results, "client", *more))
    return read(results)


async def _run(results: Path, *arguments: str) -> None:
    place = installed() / "node_modules"
    suite = place / SUITE / "dist" / "index.js"
    process = await asyncio.create_subprocess_exec(
        place / "node" / "bin" / "node", suite, *arguments, "-o", results,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    results.mkdir(parents=True, exist_ok=True)
    with (results / "output.txt").open("ab") as file:
        file.write(output)


def read(results: Path) -> Checks:
    """The checks in a folder of results; of checks with one name the worst counts."""
    found: Checks = {}
    for file in sorted(results.glob("*/checks.json")):
        scenario = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", file.parent.name.removeprefix("server-"))
        for check in json.loads(file.read_text()):
            name = f"{scenario}/{check['id']}"
            found[name] = max(found.get(name, ORDER[0]), check["status"], key=ORDER.index)
    return found
