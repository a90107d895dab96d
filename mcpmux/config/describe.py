"""The JSON Schema of `servers.yaml`, for editors that complete and check while a person types.

Owns only the translation: every field, bound and word comes from `schema.py`. What the schema cannot say (secrets'
forms, duplicate issuers) `check` says. Rule of the file: whatever `load` accepts, the schema accepts, so that an editor
never marks a good file; a value may be a reference wherever text can stand in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict

from mcpmux.config.schema import (
    BYTES_PATTERN,
    DATA_DIR,
    ID_PATTERN,
    ISOLATIONS_OF_FIELD,
    SECONDS_PATTERN,
    Gateway,
    Section,
    ServerSection,
)
from mcpmux.config.shape import Field, Shape, fields_of
from mcpmux.seal import Secret

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

SCHEMA_FILE: Final = "servers.schema.json"

_REFERENCE: Final = r"\$\{(env|file):[^{}]+\}"


def json_schema() -> dict[str, Json]:
    """The schema as a JSON value (draft 2020-12)."""
    server = _section(ServerSection)
    server["allOf"] = [_transports(), *_isolations()]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mcpmux servers.yaml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "gateway": {**_section(Gateway), "type": ["object", "null"]},
            "servers": {
                "description": "MCP servers by id. Changes are applied while mcpmux runs.",
                "type": ["object", "null"],
                "propertyNames": {"pattern": ID_PATTERN},
                "additionalProperties": server,
            },
        },
    }


def schema_text() -> str:
    """The contents of `config/servers.schema.json`."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _section(section: type[Section]) -> dict[str, Json]:
    fields = fields_of(section)
    required: list[Json] = [field.name for field in fields if field.required and field.name != "data_dir"]
    schema: dict[str, Json] = {
        "description": " ".join((section.__doc__ or "").split("\n\n")[0].split()),
        "type": ["object"] if required else ["object", "null"],
        "additionalProperties": False,
        "properties": {field.name: _property(field) for field in fields},
    }
    return schema | ({"required": required} if required else {})


def _property(field: Field) -> dict[str, Json]:
    schema = _value(field.shape)
    if field.shape.said:
        schema["description"] = field.shape.said
    if field.name == "data_dir":
        schema["default"] = DATA_DIR
    elif not field.required:
        schema["default"] = _plain(field.default)
    return schema


def _value(shape: Shape) -> dict[str, Json]:
    match shape.kind:
        case "section" if shape.section is not None:
            return _section(shape.section)
        case "list" if shape.item is not None:
            return {"type": "array", "items": _value(shape.item), **_bounds(minItems=shape.shortest)}
        case "map" if shape.item is not None:
            names: dict[str, Json] = {"pattern": shape.key_pattern}
            return {"type": ["object", "null"], "propertyNames": names, "additionalProperties": _value(shape.item)}
        case "truth" | "number" | "bytes" | "seconds" | "choice":
            nothing: list[Json] = [{"type": "null"}] if shape.optional else []
            return {"anyOf": [*_alternatives(shape), *nothing, {"type": "string", "pattern": _REFERENCE}]}
        case _:
            return _text(shape)


def _alternatives(shape: Shape) -> list[Json]:
    """What a value that is not free text may be, besides a reference."""
    if shape.kind == "truth":
        return [{"type": "boolean"}]
    if shape.kind == "choice":
        return [{"enum": list(shape.choices)}]
    number: dict[str, Json] = {"type": "number" if shape.kind == "seconds" else "integer"}
    number |= _bounds(minimum=shape.low, exclusiveMinimum=shape.above, maximum=shape.high)
    if shape.kind == "number":
        return [number]
    pattern = BYTES_PATTERN if shape.kind == "bytes" else SECONDS_PATTERN
    return [{"type": "string", "pattern": pattern}, number]


def _text(shape: Shape) -> dict[str, Json]:
    schema: dict[str, Json] = {"type": ["string", "null"] if shape.optional else "string"}
    if shape.pattern is not None:
        schema["anyOf"] = [{"pattern": shape.pattern}, {"pattern": _REFERENCE}, {"type": "null"}]
    return schema


def _bounds(**bounds: float | None) -> dict[str, Json]:
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _transports() -> dict[str, Json]:
    """What a stdio server must and must not have, and what the others."""
    remote: dict[str, Json] = {"enum": ["http", "sse"]}
    return {
        "if": {"required": ["transport"], "properties": {"transport": remote}},
        "then": {"required": ["url"], "properties": {"command": False, "env": False, "cwd": False}},
        "else": {
            "if": {"properties": {"transport": {"const": "stdio"}}},
            "then": {"required": ["command"], "properties": {"url": False, "headers": False}},
        },
    }


def _isolations() -> list[Json]:
    """What only some isolations may have; a reference may come out as any."""
    rules: list[Json] = []
    for name, isolations in ISOLATIONS_OF_FIELD.items():
        fits: Json = {"anyOf": [{"enum": list(isolations)}, {"type": "string", "pattern": _REFERENCE}]}
        given: dict[str, Json] = {"required": ["isolation"], "properties": {"isolation": fits}}
        rules.append({"if": given, "else": {"properties": {name: False}}})
    return rules


def _plain(value: object) -> Json:
    """A default as JSON shows it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case Struct():
            return {name: _plain(item) for name, item in asdict(value).items()}
        case Path() | Secret():
            return str(value)
    raise TypeError(f"no JSON for a default of type {type(value).__name__}")
