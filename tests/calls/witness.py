"""The counter, which also writes down every message that reaches it: one JSON line each, in the order of arrival.

    python witness.py --record FILE [--silent METHOD...] [options of counter.py]

A test reads with `Witness` (`upstream.py`) what mcpmux really said to a server, and sees what never came. Some tools
more than the counter: `walk` makes its steps one by one, each when the test lets it; `retract`, `forget` and
`complete` ask as servers do that change their minds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "servers"))

from counter import ASKS, Ask, Counter, Gate, Json, Refusal, Steps, described, parser, said

FORM = ASKS["elicitation/create"]


MIRRORED: Json = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}


class Recorder(Counter):
    """A counter with a memory on disk."""

    DESCRIBED = (
        *Counter.DESCRIBED,
        described("pretty", "Answers with carriage returns between the tokens of its JSON.", True),
        described("retract", "Asks, and takes it back when the file `gate` exists.", True, gate="string"),
        described("forget", "Asks, and answers without waiting.", True),
        described("require", "Answers that somebody has to be at a URL first.", True, elicitation="string"),
        described("complete", "Says that an elicitation is complete.", True, elicitation="string"),
        {**described("route", "Says its region, which goes in a header too.", True), "inputSchema": MIRRORED},
        described("tell", "Asks with a message of so many bytes.", True, bytes="integer"),
        described("both", "Asks two things at once.", True),
        described("talk", "Asks, talking before and after, and waits for `gate` if given.", True, gate="string?"),
        described("twice", "Asks, and asks again.", True),
        described("walk", "Reports step N when the file N is in `folder`.", True, folder="string", steps="integer"),
    )

    def receive(self, message: Json) -> None:
        with Path(self.options.record).open("a") as file:
            file.write(json.dumps(message) + "\n")
        if "method" not in message and message.get("id") == "both":
            self.early = message
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

    def tool_route(self, region: str = "nowhere") -> Json:
        return said(region)

    def tool_walk(self, folder: str, steps: int) -> Steps:
        token = self.meta.get("progressToken")
        for step in range(1, steps + 1):
            yield Gate(f"{folder}/{step}")
            self.notify("notifications/progress", {"progressToken": token, "progress": step})
        yield Gate(f"{folder}/end")
        return said(f"walked {steps}")

    def tool_retract(self, gate: str) -> Steps:
        self.send({"jsonrpc": "2.0", "id": "retract", "method": "elicitation/create", "params": FORM})
        yield Gate(gate)
        self.notify("notifications/cancelled", {"requestId": "retract"})
        return said("taken back")

    def tool_tell(self, bytes: int) -> Steps:
        answer = yield Ask("elicitation/create", {**FORM, "message": "?" * bytes})
        return said(json.dumps(answer))

    def tool_both(self) -> Steps:
        self.early: Json = {}
        self.send({"jsonrpc": "2.0", "id": "both", "method": "elicitation/create", "params": FORM})
        sampled = yield Ask("sampling/createMessage", ASKS["sampling/createMessage"])
        return said(json.dumps([self.early, sampled]))

    def tool_talk(self, gate: str | None = None) -> Steps:
        token = self.meta.get("progressToken")
        self.notify("notifications/progress", {"progressToken": token, "progress": 1})
        answer = yield Ask("elicitation/create", FORM)
        self.notify("notifications/progress", {"progressToken": token, "progress": 2})
        if gate is not None:
            yield Gate(gate)
        return said(json.dumps(answer))

    def tool_twice(self) -> Steps:
        answers = []
        for _ in range(2):
            answer = yield Ask("elicitation/create", FORM)
            assert isinstance(answer, dict)
            answers.append(answer.get("result"))
        return said(json.dumps(answers))

    def tool_forget(self) -> Json:
        self.send({"jsonrpc": "2.0", "id": "forget", "method": "elicitation/create", "params": FORM})
        return said("forgotten")

    def tool_require(self, elicitation: str) -> Json:
        url: Json = {"mode": "url", "elicitationId": elicitation, "url": "https://x.example/", "message": "Go there"}
        raise Refusal(-32042, "Somebody has to go there", {"elicitations": [url]})

    def tool_complete(self, elicitation: str) -> Json:
        self.notify("notifications/elicitation/complete", {"elicitationId": elicitation})
        return said("told")


def main() -> None:
    """Serve on stdin and stdout."""
    options = parser()
    options.add_argument("--record", required=True)
    options.add_argument("--silent", nargs="*", default=[], help="methods that are never answered")
    options.set_defaults(name="witness")
    Recorder(options.parse_args()).run()


if __name__ == "__main__":
    main()
