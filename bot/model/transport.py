"""HTTP to the model's server through the `openai` SDK's client; the only file that knows it.

The SDK's low-level `post` keeps its authentication, base URL and error classes, but not its cost: the ready-made
methods transform every message of the history in Python, and every chunk of a stream becomes a pydantic object.
Importing this file takes longer than everything else at start, so it is done in a thread (see client.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiohttp
import httpx2  # what the SDK is built on
import openai

from bot.config import ModelSettings
from bot.model.failures import Broken, Fault, read_response

OPENAI = "https://api.openai.com/v1"
CONNECT_TIMEOUT = 10.0  # seconds, for DNS, TCP and TLS together
CONNECTIONS = 10_000  # the number of answers is limited elsewhere (BOT_MAX_CONCURRENT)
KEEP_ALIVE = 30.0  # seconds an idle connection is kept
FAILURES = (openai.APIError, httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)


class Response:
    """The body of a successful answer, as it comes."""

    def __init__(self, raw: httpx2.Response) -> None:
        self.content_type = raw.headers.get("content-type", "").lower()
        self._raw = raw
        encoded = raw.headers.get("content-encoding", "identity") != "identity"
        self._blocks: AsyncIterator[bytes] = raw.aiter_bytes() if encoded else raw.aiter_raw()

    async def read(self) -> bytes:
        """Return what one read of the network brought, b"" at the end. Raises Broken."""
        try:
            return await anext(self._blocks, b"")
        except FAILURES as error:
            raise Broken(_cause(error)) from None

    async def close(self) -> None:
        """Close the connection, or hand it back when the body was read to its end."""
        with contextlib.suppress(*FAILURES):  # it is gone either way
            await self._raw.aclose()


class Transport:
    """The connection pool to one server. Close it: a client dropped open can stall the others of its event loop."""

    def __init__(self, settings: ModelSettings) -> None:
        limits = httpx2.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEP_ALIVE)
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT, pool=CONNECT_TIMEOUT)  # silence is the stream's matter
        # Redirects are not followed: the key goes to the configured server and nowhere else.
        http = openai.DefaultAioHttpClient(limits=limits, timeout=timeout, follow_redirects=False)
        self._client = openai.AsyncOpenAI(
            api_key="one of several, set for each request",
            base_url=settings.base_url or OPENAI,
            max_retries=0,
            timeout=timeout,
            http_client=http,
        )

    async def post(self, path: str, body: bytes, key: str) -> Response:
        """Send one request. Raises Fault when the server refuses it, Broken when it cannot be reached."""
        stream: bool = True
        try:
            raw: httpx2.Response = await self._client.post(
                path, cast_to=httpx2.Response, content=body, options={"headers": _authorization(key)}, stream=stream
            )
        except FAILURES as error:
            raise _failure(error) from None
        return Response(raw)

    async def get(self, path: str, key: str) -> bytes:
        """Fetch a small document. Raises Fault and Broken."""
        try:
            raw = await self._client.get(path, cast_to=httpx2.Response, options={"headers": _authorization(key)})
        except FAILURES as error:
            raise _failure(error) from None
        return raw.content

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def _authorization(key: str) -> dict[str, str | openai.Omit]:
    return {"Authorization": f"Bearer {key}" if key else openai.Omit()}


def _failure(error: Exception) -> Fault | Broken:
    if isinstance(error, openai.APIStatusError):
        return read_response(error.status_code, error.response.headers, error.response.content)
    return Broken(_cause(error))


def _cause(error: BaseException) -> str:
    """Name the first cause: the SDK reports a refused connection as a time-out."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__
