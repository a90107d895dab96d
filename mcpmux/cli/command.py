"""What every command shares: its options, its way of answering, and how it spells another command for a person."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn

import orjson

from mcpmux.config.schema import Snapshot, read_seconds
from mcpmux.errors import ConfigInvalid, UsageWrong
from mcpmux.observe.redaction import visible

Run = Callable[[argparse.Namespace, Snapshot], Coroutine[Any, Any, int]]
RunAnyway = Callable[[argparse.Namespace, Snapshot | ConfigInvalid], Coroutine[Any, Any, int]]

GOOD: Final = 0
NEGATIVE: Final = 1
WRONG_USE: Final = 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose every sub-parser knows `--config` and `--data-dir`, and which raises what is wrong."""

    def __init__(self, *given: Any, **options: Any) -> None:
        # `resolve`: a command that declares one of them itself has the last word.
        super().__init__(*given, **{**options, "conflict_handler": "resolve", "allow_abbrev": False})
        common = self.add_argument_group("on every command")
        # SUPPRESS: `mcpmux --config F check` must not be overwritten by the default of the sub-parser.
        common.add_argument(
            "--config",
            metavar="F",
            default=argparse.SUPPRESS,
            help="config file (default: config/servers.yaml, or MCPMUX_CONFIG)",
        )
        common.add_argument(
            "--data-dir",
            metavar="D",
            type=Path,
            default=argparse.SUPPRESS,
            help="data directory, instead of the config file's",
        )

    def error(self, message: str) -> NoReturn:
        """Raises: UsageWrong, instead of printing the usage and ending the process."""
        raise UsageWrong(f"{message} (see {self.prog} --help)")


class Version(argparse.Action):
    """`--version`; the version is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it and end."""
        say(f"mcpmux {version('mcpmux')}")
        parser.exit(GOOD)


def seconds(text: str) -> float:
    """A duration such as `90s` or `1h`, for `type=`."""
    found = read_seconds(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, expected one such as 60s, 30m or 1h")
    return found


def say(*lines: str) -> None:
    """Answer on stdout; what others wrote in it can't move the cursor or forge a line."""
    sys.stdout.write("".join(f"{visible(line)}\n" for line in lines))
    sys.stdout.flush()


def say_json(answer: object) -> None:
    """Answer on stdout, for machines."""
    sys.stdout.write(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines in which the cells of a column begin below each other."""
    rows = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def spelled(words: Sequence[str], *, config: Path, data_dir: Path) -> str:
    """A command of ours as a person can paste it anywhere: the program and both paths absolute, quoted for a shell."""
    program = shutil.which(sys.argv[0]) or str(Path(sys.executable).with_name("mcpmux"))
    whole = [str(Path(program).absolute()), *words, "--config", str(config), "--data-dir", str(data_dir)]
    return shlex.join(whole)
