"""The least of a stdio server, for faults that `tests/servers/faulty.py` has not.

python minimal.py no-ping      answers everything but `ping`
python minimal.py last-words   answers a call and ends in the same breath
python minimal.py older        refuses every revision but 2024-11-05, with an error
"""

from __future__ import annotations

import json
import os
import sys


def main(mode: str) -> None:
    """Serve until the input ends."""
    for line in sys.stdin:
        message = json.loads(line)
        method, request = message.get("method"), message.get("id")
        if request is None or (method == "ping" and mode == "no-ping"):
            continue
        answer: dict[str, object] = {"result": {}}
        if method == "initialize":
            asked = message["params"]["protocolVersion"]
            answer = {"result": {"protocolVersion": asked, "capabilities": {"tools": {}}, "serverInfo": {}}}
            if mode == "older" and asked != "2024-11-05":
                answer = {"error": {"code": -32602, "message": "Unsupported protocol version"}}
        elif method == "tools/list":
            answer = {"result": {"tools": []}}
        elif method == "tools/call":
            answer = {"result": {"content": [{"type": "text", "text": "x" * 200_000}]}}
        print(json.dumps({"jsonrpc": "2.0", "id": request, **answer}), flush=True)
        if method == "tools/call" and mode == "last-words":
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
