"""The bearer token that `mcpmux stdio` shows: from the environment, or from a file that somebody else keeps fresh.

Owns the reading of that file, which is read at the start and whenever its last token was refused; nothing is watched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from mcpmux.errors import UsageWrong
from mcpmux.seal import Secret

VARIABLE: Final = "MCPMUX_TOKEN"
LONGEST: Final = 64 * 1024  # bytes of the file; one with 200 groups has 12 kB

# Visible ASCII in one piece: nothing that could end a header or begin another.
_TOKEN: Final = re.compile(r"[!-~]+\Z")


class Bearer:
    """The token of the moment; `current` is what to show first."""

    __slots__ = ("_path", "current")

    def __init__(self, current: Secret, path: Path | None = None) -> None:
        self.current = current
        self._path = path

    @classmethod
    def of(cls, environ: Mapping[str, str], path: Path | None) -> Self:
        """The token of `path`, or without one that of the environment.

        Raises: UsageWrong.
        """
        if path is not None:
            try:
                return cls(_read(path), path)
            except OSError as error:
                raise UsageWrong(f"The token file {path} cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise UsageWrong(f"The token file {path} must hold one token and nothing else") from error
        if not (text := environ.get(VARIABLE, "").strip()):
            raise UsageWrong(f"There is no access token: set {VARIABLE}, or name a file with --token-file")
        try:
            return cls(_token(text))
        except ValueError as error:
            raise UsageWrong(f"{VARIABLE} must hold one token and nothing else") from error

    def other_than(self, refused: Secret) -> Secret | None:
        """Another token than the one that was refused, if there is one by now. Reads a file."""
        if self.current != refused:
            return self.current
        if self._path is None:
            return None
        try:
            found = _read(self._path)
        except (OSError, ValueError):
            return None  # just being written, perhaps
        if found == refused:
            return None
        self.current = found
        return found


def _read(path: Path) -> Secret:
    with path.open("rb") as file:
        return _token(file.read(LONGEST + 1).decode("ascii").strip())


def _token(text: str) -> Secret:
    if len(text) > LONGEST or not _TOKEN.match(text):
        raise ValueError
    return Secret(text)
