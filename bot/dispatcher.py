"""Lanes: which conversations are worked on here, how many at once, and who takes over when.

The process that accepts a message normally gets its conversation's lease in the same transaction and goes on in
memory. What has to wait (all places taken, a try that failed, a process that died) waits in the inbox and is claimed
from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence

import structlog

from bot import metrics
from bot.adapter import Message
from bot.commands import Command, command
from bot.errors import StoreUnavailable
from bot.health import Health
from bot.store import LEASE, Arrival, Lane, LostLease, Receipt, Store, conversation_id
from bot.turn import Turns, person

log = structlog.get_logger()

LOOK_EVERY = 1.0  # seconds between two looks for conversations that became due
PURGE_EVERY = 3600.0
CRASH_GAP = 5.0  # seconds before a turn that failed for no known reason is tried again


class Dispatcher:
    """Runs one task for each busy conversation, at most `places` of them."""

    def __init__(
        self,
        store: Store,
        turns: Turns,
        health: Health,
        *,
        owner: str,
        instances: Sequence[str],
        places: int,
        per_minute: int,
        shared_groups: bool,
    ) -> None:
        self._store = store
        self._turns = turns
        self._health = health
        self._owner = owner
        self._instances = instances
        self._places = places
        self._per_minute = per_minute
        self._shared_groups = shared_groups
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._accepting = 0  # messages being stored now, each of which may need a place
        self._backlog = False  # whether more conversations are due than there were places
        self._extended = time.monotonic()  # when the leases were
        self._look = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._signals = store.state("core")

    async def start(self) -> None:
        """Take up what waits, and go on looking."""
        self._turns.used_by_all = (await self._store.used("*")).tokens
        jobs = (self._claim(), self._keep_leases(), self._hear_stops(), self._keep_house())
        self._background = [asyncio.create_task(job) for job in jobs]

    async def stop(self, grace: float) -> None:
        """Finish what is being written within `grace` seconds, hand back the rest."""
        await _cancel(self._background[:1])
        if self._lanes:
            await asyncio.wait(self._lanes.values(), timeout=grace)
        await _cancel(list(self._lanes.values()))
        await _cancel(self._background)
        with contextlib.suppress(StoreUnavailable):
            await self._health.flush()

    def conversation(self, instance: str, message: Message) -> str:
        """Name the conversation a message belongs to: in groups each member's own, unless groups share theirs."""
        if message.chat.kind == "direct":
            return conversation_id(instance, message.chat)
        return conversation_id(instance, message.chat, "*" if self._shared_groups else message.user)

    async def accept(self, instance: str, messages: Iterable[Message]) -> list[Receipt]:
        """Store messages, then begin to answer those whose conversation is free. Raises StoreUnavailable."""
        arrivals = [
            Arrival(
                instance,
                self.conversation(instance, message),
                person(instance, message.user),
                message,
                self._per_minute,
            )
            for message in messages
        ]
        place = len(self._lanes) + self._accepting < self._places
        self._accepting += len(arrivals)
        try:
            receipts = await self._store.accept(arrivals, self._owner if place else None)
        finally:
            self._accepting -= len(arrivals)
        for arrival, receipt in zip(arrivals, receipts, strict=True):
            if receipt.lane is not None:
                self._begin(receipt.lane)
            elif receipt.new and command(arrival.message.text) is Command.STOP:
                await self._signals.publish("stop", arrival.conversation)
        self._backlog = self._backlog or not place
        return receipts

    @property
    def busy(self) -> int:
        """Conversations being answered here."""
        return len(self._lanes)

    # -- lanes ----------------------------------------------------------------------------------------------------

    def _begin(self, lane: Lane) -> None:
        task = asyncio.create_task(self._run(lane))
        self._lanes[lane.conversation] = task
        metrics.WRITING.inc()
        task.add_done_callback(lambda ended: self._ended(lane.conversation, ended))

    def _ended(self, conversation: str, task: asyncio.Task[None]) -> None:
        metrics.WRITING.dec()
        if self._lanes.get(conversation) is task:  # the next message may have begun a new one already
            del self._lanes[conversation]
        if self._backlog:
            self._look.set()

    async def _run(self, lane: Lane) -> None:
        """Work on a lane until nothing waits in it."""
        current: Lane | None = lane
        try:
            while current is not None:
                lane = current
                current = await self._turns.take(lane)
        except asyncio.CancelledError:
            await self._hand_back(lane, 0, failed=False)
            raise
        except LostLease as error:
            log.warning("lane lost", instance=lane.instance, error=str(error))
        except Exception as error:  # a mistake of ours or of an adapter's: this conversation waits, the others go on
            log.exception("turn crashed", instance=lane.instance)
            self._health.failed(lane.instance, f"turn crashed: {type(error).__name__}")
            await self._hand_back(lane, CRASH_GAP, failed=True)

    async def _hand_back(self, lane: Lane, seconds: float, failed: bool) -> None:
        with contextlib.suppress(StoreUnavailable, LostLease):  # then the lease runs out by itself
            await self._store.postpone(lane, self._owner, seconds, failed)

    async def _claim(self) -> None:
        """Take up conversations that are due, as places get free."""
        while True:
            free = self._places - len(self._lanes) - self._accepting
            claimed: list[Lane] = []
            if free > 0:
                try:
                    if time.monotonic() - self._extended > LEASE / 2:
                        await self._extend()  # first what we have: nobody takes over from us what we still work on
                    claimed = await self._store.claim(self._owner, self._instances, free)
                except StoreUnavailable as error:
                    log.error("inbox not readable", error=str(error))
            for lane in claimed:
                self._begin(lane)
            self._backlog = free <= 0 or len(claimed) == free
            if free <= 0 or len(claimed) < free:
                await self._wait(LOOK_EVERY)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._look.wait()
        self._look.clear()

    # -- in the background ----------------------------------------------------------------------------------------

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            try:
                await self._extend()
                await self._health.flush()
                self._turns.used_by_all = (await self._store.used("*")).tokens
                for state, count in (await self._store.counts()).items():
                    metrics.INBOX.labels(state).set(count)
            except StoreUnavailable as error:
                log.error("leases not extended", error=str(error))

    async def _extend(self) -> None:
        await self._store.extend(self._owner, list(self._lanes))
        self._extended = time.monotonic()

    async def _hear_stops(self) -> None:
        async with self._signals.subscribe("stop") as stops:
            async for conversation in stops:
                self._turns.stop(conversation)

    async def _keep_house(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self._store.purge()
            await asyncio.sleep(PURGE_EVERY)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
