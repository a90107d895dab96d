"""Reading a config text as `load` reads a file, for these tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mcpmux.config.load import NO_OVERRIDES, load, read
from mcpmux.config.schema import Overrides, Server, Snapshot
from mcpmux.errors import ConfigInvalid


def snapshot_of(
    folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None, overrides: Overrides = NO_OVERRIDES
) -> Snapshot:
    """The Snapshot of a good text."""
    return load(written(folder, text), environ or {}, overrides=overrides)


def problems_of(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    """The problems of a bad text, each without the folder's name before it."""
    path = written(folder, text)
    outcome = read(path, environ or {}, overrides=NO_OVERRIDES).outcome
    assert isinstance(outcome, ConfigInvalid), "the text was taken"
    assert all(problem.startswith(f"{path}:") for problem in outcome.problems)
    return [problem.removeprefix(f"{folder}/") for problem in outcome.problems]


def server_of(folder: Path, fields: str, environ: Mapping[str, str] | None = None) -> Server:
    """The one server with these fields, written as a flow mapping without braces."""
    return snapshot_of(folder, f"servers:\n  one: {{{fields}}}\n", environ).servers["one"]


def written(folder: Path, text: str | bytes) -> Path:
    """The file with this text."""
    path = folder / "servers.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
