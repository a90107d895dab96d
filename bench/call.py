"""What one call costs: mcpmux, everything on, beside a bare handler doing the same JSON work, interleaved.

    python -m bench.call [--rounds 10] [--seconds 1.5] [--connections 16] [--profile FILE]

mcpmux verifies the token, decides, counts, logs (to a file) and calls `echo` of a stdio child; the bare handler only
answers. Both get the same bytes from the same generator. Only the ratio within one run means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.gateway_process import Gateway, running
from tests.servers import counter

ARGUMENTS = json.dumps({"text": "The quick brown fox jumps over the lazy dog."}, separators=(",", ":"))


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, counted by the scheduler in nanoseconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@dataclass
class Subject:
    """One server under load, and what the rounds measured."""

    name: str
    pid: int
    url: str
    tool: str
    token: str
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    answers: list[dict[str, float]] = field(default_factory=list)

    def round(self, seconds: float, connections: int) -> None:
        """One round of load."""
        before = cpu_seconds(self.pid)
        answer = generate(self.url, self.tool, self.token, seconds, connections)
        used = cpu_seconds(self.pid) - before
        assert not answer["errors"], f"{self.name}: {answer['errors']} wrong answers"
        self.rates.append(answer["rate"])
        self.costs.append(used / answer["calls"])
        self.answers.append(answer)

    def told(self) -> str:
        """One line of the table; medians over the rounds."""
        latency = {key: statistics.median(one[key] for one in self.answers) for key in ("p50", "p90", "p99", "p999")}
        memory = psutil.Process(self.pid).memory_info().rss / 1e6
        return (
            f"{self.name:<24}{statistics.median(self.rates):>9.0f}{self.cost * 1e6:>12.1f}"
            f"{latency['p50']:>9.2f}{latency['p90']:>9.2f}{latency['p99']:>9.2f}{latency['p999']:>9.2f}{memory:>9.0f}"
        )

    @property
    def cost(self) -> float:
        """Seconds of CPU per call, the median of the rounds."""
        return statistics.median(self.costs)


def generate(url: str, tool: str, token: str, seconds: float, connections: int) -> dict[str, float]:
    """One run of the generator."""
    command = [sys.executable, "-m", "bench.load", url, tool, ARGUMENTS, "--delete"]
    command += ["--seconds", str(seconds), "--connections", str(connections)]
    environment = {**os.environ, "BENCH_TOKEN": token}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return dict(json.loads(done.stdout))


@contextmanager
def bare(token: str) -> Iterator[Subject]:
    """The bare handler, given the same token to receive."""
    with subprocess.Popen([sys.executable, "-m", "bench.bare"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield Subject("bare aiohttp + uvloop", process.pid, f"http://127.0.0.1:{port}/mcp", "echo", token)
        finally:
            process.kill()


@contextmanager
def profiled(gateway: Gateway, file: Path | None) -> Iterator[None]:
    """With a file: py-spy samples mcpmux meanwhile (`pip install py-spy`; collapsed stacks, one a line)."""
    if file is None:
        yield
        return
    assert gateway.process is not None
    # Only the thread that holds the interpreter, and without stopping it: the others wait, but look busy to py-spy.
    how = ["--gil", "--nonblocking", "--rate", "250", "--format", "raw"]
    command = ["py-spy", "record", "--pid", str(gateway.process.pid), *how]
    with subprocess.Popen([*command, "--output", str(file), "--duration", "3600"]) as sampler:
        try:
            yield
        finally:
            sampler.send_signal(signal.SIGINT)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), {"echo": counter()}) as gateway:
        gateway.grant("MCP-Echo", "echo")
        gateway.wait_for(lambda: gateway.logged("link_ready", server="echo"), 20, "the child")
        token = gateway.token("ana@example.com", "MCP-Echo")
        assert gateway.process is not None
        pid = gateway.process.pid
        with bare(token) as yardstick:
            subjects = [
                yardstick,
                Subject("mcpmux /mcp", pid, f"{gateway.url}/mcp", "echo__echo", token),
                Subject("mcpmux /servers/…/mcp", pid, f"{gateway.url}/servers/echo/mcp", "echo", token),
            ]
            with profiled(gateway, options.profile):
                for _ in range(options.rounds):
                    for subject in subjects:
                        subject.round(options.seconds, options.connections)
            print(f"{'':<24}{'calls/s':>9}{'CPU µs/call':>12}{'p50 ms':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'MB':>9}")
            for subject in subjects:
                print(subject.told())
            for subject in subjects[1:]:
                # Of each round by itself: whoever else uses the machine then was there for both.
                shares = [mine / its for mine, its in zip(subject.costs, yardstick.costs, strict=True)]
                low, *_, high = sorted(shares)
                middle = statistics.median(shares)
                print(f"{subject.name}: {middle:.2f} times the CPU of the bare handler ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
