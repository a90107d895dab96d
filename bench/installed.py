"""Real servers from npm and PyPI, installed into a folder beforehand: their commands without npx and uvx.

What is measured is mcpmux with running servers; resolving and downloading would be the registries' time. Each package
has a folder of its own, and is installed once per command line, in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def cache() -> Path:
    """Where packages are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcpmux-bench"


def install(commands: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same commands with an installed program in front; a server that cannot be installed is left out."""
    found: dict[str, list[str]] = {}
    with ThreadPoolExecutor(4) as workers:
        for server, made in zip(commands, workers.map(_installed, commands.values()), strict=True):
            if isinstance(made, str):
                print(f"left out: {server}: {made}", file=sys.stderr)
            else:
                found[server] = made
    return found


def _installed(command: list[str]) -> list[str] | str:
    """One command, or why it cannot be had."""
    runner, words = command[0], command[1:]
    make = _npm if runner == "npx" else _pypi
    try:
        return make(words)
    except subprocess.CalledProcessError as exc:
        return exc.stderr.decode(errors="replace").strip().splitlines()[-1]


def _folder(words: list[str], command: list[str | Path]) -> Path:
    """The folder of one package; `{}` in the command that fills it stands for the folder."""
    place = cache() / hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    if not place.exists():
        cache().mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=cache(), prefix="installing-"))
        try:
            filled = [building if word == "{}" else word for word in command]
            subprocess.run(filled, check=True, capture_output=True, timeout=600)
            building.rename(place)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return place


def _npm(words: list[str]) -> list[str]:
    """`-y package@version arguments…`."""
    spec, *arguments = [word for word in words if word != "-y"]
    place = _folder([spec], ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", "{}", spec])
    package = spec[: spec.rindex("@")]
    home = place / "node_modules" / package
    programs = json.loads((home / "package.json").read_text())["bin"]
    if isinstance(programs, dict):
        wanted = package.rpartition("/")[2]
        programs = programs.get(wanted) or next(iter(programs.values()))
    return ["node", str(home / programs), *arguments]


def _pypi(words: list[str]) -> list[str]:
    """`[--with dependency]… [--from package] program arguments…`."""
    specs: list[str] = []
    rest = list(words)
    while rest[0] in ("--with", "--from"):
        specs.append(rest[1])
        rest = rest[2:]
    program, *arguments = rest
    if "--from" not in words:
        specs.append(program)
        program = program.partition("==")[0]
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    # `--target` needs no environment of its own: the programs run with PYTHONPATH, wherever the folder is moved.
    place = _folder(specs, [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", "{}", *specs])
    return ["env", f"PYTHONPATH={place}", sys.executable, str(place / "bin" / program), *arguments]
