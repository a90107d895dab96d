"""Content blocks that are younger than a client's revision."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

from mcpmux.protocol.downstream.blocks import as_known

AUDIO = {"type": "audio", "data": "AAAA", "mimeType": "audio/wav", "annotations": {"priority": 1}}
LINK = {"type": "resource_link", "uri": "counter://note/1", "name": "note 1"}
TEXT = {"type": "text", "text": 'it says "audio"'}


def known(method: str, result: object, revision: str) -> object:
    return json.loads(bytes(as_known(method, Raw(json.dumps(result).encode()), revision)))


def test_a_kind_that_the_revision_does_not_have_becomes_text() -> None:
    result = {"content": [TEXT, AUDIO, LINK], "_meta": {"a": 1}}
    found = known("tools/call", result, "2024-11-05")
    assert found == {
        "content": [
            TEXT,
            {"type": "text", "text": "[audio, audio/wav: not known to this client's protocol]",
             "annotations": {"priority": 1}},
            {"type": "text", "text": "note 1: counter://note/1"},
        ],
        "_meta": {"a": 1},
    }  # fmt: skip
    newer = known("tools/call", result, "2025-03-26")
    assert newer == {**result, "content": [TEXT, AUDIO, {"type": "text", "text": "note 1: counter://note/1"}]}
    assert known("tools/call", result, "2025-06-18") == result


def test_so_it_does_in_the_messages_of_a_prompt() -> None:
    result = {"messages": [{"role": "user", "content": LINK}, {"role": "user", "content": TEXT}]}
    found = known("prompts/get", result, "2025-03-26")
    assert found == {
        "messages": [
            {"role": "user", "content": {"type": "text", "text": "note 1: counter://note/1"}},
            {"role": "user", "content": TEXT},
        ]
    }


@pytest.mark.parametrize(
    "result", [{"audio": 1}, {"content": "audio"}, {"content": ["audio"]}, {"content": {"audio": 1}}]
)
def test_what_is_no_result_goes_on_as_it_is(result: object) -> None:
    assert known("tools/call", result, "2024-11-05") == result


def test_a_result_without_such_blocks_is_the_very_same() -> None:
    raw = Raw(b'{"content":[]}')
    assert as_known("tools/call", raw, "2024-11-05") is raw
    assert as_known("resources/read", Raw(b'{"type":"audio"}'), "2024-11-05") == Raw(b'{"type":"audio"}')
