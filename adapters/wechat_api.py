"""What the REST APIs of WeCom and WeChat share: errors inside an HTTP 200, access tokens.

https://developer.work.weixin.qq.com/document/path/90313
https://developers.weixin.qq.com/doc/service/guide/dev/api/errorcode.html
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar
from urllib.parse import urlencode

import msgspec

from bot.adapter import State, decode
from bot.client import Client, Failure, Reply, http_failure, shared_token
from bot.errors import Malformed, PlatformError, Refused, Throttled

T = TypeVar("T")

STALE = (40001, 40014, 42001, 42007)  # this access token is not valid, or not any more
ERROR_BODY = 4096  # bytes an error has at most; a longer body is a file
PAUSE = 60.0  # seconds to wait after a rate limit, which comes without a number
Errors: TypeAlias = Mapping[int, tuple[type[PlatformError], str]]


class Answer(msgspec.Struct):
    """What every call answers; without `errcode` it went well."""

    errcode: int = 0
    errmsg: str = ""


class Granted(msgspec.Struct):
    """An access token and the seconds it lives."""

    access_token: str
    expires_in: float


def failure(errors: Errors) -> Failure:
    """Return how to read an error off the body by a table of the platform's codes."""

    def read(reply: Reply) -> PlatformError | None:
        return http_failure(reply) or error_of(reply.json(Answer), errors)

    return read


def error_of(answer: Answer, errors: Errors) -> PlatformError | None:
    """Turn a code into one of our errors, None for success. Of the platform's words only our own address is kept."""
    code = answer.errcode
    if code == 0:
        return None
    kind, reason = errors.get(code, (Refused, "refused"))
    address = re.search(r"\b(\d{1,3}(\.\d{1,3}){3})\b", answer.errmsg)
    text = f"{reason} (errcode {code}{f', from {address[1]}' if address else ''})"
    if issubclass(kind, Refused):
        return kind(text, code)
    return Throttled(text, PAUSE) if kind is Throttled else kind(text)


async def authorized(
    state: State, fetch: Callable[[str], Awaitable[Granted]], call: Callable[[str], Awaitable[T]]
) -> T:
    """Make a call with the access token that all replicas share; with a new one when the platform refuses it.

    `fetch` is told the refused token, "" when there is none.
    """

    async def granted(stale: str = "") -> tuple[str, float]:
        answer = await fetch(stale)
        return answer.access_token, answer.expires_in

    token = await shared_token(state, granted)
    try:
        return await call(token)
    except Refused as error:
        if error.code not in STALE:
            raise
    refused = token
    return await call(await shared_token(state, lambda: granted(refused), stale=refused))


async def media(client: Client, token: str, media_id: str, limit: int, errors: Errors) -> bytes:
    """Fetch a temporary file. An error comes with HTTP 200 in its place."""
    query = urlencode({"access_token": token, "media_id": media_id})
    data = await client.download(f"{client.base}/cgi-bin/media/get?{query}", limit=limit)
    if error := _instead_of_a_file(data, errors):
        raise error
    return data


def _instead_of_a_file(data: bytes, errors: Errors) -> PlatformError | None:
    if data[:1] != b"{" or len(data) > ERROR_BODY:
        return None
    try:
        return error_of(decode(data, Answer), errors)
    except Malformed:
        return None
