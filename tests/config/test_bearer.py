"""`config/bearer.py`: a token from the environment or from a file that others keep fresh."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpmux.config.bearer import Bearer
from mcpmux.errors import UsageWrong
from mcpmux.seal import Secret


def test_the_environment_has_it_unless_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" from-file\n")
    assert Bearer.of({"MCPMUX_TOKEN": "from-env\n"}, None).current.reveal() == "from-env"
    assert Bearer.of({"MCPMUX_TOKEN": "from-env"}, file).current.reveal() == "from-file"


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", "größe".encode(), b"x" * 70_000, b"a\0b"])
def test_what_is_no_token_is_refused_without_being_shown(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(UsageWrong) as refused:
        Bearer.of({}, file)
    assert content == b"" or content.decode() not in str(refused.value)


def test_without_any_it_says_where_one_belongs(tmp_path: Path) -> None:
    for environ, path in (({}, None), ({"MCPMUX_TOKEN": " "}, None), ({}, tmp_path / "missing")):
        with pytest.raises(UsageWrong, match="token"):
            Bearer.of(environ, path)


def test_another_one_is_found_once_the_file_has_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    bearer = Bearer.of({}, file)
    assert bearer.other_than(Secret("one")) is None
    file.write_text("tw o")
    assert bearer.other_than(Secret("one")) is None
    file.unlink()
    assert bearer.other_than(Secret("one")) is None
    file.write_text("two")
    assert bearer.other_than(Secret("one")) == Secret("two") == bearer.current
    # Whoever was refused for the first one only now takes what is there, without another look.
    file.unlink()
    assert bearer.other_than(Secret("one")) == Secret("two")


def test_the_environment_s_has_no_other() -> None:
    assert Bearer.of({"MCPMUX_TOKEN": "one"}, None).other_than(Secret("one")) is None
