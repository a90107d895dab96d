"""The log: one line for each thing that happened, as JSON for machines or as text on a terminal.

Owns the set-up of structlog, the fixed list of processors, and the capture of everything else that would write to
stderr: the libraries' logging, Python's warnings, and exceptions that nobody caught. Off a terminal every line is one
JSON object with `timestamp`, `level`, `event`, `room` and the fields. It decides nothing about what is worth a line.

An event is a `noun_pastverb` constant and all else a field: `log.info("call_finished", server=id, outcome="ok")`.
Context is passed as fields, never as context variables: they are wrong in a link's read loop, which serves many calls.

A line of ten fields costs some 7 µs: a screen tells whether its texts are plainly harmless, and only a
line that does not pass is taken apart, redacted and escaped (`redaction.py`). Writing is `output.py`'s.

Loggers are made when modules are imported, before anybody knows the level or the stream. So they share one list of
processors and one sink, whose contents `configure` replaces, and their class (structlog makes one for each level, in
which what is below it does nothing) is replaced as well.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, TextIO, cast

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from mcpmux.observe.console import console_line
from mcpmux.observe.output import LogOutput
from mcpmux.observe.redaction import Screen, escaped_json, presentable

Logger = FilteringBoundLogger
Fields = MutableMapping[str, object]

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_OPTIONS: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z
_SCREEN: Final = Screen()
_OURS: Final = frozenset({"timestamp", "level"})


def configure(*, console: bool, level: str = "info", stream: TextIO | None = None) -> LogOutput:
    """Send every line from now on to `stream` (stderr), from `level` on; `close()` of the answer undoes it.

    Libraries are heard from warnings on; from info on when our own level is debug.
    """
    global _output
    if _output is not None:
        _output.close()
    stream = stream or sys.stderr
    undo = ExitStack()
    render = partial(console_line, stream.isatty()) if console else json_line
    output = LogOutput(stream, partial(_dropped_line, render), undo)
    _output, _SINK.output = output, output
    _PROCESSORS[-1] = render
    _set_level(level)
    undo.callback(_reset, output)
    _capture(undo, level)
    atexit.register(output.close)
    undo.callback(atexit.unregister, output.close)
    return output


def logger(room: str) -> Logger:
    """The logger of one room, the same each time; good at import, whenever the log is configured."""
    if (made := _LOGGERS.get(room)) is None:
        made = _LOGGERS[room] = _class_for(_level)(_SINK, _PROCESSORS, {"room": room})
    return cast(Logger, made)


class Stencil:
    """A line that is written again and again with the same words: only its time, duration and request id differ.

    The same words are screened and made JSON once, so that a line costs a fifth of what `info` does. On a terminal, and
    above level info, it is an ordinary line.
    """

    __slots__ = ("_event", "_logger", "_text", "_words")

    def __init__(self, room: str, event: str, words: Fields) -> None:
        self._logger = logger(room)
        self._event = event
        self._words = words
        line = json_line(None, "info", {"level": "info", "event": event, "room": room, **words})
        self._text = line[1:-2]

    @staticmethod
    def write(entries: Sequence[tuple[Stencil, float, float, str]]) -> None:
        """Write lines at info, together; of each its stencil, `timestamp` (unix seconds), `duration_ms`, `request_id`.

        The request id is one of ours: it goes into the line as it is.
        """
        if not _SINK.ordinary:
            for stencil, at, took, request_id in entries:
                when = datetime.fromtimestamp(at, UTC)
                differing: Fields = {"timestamp": when, "duration_ms": took, "request_id": request_id}
                stencil._logger.info(stencil._event, **stencil._words, **differing)
            return
        stamp = _SINK.stamp
        lines = [
            b'{"timestamp":"%b",%b,"duration_ms":%a,"request_id":"%b"}\n'
            % (stamp(at), stencil._text, took, request_id.encode())
            for stencil, at, took, request_id in entries
        ]
        _SINK.info(b"".join(lines), len(lines))


# Processors ----------------------------------------------------------------------------------------------------


def _stamped(_sink: object, method: str, fields: Fields) -> Fields:
    """The line begins with what every reader looks for; a field of the same name keeps its value as `field_…`."""
    # A line that is written late has the time of what it tells.
    at = fields.pop("timestamp") if isinstance(fields.get("timestamp"), datetime) else datetime.now(UTC)
    line: Fields = {"timestamp": at, "level": method, "event": fields.pop("event", "")}
    if not _OURS.isdisjoint(fields):
        for name in _OURS & fields.keys():
            fields[f"field_{name}"] = fields.pop(name)
    line.update(fields)
    return line


def _traced(_sink: object, _method: str, fields: Fields) -> Fields:
    """An exception as text: `exc_info` as structlog and logging have it becomes `exception`."""
    if "exc_info" in fields and (error := _exception(fields.pop("exc_info"))) is not None:
        lines = traceback.format_exception(error)
        fields["exception"] = "".join(lines).rstrip()
    return fields


def json_line(_sink: object, _method: str, fields: Fields) -> bytes:
    """The fields as one line of JSON, secrets hidden, whatever they hold."""
    if _SCREEN.passes(fields):
        try:
            return orjson.dumps(fields, option=_OPTIONS)
        except TypeError:  # an integer of more than 64 bits
            pass
    line = orjson.dumps({str(name): _shown(name, value) for name, value in fields.items()}, option=_OPTIONS)
    return escaped_json(line.decode()).encode()


def _shown(name: str, value: object) -> object:
    return value if isinstance(value, datetime) else presentable(value, name)


def _exception(exc_info: object) -> BaseException | None:
    match exc_info:
        case BaseException():
            return exc_info
        case (_, BaseException() as error, _):
            return error
        case True:
            return sys.exception()
        case _:
            return None


# The one sink and the loggers that were made -------------------------------------------------------------------


class _Sink:
    """What structlog calls with a finished line: by level, into the output of the moment.

    `ordinary`: lines at info are written, as JSON.
    """

    __slots__ = ("_date", "_second", "ordinary", "output")

    def __init__(self) -> None:
        self.output: LogOutput | None = None
        self.ordinary = True
        self._second = -1
        self._date = b""

    def stamp(self, at: float) -> bytes:
        """A time in unix seconds as a line shows it; the date and time of day are made once a second."""
        second = int(at)
        if second != self._second:
            self._second = second
            self._date = datetime.fromtimestamp(second, UTC).isoformat()[:19].encode()
        return b"%b.%06dZ" % (self._date, (at - second) * 1e6)

    def info(self, line: bytes, count: int = 1) -> None:
        if self.output is not None:
            self.output.write(line, count)
        else:
            _unconfigured(line)

    def error(self, line: bytes) -> None:
        if self.output is not None:
            self.output.write_now(line)
        else:
            _unconfigured(line)

    debug = msg = info
    warning = warn = critical = fatal = exception = error


_output: LogOutput | None = None
_level = "info"
_SINK: Final = _Sink()
_PROCESSORS: Final[list[Callable[[Any, str, Any], Any]]] = [_stamped, _traced, json_line]
_LOGGERS: Final[dict[str, Any]] = {}


def _unconfigured(line: bytes) -> None:
    """Before `configure`, in a test or a small command: straight to whatever stderr is now."""
    sys.stderr.write(line.decode())


def _class_for(level: str) -> Any:
    kind = structlog.make_filtering_bound_logger(level)
    if LEVELS.index(level) > LEVELS.index("info"):
        return kind
    return type(kind.__name__, (kind,), {"info": _info})


def _info(self: Any, event: str | None = None, *args: object, **fields: object) -> None:
    """structlog's `info`, straight through for what nearly every line is: an event and fields, nothing to prepare.

    The line of every call goes this way; structlog's general one costs as much again as making and writing it.
    """
    at = fields.get("timestamp") or datetime.now(UTC)
    if args or "exc_info" in fields or "level" in fields or "event" in fields or at.__class__ is not datetime:
        self._proxy_to_logger("info", event, *args, **fields)
        return
    line: Fields = {"timestamp": at, "level": "info", "event": event, **self._context, **fields}
    _SINK.info(_PROCESSORS[-1](None, "info", line))


def _set_level(level: str) -> None:
    global _level
    _level = level
    kind = _class_for(level)
    _SINK.ordinary = _PROCESSORS[-1] is json_line and LEVELS.index(level) <= LEVELS.index("info")
    for made in _LOGGERS.values():
        made.__class__ = kind
    structlog.configure(processors=_PROCESSORS, wrapper_class=kind, context_class=dict, logger_factory=lambda *_: _SINK)


def _reset(output: LogOutput) -> None:
    global _output
    if _output is output:
        _output, _SINK.output = None, None
        _PROCESSORS[-1] = json_line
        _set_level("info")


def _dropped_line(render: Callable[[Any, str, Any], bytes], lines: int) -> bytes:
    fields = _stamped(None, "warning", {"event": "log_dropped", "room": "observe", "lines": lines})
    return render(None, "warning", fields)


# What others write ---------------------------------------------------------------------------------------------


def _capture(undo: ExitStack, level: str) -> None:
    """Turn logging, warnings and uncaught exceptions into lines; `undo` puts back what was there."""
    root = logging.getLogger()
    former = root.handlers[:], root.level, logging.raiseExceptions
    root.handlers[:] = [_Bridge()]
    root.setLevel(logging.INFO if level == "debug" else max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.raiseExceptions = False
    undo.callback(_restore_logging, root, *former)
    for owner, name, ours in (
        (warnings, "showwarning", _warned),
        (sys, "excepthook", _uncaught),
        (sys, "unraisablehook", _unraisable),
        (threading, "excepthook", _uncaught_in_thread),
    ):
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, ours)


def _restore_logging(root: logging.Logger, handlers: list[logging.Handler], level: int, complain: bool) -> None:
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = complain


class _Bridge(logging.Handler):
    """The libraries' logging (aiohttp, asyncio, asyncpg …) as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - whatever its arguments raise, a broken message is no reason to fail
            message = f"{record.msg} (arguments do not fit)"
        write = getattr(_LIBRARIES, _nearest(record.levelno))
        write("library_logged", logger=record.name, message=message, exc_info=record.exc_info)


def _nearest(number: int) -> str:
    """The level at or below a number of the logging module."""
    return LEVELS[min(max(number // 10 - 1, 0), len(LEVELS) - 1)]


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _LIBRARIES.warning(
        "warning_raised", category=category.__name__, message=str(message), source=f"{filename}:{lineno}"
    )


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _LIBRARIES.warning("process_interrupted")
    else:
        _LIBRARIES.critical("exception_uncaught", exc_info=error)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else None
        _LIBRARIES.error("exception_uncaught", thread=name, exc_info=args.exc_value)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    where = getattr(args.object, "__qualname__", type(args.object).__name__)
    _LIBRARIES.error("exception_unraisable", where=where, message=args.err_msg, exc_info=args.exc_value)


_LIBRARIES: Final = logger("libraries")
