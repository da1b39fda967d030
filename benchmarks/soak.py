"""`make soak`: some minutes of everything going wrong at once, then a check of the promises from the fakes' journals.

Two replicas on one PostgreSQL; a strict Telegram-shaped platform and a model. Seeded, at random: SIGKILL of a replica,
a crash of the database, connections reset, black holes and refused connections to the database, the model and the
platform; redelivery until a 2xx, the same event at both replicas at once.

    python -m benchmarks.soak [--minutes 3] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from aiohttp import web

from tests.adapters.telegram_server import Room, TelegramServer
from tests.postgres_server import PostgresServer
from tests.process import Process
from tests.proxy import Proxy

SECRET = "soak-secret"
TOKEN = re.compile(r"answer to (\S+)")
END = "end of answer"


class Model:
    """Answers `answer to q1+q2 ... end of answer`, naming every question that has no answer yet."""

    def __init__(self) -> None:
        self.bought: Counter[str] = Counter()  # answers written to their end

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked: list[str] = []
        for turn in (await request.json())["messages"]:
            asked = [] if turn["role"] == "assistant" else [*asked, turn["content"]]
        name = "+".join(text for text in asked if text.startswith("q"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in [f"answer to {name}", *(f" w{n}" for n in range(random.randint(0, 12))), f" {END}"]:
            await self._event(response, {"delta": {"content": word}, "finish_reason": None})
            await asyncio.sleep(random.uniform(0, 0.06))
        await self._event(response, {"delta": {}, "finish_reason": "stop"})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        self.bought[name] += 1
        return response

    async def _event(self, response: web.StreamResponse, choice: dict[str, object]) -> None:
        data = {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
        await response.write(f"data: {json.dumps(data)}\n\n".encode())

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self.answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()


def through(url: str, proxy: Proxy) -> str:
    """Return the URL, led through a proxy."""
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}"))


class Replica:
    """One process, with a proxy on each of its connections."""

    def __init__(self, directory: Path, number: int, telegram: TelegramServer, model: int, database: str) -> None:
        self.directory = directory / str(number)
        self.directory.mkdir()
        self.telegram, self.database = telegram, database
        self.proxies = [Proxy(int(urlsplit(database).port or 5432)), Proxy(model)]
        self.proxies.append(Proxy(int(urlsplit(telegram.base).port or 80)))
        self.alive = False

    async def start(self) -> None:
        database, model, platform = self.proxies
        if not database.port:
            for proxy in self.proxies:
                await proxy.__aenter__()
            env = {
                "BOT_ADAPTERS": "telegram",
                "BOT_USER_MESSAGES_PER_MINUTE": "0",
                "BOT_HISTORY_TOKENS": "4000",
                "BOT_DATABASE_URL": through(self.database, database),
                "TELEGRAM_BOT_TOKEN": self.telegram.token,
                "TELEGRAM_WEBHOOK_SECRET": SECRET,
                "TELEGRAM_API_BASE": through(self.telegram.base, platform),
                "OPENAI_BASE_URL": f"http://127.0.0.1:{model.port}/v1",
                "OPENAI_API_KEY": "k",
                "OPENAI_TIMEOUT": "5",
            }
            self.process = Process(self.directory, env)
        await self.process.start(60)
        self.alive = True

    async def kill(self) -> None:
        self.alive = False
        await self.process.kill()

    async def close(self) -> None:
        await self.kill()
        for proxy in self.proxies:
            await proxy.__aexit__(None, None, None)


class Soak:
    """The world, what goes wrong in it, and what must hold in the end."""

    def __init__(
        self, telegram: TelegramServer, postgres: PostgresServer, replicas: list[Replica], model: Model
    ) -> None:
        self.telegram, self.postgres, self.replicas, self.model = telegram, postgres, replicas, model
        self.rooms = [telegram.private(f"person {n}") for n in range(24)]
        self.accepted: dict[int, list[str]] = {room.id: [] for room in self.rooms}
        self.faults: Counter[str] = Counter()
        self.deliveries: Counter[int] = Counter()
        self.waits: list[float] = []
        self.session: aiohttp.ClientSession

    # -- people -------------------------------------------------------------------------------------------------------

    async def talk(self, room: Room, until: float) -> None:
        number = 0
        while time.monotonic() < until:
            number += 1
            await self.say(room, f"q{room.id}.{number}")
            await asyncio.sleep(random.uniform(0, 2.5))

    async def say(self, room: Room, text: str) -> None:
        """Deliver as platforms do: until a 2xx, sometimes several times, at either replica."""
        update = self.telegram.written(room, text)
        while True:
            copies = random.choice((1, 1, 1, 2, 3))
            statuses = await asyncio.gather(*(self.deliver(update) for _ in range(copies)))
            if 200 in statuses:
                self.accepted[room.id].append(text)
                return
            await asyncio.sleep(0.2)

    async def deliver(self, update: dict[str, object]) -> int:
        replica = random.choice(self.replicas)
        headers = {"X-Telegram-Bot-Api-Secret-Token": SECRET}
        url = f"{replica.process.url}/webhooks/telegram"
        try:
            timeout = aiohttp.ClientTimeout(total=20)
            async with self.session.post(url, json=update, headers=headers, timeout=timeout) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            status = 0
        self.deliveries[status] += 1
        return status

    # -- faults -------------------------------------------------------------------------------------------------------

    async def trouble(self, until: float) -> None:
        choices: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("replica killed", self.kill),
            ("database crashed", self.crash_database),
            ("connections reset", self.reset),
            ("black hole", self.black_hole),
            ("connections refused", self.refuse),
        ]
        while time.monotonic() < until:
            await asyncio.sleep(random.uniform(0.5, 3))
            name, cause = random.choices(choices, weights=(4, 1, 6, 2, 3))[0]
            self.faults[name] += 1
            await cause()

    async def kill(self) -> None:
        replica = random.choice(self.replicas)
        await replica.kill()
        await asyncio.sleep(random.uniform(0, 3))
        await replica.start()

    async def crash_database(self) -> None:
        await asyncio.to_thread(self.postgres.stop, "immediate")
        await asyncio.sleep(random.uniform(0, 2))
        await asyncio.to_thread(self.postgres.start)

    async def reset(self) -> None:
        random.choice(random.choice(self.replicas).proxies).cut()

    async def black_hole(self) -> None:
        proxy = random.choice(random.choice(self.replicas).proxies)
        flow = random.choice((proxy.upstream, proxy.downstream))
        flow.clear()
        await asyncio.sleep(random.uniform(1, 6))
        flow.set()

    async def refuse(self) -> None:
        proxy = random.choice(random.choice(self.replicas).proxies)
        proxy.refuse = True
        proxy.cut()
        await asyncio.sleep(random.uniform(0.5, 3))
        proxy.refuse = False

    # -- the end ------------------------------------------------------------------------------------------------------

    def shown(self, room: Room) -> list[list[str]]:
        """The questions each message of the bot answers, in the order of the chat."""
        found = (TOKEN.match(message.text) for message in self.telegram.shown(room))
        return [match[1].split("+") for match in found if match]

    async def settle(self, seconds: float = 180) -> None:
        """Ask everybody's last question in peace, and wait for its answer."""
        last = {room.id: f"q{room.id}.last" for room in self.rooms}
        for room in self.rooms:
            await self.say(room, last[room.id])
        begun = time.monotonic()
        missing = list(self.rooms)
        while missing and time.monotonic() - begun < seconds:
            await asyncio.sleep(0.5)
            missing = [room for room in self.rooms if not any(last[room.id] in names for names in self.shown(room))]
        await asyncio.sleep(3)

    def check(self) -> list[str]:
        """Return what was broken."""
        broken: list[str] = []
        upheavals = self.faults["replica killed"] + self.faults["database crashed"]
        upheavals += self.faults["connections reset"] + self.faults["connections refused"] + self.faults["black hole"]
        repeats = 0
        for room in self.rooms:
            shown = self.shown(room)
            told = {name for names in shown for name in names}
            if lost := [text for text in self.accepted[room.id] if text not in told]:
                broken.append(f"{room.title}: accepted and never answered: {lost}")
            firsts = list(dict.fromkeys(names[-1] for names in shown))
            order = [self.accepted[room.id].index(name) for name in firsts if name in self.accepted[room.id]]
            if order != sorted(order):
                broken.append(f"{room.title}: out of order: {firsts}")
            counts = Counter(names[-1] for names in shown)
            repeats += sum(count - 1 for count in counts.values())
            if max(counts.values(), default=0) > 2:
                broken.append(f"{room.title}: shown more than twice: {counts.most_common(1)}")
        if repeats > upheavals:
            broken.append(f"{repeats} repeated messages after {upheavals} faults")
        twice = sum(count - 1 for count in self.model.bought.values())
        if twice > upheavals:
            broken.append(f"{twice} answers were bought twice in {upheavals} faults")
        self.repeats, self.twice = repeats, twice
        return broken

    def report(self, minutes: float) -> str:
        questions = sum(map(len, self.accepted.values()))
        rows = {
            "minutes": f"{minutes:g}",
            "messages accepted": questions,
            "webhook calls": ", ".join(
                f"{count} x {status or 'no answer'}" for status, count in sorted(self.deliveries.items())
            ),
            "faults": ", ".join(f"{count} x {name}" for name, count in self.faults.most_common()),
            "answers bought": sum(self.model.bought.values()),
            "of them twice": self.twice,
            "messages repeated": self.repeats,
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


async def soak(minutes: float, seed: int) -> int:
    random.seed(seed)
    postgres, model = PostgresServer(), Model()
    postgres.start()
    try:
        database = await postgres.create()
        with TemporaryDirectory(prefix="soak-") as directory:
            async with TelegramServer() as telegram, model.serve() as port, aiohttp.ClientSession() as session:
                telegram.webhook = {"url": "", "secret_token": SECRET}
                replicas = [Replica(Path(directory), n, telegram, port, database) for n in range(2)]
                await asyncio.gather(*(replica.start() for replica in replicas))
                run = Soak(telegram, postgres, replicas, model)
                run.session = session
                until = time.monotonic() + minutes * 60
                await asyncio.gather(run.trouble(until), *(run.talk(room, until) for room in run.rooms))
                print("the faults have ended; waiting for the last answers", file=sys.stderr, flush=True)
                await run.settle()
                broken = run.check()
                print(run.report(minutes))
                for line in broken:
                    print(f"BROKEN: {line}")
                print("every promise held" if not broken else f"{len(broken)} broken")
                await asyncio.gather(*(replica.close() for replica in replicas))
                return 1 if broken else 0
    finally:
        postgres.stop()
        postgres.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(asyncio.run(soak(options.minutes, options.seed)))


if __name__ == "__main__":
    main()
