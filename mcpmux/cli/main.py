"""The entry point: which command, with which config, and one clear line when it cannot be.

Rules of the file: nothing of ours but the log is imported before the log is set up, because off a terminal every line
of `serve` is one JSON object, also what an import warns of and what is wrong with the arguments.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from mcpmux.errors import ConfigInvalid, DataDirBusy, MuxError, SigningRefused, StartRefused, UsageWrong
from mcpmux.observe import log

_WITH_VALUE = ("--config", "--data-dir")
_WRONG_USE = UsageWrong | ConfigInvalid | StartRefused | DataDirBusy | SigningRefused


def main() -> int:
    """Run the command that the arguments name; what you get is the exit code."""
    words = sys.argv[1:]
    serving = _command(words) == "serve"
    plain = sys.stderr.isatty() if serving else True
    output = log.configure(console=plain, level="info" if serving else "warning")
    try:
        return _run(words)
    except MuxError as error:
        _complain(error, plain)
        return 2 if isinstance(error, _WRONG_USE) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `mcpmux check | head`: nobody reads on. Python would complain once more when it closes stdout.
        sys.stdout = None
        return 141
    finally:
        output.flush()


def _command(words: Sequence[str]) -> str | None:
    """The command among the arguments, before they are parsed."""
    values = {at + 1 for at, word in enumerate(words) if word in _WITH_VALUE}
    return next((word for at, word in enumerate(words) if at not in values and not word.startswith("-")), None)


def _run(words: Sequence[str]) -> int:
    import uvloop

    from mcpmux.cli.command import Run, RunAnyway
    from mcpmux.config.load import config_path, environment, load
    from mcpmux.config.schema import Overrides

    nothing_said = Namespace(config=None, data_dir=None, host=None, port=None, run_anyway=None)
    arguments = parser().parse_args(words, nothing_said)
    environ = environment()
    arguments.config = config_path(arguments.config, environ).absolute()
    arguments.overrides = Overrides(host=arguments.host, port=arguments.port, data_dir=arguments.data_dir)
    try:
        snapshot = load(arguments.config, environ, overrides=arguments.overrides)
    except ConfigInvalid as invalid:
        anyway: RunAnyway | None = arguments.run_anyway
        if anyway is None:
            raise
        return uvloop.run(anyway(arguments, invalid))
    run: Run = arguments.run_anyway or arguments.run
    return uvloop.run(run(arguments, snapshot))


def parser() -> ArgumentParser:
    """The whole command line: every command with its options."""
    from mcpmux.cli import access, doctor, operate, serve, stdio
    from mcpmux.cli.command import Parser, Version

    whole = Parser(prog="mcpmux", description="One endpoint for every MCP server, every call authorized.")
    whole.add_argument("--version", action=Version, nargs=0, help="say which version this is")
    subparsers = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (serve, operate, doctor, access, stdio):
        module.add(subparsers)
    return whole


def _complain(error: MuxError, plain: bool) -> None:
    """Say on stderr what is wrong: lines for a person, or one JSON object."""
    if plain:
        sys.stderr.write("".join(f"mcpmux: {line}\n" for line in str(error).splitlines()))
    elif isinstance(error, ConfigInvalid):
        log.logger("cli").error("start_refused", reason=error.reason, message="invalid config", errors=error.problems)
    else:
        log.logger("cli").error("start_refused", reason=error.reason, message=str(error))
