"""HTTP to the model's server: the `openai` SDK says where to and with which headers, aiohttp carries it.

The SDK's client knows the base URL, the authentication and the headers of its vendor. Its request methods are not
used for answers: each costs more than everything else Magpie does for a message, most of it for building again what
is the same every time. Importing the SDK takes longer than everything else at start, so it is done in a thread (see
client.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
import openai

from bot.client import environment_proxy
from bot.config import ModelSettings
from bot.model.failures import Broken, read_response

OPENAI = "https://api.openai.com/v1"
CONNECT_TIMEOUT = 10.0  # seconds, for DNS, TCP and TLS together
KEEP_ALIVE = 30.0  # seconds an idle connection is kept
LARGEST_ERROR = 65536  # bytes of an error's body that are read
FAILURES = (aiohttp.ClientError, OSError, ValueError)


class Response:
    """The body of a successful answer, as it comes."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.content_type = answer.content_type.lower()
        self._answer = answer

    async def read(self) -> bytes:
        """Return what one read of the network brought, b"" at the end. Raises Broken."""
        try:
            return await self._answer.content.readany()
        except FAILURES as error:
            raise Broken(_cause(error)) from None

    async def close(self) -> None:
        """Close the connection, or hand it back when the body was read to its end."""
        self._answer.release() if self._answer.content.at_eof() else self._answer.close()


class Transport:
    """The connection pool to one server."""

    def __init__(self, settings: ModelSettings) -> None:
        base = settings.base_url or OPENAI
        self._client = openai.AsyncOpenAI(api_key="one of several, set for each request", base_url=base)
        self._base = str(self._client.base_url).rstrip("/")
        self._headers: dict[str, Mapping[str, str]] = {}  # by key
        self._proxy = environment_proxy(base)
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connection pool, opened in the loop that uses it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # How many answers are written at once is limited elsewhere (BOT_MAX_CONCURRENT).
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT),  # silence is the stream's matter
                proxy=self._proxy,
            )
        return self._session

    async def post(self, path: str, body: bytes, key: str) -> Response:
        """Send one request. Raises Fault when the server refuses it, Broken when it cannot be reached."""
        return Response(await self._request("POST", path, key, body))

    async def get(self, path: str, key: str) -> bytes:
        """Fetch a small document. Raises Fault and Broken."""
        answer = await self._request("GET", path, key)
        try:
            return await answer.read()
        except FAILURES as error:
            raise Broken(_cause(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        await self._client.close()

    async def _request(self, method: str, path: str, key: str, body: bytes | None = None) -> aiohttp.ClientResponse:
        try:
            # Redirects are not followed: the key goes to the configured server and nowhere else.
            answer = await self.session.request(
                method, self._base + path, data=body, headers=self._headers_for(key), allow_redirects=False
            )
            if answer.status < 300:
                return answer
            text = await _error_body(answer)
        except FAILURES as error:
            raise Broken(_cause(error)) from None
        raise read_response(answer.status, answer.headers, text)

    def _headers_for(self, key: str) -> Mapping[str, str]:
        """Let the SDK write the headers of a key, once."""
        if key not in self._headers:
            client = self._client.with_options(api_key=key or "none")
            written = {**client.default_headers, **(client.auth_headers if key else {})}
            self._headers[key] = {name: value for name, value in written.items() if isinstance(value, str)}
        return self._headers[key]


async def _error_body(answer: aiohttp.ClientResponse) -> bytes:
    """Read the beginning of an error's body, which may come in pieces; the connection is kept when that was all."""
    body = bytearray()
    try:
        while len(body) < LARGEST_ERROR and (block := await answer.content.readany()):
            body += block
    finally:
        await Response(answer).close()
    return bytes(body)


def _cause(error: BaseException) -> str:
    """Name what happened first, without the URL that the text of the error may hold."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__
