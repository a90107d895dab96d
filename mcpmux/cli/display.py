"""A progress line that stays below the log: whoever writes through the Display first has it wiped, then drawn again.

Two ANSI sequences and nothing else. Everything that goes to the terminal meanwhile has to come through here, so the
log is configured with it as its stream.
"""

from __future__ import annotations

import io
import shutil
from typing import Final, TextIO

from mcpmux.observe.redaction import visible

_WIPE: Final = "\r\x1b[K"
_NARROW: Final = 20  # columns; some terminals say 0


class Display(io.TextIOBase):
    """A terminal with one line at the bottom that changes; without a terminal it shows nothing."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal
        self._shown = ""

    def show(self, line: str) -> None:
        """Make this the line, cut to the width of the terminal; what others wrote in it can't move the cursor."""
        if not self._terminal.isatty():
            return
        width = max(_NARROW, shutil.get_terminal_size().columns - 1)
        if (cut := visible(line)[:width]) != self._shown:
            self._shown = cut
            self._put(_WIPE + cut)

    def clear(self) -> None:
        """Show no line any more."""
        if self._shown:
            self._shown = ""
            self._put(_WIPE)

    def write(self, text: str) -> int:
        """Write whole lines above the progress line."""
        self._put(f"{_WIPE}{text}{self._shown}" if self._shown else text)
        return len(text)

    def isatty(self) -> bool:
        """Whether somebody looks."""
        return self._terminal.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    def flush(self) -> None:
        """Nothing is kept back here."""
        self._terminal.flush()

    def _put(self, text: str) -> None:
        self._terminal.write(text)
        self._terminal.flush()
