"""What the strict stand-ins of WeCom and WeChat share: access tokens, errors inside an HTTP 200, scripted failures."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from bot.adapter import Request

Json = dict[str, Any]


class Refusal(Exception):
    """An answer other than errcode 0."""

    def __init__(self, code: int, message: str = "", status: int = 200) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Call:
    """One call of the bot."""

    path: str
    query: dict[str, str]
    body: Json


class TencentServer:
    """An API with access tokens. Subclasses add routes in `routes`, and people."""

    def __init__(self) -> None:
        self.base = ""
        self.calls: list[Call] = []
        self.tokens: list[str] = []  # every one that was granted; the last one is valid
        self.trusted = True  # whether our address is on the list
        self.media: dict[str, bytes] = {}
        self._valid = ""
        self._numbers = itertools.count(1)
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._news = asyncio.Event()

    def routes(self) -> dict[str, Callable[[Call], Json | bytes]]:
        """Return what answers each path."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.base = f"http://{host}:{port}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    # -- the platform's side

    def script(self, path: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls of a path fail in these ways, one each."""
        self._scripts[path].extend(outcomes)

    def expire(self) -> None:
        """Make the access token invalid."""
        self._valid = ""

    def grant(self) -> Json:
        """Hand out the valid access token, a new one when there is none."""
        if not self._valid:
            self._valid = f"TOKEN-{next(self._numbers)}"
            self.tokens.append(self._valid)
        return {"errcode": 0, "errmsg": "ok", "access_token": self._valid, "expires_in": 7200}

    def news(self) -> None:
        """Wake up those who wait."""
        self._news.set()

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def called(self, path: str) -> list[Json]:
        """Return the bodies of every call of a path."""
        return [call.body for call in self.calls if call.path == path]

    async def deliver(self, url: str, request: Request) -> tuple[int, bytes]:
        """Call the webhook once; return the status and the body it answered."""
        async with self._session.request(request.method, url, params=request.query, data=request.body) as answer:
            return answer.status, await answer.read()

    # -- the bot's side

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = f"/{request.match_info['path']}"
        script = self._scripts[path]
        outcome = script.popleft() if script else None
        try:
            call = Call(path, dict(request.query), await self._body(request))
            self.calls.append(call)
            if isinstance(outcome, Refusal):
                raise outcome
            if isinstance(outcome, Cut) and not outcome.after:
                return self._hang_up(request)
            answer = self._answer(call)
        except Refusal as error:
            self._news.set()
            text = json.dumps({"errcode": error.code, "errmsg": error.message})
            return web.Response(text=text, status=error.status, content_type="text/plain")  # as the vendor says it
        self._news.set()
        if outcome is not None:
            return self._hang_up(request)
        return web.Response(body=answer) if isinstance(answer, bytes) else web.json_response(answer)

    def _answer(self, call: Call) -> Json | bytes:
        route = self.routes().get(call.path)
        if route is None:
            raise Refusal(-1, "no such path", 404)
        return route(call)

    def authorize(self, call: Call) -> None:
        """Refuse a call with a wrong token, or from an address that is not on the list."""
        given = call.query.get("access_token", "")
        if not given:
            raise Refusal(41001, "access_token missing")
        if given != self._valid:
            raise Refusal(42001 if given in self.tokens else 40014, "access_token expired or invalid, hints: [1]")

    def file(self, call: Call) -> bytes:
        """Serve media/get."""
        self.authorize(call)
        if call.query.get("media_id", "") not in self.media:
            raise Refusal(40007, "invalid media_id")
        return self.media[call.query["media_id"]]

    @staticmethod
    async def _body(request: web.Request) -> Json:
        raw = await request.read()
        if not raw:
            return {}
        if b"\\u" in raw:
            raise Refusal(40033, "invalid charset: escaped characters are shown as they are")
        body = json.loads(raw.decode())
        if not isinstance(body, dict):
            raise Refusal(47001, "data format error")
        return body

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


def truncated(text: str, limit: int) -> str:
    """Cut a text as the platforms do: silently, at a number of bytes."""
    return text.encode()[:limit].decode(errors="ignore")
