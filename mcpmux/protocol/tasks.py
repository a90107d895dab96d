"""Tasks on the wire: what a server and a tool say about them, and the task ids inside messages, read and exchanged.

A task is a request that works on after its answer. Revision 2025-11-25 has tasks as an experiment: a client asks for
one by the param `task` of `tools/call`, gets a `CreateTaskResult`, and comes back for state and result by `tasks/*`.
Everything else that has to do with a task names it in `_meta`.

In the modern era tasks are an extension. There a client says in each request that it knows them, and the server alone
decides whether a `tools/call` becomes one; its result is then the task itself, with `resultType` `task`, and state,
questions and result all come by `tasks/get`.

Owns the places where task ids stand and nothing else: which id stands for which is `calls/tasks.py`'s. Pure.
Source: MCP 2025-11-25 basic/utilities/tasks; the extension io.modelcontextprotocol/tasks (SEP-2663).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import DecodeError, Raw, Struct
from msgspec.json import Decoder

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope
from mcpmux.protocol.events import End, Failure, Result

SINCE: Final = "2025-11-25"
PARAM: Final = "task"  # of tools/call: the client wants a task; as a `resultType`: the result is one
RELATED: Final = "io.modelcontextprotocol/related-task"
EXTENSION: Final = "io.modelcontextprotocol/tasks"
EXTENSIONS: Final = "extensions"  # the capability that says which extensions somebody knows
CAPABILITY: Final[dict[str, dict[str, object]]] = {EXTENSIONS: {EXTENSION: {}}}
OPTIONAL: Final = "optional"
REQUIRED: Final = "required"
TO_BE_MADE: Final = "*"  # the task of a call that may become one
WORKING: Final = "working"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
INPUT_REQUIRED: Final = "input_required"
ENDED: Final = frozenset({COMPLETED, FAILED, CANCELLED})
FAILED_CODE: Final = -32603  # of a call whose task has no result
LONGEST_ID: Final = 1024  # characters of an id of a server


class Standing(Struct, frozen=True):
    """What a task says of itself: the server's id, and how long it is kept, in seconds (None: for ever).

    `pause`: seconds that the server wants between two looks at it, if it says so.
    """

    id: str
    status: str
    life: float | None
    pause: float | None = None

    @property
    def ended(self) -> bool:
        """Whether its state can change no more."""
        return self.status in ENDED


class Announced(Struct, frozen=True):
    """What of tasks a server can do."""

    calls: bool
    cancel: bool


def announced(capabilities: Mapping[str, Raw]) -> Announced:
    """What a server said in its greeting."""
    said = _object(capabilities.get("tasks")) or {}
    tools = _object((_object(said.get("requests")) or {}).get("tools")) or {}
    return Announced(_object(tools.get("call")) is not None, _object(said.get("cancel")) is not None)


def is_extended(capabilities: Mapping[str, Raw]) -> bool:
    """Whether a client or a server of the modern era says that it knows the extension."""
    return _object((_object(capabilities.get(EXTENSIONS)) or {}).get(EXTENSION)) is not None


def extended(capabilities: Mapping[str, Raw], knows: bool) -> dict[str, Raw]:
    """Capabilities of a client that knows the extension, or, whatever it says, does not."""
    others = _object(capabilities.get(EXTENSIONS)) or {}
    others.pop(EXTENSION, None)
    if knows:
        others[EXTENSION] = Raw(b"{}")
    rest = {name: raw for name, raw in capabilities.items() if name != EXTENSIONS}
    return {**rest, EXTENSIONS: Raw(envelope.encode(others))} if others else rest


def support(tool: bytes) -> str:
    """Whether a tool, as its server lists it, can be a task (`OPTIONAL`), is one or nothing (`REQUIRED`), or none."""
    if b"taskSupport" not in tool:
        return ""
    try:
        said = _TOOL.decode(tool).execution.taskSupport
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return said if said in (OPTIONAL, REQUIRED) else ""


def listed(tool: bytes, said: str) -> bytes:
    """A tool as it is listed that says this of tasks, or (empty) nothing."""
    found = _object(Raw(tool)) or {}
    execution = _object(found.pop("execution", None)) or {}
    execution.pop("taskSupport", None)
    if said:
        execution["taskSupport"] = Raw(envelope.encode(said))
    return envelope.encode({**found, "execution": execution} if execution else found)


def lacking(data: Raw | None) -> bool:
    """Whether the data of a refusal say that nothing is missing but that a client knows the extension."""
    wanted = _object((_object(data) or {}).get("requiredCapabilities")) or {}
    return wanted.keys() == {EXTENSIONS} and (_object(wanted[EXTENSIONS]) or {}).keys() == {EXTENSION}


def standing(task: Raw | Mapping[str, Raw] | None) -> Standing | None:
    """What a task object says; None if it is none."""
    found = task if isinstance(task, Mapping) else _object(task)
    if found is None:
        return None
    task_id, status = envelope.text(found.get("taskId")), envelope.text(found.get("status"))
    if task_id is None or status is None or len(task_id) > LONGEST_ID:
        return None
    life, pause = found.get("ttl", found.get("ttlMs")), found.get("pollInterval", found.get("pollIntervalMs"))
    return Standing(task_id, status, _seconds(life), _seconds(pause))


def made(result: Raw) -> Standing | None:
    """The task in a `CreateTaskResult`; None if the result is none."""
    found = _object(result)
    return None if found is None else standing(found.get("task"))


def turned(result: Raw) -> dict[str, Raw] | None:
    """The members of a result that is a task of the extension, without its `resultType`; None if it is none."""
    found = _object(result)
    return found if found is not None and envelope.text(found.pop("resultType", None)) == PARAM else None


def state(result: Raw) -> dict[str, Raw] | None:
    """The members of what `tasks/get` answers."""
    return _object(result)


def outcome(found: Mapping[str, Raw]) -> End | None:
    """What the call of a task of the extension has come to, which has ended; None if that cannot be read."""
    status = envelope.text(found.get("status"))
    if status == COMPLETED:
        return None if _object(found.get("result")) is None else Result(found["result"])
    if status == CANCELLED:
        return Failure(FAILED_CODE, envelope.text(found.get("statusMessage")) or "The server cancelled the task")
    return _failure(found.get("error"))


def payload(result: Raw) -> End:
    """What `tasks/result` has answered, as an answer to the call; some servers have nothing for a task that failed."""
    found = None if b'"content"' in bytes(result) else _object(result)
    if found is not None and not found.keys() - {"_meta"}:
        return Failure(FAILED_CODE, "The task has ended without a result")
    return Result(unmarked_raw(result))


def crossed(task: Mapping[str, Raw], task_id: str, status: str, more: Mapping[str, Raw]) -> Raw:
    """A task of 2025-11-25 as one of the extension, with this id and status and what else is to be said of it."""
    found = unmarked({name: raw for name, raw in task.items() if name not in _RENAMED and name not in more})
    found |= {"taskId": Raw(envelope.encode(task_id)), "status": Raw(envelope.encode(status)), **more}
    found |= {new: task[old] for old, new in _RENAMED.items() if old in task}
    return Raw(envelope.encode({"ttlMs": Raw(b"null"), **found}))


def crossed_made(result: Raw, task_id: str) -> Raw:
    """A `CreateTaskResult` as the extension has it. What has come of a task is said by `tasks/get` alone."""
    found = _object(result) or {}
    task, meta = _object(found.get("task")) or {}, unmarked(found).get("_meta")
    return crossed(task, task_id, WORKING, {} if meta is None else {"_meta": meta})


def ending(end: End) -> tuple[str, dict[str, Raw]]:
    """The status of a task of the extension that has come to this, and what says so."""
    if isinstance(end, Result):
        return COMPLETED, {"result": end.result}
    error: dict[str, object] = {"code": end.code, "message": end.message}
    return FAILED, {"error": Raw(envelope.encode(error if end.data is None else {**error, "data": end.data}))}


def renamed_made(result: Raw, task_id: str) -> Raw:
    """A `CreateTaskResult` whose task has this id."""
    found = _object(result) or {}
    found["task"] = renamed(found["task"], task_id)
    return Raw(envelope.encode(_related(found, task_id)))


def renamed(task: Raw, task_id: str) -> Raw:
    """A task object, or the result that is one, with this id."""
    found = {**(_object(task) or {}), "taskId": Raw(envelope.encode(task_id))}
    return Raw(envelope.encode(_related(found, task_id)))


def renamed_params(params: Mapping[str, Raw], task_id: str) -> dict[str, Raw]:
    """The params of a notification that says how a task stands, with this id."""
    return _related({**params, "taskId": Raw(envelope.encode(task_id))}, task_id)


def marked(result: Raw, task_id: str) -> Raw | None:
    """The result of `tasks/result`, which must say whose it is; None if that cannot be said in it."""
    found = _object(result)
    if found is None:
        return None
    meta = {} if "_meta" not in found else _object(found["_meta"])
    if meta is None:
        return None
    meta[RELATED] = _named(task_id)
    return Raw(envelope.encode({**found, "_meta": meta}))


def remarked(params: dict[str, Raw] | None, task_id: str) -> dict[str, Raw] | None:
    """Params (or a result's members) that name a task in `_meta`, with this id; without one they stay as they are."""
    return params if params is None else _related(params, task_id)


def remarked_raw(raw: Raw, task_id: str) -> Raw:
    """The same for an object that is still raw."""
    found = _object(raw)
    changed = found if found is None else _related(found, task_id)
    return raw if found is None or changed is None or changed is found else Raw(envelope.encode(changed))


def unmarked(params: Mapping[str, Raw]) -> dict[str, Raw]:
    """Members without what their `_meta` says about the task that they have to do with."""
    found = dict(params)
    meta = _object(found.pop("_meta", None)) or {}
    meta.pop(RELATED, None)
    if meta:
        found["_meta"] = Raw(envelope.encode(meta))
    return found


def unmarked_raw(raw: Raw) -> Raw:
    """The same for an object that is still raw."""
    body = bytes(raw)
    found = _object(raw) if b"related-task" in body or b"\\u00" in body else None
    return raw if found is None else Raw(envelope.encode(unmarked(found)))


def related(params: Mapping[str, Raw] | None) -> str | None:
    """The id of the task that a message says it has to do with."""
    meta = None if params is None else _object(params.get("_meta"))
    named = None if meta is None else _object(meta.get(RELATED))
    return None if named is None else envelope.text(named.get("taskId"))


def _related(found: dict[str, Raw], task_id: str) -> dict[str, Raw]:
    meta = _object(found.get("_meta"))
    if meta is None or RELATED not in meta:
        return found
    return {**found, "_meta": Raw(envelope.encode({**meta, RELATED: _named(task_id)}))}


def _named(task_id: str) -> Raw:
    return Raw(envelope.encode({"taskId": task_id}))


def _failure(raw: Raw | None) -> Failure | None:
    found = _object(raw) or {}
    code = envelope.identifier(found.get("code"))
    if not isinstance(code, int):
        return None
    return Failure(code, envelope.text(found.get("message")) or "", found.get("data"))


class _Execution(Struct):
    taskSupport: str = ""


class _Tool(Struct):
    execution: _Execution = msgspec.field(default_factory=_Execution)


_TOOL: Final = Decoder(_Tool)
# Members of a task of 2025-11-25, and what the extension calls them.
_RENAMED: Final = {"ttl": "ttlMs", "pollInterval": "pollIntervalMs"}
_NUMBER: Final = Decoder(float)


def _seconds(raw: Raw | None) -> float | None:
    """A number of milliseconds in seconds; what is none, or none that can be, means for ever."""
    try:
        found = None if raw is None else _NUMBER.decode(raw)
    except (DecodeError, UnicodeDecodeError):
        return None
    return found / 1000 if found is not None and found >= 0 else None


def _object(raw: Raw | None) -> dict[str, Raw] | None:
    try:
        return None if raw is None else envelope.members(raw)
    except (InvalidRequest, MalformedMessage):
        return None
