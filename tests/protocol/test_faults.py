"""`protocol/faults.py`: every exception of ours has a row, and no internal text gets out."""

from __future__ import annotations

import inspect
import json

import pytest

from mcpmux import errors
from mcpmux.protocol import faults
from mcpmux.protocol.events import Failure, Result

ALL = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, errors.MuxError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_exception_becomes_a_code_and_a_status(kind: type[errors.MuxError]) -> None:
    error = kind.__new__(kind)
    row = faults.fault(error)
    assert -32768 <= row.code <= -32000
    assert 200 <= row.status < 600
    assert kind.reason


def test_the_unforeseen_says_internal_error_and_the_request_id_alone() -> None:
    failed = faults.failure(RuntimeError("password=hunter2 /etc/secret"), "r-1")
    assert (failed.code, failed.message) == (-32603, "Internal error")
    assert failed.data is not None
    assert json.loads(bytes(failed.data)) == {"request_id": "r-1"}


def test_a_failed_server_reads_well_as_the_result_of_a_tool_call() -> None:
    ended = faults.ended(errors.ServerUnavailable("github", 4.0), "tools/call", "r-2")
    assert isinstance(ended, Result)
    result = json.loads(bytes(ended.result))
    assert result["isError"] is True
    assert "github" in result["content"][0]["text"]
    assert "r-2" in result["content"][0]["text"]


def test_a_failed_server_is_an_error_with_the_request_id_for_other_methods() -> None:
    ended = faults.ended(errors.LinkLost("github"), "prompts/get", "r-3")
    assert isinstance(ended, Failure)
    assert ended.data is not None
    assert (ended.code, json.loads(bytes(ended.data))) == (-32603, {"request_id": "r-3"})


def test_refused_names_carry_nothing_that_tells_them_from_absent_ones() -> None:
    one, two = (faults.failure(errors.ToolUnknown("x__y"), request_id) for request_id in ("r-4", "r-5"))
    assert one == two
    assert one == Failure(-32602, "Unknown tool: x__y")


def test_an_unknown_resource_names_its_uri() -> None:
    failed = faults.failure(errors.ResourceUnknown("a+b://c"), "r-6")
    assert failed.data is not None
    assert (failed.code, json.loads(bytes(failed.data))) == (-32002, {"uri": "a+b://c"})


@pytest.mark.parametrize(
    ("error", "code", "status", "data"),
    [
        (errors.MetaInvalid("x"), -32602, 400, None),
        (errors.HeaderMismatch("Mcp-Name", "is missing"), -32020, 400, None),
        (errors.CapabilityMissing({"sampling": {}}), -32021, 400, {"requiredCapabilities": {"sampling": {}}}),
        (errors.VersionUnsupported("v9", ("a", "b")), -32022, 400, {"supported": ["a", "b"], "requested": "v9"}),
        (errors.MethodUnknown("no/such"), -32601, 404, None),
        (errors.ToolUnknown("x__y"), -32602, 200, None),
        (errors.ResourceUnknown("a+b://c"), -32602, 200, {"uri": "a+b://c"}),
    ],
)
def test_what_the_modern_era_has_otherwise(
    error: errors.MuxError, code: int, status: int, data: dict[str, object] | None
) -> None:
    failed = faults.modern(faults.failure(error, "r-7"))
    own = faults.fault(error).status
    assert (failed.code, faults.modern_status(failed) if own == 200 else own) == (code, status)
    assert (None if failed.data is None else json.loads(bytes(failed.data))) == data
