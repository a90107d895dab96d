"""`${env:NAME}`, `${env:NAME:-default}` and `${file:/path}` inside values.

Owns the syntax of references and the reading of secret files. Rules of the file: an empty variable or file counts as
unset, since an empty credential never works and deployments pass `TOKEN=` for "none"; a message names variables and
paths, never what they hold; `$${` is a literal `${`; references don't nest.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcpmux.config.schema import VARIABLE_PATTERN

MAX_SECRET_FILE: Final = 64 * 1024

# `$${` first: it must not be seen as the end of one and the start of another.
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE: Final = re.compile(rf"env:({VARIABLE_PATTERN[1:-1]})(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A value with its references filled in; if `missing` or `trouble` is set, `text` is the text of the file."""

    text: str
    referred: bool = False  # whether it held any reference, so that it may be a secret
    missing: tuple[str, ...] = ()  # unset variables by name, absent files by path
    trouble: str | None = None  # a file that is there and cannot be used


class ReferenceMalformed(ValueError):
    """A `${…}` that is no reference; the text says what was expected and repeats nothing of the value."""


class Expander:
    """Fills in references, reads each file once, and remembers which files were named."""

    __slots__ = ("_contents", "_environ")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._contents: dict[Path, str | OSError | None] = {}

    @property
    def files(self) -> frozenset[Path]:
        """Every file named so far, there or not, absolute."""
        return frozenset(self._contents)

    def expand(self, text: str) -> Expanded:
        """The text with every reference filled in.

        Raises: ReferenceMalformed.
        """
        if "${" not in text:
            return Expanded(text)
        parts: list[str] = []
        missing: list[str] = []
        trouble: str | None = None
        referred, at = False, 0
        for found in _REFERENCE.finditer(text):
            parts.append(text[at : found.start()])
            at = found.end()
            if found.group() == "$${":
                parts.append("${")
                continue
            referred = True
            name, value = self._look_up(found.group(1))
            if isinstance(value, OSError):
                trouble = f"the file {name} cannot be used ({value.strerror})"
            elif value is None:
                missing.append(name)
            else:
                parts.append(value)
        if missing or trouble:
            return Expanded(text, True, tuple(missing), trouble)
        parts.append(text[at:])
        return Expanded("".join(parts), referred)

    def _look_up(self, body: str | None) -> tuple[str, str | OSError | None]:
        """The name for people and the value of one reference; None if unset."""
        if body is None:
            raise ReferenceMalformed(
                "a reference not closed or with braces inside, expected ${env:NAME} or ${file:/path}"
            )
        variable = _VARIABLE.fullmatch(body)
        if variable is not None:
            name, default = variable.groups()
            value = self._environ.get(name) or None
            return name, default if value is None else value
        if body.startswith("file:") and len(body) > len("file:") and "\0" not in body:
            path = body.removeprefix("file:")
            # A name with a slash is a path, one without is a variable, for whoever prints what is missing.
            return path if "/" in path else f"./{path}", self._content(Path(path).absolute())
        known = "${env:NAME}, ${env:NAME:-default} or ${file:/path} ($${ for a plain ${)"
        raise ReferenceMalformed(f"a reference that is not known, expected {known}")

    def _content(self, path: Path) -> str | OSError | None:
        if path not in self._contents:
            self._contents[path] = _read_secret(path)
        return self._contents[path]


def _read_secret(path: Path) -> str | OSError | None:
    """What the file holds without line ends at its end; None if absent or empty; OSError if it cannot be used."""
    try:
        # A named pipe would block the reader for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            return OSError(0, "not a plain file")
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as refused:
        return refused
    if len(data) > MAX_SECRET_FILE:
        return OSError(0, f"over {MAX_SECRET_FILE} bytes")
    try:
        return data.decode().rstrip("\r\n") or None
    except UnicodeDecodeError:
        return OSError(0, "not UTF-8")
