"""What every command shares, without a process."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path

import pytest

from mcpmux.cli.command import Parser, seconds, spelled, table
from mcpmux.cli.display import Display
from mcpmux.errors import UsageWrong


class Terminal(io.StringIO):
    """A terminal that keeps what was written."""

    def isatty(self) -> bool:
        return True


def parser() -> Parser:
    whole = Parser(prog="mcpmux")
    commands = whole.add_subparsers(dest="command", required=True)
    access = commands.add_parser("access").add_subparsers(dest="sub", required=True)
    access.add_parser("list").add_argument("--json", action="store_true")
    commands.add_parser("check")
    return whole


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--config", "F", "--data-dir", "D"],
        ["--config", "F", "check", "--data-dir", "D"],
        ["access", "list", "--json", "--data-dir", "D", "--config", "F"],
        ["access", "--data-dir", "D", "list", "--config", "F"],
        ["--data-dir", "X", "--config", "X", "access", "list", "--config", "F", "--data-dir", "D"],
    ],
)
def test_config_and_data_dir_work_on_every_command_in_every_place(words: list[str]) -> None:
    found = parser().parse_args(words)
    assert (found.config, found.data_dir) == ("F", Path("D"))


@pytest.mark.parametrize("words", [[], ["chekc"], ["check", "--bogus"], ["check", "--conf", "F"], ["access"]])
def test_wrong_use_is_an_error_of_ours_and_says_where_help_is(words: list[str]) -> None:
    with pytest.raises(UsageWrong, match="--help"):
        parser().parse_args(words)


def test_a_duration_has_a_unit() -> None:
    assert seconds("90s") == 90.0
    assert seconds("1h") == 3600.0


def test_a_command_for_people_can_be_pasted_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "it's here" / "mcpmux"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    line = spelled(["token", "--group", "a b"], config=tmp_path / "c d.yaml", data_dir=tmp_path / "data")
    assert shlex.split(line) == [
        str(program), "token", "--group", "a b", "--config", str(tmp_path / "c d.yaml"),
        "--data-dir", str(tmp_path / "data"),
    ]  # fmt: skip


def test_columns_begin_below_each_other() -> None:
    assert table([("a", "ready", ""), ("github", "failed", "why")]) == ["a       ready", "github  failed  why"]
    assert table([]) == []


def test_a_progress_line_stays_below_what_is_logged() -> None:
    terminal = Terminal()
    display = Display(terminal)
    display.show("3 starting")
    display.write("a log line\n")
    display.clear()
    display.write("another\n")
    wipe = "\r\x1b[K"
    assert terminal.getvalue() == f"{wipe}3 starting{wipe}a log line\n3 starting{wipe}another\n"


def test_what_a_server_is_called_cannot_move_the_cursor() -> None:
    terminal = Terminal()
    Display(terminal).show("evil\x1b[2J\nname")
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\n" not in terminal.getvalue()


def test_off_a_terminal_there_is_no_progress_line() -> None:
    stream = io.StringIO()
    display = Display(stream)
    display.show("3 starting")
    display.write("line\n")
    display.clear()
    assert stream.getvalue() == "line\n"
