"""The world around a bot under measurement: a platform, a model and people, in one fast process.

    python benchmarks/world.py PLAN      a JSON object on the command line; the result is one JSON line

Hand-made HTTP on bare protocols, so that this side never is what is measured. Telegram- and Slack-shaped platforms;
a model that answers at once, after a delay, or token by token.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvloop

ANSWER = ["This", "is", "a", "short", "answer", "of", "twelve", "words", "to", "be", "posted", "now"]
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
SECRET = "bench-secret"
LOST_AFTER = 20.0  # seconds; a person who has no answer by then has none
CHATS = 20  # people behind each connection


class Http(asyncio.Protocol):
    """A server connection: whole requests in, whatever `handle` writes out."""

    def __init__(self, handle: Callable[[Http, bytes, bytes], None]) -> None:
        self.handle = handle
        self.data = b""
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end]
            if CHUNKED.search(head):
                stop = self.data.find(b"0\r\n\r\n", end + 4)
                if stop < 0:
                    return
                body, self.data = _unchunk(self.data[end + 4 : stop]), self.data[stop + 5 :]
            else:
                size = int(match[1]) if (match := LENGTH.search(head)) else 0
                if len(self.data) < end + 4 + size:
                    return
                body, self.data = self.data[end + 4 : end + 4 + size], self.data[end + 4 + size :]
            self.handle(self, head.split(b" ", 2)[1], body)

    def answer(self, body: bytes, kind: bytes = b"application/json") -> None:
        if self.open:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
            self.transport.write(head + body)


def _unchunk(raw: bytes) -> bytes:
    body = b""
    while raw:
        line, _, rest = raw.partition(b"\r\n")
        body, raw = body + rest[: int(line, 16)], rest[int(line, 16) + 2 :]
    return body


class Model:
    """Chat completions. `delay`: seconds before the answer; `rate`: tokens a second, 0 for all at once."""

    def __init__(self, delay: float = 0, rate: float = 0, tokens: int = 0) -> None:
        self.delay, self.rate, self.tokens = delay, rate, tokens
        self.asked = 0
        self.first: dict[str, float] = {}  # when the first token of a person's answer was written
        usage = {"prompt_tokens": 50, "completion_tokens": 12, "total_tokens": 62}
        events = [_chunk({"content": word + " "}) for word in ANSWER]
        events += [
            _chunk({}, "stop"),
            _event({"id": "1", "object": "chat.completion.chunk", "choices": [], "usage": usage}),
        ]
        self.stream = b"".join(events) + b"data: [DONE]\n\n"
        message = {"role": "assistant", "content": " ".join(ANSWER)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self.whole = json.dumps(whole).encode()

    def __call__(self, http: Http, path: bytes, body: bytes) -> None:
        self.asked += 1
        streamed = b'"stream":true' in body.replace(b'": ', b'":')
        if self.rate:
            task = asyncio.ensure_future(self._drip(http, body))
            task.add_done_callback(lambda _: None)
        elif self.delay:
            asyncio.get_running_loop().call_later(self.delay, self._whole, http, streamed)
        else:
            self._whole(http, streamed)

    def _whole(self, http: Http, streamed: bool) -> None:
        http.answer(*((self.stream, b"text/event-stream") if streamed else (self.whole,)))

    async def _drip(self, http: Http, body: bytes) -> None:
        person = json.loads(body)["messages"][-1]["content"]
        await asyncio.sleep(self.delay)
        http.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        start = time.perf_counter()
        self.first[person] = start
        for number in range(self.tokens):
            if not http.open:
                return
            _write_chunk(http, _chunk({"content": f"w{number} "}))
            await asyncio.sleep(max(0, start + (number + 1) / self.rate - time.perf_counter()))
        if http.open:
            _write_chunk(http, _chunk({}, "stop") + b"data: [DONE]\n\n")
            http.transport.write(b"0\r\n\r\n")


def _write_chunk(http: Http, data: bytes) -> None:
    http.transport.write(b"%x\r\n%s\r\n" % (len(data), data))


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


class Telegram:
    """The Bot API's answers, and the updates it sends."""

    path = "/webhooks/telegram"

    def __init__(self) -> None:
        self.posted: dict[int, Callable[[], None]] = {}  # by chat: what to do when an answer is posted there
        self.edited: Callable[[int, str], None] | None = None
        self.ids = itertools.count(1)

    def __call__(self, http: Http, path: bytes, body: bytes) -> None:
        method = path.rsplit(b"/", 1)[1]
        if method == b"getMe":
            me = {"id": 1, "is_bot": True, "first_name": "bench", "username": "bench_bot"}
            return http.answer(json.dumps({"ok": True, "result": me}).encode())
        if method not in (b"sendMessage", b"editMessageText", b"sendMessageDraft"):
            return http.answer(b'{"ok":true,"result":true}')
        fields = _fields(body)
        chat = int(fields["chat_id"])
        if self.edited is not None:
            self.edited(chat, fields["text"])
        if method == b"sendMessageDraft":
            return http.answer(b'{"ok":true,"result":true}')
        place = {"id": chat, "type": "private", "first_name": "A"}
        sent = {"message_id": next(self.ids), "date": 1, "chat": place, "text": fields["text"]}
        http.answer(json.dumps({"ok": True, "result": sent}).encode())
        if done := self.posted.pop(chat, None):
            done()
        return None

    def update(self, chat: int, number: int) -> tuple[bytes, list[tuple[str, str]]]:
        person = {"id": chat, "is_bot": False, "first_name": "A", "language_code": "en"}
        place = {"id": chat, "type": "private", "first_name": "A"}
        message = {"message_id": number, "from": person, "chat": place, "date": 1, "text": f"hello {chat} {number}"}
        body = json.dumps({"update_id": chat * 100_000 + number, "message": message}).encode()
        return body, [("X-Telegram-Bot-Api-Secret-Token", SECRET)]


def _fields(body: bytes) -> dict[str, Any]:
    if body[:1] == b"{":
        return cast(dict[str, Any], json.loads(body))
    if body[:2] == b"--":  # multipart, as aiogram sends
        parts = re.findall(rb'name="?(\w+)"?[^\r]*(?:\r\n[^\r]+)*\r\n\r\n(.*?)\r\n--', body, re.S)
        return {name.decode(): value.decode() for name, value in parts}
    from urllib.parse import parse_qsl

    return dict(parse_qsl(body.decode()))


class Slack:
    """chat.postMessage, and signed events."""

    path = "/slack/events"

    def __init__(self) -> None:
        self.posted: dict[int, Callable[[], None]] = {}
        self.edited = None

    def __call__(self, http: Http, path: bytes, body: bytes) -> None:
        if path.endswith(b"auth.test"):
            return http.answer(
                b'{"ok":true,"user_id":"U0","bot_id":"B0","team_id":"T0","user":"b","url":"u","team":"t"}'
            )
        if path.endswith(b"chat.postMessage"):
            chat = int(_fields(body)["channel"][1:])
            http.answer(b'{"ok":true,"channel":"D1","ts":"1.1","message":{}}')
            if done := self.posted.pop(chat, None):
                done()
            return None
        return http.answer(b'{"ok":true}')

    def update(self, chat: int, number: int) -> tuple[bytes, list[tuple[str, str]]]:
        stamp = str(int(time.time()))
        event = {
            "type": "message",
            "channel": f"D{chat}",
            "channel_type": "im",
            "user": f"U{chat}",
            "text": f"hello {number}",
            "ts": f"{number}.{chat}",
        }
        envelope = {"type": "event_callback", "team_id": "T0", "api_app_id": "A0", "event_id": f"Ev{chat}x{number}"}
        body = json.dumps({**envelope, "event_time": 1, "event": event}).encode()
        digest = hmac.new(SECRET.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
        return body, [("X-Slack-Request-Timestamp", stamp), ("X-Slack-Signature", f"v0={digest}")]


class Caller(asyncio.Protocol):
    """One keep-alive connection to the bot's webhook."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.waiting: asyncio.Future[float] | None = None

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(ConnectionError("closed"))

    def data_received(self, data: bytes) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(time.perf_counter())

    async def post(self, path: str, body: bytes, headers: list[tuple[str, str]]) -> float:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{lines}"
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self.waiting


class Run:
    """People who ask, wait for the answer, and ask again."""

    def __init__(self, plan: dict[str, Any], platform: Telegram | Slack, model: Model) -> None:
        self.plan, self.platform, self.model = plan, platform, model
        self.waits: list[float] = []
        self.acks: list[float] = []
        self.lost = 0  # questions nobody answered

    async def connect(self) -> Caller:
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(Caller, "127.0.0.1", self.plan["port"])
        return caller

    async def person(self, number: int, until: float) -> None:
        caller = await self.connect()
        for turn in itertools.count(1):
            if time.perf_counter() >= until:
                break
            await self.ask(caller, 1000 + number * CHATS + turn % CHATS, turn)
        caller.transport.close()

    async def ask(self, caller: Caller, chat: int, number: int) -> None:
        answered = asyncio.get_running_loop().create_future()

        def posted() -> None:
            if not answered.done():
                answered.set_result(time.perf_counter())

        self.platform.posted[chat] = posted
        body, headers = self.platform.update(chat, number)
        begun = time.perf_counter()
        self.acks.append(await caller.post(self.platform.path, body, headers) - begun)
        try:
            async with asyncio.timeout(LOST_AFTER):
                self.waits.append(await answered - begun)
        except TimeoutError:
            self.lost += 1

    async def acks_only(self, number: int, until: float) -> None:
        """Post without waiting for answers."""
        caller = await self.connect()
        for turn in itertools.count(1):
            if time.perf_counter() >= until:
                break
            body, headers = self.platform.update(1_000_000 + number * 100_000 + turn, turn)
            begun = time.perf_counter()
            self.acks.append(await caller.post(self.platform.path, body, headers) - begun)
        caller.transport.close()

    async def fill(self, number: int, count: int) -> None:
        """Post a number of messages of different people, without waiting for answers."""
        caller = await self.connect()
        for turn in range(count):
            body, headers = self.platform.update(1_000_000 + number * 100_000 + turn, 1)
            begun = time.perf_counter()
            self.acks.append(await caller.post(self.platform.path, body, headers) - begun)
        caller.transport.close()

    async def streams(self, count: int) -> dict[str, float]:
        """Open many answers at once; how late are the first words and the ends, against the model's own clock?"""
        shown: dict[int, float] = {}
        ended: dict[int, float] = {}
        last = f"w{self.model.tokens - 1}"

        def edited(chat: int, text: str) -> None:
            shown.setdefault(chat, time.perf_counter())
            if text.rstrip().endswith(last):
                ended[chat] = time.perf_counter()

        self.platform.edited = edited
        callers = await asyncio.gather(*(self.connect() for _ in range(min(count, 50))))
        chats = [1000 + n for n in range(count)]
        for n, chat in enumerate(chats):
            body, headers = self.platform.update(chat, 1)
            await callers[n % len(callers)].post(self.platform.path, body, headers)
            await asyncio.sleep(self.plan.get("spread", 2.0) / count)
        length = self.model.tokens / self.model.rate
        deadline = time.perf_counter() + length + 20
        while len(ended) < count and time.perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        firsts = [shown[chat] - self.model.first[f"hello {chat} 1"] for chat in chats if chat in shown]
        lasts = [ended[chat] - self.model.first[f"hello {chat} 1"] - length for chat in chats if chat in ended]
        return {"answered": len(ended), "first_p99": quantile(firsts, 0.99), "first_p50": quantile(firsts, 0.5),
                "late_p99": quantile(lasts, 0.99)}  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_mb(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


async def measure(plan: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    platform = Slack() if plan.get("platform") == "slack" else Telegram()
    model = Model(plan.get("delay", 0), plan.get("rate", 0), plan.get("tokens", 0))
    await loop.create_server(lambda: Http(model), "127.0.0.1", plan["model_port"])
    await loop.create_server(lambda: Http(platform), "127.0.0.1", plan["platform_port"])
    print("ready", flush=True)
    pid = int(await asyncio.to_thread(sys.stdin.readline))  # the bot is up, this is its process
    run, people = Run(plan, platform, model), plan.get("people", 50)
    if warm := plan.get("warm", 0):
        until = time.perf_counter() + warm
        await asyncio.gather(*(run.person(500 + n, until) for n in range(min(people, 50))))
        run.waits.clear()
        run.acks.clear()
    memory, used, begun = memory_mb(pid), cpu_seconds(pid), time.perf_counter()
    result: dict[str, Any] = {}
    if plan["kind"] == "streams":
        result = await run.streams(people)
    elif plan["kind"] == "fill":
        each = plan["count"] // people
        await asyncio.gather(*(run.fill(n, each) for n in range(people)))
    else:
        until = begun + plan["seconds"]
        work = run.person if plan["kind"] == "talk" else run.acks_only
        await asyncio.gather(*(work(n, until) for n in range(people)))
    took, used = time.perf_counter() - begun, cpu_seconds(pid) - used
    done = len(run.waits) or len(run.acks)
    return result | {
        "rate": done / took,
        "cpu_us": used / max(done, 1) * 1e6,
        "cpu_share": used / took,
        "wait_p50": quantile(run.waits, 0.5),
        "wait_p99": quantile(run.waits, 0.99),
        "ack_p50": quantile(run.acks, 0.5),
        "ack_p99": quantile(run.acks, 0.99),
        "memory_mb": memory_mb(pid),
        "grown_mb": memory_mb(pid) - memory,
        "asked": model.asked,
        "lost": run.lost,
    }


async def main() -> None:
    print(json.dumps(await measure(json.loads(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
