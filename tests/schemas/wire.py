"""Every message that mcpmux sends on one wire, checked against the official schema of the revision spoken there.

A `Wire` sees both sides of one connection: what the other side sends it only remembers (`heard`), because a result is
checked as that of the request it answers; what mcpmux sends must be right (`sent`). A definition is looked up by its
method, so that a problem names the member that is wrong, not a list of all alternatives.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jsonschema.validators

from tests.schemas import ERRORS, MODERN

Json = Mapping[str, object]
Side = Literal["Client", "Server"]

# Where the name of a result's definition is not that of its request.
_RESULTS = {
    "ping": "EmptyResult",
    "tasks/result": "GetTaskPayloadResult",
}
_SHOWN = 300  # characters of a problem


class Wire:
    """One connection; `mcpmux` says which side it is."""

    def __init__(self, revision: str, mcpmux: Side) -> None:
        self.revision = revision
        self._side = mcpmux
        self._other: Side = "Client" if mcpmux == "Server" else "Server"
        self._asked: dict[object, str] = {}

    def heard(self, message: object) -> None:
        """Remember what the other side sent, whatever it is."""
        for one in message if isinstance(message, list) else [message]:
            if isinstance(one, dict) and "id" in one and isinstance(one.get("method"), str):
                self._asked[repr(one["id"])] = one["method"]

    def forget(self) -> None:
        """The other side sent what nobody can read: what is answered now may answer that."""
        self._asked.clear()

    def sent(self, message: object) -> None:
        """Fail unless what mcpmux sent is right."""
        for one in message if isinstance(message, list) else [message]:
            problems = self._problems(one)
            assert not problems, "\n".join([f"not as {self.revision} has it: {str(one)[:1000]}", *problems])

    def _problems(self, message: object) -> list[str]:
        if not isinstance(message, dict):
            return ["no JSON object"]
        if "method" in message:
            kind = "Request" if "id" in message else "Notification"
            # A server is asked this before its era is known.
            revision = MODERN if message["method"] == "server/discover" else self.revision
            name = _methods(revision, f"{self._side}{kind}").get(message["method"])
            if name is None:
                return [f"a {self._side.lower()} has no {kind.lower()} {message['method']}"]
            return problems(revision, name, message)
        if "error" in message:
            # An error whose request could not be read has no id over HTTP, and a null one elsewhere (JSON-RPC 2.0,
            # section 5). Before 2025-11-25 the schemas have no form for either; everything else of it is checked.
            unread = self.revision < "2025-11-25" and message.get("id") is None
            readable = {**message, "id": 0} if unread else message
            return problems(self.revision, _error(self.revision, message), readable)
        found = problems(self.revision, _first(self.revision, "JSONRPCResultResponse", "JSONRPCResponse"), message)
        method = self._asked.get(repr(message.get("id")))
        if found or method is None:
            return found
        return problems(self.revision, self._result(method, message["result"]), message["result"])

    def _result(self, method: str, result: Json) -> str:
        if result.get("resultType") == "input_required":
            return "InputRequiredResult"
        if "task" in result and "CreateTaskResult" in _definitions(self.revision):
            return "CreateTaskResult"
        asked = _methods(self.revision, f"{self._other}Request").get(method, "")
        named = _RESULTS.get(method, asked.removesuffix("Request") + "Result")
        return _first(self.revision, named, "EmptyResult")


def problems(revision: str, definition: str, value: object) -> list[str]:
    """What is wrong with a value that should be what the schema calls by that name."""
    found = _validator(revision, definition).iter_errors(value)
    return [f"{definition} {error.json_path}: {error.message[:_SHOWN]}" for error in found]


@functools.cache
def _schema(revision: str) -> dict[str, Any]:
    found = json.loads((Path(__file__).parent / f"{revision}.json").read_text())
    assert isinstance(found, dict)
    return found


def _definitions(revision: str) -> dict[str, Any]:
    schema = _schema(revision)
    found = schema.get("$defs") or schema["definitions"]
    assert isinstance(found, dict)
    return found


@functools.cache
def _validator(revision: str, definition: str) -> Any:
    schema = _schema(revision)
    place = "$defs" if "$defs" in schema else "definitions"
    whole = {"$schema": schema["$schema"], "$ref": f"#/{place}/{definition}", place: schema[place]}
    return jsonschema.validators.validator_for(whole)(whole)


@functools.cache
def _methods(revision: str, union: str) -> Mapping[object, str]:
    """The definitions of a union, by their methods."""
    definitions = _definitions(revision)
    whole = definitions.get(union, {"anyOf": []})
    names = [entry["$ref"].rpartition("/")[2] for entry in whole.get("anyOf", [])]
    if "anyOf" not in whole:
        names = [name for name in definitions if definitions[name].get("properties") == whole.get("properties")]
    return {definitions[name]["properties"]["method"]["const"]: name for name in names if name != union}


def _error(revision: str, message: Json) -> str:
    error = message["error"]
    code = error.get("code") if isinstance(error, dict) else None
    if revision == MODERN and isinstance(code, int) and code in ERRORS:
        return ERRORS[code]
    return _first(revision, "JSONRPCErrorResponse", "JSONRPCError")


def _first(revision: str, *names: str) -> str:
    """The first of these names that the schema has."""
    return next(name for name in names if name in _definitions(revision))
