"""A log line for a person at a terminal: time, level, event, then `name=value`; an exception on lines of its own.

Text that others wrote can't move the cursor, forge a second line or turn the writing direction: what a terminal obeys
is shown as an escape.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import orjson

from mcpmux.observe.redaction import presentable, visible

_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_FIRST: Final = frozenset({"timestamp", "level", "event", "room", "exception"})
_QUOTED: Final = frozenset(" =\"'\\")


def console_line(colours: bool, _sink: object, _method: str, fields: Mapping[str, object]) -> bytes:
    """The fields as one line of text, or several when there is an exception; `colours` only on a real terminal."""
    level = str(fields.get("level", ""))
    time = fields.get("timestamp")
    clock = time.astimezone().strftime("%H:%M:%S.%f")[:-3] if isinstance(time, datetime) else ""
    event = visible(str(fields.get("event", "")))
    words = [_paint(clock, "2", colours), _paint(f"{level:<8}", _COLOURS.get(level, "0"), colours)]
    words.append(_paint(f"{event:<20}", "1", colours))
    words += [
        _paint(f"{visible(name)}=", "36", colours) + _word(presentable(value, name))
        for name, value in fields.items()
        if name not in _FIRST and value is not None
    ]
    text = " ".join(words).rstrip()
    if "exception" in fields:
        trace = str(presentable(fields["exception"]))
        text += "".join(f"\n    {visible(line)}" for line in trace.split("\n"))
    return f"{text}\n".encode("utf-8", "backslashreplace")


def _word(value: object) -> str:
    """One value; quoted when it would not be seen where it ends."""
    if not isinstance(value, str):
        return visible(orjson.dumps(value).decode())
    shown = visible(value)
    if shown and _QUOTED.isdisjoint(shown):
        return shown
    return '"' + shown.replace('"', '\\"') + '"'


def _paint(text: str, colour: str, colours: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text
