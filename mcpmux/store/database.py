"""Database: one pool of connections to PostgreSQL, created once, and notifications as an iterator.

The only room that knows asyncpg. Its exceptions end here: whatever goes wrong is `StoreUnavailable`, or `ValueRefused`
where PostgreSQL does not allow a value. What tables there are is `migrations/`' business, what is in them that of the
room which writes them.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Protocol

import asyncpg

from mcpmux.errors import StoreUnavailable, ValueRefused
from mcpmux.observe.log import logger

log = logger("store")

CONNECT_SECONDS: Final = 10.0
ACQUIRE_SECONDS: Final = 10.0
RELEASE_SECONDS: Final = 5.0
STATEMENT_SECONDS: Final = 15.0
"""PostgreSQL ends a statement after this; we give up on a silent server a little later."""

CLOSE_SECONDS: Final = 5.0
LISTEN_CHECK_SECONDS: Final = 15.0
"""A listening connection that says nothing for so long is asked whether it is alive: a lost one looks just like it."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
INBOX: Final = 1000
"""Notifications kept for a slow listener; more of them become one `None`."""


class Row(Protocol):
    """One row: `row["column"]`, `dict(row)`. Only the SQL knows the types of its columns."""

    def __getitem__(self, key: str) -> Any: ...
    def keys(self) -> Iterable[str]: ...
    def get(self, key: str, default: object = None, /) -> Any: ...


class Connection:
    """One connection, in a transaction or alone; the methods are those of `Database`."""

    __slots__ = ("_raw",)

    def __init__(self, raw: asyncpg.Connection) -> None:
        self._raw = raw

    async def fetch(self, query: str, *args: object) -> list[Row]:
        """Give all rows. Raises: StoreUnavailable, ValueRefused."""
        with _store_errors():
            rows: list[Row] = await self._raw.fetch(query, *args)
            return rows

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """Give the first row or None. Raises: StoreUnavailable, ValueRefused."""
        with _store_errors():
            row: Row | None = await self._raw.fetchrow(query, *args)
            return row

    async def fetchval(self, query: str, *args: object) -> object:
        """Give the first column of the first row, None without rows. Raises: StoreUnavailable, ValueRefused."""
        with _store_errors():
            value: object = await self._raw.fetchval(query, *args)
            return value

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement and give its command tag (`DELETE 3`). Raises: StoreUnavailable, ValueRefused."""
        with _store_errors():
            return str(await self._raw.execute(query, *args))

    async def executemany(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each of the rows, all or none. Raises: StoreUnavailable, ValueRefused."""
        with _store_errors():
            await self._raw.executemany(query, rows)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Commit what the block does when it ends well, undo it otherwise. Raises: StoreUnavailable."""
        transaction = self._raw.transaction()
        with _store_errors():
            await transaction.start()
        try:
            yield self
        except BaseException:
            # The block's own failure is the one to be seen, not that the connection is gone as well.
            with suppress(StoreUnavailable), _store_errors():
                await transaction.rollback()
            raise
        with _store_errors():
            await transaction.commit()


class Database:
    """One pool of connections; every method takes one for as long as it runs."""

    __slots__ = ("_dsn", "_pool")

    def __init__(self, dsn: str, pool: asyncpg.Pool) -> None:
        """Use `Database.open`."""
        self._dsn = dsn
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, size: int = 10) -> AsyncIterator[Database]:
        """Connect, and close everything at the end. `dsn` is a libpq URI, `size` the most connections in the pool.

        Raises: StoreUnavailable when the first connection fails.
        """
        with _connect_errors():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=size,
                timeout=CONNECT_SECONDS,
                command_timeout=STATEMENT_SECONDS + 5.0,
                server_settings=_settings(STATEMENT_SECONDS),
            )
        try:
            yield cls(dsn, pool)
        finally:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()

    async def fetch(self, query: str, *args: object) -> list[Row]:
        """Give all rows. Raises: StoreUnavailable, ValueRefused."""
        async with self._connection() as connection:
            return await connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """Give the first row or None. Raises: StoreUnavailable, ValueRefused."""
        async with self._connection() as connection:
            return await connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> object:
        """Give the first column of the first row, None without rows. Raises: StoreUnavailable, ValueRefused."""
        async with self._connection() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement and give its command tag (`DELETE 3`). Raises: StoreUnavailable, ValueRefused."""
        async with self._connection() as connection:
            return await connection.execute(query, *args)

    async def executemany(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each of the rows, all or none. Raises: StoreUnavailable, ValueRefused."""
        async with self._connection() as connection:
            await connection.executemany(query, rows)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Give one connection in a transaction: committed when the block ends well, undone otherwise.

        Raises: StoreUnavailable.
        """
        async with self._connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Connection]:
        """Give a connection beside the pool, without a statement timeout, for work that may take long.

        Raises: StoreUnavailable.
        """
        async with self._separate() as raw:
            yield Connection(raw)

    async def listen(self, channel: str) -> AsyncIterator[str | None]:
        """Iterate over the payloads that are notified on `channel`, on a connection of its own, for ever.

        `None` means that anything may have been missed: it comes first, after every new connection, and when the
        reader was too slow. A lost connection is made again, with growing pauses of up to 5 s, each logged.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._separate() as raw:
                    inbox = _Inbox()
                    with _store_errors():
                        await raw.add_listener(channel, inbox.hear)
                    raw.add_termination_listener(inbox.end)
                    pause = FIRST_PAUSE
                    yield None
                    while True:
                        yield await inbox.next(raw)
            except StoreUnavailable as exc:
                log.warning("listen_lost", channel=channel, problem=str(exc), pause=round(pause, 1))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
            pause = min(pause * 2, LONGEST_PAUSE)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with _connect_errors():
            raw = await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        try:
            yield Connection(raw)
        finally:
            with _store_errors():
                # A cancelled statement is waited for here, and may not hold up whoever cancelled it.
                await self._pool.release(raw, timeout=RELEASE_SECONDS)

    @asynccontextmanager
    async def _separate(self) -> AsyncIterator[asyncpg.Connection]:
        with _connect_errors():
            raw = await asyncpg.connect(self._dsn, timeout=CONNECT_SECONDS, server_settings=_settings(0))
        try:
            yield raw
        finally:
            raw.terminate()


class _Inbox:
    """What one listening connection has heard and nobody has read yet."""

    __slots__ = ("_ended", "_heard", "_wake")

    def __init__(self) -> None:
        self._heard: deque[str | None] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def hear(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        if len(self._heard) >= INBOX:
            self._heard.clear()
            self._heard.append(None)
        else:
            self._heard.append(payload)
        self._wake.set()

    def end(self, _connection: object) -> None:
        self._ended = True
        self._wake.set()

    async def next(self, raw: asyncpg.Connection) -> str | None:
        """Wait for the next payload. Raises: StoreUnavailable when the connection has ended."""
        while not self._ended:
            if self._heard:
                return self._heard.popleft()
            self._wake.clear()
            try:
                async with asyncio.timeout(LISTEN_CHECK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                with _store_errors():
                    await raw.execute("SELECT 1", timeout=CONNECT_SECONDS)
        raise StoreUnavailable("the connection was lost")


def _settings(statement_seconds: float) -> dict[str, str]:
    """Settings of each connection; 0 means no statement timeout."""
    return {
        "application_name": "mcpmux",
        "statement_timeout": f"{round(statement_seconds * 1000)}ms",
        "idle_in_transaction_session_timeout": "60s",
        "TimeZone": "UTC",
        "jit": "off",
    }


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn what asyncpg raises into our own two errors; the texts name nothing that a client should not read."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as exc:
        raise ValueRefused(exc.constraint_name or exc.column_name or "") from exc
    except asyncpg.DataError as exc:
        raise ValueRefused from exc
    except (asyncpg.QueryCanceledError, TimeoutError) as exc:
        raise StoreUnavailable("a statement took too long") from exc
    except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError) as exc:
        raise StoreUnavailable("the connection was lost") from exc
    except asyncpg.PostgresError as exc:
        raise StoreUnavailable(f"a statement failed (SQLSTATE {exc.sqlstate})") from exc
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
        # The last is what an idle connection of the pool says when its backend was killed.
        raise StoreUnavailable("the connection was lost") from exc


@contextmanager
def _connect_errors() -> Iterator[None]:
    """The same for connecting, where the reason is one that an administrator can mend."""
    try:
        yield
    except TimeoutError as exc:
        raise StoreUnavailable("no connection in time") from exc
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as exc:
        raise StoreUnavailable("it refuses this user, password or database name") from exc
    except asyncpg.PostgresError as exc:
        raise StoreUnavailable(f"it takes no connection (SQLSTATE {exc.sqlstate})") from exc
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, ValueError) as exc:
        raise StoreUnavailable("it cannot be reached") from exc
