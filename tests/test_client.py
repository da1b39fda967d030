"""The client of the platforms' APIs: failures become ours, tokens stay where they belong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bot.client import Client, http_failure, retry_after, shared_token
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable
from bot.testing import context

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[TestServer]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []

    async def start(handler: Handler) -> TestServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()


def base(server: TestServer) -> str:
    return str(server.make_url("/bot123:secret"))


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (400, {}, Refused),
        (401, {}, Unauthorized),
        (403, {}, Unauthorized),
        (404, {}, Refused),
        (408, {}, Unavailable),
        (429, {"Retry-After": "7"}, Throttled),
        (429, {"Retry-After": "soon"}, Throttled),
        (500, {}, Unavailable),
        (503, {}, Unavailable),
        (302, {"Location": "https://elsewhere.example/"}, Refused),
    ],
)
async def test_statuses_become_our_errors(
    serve: Serve, status: int, headers: dict[str, str], error: type[PlatformError]
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    client = Client(base(await serve(handler)))
    with pytest.raises(error) as caught:
        await client.call("POST", "/send", json={"text": "hi"})
    assert "secret" not in str(caught.value)
    if isinstance(caught.value, Throttled):
        assert caught.value.retry_after == (7 if headers["Retry-After"] == "7" else 1)
    await client.close()


async def test_a_silent_or_missing_server_is_unavailable_and_no_url_is_told(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    server = await serve(handler)
    silent = Client(base(server), timeout=0.1)
    gone = Client("http://127.0.0.1:1/bot123:secret")
    for client in (silent, gone):
        with pytest.raises(Unavailable) as caught:
            await client.call("GET", "/me")
        assert "secret" not in str(caught.value)
        await client.close()


async def test_json_goes_out_as_unescaped_utf8_and_an_unreadable_answer_is_unavailable(serve: Serve) -> None:
    bodies = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(text="<html>proxy</html>")

    client = Client(base(await serve(handler)))
    reply = await client.call("POST", "/send", json={"text": "你好"})
    assert bodies == ['{"text":"你好"}'.encode()]
    with pytest.raises(Unavailable):
        reply.json(dict[str, str])
    await client.close()


async def test_a_platform_may_read_its_own_failures_out_of_a_200(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"code": 7})

    client = Client(base(await serve(handler)), failure=lambda reply: Throttled("busy", 3) or http_failure(reply))
    with pytest.raises(Throttled):
        await client.call("POST", "/send")
    await client.close()


async def test_a_download_sends_its_token_to_trusted_hosts_only(serve: Serve) -> None:
    seen: dict[str, str | None] = {}

    async def storage(request: web.Request) -> web.Response:
        seen["storage"] = request.headers.get("authorization")
        return web.Response(body=b"file")

    other = await serve(storage)

    async def api(request: web.Request) -> web.Response:
        seen["api"] = request.headers.get("authorization")
        raise web.HTTPFound(str(other.make_url("/file")))

    client = Client(base(await serve(api)))
    with pytest.raises(Refused, match="not allowed"):  # http, and another origin
        await client.download(client.base + "/f", limit=10, headers={"Authorization": "Bearer t"})
    assert seen == {"api": "Bearer t"}
    await client.close()


@pytest.mark.parametrize(
    "url",
    ["http://files.example.com/x", "https://evil.com/x", "https://files.example.com.evil.com/", "https://[x/", "file:///x",
     "https://files.example.com@evil.com/", "https://evil.com:443@evil.com/?files.example.com"],
)  # fmt: skip
async def test_a_download_asks_allowed_hosts_only(url: str) -> None:
    client = Client("https://api.example.com")
    with pytest.raises(Refused, match="not allowed"):
        await client.download(url, limit=10, hosts=("files.example.com",))
    await client.close()


async def test_a_download_ends_at_its_limit_and_after_a_few_redirects(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path.endswith("round"):
            raise web.HTTPFound(str(request.url))
        return web.Response(body=b"x" * 1000)

    client = Client(base(await serve(handler)))
    assert len(await client.download(client.base + "/f", limit=1000)) == 1000
    with pytest.raises(Refused, match="larger"):
        await client.download(client.base + "/f", limit=999)
    with pytest.raises(Refused, match="redirects"):
        await client.download(client.base + "/round", limit=999)
    await client.close()


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0
    assert retry_after("") is None
    assert retry_after("nan") is None
    assert retry_after("1e9") == 3600
    date = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60)))
    assert date is not None
    assert 50 < date <= 60


async def test_one_of_many_refreshes_a_token_and_a_refused_one_is_replaced() -> None:
    fetched = []

    async def fetch() -> tuple[str, float]:
        fetched.append(1)
        await asyncio.sleep(0.05)
        return f"token {len(fetched)}", 7200

    async with context() as lent:
        tokens = await asyncio.gather(*(shared_token(lent.state, fetch) for _ in range(10)))
        assert set(tokens) == {"token 1"}
        renewed = await asyncio.gather(*(shared_token(lent.state, fetch, stale="token 1") for _ in range(10)))
        assert set(renewed) == {"token 2"}
        assert await shared_token(lent.state, fetch, stale="token 1") == "token 2"
        assert len(fetched) == 2


async def test_a_failed_refresh_is_told_and_does_not_block_the_next() -> None:
    async def broken() -> tuple[str, float]:
        raise Unavailable("down")

    async def fetch() -> tuple[str, float]:
        return "token", 7200

    async with context() as lent:
        with pytest.raises(Unavailable):
            await shared_token(lent.state, broken)
        assert await shared_token(lent.state, fetch) == "token"
