"""A real PostgreSQL for tests: its own data directory, loopback only, nothing flushed to disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from tests.counterparts import initdb
from tests.process import free_port

USERS = ("postgres", "nobody")  # who may run it instead of root, which PostgreSQL refuses
OPTIONS = {"fsync": "off", "full_page_writes": "off", "max_connections": "60", "listen_addresses": "127.0.0.1"}


class PostgresServer:
    """One server. Magpie is not its administrator: it owns a database, and that is all."""

    def __init__(self) -> None:
        self._programs = Path(initdb()).parent
        self._directory = Path(tempfile.mkdtemp(prefix="magpie-pg-"))
        self._user = next(filter(_exists, USERS)) if os.geteuid() == 0 else None
        self.port = free_port()
        self._count = itertools.count(1)
        if self._user:
            shutil.chown(self._directory, self._user)

    def url(self, database: str, user: str = "bot") -> str:
        """Where a database is found."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the data directory and start."""
        data = self._directory / "data"
        if not data.exists():
            self._run(
                "initdb", "--pgdata", str(data), "--username=admin", "--auth=trust", "--encoding=UTF8", "--no-sync"
            )
        options = {**OPTIONS, "port": str(self.port), "unix_socket_directories": str(self._directory)}
        flags = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._control("start", "--options", flags, "--log", str(self._directory / "log"))

    def stop(self, mode: str = "immediate") -> None:
        """Stop; "immediate" is a crash, after which the next start recovers from the log."""
        self._control("stop", "--mode", mode)

    def remove(self) -> None:
        """Delete what is left of it."""
        shutil.rmtree(self._directory, ignore_errors=True)

    async def create(self) -> str:
        """Make an empty database; return its URL."""
        name = f"test_{next(self._count)}"
        with contextlib.suppress(asyncpg.DuplicateObjectError):
            await self._revived("CREATE ROLE bot LOGIN")
        await self.run(f"CREATE DATABASE {name} OWNER bot")
        return self.url(name)

    async def _revived(self, sql: str) -> None:
        """Run a statement; start the server first when a test that failed left it stopped."""
        try:
            await self.run(sql)
        except OSError:
            self.start()
            await self.run(sql)

    async def run(self, sql: str, database: str = "postgres") -> list[asyncpg.Record]:
        """Run a statement as the administrator."""
        connection = await asyncpg.connect(self.url(database, "admin"), server_settings={"search_path": "magpie"})
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    async def end_sessions(self, url: str, application: str = "magpie") -> None:
        """Cut the connections of whoever uses a database."""
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND application_name = '{}'"
        await self.run(sql.format(url.rpartition("/")[2], application))

    async def read_only(self, yes: bool) -> None:
        """Let transactions be read-only from now on, as a standby's are."""
        await self.run(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if yes else 'off'}")
        await self.run("SELECT pg_reload_conf()")
        async with asyncio.timeout(10):
            while (await self.run("SHOW transaction_read_only"))[0][0] != ("on" if yes else "off"):
                await asyncio.sleep(0.01)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "--pgdata", str(self._directory / "data"), "--wait", "--silent", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # A file, not a pipe: the server inherits it and would keep a pipe open.
        with (self._directory / "output").open("w+") as output:
            command: Sequence[str] = (str(self._programs / program), *arguments)
            code = subprocess.call(command, stdout=output, stderr=output, user=self._user, cwd=self._directory)
            if code:
                output.seek(0)
                log = self._directory / "log"
                raise RuntimeError(f"{program}: {output.read()}{log.read_text()[-2000:] if log.exists() else ''}")


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests."""
    server = PostgresServer()
    server.start()
    yield server
    server.stop()
    server.remove()


@pytest.fixture
async def database(postgres: PostgresServer) -> str:
    """Return the URL of an empty database."""
    return await postgres.create()
