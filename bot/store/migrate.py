"""From one SQLite file into PostgreSQL: conversations, history, usage, the inbox and the shared state."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from bot.errors import MagpieError
from bot.store import pool
from bot.store.pool import Session
from bot.store.postgres import PostgresStore, clean
from bot.store.sqlite import SQLiteStore

ROWS = 500  # in one transaction

Progress = Callable[[str, int, int], None]  # table, rows done, rows altogether


class Conflict(MagpieError):
    """The target has other data under the same keys."""


class Table(msgspec.Struct, frozen=True):
    """A table to copy. With `yields`, what the target has already stays as it is."""

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    yields: bool = False

    @property
    def all(self) -> tuple[str, ...]:
        """Key and columns."""
        return self.key + self.columns

    def listed(self, alias: str = "") -> str:
        """Return the columns as they stand in SQL."""
        return ", ".join(alias + column for column in self.all)


TABLES = (
    Table("people", ("person", "day"), ("messages", "prompt", "cached", "completion", "minute", "in_minute")),
    Table("state", ("key",), ("value", "expires"), yields=True),
    Table(
        "turns",
        ("conversation", "seq"),
        ("role", "content", "tokens", "at", "person", "model", "prompt", "cached", "completion"),
    ),
    Table(
        "inbox",
        ("conversation", "message"),
        ("number", "accepted", "state", "tries", "payload", "outcome", "reason", "turn"),
    ),
    # The last, because a replica that is running already takes up what waits from then on.
    Table("conversations", ("conversation",), ("instance", "due", "seq", "window_start", "opened", "draft")),
)


async def migrate(path: str, url: str, progress: Progress) -> None:
    """Copy everything. It may be broken off and run again: what is there already is compared, the rest is copied.

    Raises Conflict before anything is written when the target has other data under a key of the file, and
    StoreUnavailable. The file stays as it is.
    """
    async with _source(path) as source, _target(url) as target:
        if await target.fetchval("SELECT EXISTS (SELECT FROM turns) OR EXISTS (SELECT FROM conversations)"):
            for table in TABLES:
                await _each(source, table, target, _compare, lambda *_: None)
        newest = source.execute("SELECT coalesce(max(number), 0) FROM inbox").fetchone()[0]
        await target.execute("SELECT setval('arrivals', greatest(nextval('arrivals'), $1))", newest)
        for table in TABLES:
            await _each(source, table, target, _copy, progress)


@contextlib.asynccontextmanager
async def _source(path: str) -> AsyncIterator[sqlite3.Connection]:
    """Open the file, in the form of this version, while nobody serves it."""
    store = SQLiteStore(_present(path))
    await store.open()
    try:
        if not store.alone:
            raise MagpieError(f"{path}: a running magpie uses this file; stop it first")
        with contextlib.closing(sqlite3.connect(path)) as source:
            yield source
    finally:
        await store.close()


def _present(path: str) -> str:
    if not Path(path).is_file():
        raise MagpieError(f"{path}: no such file")
    return path


@contextlib.asynccontextmanager
async def _target(url: str) -> AsyncIterator[Session]:
    """Connect, with the schema up to date."""
    store = PostgresStore(url)
    await store.open()
    await store.close()
    target = await pool.connect(url, server_settings={"statement_timeout": "0"})
    try:
        yield target
    except pool.FAILURES as error:
        raise pool.ours(error) from None
    finally:
        target.terminate()


async def _each(
    source: sqlite3.Connection, table: Table, target: Session, do: Callable[..., Awaitable[None]], progress: Progress
) -> None:
    """Do something with the rows of a table, some hundred at a time, each time in one transaction."""
    total = source.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]  # noqa: S608 - our own names
    done = 0
    progress(table.name, done, total)
    for rows in _rows(source, table):
        async with target.transaction():
            await target.execute(f"CREATE TEMPORARY TABLE coming (LIKE {table.name} INCLUDING DEFAULTS) ON COMMIT DROP")
            await target.copy_records_to_table("coming", records=rows, columns=table.all)
            await do(table, target)
        done += len(rows)
        progress(table.name, done, total)


def _rows(source: sqlite3.Connection, table: Table) -> Iterator[list[tuple[object, ...]]]:
    cursor = source.execute(f"SELECT {table.listed()} FROM {table.name} ORDER BY {', '.join(table.key)}")  # noqa: S608
    while rows := cursor.fetchmany(ROWS):
        yield [tuple(clean(value) if isinstance(value, str) else value for value in row) for row in rows]


async def _compare(table: Table, target: Session) -> None:
    """Raise Conflict when the target has other values under the same keys."""
    if table.yields:
        return
    differing = await target.fetchval(
        f"SELECT count(*) FROM coming JOIN {table.name} AS there USING ({', '.join(table.key)}) "  # noqa: S608
        f"WHERE ROW({table.listed('coming.')}) IS DISTINCT FROM ROW({table.listed('there.')})"
    )
    if differing:
        raise Conflict(f"the target has other data: {differing} rows of {table.name} differ; nothing was changed there")


async def _copy(table: Table, target: Session) -> None:
    await target.execute(
        f"INSERT INTO {table.name} ({table.listed()}) SELECT {table.listed()} FROM coming ON CONFLICT DO NOTHING"  # noqa: S608
    )
