"""The local socket through which `mcpmux status` and other commands ask a running mcpmux.

Owns `<data_dir>/control.sock`: one line of JSON in, one line of JSON out, then the connection ends. Who may connect
is what the file mode says (0600: the same user, or root), so a caller is not asked for a token. It knows no
answers: the gateway gives one function per command.

    → {"command": "status"}
    ← {"answer": {…}}                    or {"error": "one clear sentence"}

The name of a Unix socket is at most 107 bytes, and a data directory may lie deeper: both sides then go through
`/proc/self/fd/<folder>/control.sock`, which the kernel resolves to the same file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import orjson

from mcpmux.errors import DataDirBusy, NotRunning, StartRefused
from mcpmux.observe.log import logger

SOCKET: Final = "control.sock"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Answer = Callable[[], Awaitable[Json]]

_LONGEST_NAME: Final = 107  # bytes; unix(7), sun_path without its final NUL
_LONGEST_LINE: Final = 64 * 1024  # of a request
_LONGEST_ANSWER: Final = 64 * 1024 * 1024
_PATIENCE: Final = 5.0  # seconds for one request, and for a running mcpmux to answer
_BACKLOG: Final = 16

_log = logger("faces")


class Asked(msgspec.Struct, frozen=True):
    """One request on the socket."""

    command: str


@contextlib.asynccontextmanager
async def listening(data_dir: Path, answers: Mapping[str, Answer]) -> AsyncIterator[None]:
    """Answer on `<data_dir>/control.sock` as long as the block runs; the file is gone afterwards.

    Raises: DataDirBusy when another mcpmux answers there already, StartRefused when the socket cannot be made.
    """
    sock = _bound(data_dir)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _converse(reader, writer, answers)

    try:
        server = await asyncio.start_unix_server(serve, sock=sock, limit=_LONGEST_LINE)
    except BaseException:
        sock.close()
        raise
    try:
        yield
    finally:
        server.close()
        with _folder(data_dir) as folder, contextlib.suppress(OSError):
            os.unlink(SOCKET, dir_fd=folder)


async def ask(data_dir: Path, command: str) -> Json:
    """What the mcpmux that runs on `data_dir` answers to `command`.

    Raises: NotRunning.
    """
    try:
        sock = _connected(data_dir)
    except PermissionError as error:
        raise NotRunning(f"The data directory {data_dir} is another user's: ask as that user or as root") from error
    except OSError as error:
        raise NotRunning(f"No mcpmux is running on the data directory {data_dir}") from error
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_LONGEST_ANSWER)
            try:
                writer.write(orjson.dumps({"command": command}) + b"\n")
                told = orjson.loads(await reader.readline())
            finally:
                writer.close()
    except (TimeoutError, OSError, ValueError) as error:
        raise NotRunning(f"The mcpmux on the data directory {data_dir} does not answer") from error
    if not isinstance(told, dict) or "answer" not in told:
        problem = told.get("error") if isinstance(told, dict) else None
        raise NotRunning(f"The mcpmux on the data directory {data_dir} refused: {problem or 'no answer'}")
    answer: Json = told["answer"]
    return answer


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Mapping[str, Answer]) -> None:
    """One request and its answer; whatever goes wrong ends this connection and nothing else."""
    try:
        async with asyncio.timeout(_PATIENCE):
            writer.write(orjson.dumps(await _answered(await reader.readline(), answers)) + b"\n")
            await writer.drain()
    except (TimeoutError, OSError, ValueError):
        # Too slow, gone, or a line over the limit: there is nobody left to tell.
        pass
    except Exception:  # noqa: BLE001 (the fence: a bug in one answer must not end the socket for all)
        _log.exception("control_failed")
    finally:
        writer.close()


async def _answered(line: bytes, answers: Mapping[str, Answer]) -> dict[str, Json]:
    try:
        asked = msgspec.json.decode(line, type=Asked)
    except (msgspec.DecodeError, RecursionError):
        return {"error": 'send one line such as {"command": "status"}'}
    answer = answers.get(asked.command)
    if answer is None:
        return {"error": f"unknown command; known: {', '.join(sorted(answers))}"}
    return {"answer": await answer()}


def _bound(data_dir: Path) -> socket.socket:
    """A listening socket, put in place by a rename, so that one left over from a crash is simply replaced."""
    try:
        _connected(data_dir).close()
    except OSError:
        pass
    else:
        raise DataDirBusy(str(data_dir))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    draft = f".{SOCKET}.{os.getpid()}"
    try:
        # Linux gives the file the mode of the socket's own inode: it never exists with a wider one.
        os.fchmod(sock.fileno(), 0o600)
        with _folder(data_dir) as folder:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            sock.bind(_name(data_dir / draft, folder))
            os.chmod(draft, 0o600, dir_fd=folder)
            sock.listen(_BACKLOG)
            os.rename(draft, SOCKET, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        sock.close()
        problem = error.strerror or type(error).__name__
        raise StartRefused(f"The control socket {data_dir / SOCKET} cannot be made ({problem}).") from error
    sock.setblocking(False)
    return sock


def _connected(data_dir: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _folder(data_dir) as folder:
            sock.connect(_name(data_dir / SOCKET, folder))
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _folder(data_dir: Path) -> Iterator[int]:
    descriptor = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _name(path: Path, folder: int) -> str:
    name = str(path)
    return name if len(os.fsencode(name)) <= _LONGEST_NAME else f"/proc/self/fd/{folder}/{path.name}"
