"""The JSON Schema that editors use is current, and accepts whatever mcpmux accepts."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from mcpmux.config.describe import SCHEMA_FILE, json_schema, schema_text
from mcpmux.config.load import read
from mcpmux.config.schema import Overrides, Snapshot
from tests.config.reading import written

SHIPPED = Path(__file__).parents[2] / "config"
AGAIN = 'python -c "import sys; from mcpmux.config.describe import schema_text; sys.stdout.write(schema_text())"'

TEXTS = [
    "gateway:\nservers:\n",
    "servers: {a: {command: [x], timeout: 60, links: 2, isolation: pooled}}",
    "servers: {a: {command: [x], isolation: session, max_links: 8, idle: 10m}}",
    "servers: {a: {command: [x], isolation: user, max_links: 8, idle: 600}}",
    "servers: {a: {command: [x], isolation: '${env:I:-pooled}', links: 2}}",
    "servers: {a: {command: [x], isolation: pooled, idle: 10m}}",
    "servers: {a: {command: [x], isolation: session, links: 2}}",
    "servers: {a: {command: [x], max_links: 2}}",
    "servers: {a: {command: [x], isolation: pooled, links: 0}}",
    "servers: {a: {command: [x], timeout: 1.5h, concurrency: '${env:N:-3}', enabled: '${env:ON:-true}'}}",
    "servers: {a: {transport: '${env:T:-stdio}', command: [x]}}",
    "servers: {a: {transport: sse, url: 'http://x/', headers: {}, tags: [], tools: {allow: [], deny: ['*']}}}",
    "servers: {a: {command: [x], env: , tools: , cwd: null, url: null}}",
    "gateway: {limits: {body: 4MiB, session_idle: 1800, drain: 0}, database: {url: null}, public_url: null}",
    "gateway: {keys: ['0123456789012345678901234567890123456789'], identity: , cors: {origins: ['http://x:1']}}",
    "gateway: {identity: {issuers: [{issuer: 'https://x', audiences: [a], kind: null, groups: ids}]}}",
    "servers: {a: {}}",
    "servers: {a: {command: [x], url: 'http://x'}}",
    "servers: {a: {transport: http, command: [x]}}",
    "servers: {a: {comand: [x]}}",
    "servers: {a__b: {command: [x]}}",
    "servers: {a: {command: x}}",
    "servers: {a: {command: [x], timeout: soon}}",
    "servers: {a: {command: [x], concurrency: 0}}",
    "servers: {a: {command: [x], env: {'1A': x}}}",
    "gateway: {listen: {port: 70000}}",
    "gateway: {identity: {issuers: [{issuer: 'https://x'}]}}",
    "gateway: {identity: {issuers: [{issuer: 'https://x', audiences: [], algorithms: [none]}]}}",
    "other: {}",
]


def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_file_is_what_the_code_says() -> None:
    current = (SHIPPED / SCHEMA_FILE).read_text()
    assert current == schema_text(), f"config/{SCHEMA_FILE} is old; make it anew: {AGAIN} > config/{SCHEMA_FILE}"


def test_the_shipped_file_names_the_schema_and_satisfies_it() -> None:
    text = (SHIPPED / "servers.yaml").read_text()
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    assert [error.message for error in validator().iter_errors(_plain(text))] == []


@pytest.mark.parametrize("text", TEXTS)
def test_editors_and_mcpmux_agree_on_what_is_good(tmp_path: Path, text: str) -> None:
    taken = isinstance(read(written(tmp_path, text), {}, overrides=Overrides()).outcome, Snapshot)
    assert validator().is_valid(_plain(text)) == taken


def test_every_field_is_described_and_has_its_default() -> None:
    def fields(schema: object) -> list[tuple[str, dict[str, object]]]:
        if not isinstance(schema, dict):
            return []
        found = [
            (name, field)
            for name, field in schema.get("properties", {}).items()
            if isinstance(field, dict) and "allOf" not in field
        ]
        inner = [schema.get("items"), schema.get("additionalProperties"), *(field for _, field in found)]
        return found + [deeper for one in inner for deeper in fields(one)]

    top = json_schema()["properties"]
    assert isinstance(top, dict)
    found = fields({"properties": top["gateway"]["properties"]}) + fields(top["servers"]["additionalProperties"])
    assert len(found) > 45
    for name, field in found:
        assert field.get("description"), name
        assert "default" in field or name in ("issuer", "audiences"), name


def _plain(text: str) -> object:
    return YAML(typ="safe", pure=True).load(text)
