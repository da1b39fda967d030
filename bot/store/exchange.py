"""What replicas say to each other: LISTEN and NOTIFY over one connection of its own, made again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

import structlog

from bot.errors import StoreUnavailable
from bot.store import pool
from bot.store.batch import Batch
from bot.store.bus import Bus, Ear, fitting

log = structlog.get_logger()

CHANNEL = "magpie"
NOTIFY = "SELECT pg_notify('magpie', said) FROM unnest($1::text[]) AS said"
LISTEN_EVERY = 5.0  # seconds between two proofs that we still hear ourselves
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds before the next try to connect; the last one stays
SETTINGS = {"synchronous_commit": "off"}  # what is said is not kept: nobody waits for the disk


class Exchange:
    """Topics over all replicas. Everybody who listens hears an entry once, in the order in which one replica said them.

    While there is no connection, this replica's own subscribers still hear it. Others miss what is said until they are
    back: whoever waits for something that matters looks into the store as well.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._bus = Bus()
        self._name = secrets.token_hex(4)  # tells our own entries from the others'
        self._numbers = itertools.count()
        self._unheard: dict[str, tuple[str, str]] = {}  # what we said and have not heard yet
        self._batch = Batch(self._notify)
        self._connection: pool.Session | None = None
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to listen. Raises StoreUnavailable."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Listen no more."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            self._connection.terminate()

    def subscribe(self, topic: str) -> Ear:
        """Listen to a topic from now on."""
        return self._bus.subscribe(_short(topic))

    async def publish(self, topic: str, data: str) -> None:
        """Hand `data` to everybody who listens to the topic."""
        topic, data = _short(topic), fitting(data).replace("\x00", "\ufffd")
        if self._connection is None:
            self._bus.publish(topic, data)
            return
        entry = f"{self._name}{next(self._numbers):x}"
        self._unheard[entry] = (topic, data)
        with contextlib.suppress(StoreUnavailable):  # then `_end` has told our own subscribers
            await self._batch.do(f"{entry} {topic} {data}")

    async def _notify(self, entries: Sequence[str]) -> Sequence[None]:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("PostgreSQL: not connected")
        try:
            await connection.execute(NOTIFY, entries)
        except pool.FAILURES as error:
            connection.terminate()
            self._end(connection)
            raise pool.ours(error) from None
        return [None] * len(entries)

    def _hear(self, connection: Any, process: int, channel: str, said: object) -> None:
        entry, topic, data = str(said).split(" ", 2)
        if entry.startswith(self._name) and self._unheard.pop(entry, None) is None:
            return  # told already, when the connection over which it was said had broken
        self._bus.publish(topic, data)

    def _end(self, connection: object) -> None:
        """The connection is gone, and with it the echo of what was said last."""
        if connection is not self._connection:
            return
        self._connection = None
        self._lost.set()
        unheard, self._unheard = self._unheard, {}
        for topic, data in unheard.values():
            self._bus.publish(topic, data)

    async def _connect(self) -> None:
        connection = await pool.connect(self._url, command_timeout=pool.PATIENCE, server_settings=SETTINGS)
        connection.add_termination_listener(self._end)
        try:
            await connection.add_listener(CHANNEL, self._hear)
        except pool.FAILURES as error:
            connection.terminate()
            raise pool.ours(error) from None
        self._lost.clear()
        self._connection = connection

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost; find out when it is lost silently."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), LISTEN_EVERY)
            if self._connection is not None:
                await self.publish("alive", "")
            pauses = iter(PAUSES)
            while self._connection is None:
                pause = next(pauses, PAUSES[-1])
                try:
                    await self._connect()
                except StoreUnavailable as error:
                    log.warning("not listening to the other replicas", error=str(error), again_in=pause)
                    await asyncio.sleep(pause)


def _short(topic: str) -> str:
    return hashlib.blake2b(topic.encode("utf-8", "replace"), digest_size=12).hexdigest()
