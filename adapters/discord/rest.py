"""Discord's HTTP API, version 10: https://docs.discord.com/developers/reference"""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from bot.client import Client, Reply, retry_after
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

# https://docs.discord.com/developers/topics/opcodes-and-status-codes#json
UNKNOWN_MESSAGE = 10008
INVALID_WEBHOOK_TOKEN = 50027
CANNOT_REPLY = 160002  # without the permission to read the channel's history
# An interaction's token does not work: too old, not known (yet), or used up.
TOKEN_DEAD = {UNKNOWN_MESSAGE, 10015, 10062, 40094, INVALID_WEBHOOK_TOKEN}
# A post cannot be edited: deleted, not ours, or edited too often while older than an hour.
POST_GONE = {UNKNOWN_MESSAGE, 50005, 30046}

# These take the interaction's token instead of ours, and no part in the bot's global limit.
BY_TOKEN = ("/webhooks/", "/interactions/")


class Failed(msgspec.Struct):
    """A call that did not go well. `retry_after` in seconds."""

    code: int = 0
    message: str = ""
    retry_after: float = 0
    everywhere: bool = msgspec.field(default=False, name="global")


class Limited(Throttled):
    """429. `everywhere`: no call at all may be made for so long."""

    def __init__(self, reason: str, retry_after: float, everywhere: bool) -> None:
        super().__init__(reason, retry_after)
        self.everywhere = everywhere


def failure(reply: Reply) -> PlatformError | None:
    """Read Discord's own error out of a reply. None when there is none, or when a proxy speaks instead."""
    if reply.status < 400 or "json" not in reply.headers.get("content-type", ""):
        return None
    failed = reply.json(Failed)
    reason = f"{reply.status} {failed.message} ({failed.code})"  # `errors`, which may repeat our text, is left out
    if reply.status == 429 and failed.code not in POST_GONE:
        return Limited(reason, failed.retry_after or reply.retry_after or 1.0, failed.everywhere)
    if reply.status >= 500:
        return Unavailable(reason)
    ours = reply.status == 401 and failed.code != INVALID_WEBHOOK_TOKEN
    return (Unauthorized if ours else Refused)(reason, failed.code)


class Limits:
    """What is left of the rate limits: https://docs.discord.com/developers/topics/rate-limits

    A route tells the name of its bucket with its first answer; a bucket counts apart for each channel or webhook.
    """

    EVERYWHERE = ("", ())

    def __init__(self) -> None:
        self._buckets: dict[str, str] = {}  # route: bucket
        self._closed: dict[tuple[str, tuple[str, ...]], float] = {}  # until when, by time.monotonic()

    def check(self, route: str, place: tuple[str, ...], everywhere: bool) -> None:
        """Raise Throttled while the bucket is empty."""
        now = time.monotonic()
        self._closed = {key: until for key, until in self._closed.items() if until > now}
        keys = (self._key(route, place), *((self.EVERYWHERE,) if everywhere else ()))
        wait = max(self._closed.get(key, now) for key in keys) - now
        if wait > 0:
            raise Throttled("the rate limit is used up", wait)

    def note(self, route: str, place: tuple[str, ...], headers: Mapping[str, str]) -> None:
        """Learn from the headers of an answer."""
        if bucket := headers.get("x-ratelimit-bucket"):
            self._buckets[route] = bucket
        if headers.get("x-ratelimit-remaining") == "0":
            seconds = retry_after(headers.get("x-ratelimit-reset-after", "")) or 0
            self._closed[self._key(route, place)] = time.monotonic() + seconds

    def close(self, route: str, place: tuple[str, ...], error: Limited) -> None:
        """Learn from a refusal."""
        key = self.EVERYWHERE if error.everywhere else self._key(route, place)
        self._closed[key] = time.monotonic() + error.retry_after

    def _key(self, route: str, place: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        return self._buckets.get(route, route), place


class Rest:
    """The API for one bot."""

    def __init__(self, base: str, token: str, agent: str) -> None:
        self.client = Client(base, headers={"User-Agent": agent}, failure=failure)
        self.limits = Limits()
        self._authorization = {"Authorization": f"Bot {token}"}

    async def call(self, method: str, route: str, *ids: str, json: object = None) -> Reply:
        """Call a route such as "/channels/{}/messages", its gaps filled with `ids`.

        Raises Throttled, without a call, while the route's rate limit is used up; otherwise what `Client.call` raises.
        """
        by_token = route.startswith(BY_TOKEN)
        name, place = f"{method} {route}", ids[: 2 if by_token else 1]
        self.limits.check(name, place, everywhere=not by_token)
        path = route.format(*(quote(id, safe="@") for id in ids))
        try:
            reply = await self.client.call(method, path, json=json, headers={} if by_token else self._authorization)
        except Limited as error:
            self.limits.close(name, place, error)
            raise
        self.limits.note(name, place, reply.headers)
        return reply
