"""The official JSON Schemas of the protocol, for what mcpmux sends.

The files are those of the specification's repository, as they are there (`schema/<revision>/schema.json`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from jsonschema import Draft202012Validator

MODERN = "2026-07-28"
Json = Mapping[str, object]

# What answers which request, in the modern era.
RESULTS = {
    "server/discover": "DiscoverResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
    "prompts/list": "ListPromptsResult",
    "prompts/get": "GetPromptResult",
    "resources/list": "ListResourcesResult",
    "resources/templates/list": "ListResourceTemplatesResult",
    "resources/read": "ReadResourceResult",
    "completion/complete": "CompleteResult",
    "subscriptions/listen": "SubscriptionsListenResult",
}
ERRORS = {
    -32020: "HeaderMismatchError",
    -32021: "MissingRequiredClientCapabilityError",
    -32022: "UnsupportedProtocolVersionError",
}


@functools.cache
def _validator(revision: str, definition: str) -> Draft202012Validator:
    whole = json.loads((Path(__file__).parent / f"{revision}.json").read_text())
    return Draft202012Validator({"$schema": whole["$schema"], "$ref": f"#/$defs/{definition}", "$defs": whole["$defs"]})


def check(definition: str, value: object, revision: str = MODERN) -> None:
    """Fail unless `value` is what the schema calls by that name."""
    problems = [
        f"{error.json_path}: {error.message[:300]}" for error in _validator(revision, definition).iter_errors(value)
    ]
    assert not problems, "\n".join([definition, *problems])


def check_modern(message: Json, method: str) -> None:
    """Fail unless a message that mcpmux sent while it answered `method` is one of the modern era."""
    if "method" in message:
        check("ServerNotification", message)
    elif "error" in message:
        error = message["error"]
        assert isinstance(error, Mapping)
        check(ERRORS.get(error["code"], "JSONRPCErrorResponse"), message)
    else:
        check("JSONRPCResultResponse", message)
        result = message["result"]
        kind = result.get("resultType") if isinstance(result, Mapping) else None
        if kind == "task" or method.startswith("tasks/"):
            check("Result", result)  # the schema of the extension is not part of this one
        else:
            check("InputRequiredResult" if kind == "input_required" else RESULTS[method], result)
