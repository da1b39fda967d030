"""Group commit: one thread, one connection; whatever waits is written in one transaction."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from bot.errors import MagpieError, StoreUnavailable

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
Job = tuple[Operation[Any], "asyncio.Future[Any]"]

GROUP = 512  # operations in one transaction at most


class Writer:
    """Runs operations on a SQLite connection in its own thread, as many as wait in one durable transaction."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="magpie-store", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Queue an operation; the future resolves once its transaction is on disk."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((operation, future))
        return future

    async def close(self) -> None:
        """Write what was submitted, then end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while group := self._gather():
            try:
                connection = connection or self._connect()
            except sqlite3.Error as error:
                self._resolve([(future, None, _ours(error)) for _, future in group])
                continue
            self._resolve(_write(connection, group))
        if connection is not None:
            connection.close()

    def _gather(self) -> list[Job]:
        """Wait for a job, then take whatever else is there. Empty at the end."""
        job = self._jobs.get()
        group: list[Job] = []
        while job is not None:
            group.append(job)
            if len(group) == GROUP or self._jobs.empty():
                return group
            job = self._jobs.get()
        if group:
            self._jobs.put(None)  # write these first, end then
        return group

    def _resolve(self, results: list[Result]) -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, results)
        except RuntimeError:  # the loop has closed: nobody waits any more
            return


Result = tuple["asyncio.Future[Any]", Any, "BaseException | None"]


def _settle(results: list[Result]) -> None:
    for future, value, error in results:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


def _write(connection: sqlite3.Connection, group: list[Job]) -> list[Result]:
    """Run a group in one transaction; when one of them fails, each in its own."""
    results = _transaction(connection, group)
    if results[0][2] is None or len(group) == 1:
        return results
    return [result for job in group for result in _transaction(connection, [job])]


def _transaction(connection: sqlite3.Connection, group: list[Job]) -> list[Result]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        results: list[Result] = [(future, operation(connection), None) for operation, future in group]
        connection.execute("COMMIT")
    except Exception as error:  # whatever it is, it belongs to the callers, and the thread must go on
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return [(future, None, _ours(error)) for _, future in group]
    return results


def _ours(error: Exception) -> Exception:
    if isinstance(error, MagpieError) or not isinstance(error, sqlite3.Error):
        return error
    return StoreUnavailable(f"SQLite: {error}")
