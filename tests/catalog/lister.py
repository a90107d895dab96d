"""A stdio server whose lists are what a plan says, which a test may change while it runs.

    python lister.py PLAN [options of counter.py]

PLAN is a JSON file: a list method → `{"result": …}`, `{"error": [code, message]}`, `{"pages": {cursor: result}}` ("" is
the first), or `{"silent": true}`, which never answers. What is not in it is `counter`'s. Each list request is noted in
`PLAN.seen`. The tool `shout` says `times` times that `kind` has changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "servers"))

from counter import Counter, Json, Refusal, note, parser, said


class Lister(Counter):
    """Counter, but for its lists."""

    def reply(self, id_: object, method: str, params: Json) -> None:
        if not method.endswith("/list"):
            return super().reply(id_, method, params)
        note(f"{self.options.plan}.seen", method)
        step = json.loads(Path(self.options.plan).read_text()).get(method)
        if step is None:
            return super().reply(id_, method, params)
        if "silent" in step:
            return None
        if "error" in step:
            return self.send({"jsonrpc": "2.0", "id": id_, "error": Refusal(*step["error"]).body})
        result = step["result"] if "result" in step else step["pages"][str(params.get("cursor", ""))]
        return self.send({"jsonrpc": "2.0", "id": id_, "result": result})

    def tool_shout(self, kind: str, times: int) -> Json:
        for _ in range(times):
            self.notify(f"notifications/{kind}/list_changed")
        return said("shouted")


def main() -> None:
    """Serve on stdin and stdout."""
    options = parser()
    options.add_argument("plan")
    Lister(options.parse_args()).run()


if __name__ == "__main__":
    main()
