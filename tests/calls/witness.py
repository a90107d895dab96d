"""The counter, which also writes down every message that reaches it: one JSON line each, in the order of arrival.

    python witness.py --record FILE [--silent METHOD...] [options of counter.py]

A test reads with `Witness` (`upstream.py`) what mcpmux really said to a server, and sees what never came. One tool
more than the counter: `walk` makes its steps one by one, each when the test lets it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "servers"))

from counter import Counter, Gate, Json, Steps, described, parser, said


class Recorder(Counter):
    """A counter with a memory on disk."""

    DESCRIBED = (
        *Counter.DESCRIBED,
        described("pretty", "Answers with carriage returns between the tokens of its JSON.", True),
        described("walk", "Reports step N when the file N is in `folder`.", True, folder="string", steps="integer"),
    )

    def receive(self, message: Json) -> None:
        with Path(self.options.record).open("a") as file:
            file.write(json.dumps(message) + "\n")
        if message.get("method") not in self.options.silent:
            super().receive(message)

    def call(self, id_: object, params: Json) -> None:
        if params.get("name") != "pretty":
            return super().call(id_, params)
        meta = params.get("_meta")
        token = meta.get("progressToken") if isinstance(meta, dict) else None
        self.notify("notifications/progress", {"progressToken": token, "progress": 1})
        result = json.dumps(said("line one\nline two"), indent=1).replace("\n", "\r")
        self.out.append(f'{{"jsonrpc":"2.0","id":{json.dumps(id_)},\r"result":{result}}}\n'.encode())
        return None

    def tool_walk(self, folder: str, steps: int) -> Steps:
        token = self.meta.get("progressToken")
        for step in range(1, steps + 1):
            yield Gate(f"{folder}/{step}")
            self.notify("notifications/progress", {"progressToken": token, "progress": step})
        yield Gate(f"{folder}/end")
        return said(f"walked {steps}")


def main() -> None:
    """Serve on stdin and stdout."""
    options = parser()
    options.add_argument("--record", required=True)
    options.add_argument("--silent", nargs="*", default=[], help="methods that are never answered")
    options.set_defaults(name="witness")
    Recorder(options.parse_args()).run()


if __name__ == "__main__":
    main()
