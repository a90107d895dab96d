"""Fixtures for all tests: a real PostgreSQL with a fresh database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mcpmux.store import Database
from tests.calls.upstream import Witness
from tests.postgres import Postgres, open_folder, postgres_running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One embedded PostgreSQL for the whole run."""
    with postgres_running() as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def all_that_servers_were_told_is_right() -> Iterator[None]:
    """As the schemas have it, also what came last of all."""
    yield
    Witness.all_is_right()


@pytest.fixture(scope="module", autouse=True)
def all_that_servers_were_told_in_this_module_is_right() -> Iterator[None]:
    """So that it is found where it was said."""
    yield
    Witness.all_is_right()


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database, opened."""
    async with Database.open(database_url) as db:
        yield db


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that does not exist yet, where a database can live also when the tests run as root."""
    with open_folder() as folder:
        yield folder / "data"
