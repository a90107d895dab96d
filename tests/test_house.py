"""The rules of the house that a machine can check: over the syntax trees, and by the tools that CI runs.

import-linter knows which room may import which; what it cannot say stands here, each rule with the sentence of the
house style that it keeps.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "mcpmux"
FILES = sorted(HOUSE.rglob("*.py"))

# Longer than others, with the reason.
MAY_BE_LONG = {
    "errors.py": 700,  # every exception in one file is the point of it
}
# The log's output is the process's, as stderr is: structlog and stdlib logging are global themselves.
MAY_HOLD_STATE = {"observe/log.py"}
# Rooms that keep files of their own. Nobody else opens any, so nobody else can open the config.
MAY_READ_FILES = {"config", "seal.py", "identity", "store", "guardian"}
# Signatures that the standard library gives.
MAY_ASK_MORE = {"observe/log.py": "_warned"}  # warnings.showwarning

MUTABLE = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "Queue"}
MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}


def _room(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0]


def _name(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _found(path: Path, lines: Iterator[int]) -> list[str]:
    return [f"mcpmux/{_name(path)}:{line}" for line in lines]


def test_only_the_faces_import_the_web_server() -> None:
    found = [
        place
        for path in FILES
        if _room(path) != "faces"
        for place in _found(
            path, (line for line, name in _imports(_tree(path)) if name.startswith(("aiohttp.web", "aiohttp_sse")))
        )
    ]
    assert not found, "\n".join(found)


def test_only_config_reads_yaml_and_watches_files() -> None:
    found = [
        place
        for path in FILES
        if _room(path) != "config"
        for place in _found(
            path,
            (line for line, name in _imports(_tree(path)) if name.split(".")[0] in ("ruamel", "yaml", "watchfiles")),
        )
    ]
    assert not found, "\n".join(found)


def _reads_environment(tree: ast.AST) -> Iterator[int]:
    names = {"environ", "environb", "getenv", "getenvb", "expandvars"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) in ("os", "os.path"):
            yield node.lineno
    for line, name in _imports(tree):
        if name.startswith("os.") and name.rpartition(".")[2] in names:
            yield line


def test_only_config_reads_the_environment() -> None:
    found = [
        place for path in FILES if _room(path) != "config" for place in _found(path, _reads_environment(_tree(path)))
    ]
    assert found == [], "take it from config.load.environment(), or as an argument"


def _reads_files(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "open":
                yield node.lineno
            if isinstance(called, ast.Attribute) and called.attr in ("read_text", "read_bytes"):
                yield node.lineno


def test_only_rooms_with_files_of_their_own_read_any() -> None:
    found = [
        place
        for path in FILES
        if _room(path) not in MAY_READ_FILES
        for place in _found(path, _reads_files(_tree(path)))
    ]
    assert found == [], "the config file is read by config alone: load(), or data_dir_in() for one that is broken"


def _module_values(tree: ast.Module) -> Iterator[tuple[int, str, str, ast.expr]]:
    """Line, name, annotation and value of what a module binds at its top."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node.lineno, ast.unparse(node.target), ast.unparse(node.annotation), node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield node.lineno, ast.unparse(target), "", node.value


def _is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in MUTABLE
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def _mutated(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of whatever is changed in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            yield node.lineno, ast.unparse(node.func.value)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.lineno, ast.unparse(node.value)


def test_no_module_holds_state() -> None:
    """A table at the top of a module is a constant: `Final`, and nobody changes it; nothing is rebound by `global`."""
    found: list[str] = []
    for path in FILES:
        if _name(path) in MAY_HOLD_STATE:
            continue
        tree = _tree(path)
        tables = {name for _, name, _, value in _module_values(tree) if _is_mutable(value)} - {"__all__"}
        found += _found(
            path,
            (
                line
                for line, name, said, value in _module_values(tree)
                if name in tables and not said.startswith("Final")
            ),
        )
        found += _found(path, (line for line, name in _mutated(tree) if name in tables))
        found += _found(path, (node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)))
    assert not found, "\n".join(found)


def test_no_file_is_too_long_to_read_at_once() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in FILES}
    found = [
        f"mcpmux/{name}: {length} lines" for name, length in lengths.items() if length > MAY_BE_LONG.get(name, 400)
    ]
    assert not found, "\n".join(found)


def test_no_function_is_too_long_or_asks_too_much() -> None:
    found: list[str] = []
    for path in FILES:
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > 40:
                found.append(f"mcpmux/{_name(path)}:{node.lineno} {node.name}: {length} lines, at most 40")
            asked = len([one for one in node.args.posonlyargs + node.args.args if one.arg not in ("self", "cls")])
            # A constructor is handed the rooms below it, once, by name.
            if asked > 5 and node.name not in ("__init__", MAY_ASK_MORE.get(_name(path))):
                found.append(f"mcpmux/{_name(path)}:{node.lineno} {node.name}: {asked} parameters, at most 5")
    assert not found, "\n".join(found)


def test_every_module_class_and_public_function_says_what_it_is() -> None:
    found: list[str] = []
    for path in FILES:
        tree = _tree(path)
        if not ast.get_docstring(tree):
            found.append(f"mcpmux/{_name(path)}")
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"mcpmux/{_name(path)}:{node.lineno} {node.name}")
    assert not found, "\n".join(found)


def test_a_room_s_door_holds_nothing_but_its_docstring_and_what_it_hands_out() -> None:
    found: list[str] = []
    for path in FILES:
        if path.name == "__init__.py":
            for node in _tree(path).body:
                names_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
                if not (isinstance(node, ast.Expr | ast.Import | ast.ImportFrom) or names_all):
                    found.append(f"mcpmux/{_name(path)}:{node.lineno}")
    assert not found, "\n".join(found)


def test_no_file_has_one_of_the_names_that_say_nothing() -> None:
    empty = {"utils", "helpers", "common", "misc", "base", "manager", "handler", "service", "data", "info"}
    assert [_name(path) for path in FILES if path.stem in empty] == []
    assert not list(HOUSE.rglob("__main__.py"))


@pytest.mark.parametrize(
    "text",
    [
        "import os\nprint(os.environ['A'])",
        "import os\nos.getenv('A')",
        "from os import environ",
        "def f():\n    from os import getenv as g",
        "import os\nos.path.expandvars('$A')",
    ],
)
def test_reading_the_environment_is_noticed_however_it_is_written(text: str) -> None:
    assert list(_reads_environment(ast.parse(text)))


def test_the_other_rules_notice_what_they_forbid() -> None:
    assert {name for _, name in _imports(ast.parse("from aiohttp import web\nimport aiohttp.web\n"))} == {"aiohttp.web"}
    assert len(list(_reads_files(ast.parse("open('x')\np.read_text()\np.read_bytes()\nlink.open(1)\n")))) == 3
    table = ast.parse("A: Final = {}\nB = [1]\nC = deque()\nD = frozenset()\nA['x'] = 1\nB.append(2)\ndel C[0]\n")
    assert [name for _, name, _, value in _module_values(table) if _is_mutable(value)] == ["A", "B", "C"]
    assert {name for _, name in _mutated(table)} == {"A", "B", "C"}


def _tool(name: str) -> str:
    """A program of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command",
    [
        [_tool("ruff"), "check", "."],
        [_tool("ruff"), "format", "--check", "."],
        [_tool("mypy")],
        [_tool("lint-imports")],
    ],
    ids=["ruff check", "ruff format", "mypy", "lint-imports"],
)
def test_the_tools_of_ci_find_nothing(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
