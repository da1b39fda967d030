"""The way in: every odd request has its defined answer, and none is a 500."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import msgspec
import pytest

from bot.adapter import Chat, Inbound, Message, Request, Response
from bot.errors import StoreUnavailable
from bot.testing import GARBAGE, RecordingAdapter, ScriptedModel, call, running, signed

START = b"POST /webhooks/recording HTTP/1.1\r\nHost: x\r\n"
HELLO = Message("m1", Chat("c"), "u", "hello")


@pytest.mark.parametrize("token", ["", "wrong", "test-toke", "test-token-", "t\u00e9st-token"])
async def test_forged_requests_store_nothing(token: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with running() as magpie:
        status, _ = await call(magpie, "recording", signed(HELLO, token))
        assert status == 401
        assert await magpie.store.counts() == {"waiting": 0, "parked": 0, "due": 0}
    assert "hello" not in capsys.readouterr().out


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_is_a_400_or_ignored(body: bytes) -> None:
    async with running() as magpie:
        request = msgspec.structs.replace(signed(HELLO), body=body)
        status, _ = await call(magpie, "recording", request)
        assert status == (200 if body == b"{}" else 400)


async def test_an_oversized_body_is_a_413() -> None:
    async with running() as magpie:
        status, _ = await call(magpie, "recording", Request(body=b"x" * (5 * 1024 * 1024)))
        assert status == 413


async def test_an_adapter_that_crashes_is_a_400_and_a_line_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: object, request: Request) -> Inbound:
        raise KeyError("oops")

    monkeypatch.setattr(RecordingAdapter, "parse", crash)
    async with running() as magpie:
        assert (await call(magpie, "recording", signed(HELLO)))[0] == 400


async def test_a_message_that_cannot_be_stored_is_a_503_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as magpie:

        async def full(*_: object) -> None:
            raise StoreUnavailable("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(magpie.store, "accept", full)
            assert (await call(magpie, "recording", signed(HELLO)))[0] == 503
        assert (await call(magpie, "recording", signed(HELLO)))[0] == 200
        adapter = magpie.adapters["recording"]
        assert isinstance(adapter, RecordingAdapter)
        await adapter.until(lambda: adapter.shown.get("c") == ["You said: hello"])


async def test_what_an_adapter_answers_at_once_reaches_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(self: RecordingAdapter, request: Request, inbound: Inbound) -> Response | None:
        kept = await self.context.state.get("kept")
        return Response(kept.encode()) if kept else None

    monkeypatch.setattr(RecordingAdapter, "at_once", at_once)
    model = ScriptedModel()
    async with running(model=model) as magpie:
        adapter = magpie.adapters["recording"]
        assert isinstance(adapter, RecordingAdapter)
        await adapter.context.state.set("kept", "kept for you", 60)
        assert await call(magpie, "recording", signed(HELLO)) == (200, b"kept for you")
        assert (await call(magpie, "recording", signed(HELLO, "forged")))[0] == 401
        assert (await magpie.store.counts())["waiting"] == 0
        await adapter.context.state.swap("kept", "kept for you", None, 0)
        assert await call(magpie, "recording", signed(HELLO)) == (200, b"")
        await adapter.until(lambda: adapter.shown.get("c") == ["You said: hello"])
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/webhooks/nobody", 404),
        ("POST", "/webhooks/", 404),
        ("DELETE", "/webhooks/recording", 404),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("POST", "/healthz", 405),
        ("GET", "/webhooks/recording/%00", 401),
        ("POST", "/webhooks/recording?x=%ff%fe", 401),
    ],
)
async def test_routes(method: str, path: str, status: int) -> None:
    async with (
        running() as magpie,
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{magpie.port}{path}") as answer,
    ):
        assert answer.status == status


async def test_readyz_tells_the_state_and_fails_with_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as magpie, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{magpie.port}/readyz"
        async with session.get(url) as answer:
            body = json.loads(await answer.read())
            assert answer.status == 200
            assert body["ready"]
            assert body["model"]["name"] == "scripted"
            assert "recording" in body["adapters"]

        async def readonly() -> None:
            raise StoreUnavailable("read-only")

        monkeypatch.setattr(magpie.store, "probe", readonly)
        magpie._probed = 0
        async with session.get(url) as answer:
            assert answer.status == 503
        magpie.ingress.draining = True
        assert (await call(magpie, "recording", signed(HELLO)))[0] == 503


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        START + b"Content-Length: -5\r\n\r\n",
        START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        START + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        START + b"a: b\r\n" * 50_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=range(8),
)
async def test_broken_http_never_is_a_500_nor_sticks(raw: bytes) -> None:
    async with running() as magpie:
        reader, writer = await asyncio.open_connection("127.0.0.1", magpie.port)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(200), 20)
        writer.close()
        assert not answer or answer.split()[1].startswith(b"4")
        assert (await call(magpie, "recording", signed(HELLO)))[0] == 200
