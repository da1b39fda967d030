"""The homeserver's client API, called as our user: https://spec.matrix.org/v1.16/client-server-api/"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from bot.client import Client, Reply, http_failure
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

PINGED_FOR = 70.0  # seconds the homeserver has to find out whether it reaches us


class Error(msgspec.Struct):
    """An error of the homeserver."""

    errcode: str = ""
    retry_after_ms: float | None = None


def failure(reply: Reply) -> PlatformError | None:
    """Read an error, by its code alone: https://spec.matrix.org/v1.16/client-server-api/#standard-error-response"""
    error = Error()
    with contextlib.suppress(Unavailable):
        error = reply.json(Error)
    if reply.status < 400 or not error.errcode:
        return http_failure(reply)
    what = f"HTTP {reply.status} {error.errcode}"
    if reply.status == 429:
        return Throttled(what, reply.retry_after or (error.retry_after_ms or 1000) / 1000)
    if reply.status >= 500:
        return Unavailable(what)
    return (Unauthorized if reply.status == 401 else Refused)(what, error.errcode)


class Sent(msgspec.Struct):
    """An event of ours."""

    event_id: str


class Homeserver:
    """Calls the API with our application service's token, as `me`."""

    def __init__(self, base: str, token: str, me: str) -> None:
        self.client = Client(base, headers={"Authorization": f"Bearer {token}"}, failure=failure)
        self.me = me

    async def call(self, method: str, *parts: str, query: Mapping[str, str] | None = None, **more: Any) -> Reply:
        """Call /_matrix/client/`parts`, each of which is quoted. Raises PlatformError.

        https://spec.matrix.org/v1.16/application-service-api/#identity-assertion
        """
        path = "/".join(("/_matrix/client", *(quote(part, safe="") for part in parts)))
        return await self.client.call(method, path, query={"user_id": self.me, **(query or {})}, **more)

    async def post(self, room: str, id: str, content: Mapping[str, Any]) -> str:
        """Post a message and return its event id. With the same `id` it is posted once, however often we try.

        https://spec.matrix.org/v1.16/client-server-api/#transaction-identifiers
        """
        sent = await self.call("PUT", "v3", "rooms", room, "send", "m.room.message", id, json=content)
        return sent.json(Sent).event_id

    async def ping(self, service: str) -> None:
        """Let the homeserver call us: https://spec.matrix.org/v1.16/application-service-api/#pinging"""
        fields = {"transaction_id": secrets.token_hex(8)}
        await self.call("POST", "v1", "appservice", service, "ping", json=fields, timeout=PINGED_FOR)

    async def download(self, server: str, id: str, limit: int) -> bytes:
        """Fetch a file: https://spec.matrix.org/v1.16/client-server-api/#content-repository"""
        url = f"{self.client.base}/_matrix/client/v1/media/download/{quote(server, safe=':')}/{id}"
        return await self.client.download(url, limit=limit, headers=self.client.headers)
