"""Connections to PostgreSQL: made again by themselves when they break, their failures turned into ours."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any, TypeAlias

from bot.errors import ConfigError, StoreUnavailable

try:
    import asyncpg
except ImportError:
    missing = "BOT_DATABASE_URL: PostgreSQL needs the extra `postgres`: pip install 'magpie-im[postgres]'"
    raise ConfigError([missing]) from None

CONNECTIONS = 10
PATIENCE = 6.0  # seconds a statement may take before the server counts as lost; it gives up by itself a little earlier
RETRIES = 5  # of a statement that lost a deadlock
SCHEMA = "magpie"
SETTINGS = {
    "application_name": "magpie",
    "search_path": SCHEMA,
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "jit": "off",
}
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
BROKEN = (
    ConnectionError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
ABOUT_A_VALUE = ("22", "54")  # classes of https://www.postgresql.org/docs/current/errcodes-appendix.html


Row = asyncpg.Record
Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Unknown(StoreUnavailable):
    """The connection broke in the middle of a statement: nobody knows whether it was done."""


def ours(error: Exception) -> Exception:
    """Translate what asyncpg raises. No text holds a parameter: that might be a message."""
    name = type(error).__name__
    kind = Unknown if isinstance(error, BROKEN) else StoreUnavailable
    if not isinstance(error, asyncpg.PostgresError):
        return kind(f"PostgreSQL: {'no answer in time' if isinstance(error, TimeoutError) else name}")
    if (error.sqlstate or "").startswith(ABOUT_A_VALUE):
        return ValueError(f"PostgreSQL does not take a value ({name})")
    return kind(f"PostgreSQL: {error.args[0] if error.args else name}")


async def connect(url: str, **options: Any) -> Session:
    """Open a connection beside the pool. Raises StoreUnavailable."""
    settings = {**SETTINGS, **options.pop("server_settings", {})}
    try:
        return await asyncpg.connect(url, timeout=PATIENCE, server_settings=settings, **options)
    except (*FAILURES, ValueError) as error:
        raise ours(error) from None


class Pool:
    """A few connections. Each statement is a transaction of its own.

    Everything raises StoreUnavailable, Unknown where the outcome is, and ValueError for a value that cannot be stored.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool[Row] | None = None
        self._failed = -math.inf  # when something last went wrong

    async def open(self) -> None:
        """Connect."""
        try:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=CONNECTIONS,
                timeout=PATIENCE,
                command_timeout=PATIENCE,
                max_cached_statement_lifetime=0,
                server_settings=SETTINGS,
                reset=_nothing,  # no statement leaves anything behind in its session
            )
        except (*FAILURES, ValueError) as error:
            raise ours(error) from None

    async def close(self) -> None:
        """Close all connections, those that are stuck included."""
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), PATIENCE)
        except FAILURES:
            self._pool.terminate()

    @property
    def steady(self) -> float:
        """Seconds since something went wrong last."""
        return time.monotonic() - self._failed

    async def fetch(self, sql: str, *parameters: object) -> list[Row]:
        """Run a statement that may be run twice: once more when the connection breaks."""
        try:
            return await self.fetch_once(sql, *parameters)
        except Unknown:
            return await self.fetch_once(sql, *parameters)

    async def fetch_once(self, sql: str, *parameters: object) -> list[Row]:
        """Run a statement; what lost a deadlock was not done and is tried again."""
        for attempt in range(RETRIES):
            try:
                return await self._fetch(sql, parameters)
            except AGAIN:
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
            except FAILURES as error:
                failure = ours(error)
                if isinstance(failure, StoreUnavailable):
                    self._failed = time.monotonic()
                raise failure from None
        raise StoreUnavailable("PostgreSQL: one deadlock after the other")

    async def _fetch(self, sql: str, parameters: tuple[object, ...]) -> list[Row]:
        if self._pool is None:
            raise StoreUnavailable("PostgreSQL: not connected")
        async with self._pool.acquire(timeout=PATIENCE) as connection:
            try:
                return await connection.fetch(sql, *parameters)
            except TimeoutError:
                connection.terminate()  # it may be a black hole: nothing more is to be expected of it
                raise
            except asyncpg.ReadOnlySQLTransactionError:
                await self._pool.expire_connections()  # after a failover the server that can write is another one
                raise


async def _nothing(connection: object) -> None:
    pass
