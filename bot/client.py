"""One call to a platform's HTTP API: time limit, retry-after, failures turned into ours.

The client never follows a redirect by itself and sends its headers (tokens) to its own base URL only.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from bot.adapter import State
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

T = TypeVar("T")
REDIRECTS = 3  # of a download at most
LONGEST_WAIT = 3600.0  # seconds; a platform that asks for more is asked again after this


class Reply(msgspec.Struct, frozen=True):
    """What a platform's API answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, type: type[T]) -> T:
        """Decode the body. Raises Unavailable when it is not the declared structure (a proxy's error page, say)."""
        try:
            return msgspec.json.decode(self.body, type=type)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Unavailable(f"HTTP {self.status} with an unreadable body") from None

    @property
    def retry_after(self) -> float | None:
        """Seconds of the Retry-After header (a number or a date), None when absent or unreadable."""
        return retry_after(self.headers.get("retry-after", ""))


def retry_after(value: str) -> float | None:
    """Read a Retry-After header: seconds, None when it is absent or unreadable."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


Failure = Callable[[Reply], PlatformError | None]


def http_failure(reply: Reply) -> PlatformError | None:
    """Read a failure off the HTTP status alone."""
    if reply.status < 400:
        return None
    if reply.status == 429:
        return Throttled("HTTP 429", reply.retry_after or 1.0)
    if reply.status in (401, 403):
        return Unauthorized(f"HTTP {reply.status}", reply.status)
    if reply.status >= 500 or reply.status in (408, 425):
        return Unavailable(f"HTTP {reply.status}")
    return Refused(f"HTTP {reply.status}", reply.status)


def environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment (HTTPS_PROXY, NO_PROXY ...) prescribes for a URL, None for none."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


class Client:
    """Calls one platform's HTTP API.

    `failure` reads the platform's own error out of a reply (many put it into an HTTP 200) and returns it, or None;
    its texts must hold no secret. Every error raised is a PlatformError; its text never shows a URL, because some
    platforms put the token into the path.
    """

    def __init__(
        self,
        base: str,
        *,
        headers: Mapping[str, str] | None = None,
        failure: Failure = http_failure,
        timeout: float = 20,
    ) -> None:
        self.base = base.rstrip("/")
        self.headers = dict(headers or {})
        self.failure = failure
        self.timeout = aiohttp.ClientTimeout(total=timeout, connect=min(10, timeout))
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connection pool, opened at the first use."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=512, limit_per_host=0, keepalive_timeout=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self.timeout,
                proxy=environment_proxy(self.base),
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """Call `base + path` once. `json` is sent as UTF-8 without escapes; `data` as aiohttp takes it.

        Raises Throttled, Unavailable, Refused or Unauthorized, as `failure` reads the answer.
        """
        sent = {**self.headers, **(headers or {})}
        if json is not None:
            data = msgspec.json.encode(json)
            sent.setdefault("Content-Type", "application/json")
        reply = await self._once(method, self.base + path, data, query, sent, timeout)
        if 300 <= reply.status < 400:
            raise Refused(
                f"HTTP {reply.status}: the API redirects elsewhere; check the configured base URL",
                reply.status,
            )
        error = self.failure(reply) or http_failure(reply)
        if error is not None:
            raise error
        return reply

    async def _once(
        self,
        method: str,
        url: str,
        data: Any,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        timeout: float | None,
    ) -> Reply:
        limit = self.timeout if timeout is None else aiohttp.ClientTimeout(total=timeout, connect=min(10, timeout))
        try:
            async with self.session.request(
                method, url, data=data, params=query, headers=headers, allow_redirects=False, timeout=limit
            ) as answer:
                return Reply(answer.status, answer.headers, await answer.read())
        except TimeoutError:
            raise Unavailable(f"no answer within {limit.total:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The name of the class only: the text may hold the URL, and with it a token.
            raise Unavailable(f"connection failed ({type(error).__name__})") from None

    async def download(
        self,
        url: str,
        *,
        limit: int,
        hosts: tuple[str, ...] = (),
        trusted: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Fetch a file of at most `limit` bytes, following up to three redirects.

        Only hosts in `hosts` or `trusted` are asked ("files.example.com", or ".example.com" for all below it; the
        base URL's own host is always trusted). The `headers` (tokens) go to trusted hosts only. Raises PlatformError.
        """
        for _ in range(REDIRECTS + 1):
            trust = self._trusts(url, trusted)
            if not trust and not _secure_host(url, hosts):
                raise Refused("the file lies on a host that is not allowed")
            answer = await self._fetch(url, limit, headers if trust else None)
            if isinstance(answer, bytes):
                return answer
            url = _join(url, answer)
        raise Refused("too many redirects")

    def _trusts(self, url: str, trusted: tuple[str, ...]) -> bool:
        """Whether a token may go there: to the API's own origin, or to a trusted host by https."""
        return _origin(url) == _origin(self.base) or _secure_host(url, trusted)

    async def _fetch(self, url: str, limit: int, headers: Mapping[str, str] | None) -> bytes | str:
        """Return the file, or where it is redirected to."""
        try:
            async with self.session.get(url, headers=headers, allow_redirects=False) as answer:
                if 300 <= answer.status < 400:
                    return answer.headers.get("location", "")
                if error := http_failure(Reply(answer.status, answer.headers, b"")):
                    raise error
                body = bytearray()
                async for block in answer.content.iter_chunked(65536):
                    body += block
                    if len(body) > limit:
                        raise Refused(f"the file is larger than {limit} bytes")
                return bytes(body)
        except TimeoutError:
            raise Unavailable("the file did not arrive in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"the file could not be fetched ({type(error).__name__})") from None


def _origin(url: str) -> tuple[str, str]:
    """Return scheme and host:port, ("", "") for what is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc


def _secure_host(url: str, allowed: tuple[str, ...]) -> bool:
    scheme, netloc = _origin(url)
    host = netloc.rpartition("@")[2].partition(":")[0]
    return scheme == "https" and any(host == name or (name[:1] == "." and host.endswith(name)) for name in allowed)


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise Refused("redirected to what is no URL") from None


async def shared_token(
    state: State,
    fetch: Callable[[], Awaitable[tuple[str, float]]],
    *,
    key: str = "token",
    stale: str | None = None,
) -> str:
    """Return an access token that all replicas share; one of them refreshes it, the others wait.

    `fetch` gets a new one and returns (token, seconds it lives). `stale` is a token the platform just refused: it is
    replaced although it had not run out. Raises what `fetch` raises.
    """
    for _ in range(50):
        token = await state.get(key)
        if token and token != stale:
            return token
        if await state.swap(f"{key}/refreshing", None, "1", 15):
            try:
                token, lives = await fetch()
                await state.set(key, token, max(lives - 300, lives / 2))
                return token
            finally:
                await state.swap(f"{key}/refreshing", "1", None, 0)
        await asyncio.sleep(0.2)
    raise Unavailable("another replica did not refresh the access token in time")
