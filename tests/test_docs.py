"""What the documents say is what the code has."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from mcpmux.links.states import TRANSITIONS, State, initial
from tests.gateway_process import program

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "mcpmux"
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def drawing() -> str:
    """The states of a server, as mermaid draws them."""
    begins = {initial(enabled=enabled, unconfigured=missing) for enabled in (True, False) for missing in (True, False)}
    arrows = [f"    [*] --> {state}" for state in State if state in begins]
    arrows += [f"    {here} --> {there}: {happened}" for (here, happened), there in TRANSITIONS.items()]
    return "\n".join(["stateDiagram-v2", *arrows, f"    {State.DRAINING} --> [*]"])


def test_the_states_of_a_server_are_drawn_as_they_are() -> None:
    found = re.search(r"```mermaid\n(.*?)\n```", ARCHITECTURE, re.DOTALL)
    assert found is not None
    assert found[1] == drawing()


def test_every_file_is_on_the_map() -> None:
    rows = [line for line in ARCHITECTURE.splitlines() if line.startswith("| `")]
    for path in HOUSE.rglob("*.py"):
        if path.stem == "__init__":
            continue
        room, *inside = path.relative_to(HOUSE).with_suffix("").parts
        name = "/".join(inside) or room
        assert any(f"`{room}`" in row and f"`{name}`" in row for row in rows), f"{room}: {name}"


def test_every_task_has_its_row() -> None:
    source = "\n".join(path.read_text() for path in HOUSE.rglob("*.py"))
    for name in re.findall(r"create_task\([^\n]*?name=f?\"([^\"]+)\"", source):
        words = re.sub(r"\{[^}]*\}", "", name).strip()
        assert words in ARCHITECTURE, name


def test_every_dependency_says_what_it_saves() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert listed is not None
    for name in re.findall(r'"([a-z][a-z0-9.-]*)', listed[1]):
        assert f"\n| {name} |" in ARCHITECTURE, name


def test_the_readme_names_every_key_of_the_config() -> None:
    schema = json.loads((ROOT / "config" / "servers.schema.json").read_text())["properties"]
    sections = [schema["gateway"], schema["servers"]["additionalProperties"]]
    for section in sections:
        for key in leaves(section):
            assert f"`{key}`" in README, key


def leaves(section: dict[str, object], prefix: str = "") -> list[str]:
    """The keys of a section that hold a value, as `a.b[].c`."""
    found: list[str] = []
    properties = section.get("properties")
    for name, value in properties.items() if isinstance(properties, dict) else ():
        key = f"{prefix}{name}"
        items = value.get("items", {})
        if "properties" in value:
            found += leaves(value, f"{key}.")
        elif "properties" in items:
            found += [key, *leaves(items, f"{key}[].")]
        else:
            found.append(key)
    return found


def test_the_readme_names_every_metric() -> None:
    source = (HOUSE / "observe" / "metrics.py").read_text()
    for kind, name in re.findall(r'(Counter|Gauge|Histogram|counter|gauge)\(\s*"(mcpmux_[a-z_]+)"', source):
        shown = f"{name}_total" if kind.lower() == "counter" else name
        assert f"`{shown}`" in README, shown


@pytest.mark.parametrize("command", ["serve", "check", "status", "doctor", "migrate", "token", "access", "stdio"])
def test_the_readme_has_every_command(command: str) -> None:
    said = subprocess.run([program(), "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.search(rf"^    {command}\b", said, re.MULTILINE)
    assert f"| `mcpmux {command}" in README


def test_ci_runs_the_test_command_of_the_readme_to_the_letter() -> None:
    commands = re.findall(r"```sh\n(python3 -m venv [^\n]*pytest)\n```", README)
    assert len(commands) == 1
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == commands[0]


def test_what_the_documents_point_to_is_there() -> None:
    for text in (README, ARCHITECTURE, (ROOT / "CONTRIBUTING.md").read_text()):
        for path in re.findall(r"`((?:deploy|config|bench|tests|\.ci)/[A-Za-z0-9_./-]+)`", text):
            assert (ROOT / path).exists(), path
