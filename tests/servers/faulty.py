"""Servers that misbehave, one mode each, as real ones were seen to (or worse).

    python faulty.py MODE [--seconds N] [--gate FILE] [--code N] [--bytes N]

Apart from its fault a mode is the `counter` server beside it. What a mode does is its class's first line; `--help`
lists them. Faults that a test must be able to time wait for `--gate`, never for a clock, except `late`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from counter import Counter, Gate, Json, Refusal, Steps, note, parser, said


class SilentStart(Counter):
    """Never answers `initialize`, nor anything else; with a gate, until it is open."""

    def receive(self, message: Json) -> None:
        gate = self.options.gate
        if gate and Path(gate).exists():
            super().receive(message)


class SilentCall(Counter):
    """Never answers `tools/call`; greets, lists and pings well."""

    def call(self, id_: object, params: Json) -> None:
        if self.options.gate:
            note(f"{self.options.gate}.entered", str(id_))


class Heedless(Counter):
    """Works on after a call was cancelled, logs what it does, and answers all the same."""

    def cancelled(self, id_: object) -> None:
        waiting = self.gated.get(id_)
        if waiting is not None:
            note(f"{waiting[1]}.cancelled", str(id_))

    def tool_slow(self, gate: str) -> Steps:
        yield Gate(gate)
        self.notify("notifications/message", {"level": "error", "data": f"still at work behind {gate}"})
        return said(f"{gate} is open")


class SilentList(Counter):
    """Never answers `tools/list`."""

    def receive(self, message: Json) -> None:
        if message.get("method") != "tools/list":
            super().receive(message)


class Deaf(Counter):
    """Greets, lists, then never reads its input again: the pipe fills up."""

    def call(self, id_: object, params: Json) -> None:
        signal.pause()


class ExitStart(Counter):
    """Says why on stderr and exits with `--code` before it reads anything."""

    def run(self) -> None:
        print("faulty: first line of the reason", file=sys.stderr)
        print("faulty: FAULTY_TOKEN is not set", file=sys.stderr, flush=True)
        sys.exit(self.options.code)


class ExitOnce(Counter):
    """Exits at its first start (the gate file does not exist yet and is made), runs well from the second on."""

    def run(self) -> None:
        gate = Path(self.options.gate)
        if gate.exists():
            return super().run()
        gate.touch()
        sys.exit(self.options.code)


class Late(Counter):
    """Takes `--seconds` (or until the gate opens) before it reads anything."""

    def run(self) -> None:
        time.sleep(self.options.seconds)
        while self.options.gate and not Path(self.options.gate).exists():
            time.sleep(0.005)
        super().run()


class RefusesGreeting(Counter):
    """Answers `initialize` with an error."""

    def initialize(self, params: Json) -> Json:
        raise Refusal(-32603, "No licence")


class StrangeRevision(Counter):
    """Answers `initialize` with a revision that nobody knows."""

    def initialize(self, params: Json) -> Json:
        return super().initialize(params) | {"protocolVersion": "1999-12-31"}


class NoTools(Counter):
    """Offers nothing and says so: no capability, `tools/list` is an unknown method."""

    def initialize(self, params: Json) -> Json:
        return super().initialize(params) | {"capabilities": {}}

    def list_tools(self, params: Json) -> Json:
        raise Refusal(-32601, "Method not found: tools/list")


class Chatter(Counter):
    """Writes log lines to stdout, at the start and between messages."""

    def run(self) -> None:
        self.write(b"npm notice New version available!\n\nStarting server...\n\x1b[32mlistening\x1b[0m\n")
        super().run()

    def send(self, message: Json) -> None:
        self.out.append(b"[INFO] about to send a message\n")
        super().send(message)


GARBAGE = (
    b"\xff\xfe\x00\x80 not UTF-8\n"
    b'{"jsonrpc":"2.0","id":1,"result":\n'
    b"null\n42\n[]\n\"text\"\n{}\n[{}]\n"
    b'{"jsonrpc":"2.0"}\n'
    b'{"jsonrpc":"2.0","id":{"a":1},"result":{}}\n'
    b'{"jsonrpc":"2.0","id":1e400,"result":{}}\n'
    b'{"jsonrpc":"1.0","method":7}\n'
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"nobody","progress":1}}\n'
    b'{"jsonrpc":"2.0","method":"notifications/message","params":"text"}\n'
    b"\x00\x00\x00\n" + b"[" * 100_000 + b"\n"
)  # fmt: skip


class Garbage(Counter):
    """Writes lines that are no messages before each of its own: broken, wrong, too deep, for nobody."""

    def send(self, message: Json) -> None:
        self.out.append(GARBAGE)
        super().send(message)


class LongLine(Counter):
    """Answers `tools/call` with a line of `--bytes` (default 100 MB)."""

    def call(self, id_: object, params: Json) -> None:
        head = f'{{"jsonrpc":"2.0","id":{json.dumps(id_)},"result":{{"content":[{{"type":"text","text":"'
        self.write(head.encode())
        chunk = b"x" * 1_000_000
        for _ in range(self.options.bytes // len(chunk)):
            self.write(chunk)
        self.write(b'"}]}}\n')


class LongNoise(Counter):
    """Writes `--bytes` (default 100 MB) that are no message and have no line end before it answers `tools/call`."""

    def call(self, id_: object, params: Json) -> None:
        chunk = b"#" * 1_000_000
        for _ in range(self.options.bytes // len(chunk)):
            self.write(chunk)
        self.write(b"\n")
        super().call(id_, params)


class FloodStderr(Counter):
    """Writes to stderr without pause from the start on: short lines, endless ones, bytes that are no text."""

    def run(self) -> None:
        threading.Thread(target=self.flood, daemon=True).start()
        super().run()

    @staticmethod
    def flood() -> None:
        data = b"faulty: the same warning again\n" * 100 + b"\xff" * 100_000 + b"\n" + b"no end " * 20_000 + b"\n"
        while True:
            os.write(2, data)


class DieInCall(Counter):
    """Exits with `--code` in the middle of `tools/call`; calls of other tools may be in flight."""

    def call(self, id_: object, params: Json) -> None:
        if params.get("name") != "echo":
            return super().call(id_, params)
        self.flush()
        print("faulty: dying in the middle of a call", file=sys.stderr, flush=True)
        os._exit(self.options.code)


class DieInAnswer(Counter):
    """Is killed after half of its answer to `tools/call`."""

    def call(self, id_: object, params: Json) -> None:
        self.write(f'{{"jsonrpc":"2.0","id":{json.dumps(id_)},"result":{{"content":[{{"type":"te'.encode())
        os.kill(os.getpid(), signal.SIGKILL)


class ClosesOutput(Counter):
    """Closes stdout in the middle of `tools/call` and lives on."""

    def call(self, id_: object, params: Json) -> None:
        os.close(1)
        signal.pause()


class Stubborn(Counter):
    """Ignores the end of its input and SIGTERM: only SIGKILL ends it."""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().run()

    def ended(self) -> None:
        while True:
            signal.pause()


class Family(Counter):
    """Starts a child that starts a grandchild, all ignoring SIGTERM, and ends without them; with a gate their ids
    are noted in it."""

    def run(self) -> None:
        ignore = "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        again = "subprocess.Popen([sys.executable, '-c', sys.argv[1], '']) if sys.argv[1] else None;"
        grandchild = f"{ignore} signal.pause()"
        child = subprocess.Popen(
            [sys.executable, "-c", f"{ignore} {again} signal.pause()", grandchild],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        if self.options.gate:
            note(self.options.gate, str(child.pid))
        super().run()


class Wrapper(Counter):
    """A shell-like parent that starts the real server and only waits for it, as npx and uvx do."""

    def run(self) -> None:
        counter = Path(__file__).with_name("counter.py")
        sys.exit(subprocess.call([sys.executable, str(counter)]))


class HugeList(Counter):
    """Answers `tools/list` with one line of more than 1.1 MB."""

    def list_tools(self, params: Json) -> Json:
        tools: list[Json] = [
            {"name": f"huge_{n}", "description": "d" * 11_000, "inputSchema": {"type": "object"}} for n in range(100)
        ]
        return {"tools": tools}


class EndlessPages(Counter):
    """Every page of `tools/list` names the same next page."""

    def list_tools(self, params: Json) -> Json:
        return super().list_tools({}) | {"nextCursor": "again"}


class StrangeRequests(Counter):
    """Sends requests and notifications that no revision knows, at the greeting and during calls."""

    def initialize(self, params: Json) -> Json:
        self.strange()
        return super().initialize(params)

    def call(self, id_: object, params: Json) -> None:
        self.strange()
        super().call(id_, params)

    def strange(self) -> None:
        self.send({"jsonrpc": "2.0", "id": "strange-1", "method": "vendor/hello", "params": {"a": 1}})
        self.send({"jsonrpc": "2.0", "id": 0, "method": "tools/list"})
        self.notify("vendor/notice", {"b": 2})


class WrongIds(Counter):
    """Answers each request under ids that nobody asked with, then rightly, then once more."""

    def send(self, message: Json) -> None:
        if "result" in message:
            for wrong in (999_999, str(message["id"]), None, -1, 1.5):
                super().send(message | {"id": wrong, "result": said("for nobody")})
            super().send(message)
        super().send(message)


class StrangeResults(Counter):
    """Answers `tools/call` with what is no tool result: nothing, a list, no content, bytes that are no text."""

    STRANGE = (b"null", b"[]", b"{}", b'{"content":"text"}', b'{"content":[{"type":"text","text":"\xff\xfe"}]}')

    def call(self, id_: object, params: Json) -> None:
        result = self.STRANGE[self.value % len(self.STRANGE)]
        self.value += 1
        self.out.append(b'{"jsonrpc":"2.0","id":%s,"result":%s}\n' % (json.dumps(id_).encode(), result))


class DeepResult(Counter):
    """Answers `tools/call` with JSON that is 50,000 levels deep."""

    def call(self, id_: object, params: Json) -> None:
        deep = b"[" * 50_000 + b"]" * 50_000
        self.out.append(b'{"jsonrpc":"2.0","id":%s,"result":{"content":[],"_meta":{"deep":%s}}}\n' % (
            json.dumps(id_).encode(), deep,
        ))  # fmt: skip


def named(mode: type[Counter]) -> str:
    """`SilentStart` is `silent-start` on the command line."""
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in mode.__name__).strip("-")


MODES: dict[str, type[Counter]] = {named(mode): mode for mode in Counter.__subclasses__()}


def main() -> None:
    """Serve the mode that the command line names."""
    options = parser()
    options.add_argument("mode", choices=sorted(MODES))
    options.add_argument("--seconds", type=float, default=0.0)
    options.add_argument("--gate", default="")
    options.add_argument("--code", type=int, default=3)
    options.add_argument("--bytes", type=int, default=100_000_000)
    options.set_defaults(name="faulty")
    chosen = options.parse_args()
    MODES[chosen.mode](chosen).run()


if __name__ == "__main__":
    main()
