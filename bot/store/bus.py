"""Messages between the parts of one process: who listens to a topic hears what is published on it."""

from __future__ import annotations

import asyncio
from collections import deque

BACKLOG = 1000  # unread entries a subscriber may have; older ones are dropped
LARGEST = 7000  # UTF-8 bytes of one entry: PostgreSQL's notifications hold 8,000 with what goes along


def fitting(data: str) -> str:
    """Return an entry that is small enough. Raises ValueError."""
    if len(data) > LARGEST // 4 and len(data.encode("utf-8", "replace")) > LARGEST:
        raise ValueError(f"an entry holds at most {LARGEST} bytes")
    return data


class Bus:
    """Topics and who listens to them."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Ear]] = {}

    def publish(self, topic: str, data: str) -> None:
        """Hand `data` to everybody who listens to the topic now."""
        for ear in self._listeners.get(topic, ()):
            ear.hear(data)

    def subscribe(self, topic: str) -> Ear:
        """Listen to a topic from now on."""
        ear = Ear(self, topic)
        self._listeners.setdefault(topic, set()).add(ear)
        return ear

    def drop(self, ear: Ear) -> None:
        """Stop listening."""
        listeners = self._listeners.get(ear.topic, set())
        listeners.discard(ear)
        if not listeners:
            self._listeners.pop(ear.topic, None)


class Ear:
    """One subscription: iterate over what is said, leave the `async with` to stop listening."""

    def __init__(self, bus: Bus, topic: str) -> None:
        self.topic = topic
        self._bus = bus
        self._heard: deque[str] = deque(maxlen=BACKLOG)
        self._something = asyncio.Event()

    def hear(self, data: str) -> None:
        """Take an entry."""
        self._heard.append(data)
        self._something.set()

    async def __aenter__(self) -> Ear:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._bus.drop(self)

    def __aiter__(self) -> Ear:
        return self

    async def __anext__(self) -> str:
        while not self._heard:
            self._something.clear()
            await self._something.wait()
        return self._heard.popleft()
