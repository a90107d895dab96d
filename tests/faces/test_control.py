"""The control socket, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from mcpmux.errors import DataDirBusy, NotRunning, StartRefused
from mcpmux.faces.control import Json, ask, listening


async def _status() -> Json:
    return {"servers": [{"id": "github"}]}


async def _broken() -> Json:
    raise RuntimeError("a bug")


async def _raw(folder: Path, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(folder / "control.sock"))
    writer.write(sent)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


async def test_a_command_gets_the_answer_of_the_mcpmux_that_runs(tmp_path: Path) -> None:
    async with listening(tmp_path, {"status": _status}):
        assert await ask(tmp_path, "status") == {"servers": [{"id": "github"}]}


async def test_one_line_is_asked_and_one_line_answered(tmp_path: Path) -> None:
    async with listening(tmp_path, {"status": _status}):
        assert await _raw(tmp_path, b'{"command": "status"}\n') == b'{"answer":{"servers":[{"id":"github"}]}}\n'


async def test_only_the_same_user_may_connect(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        async with listening(tmp_path, {"status": _status}):
            mode = (tmp_path / "control.sock").stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
    finally:
        os.umask(previous)


async def test_a_data_directory_deeper_than_a_socket_name_may_be_works(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 8)
    deep.mkdir(parents=True)
    assert len(str(deep / "control.sock")) > 200
    async with listening(deep, {"status": _status}):
        assert await ask(deep, "status") == {"servers": [{"id": "github"}]}
    assert os.listdir(deep) == []


async def test_nothing_is_left_in_the_data_directory(tmp_path: Path) -> None:
    async with listening(tmp_path, {}):
        assert os.listdir(tmp_path) == ["control.sock"]
    assert os.listdir(tmp_path) == []


async def test_without_a_running_mcpmux_the_command_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="No mcpmux is running"):
        await ask(tmp_path, "status")
    with pytest.raises(NotRunning, match="No mcpmux is running"):
        await ask(tmp_path / "absent", "status")


async def test_a_socket_left_over_from_a_crash_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunning):
        await ask(tmp_path, "status")
    async with listening(tmp_path, {"status": _status}):
        assert await ask(tmp_path, "status")


async def test_a_second_mcpmux_on_the_same_data_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with listening(tmp_path, {"status": _status}):
        with pytest.raises(DataDirBusy):
            async with listening(tmp_path, {"status": _broken}):
                pytest.fail("the second one must not listen")
        assert await ask(tmp_path, "status")


async def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="control socket"):
        async with listening(tmp_path / "absent", {}):
            pytest.fail("nothing to listen on")


@pytest.mark.parametrize(
    "line", [b"\n", b"status\n", b"[]\n", b'{"command": 7}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n", b""]
)
async def test_a_line_that_is_no_command_gets_a_clear_error(tmp_path: Path, line: bytes) -> None:
    async with listening(tmp_path, {"status": _status}):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        writer.write(line)
        writer.write_eof()
        assert b"send one line" in await reader.readline()
        writer.close()
        assert await ask(tmp_path, "status")


async def test_an_unknown_command_names_the_known_ones(tmp_path: Path) -> None:
    async with listening(tmp_path, {"status": _status}):
        with pytest.raises(NotRunning, match="known: status"):
            await ask(tmp_path, "reboot")


async def test_an_endless_line_ends_its_own_connection_only(tmp_path: Path) -> None:
    async with listening(tmp_path, {"status": _status}):
        with contextlib.suppress(ConnectionError):
            assert await _raw(tmp_path, b"x" * 1_000_000) == b""
        assert await ask(tmp_path, "status")


async def test_a_bug_in_one_answer_harms_no_other(tmp_path: Path) -> None:
    async with listening(tmp_path, {"status": _status, "broken": _broken}):
        with pytest.raises(NotRunning, match="does not answer"):
            await ask(tmp_path, "broken")
        assert await ask(tmp_path, "status")
