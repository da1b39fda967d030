"""Several replicas on one PostgreSQL: whichever hears an event, one answer, in order, also when one of them is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from bot.adapter import Chat, Message, Turn
from bot.answers import _topic
from bot.app import Magpie
from bot.client import shared_token
from bot.registry import Configured
from bot.store import conversation_id
from bot.testing import (
    PlainRecordingAdapter,
    RecordingAdapter,
    RecordingSettings,
    ScriptedModel,
    call,
    echo,
    running,
    signed,
)
from tests.adapters.telegram_server import Room, TelegramServer
from tests.adapters.test_api import API, events, post
from tests.postgres_server import PostgresServer
from tests.process import Process
from tests.test_conversation import Gate
from tests.test_crash import SECRET, Answers
from tests.test_store import opened


class Replicas:
    """Two bots with one database, one model, and a platform that delivers to either of them."""

    def __init__(self, magpies: Sequence[Magpie], model: ScriptedModel) -> None:
        self.magpies = magpies
        self.model = model
        self.adapters = [cast(RecordingAdapter, magpie.adapters["recording"]) for magpie in magpies]

    async def say(self, replica: int, id: str, text: str = "", chat: str = "c", user: str = "u") -> int:
        """Deliver a message to a replica; return the status."""
        status, _ = await call(self.magpies[replica], "recording", signed(Message(id, Chat(chat), user, text or id)))
        return status

    async def insist(self, replica: int, id: str, chat: str = "c") -> None:
        """Deliver as a platform does: again and again until it hears 2xx, to whichever replica."""
        while await self.say(replica, id, chat=chat) != 200:
            replica = 1 - replica
            await asyncio.sleep(0.05)

    def shown(self, chat: str = "c") -> list[str]:
        """What the chat shows; which replica posted it does not matter."""
        return [text for adapter in self.adapters for text in adapter.shown.get(chat, [])]

    def settled(self, *texts: str, chat: str = "c") -> Callable[[], bool]:
        return lambda: sorted(self.shown(chat)) == sorted(texts)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    async def idle(self) -> None:
        """Wait until nothing waits in the inbox."""
        async with asyncio.timeout(30):
            while await self.magpies[0].store.counts() != {"waiting": 0, "parked": 0, "due": 0}:
                await asyncio.sleep(0.02)

    async def history(self, chat: str = "c") -> list[str]:
        conversation = conversation_id("recording", Chat(chat))
        return [kept.turn.content for kept in await self.magpies[0].store.history(conversation, 1)]


@contextlib.asynccontextmanager
async def replicas(
    database: str, script: Callable[[Sequence[Turn]], object] = echo, **settings: Any
) -> AsyncIterator[Replicas]:
    model = ScriptedModel(script)  # type: ignore[arg-type]
    plain = Configured("recording", PlainRecordingAdapter, RecordingSettings())
    async with (
        running(plain, API, model=model, database_url=database, **settings) as one,
        running(plain, API, model=model, database_url=database, **settings) as two,
    ):
        yield Replicas((one, two), model)


async def test_the_same_event_at_both_replicas_is_one_answer(database: str) -> None:
    async with replicas(database, user_messages_per_minute=0) as both:
        delivered = [both.say(n % 2, f"q{n // 4}", chat=f"c{n // 4}") for n in range(80)]
        assert set(await asyncio.gather(*delivered)) == {200}
        await both.idle()
        assert all(both.shown(f"c{n}") == [f"You said: q{n}"] for n in range(20))
        assert len(both.model.asked) == 20


async def test_order_is_kept_over_replicas(database: str) -> None:
    async with replicas(database, user_messages_per_minute=0) as both:
        questions = [f"q{n:02}" for n in range(30)]
        for n, question in enumerate(questions):
            assert await both.say(n % 2, question) == 200
        await both.idle()
        asked = [turn for turn in await both.history() if not turn.startswith("You said")]
        assert asked == questions
        shown = sorted(both.shown())
        assert shown[-1] == "You said: q29"
        assert len(set(shown)) == len(shown) == len(both.model.asked)


async def test_a_conversation_goes_on_with_what_the_other_replica_said(database: str) -> None:
    async with replicas(database) as both:
        for n in range(4):
            await both.say(n % 2, f"q{n}")
            await both.idle()
        assert [turn.content for turn in both.model.asked[-1][1:]] == [
            "q0", "You said: q0", "q1", "You said: q1", "q2", "You said: q2", "q3",
        ]  # fmt: skip


async def test_stop_reaches_the_replica_that_writes(database: str) -> None:
    gate = Gate()
    async with replicas(database, gate.script) as both:
        await both.say(0, "hello")
        await gate.asked.wait()
        await both.say(1, "m2", "/stop")
        await both.until(both.settled("begin hello ", "Stopped."))


async def test_held_requests_hear_what_the_other_replica_answers(database: str) -> None:
    gate, streaming = Gate(), asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        async for word in gate.script(turns):
            yield word
            if turns[-1].content == "three":
                await streaming.wait()

    def question(number: str) -> dict[str, str]:
        return {"user": "u", "message": number, "id": number}

    async with replicas(database, script) as both:
        one, two = both.magpies
        first = asyncio.create_task(post(one, question("one")))
        await gate.asked.wait()
        second = asyncio.create_task(post(two, question("two") | {"conversation": "default"}))
        await waiting(one, 2)
        gate.open.set()
        assert [(await held)[1]["reply"] for held in (first, second)] == ["begin one end", "begin two end"]

        gate.open.clear()
        await waiting(one, 0)
        fourth = asyncio.create_task(post(one, question("hold the lane")))
        await waiting(one, 1)
        third = asyncio.create_task(events(two, question("three")))
        await waiting(one, 2)
        topic = _topic(conversation_id("api", Chat("u", thread="default")))
        async with two.store.state("api").subscribe(topic) as ear:
            gate.open.set()
            while "begin three" not in await anext(ear):
                pass
        streaming.set()
        *deltas, last = await third
        assert last["reply"] == "begin three end"
        assert deltas
        assert (await fourth)[0] == 200


async def waiting(magpie: Magpie, count: int) -> None:
    """Wait until so many messages are in the inbox."""
    async with asyncio.timeout(20):
        while (await magpie.store.counts())["waiting"] != count:
            await asyncio.sleep(0.01)


async def test_a_long_held_answer_crosses_in_pieces(database: str) -> None:
    gate, long = asyncio.Event(), "漢\x01" * 30_000

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        await gate.wait()
        yield long

    async with replicas(database, script, user_messages_per_minute=0) as both:
        one, two = both.magpies
        first = asyncio.create_task(post(one, {"user": "u", "message": "one", "id": "m1"}))
        await waiting(one, 1)
        second = asyncio.create_task(post(two, {"user": "u", "message": "two", "id": "m2"}))
        await waiting(one, 2)
        gate.set()
        assert (await first)[1]["reply"] == (await second)[1]["reply"] == long


async def test_a_held_answer_that_got_lost_on_the_way_is_looked_up(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.answers.RECALL_EVERY", 0.1)
    gate = Gate()
    async with replicas(database, gate.script) as both:
        one, two = both.magpies
        first = asyncio.create_task(post(one, {"user": "u", "message": "one", "id": "m1"}))
        await gate.asked.wait()
        second = asyncio.create_task(post(two, {"user": "u", "message": "two", "id": "m2"}))
        await waiting(one, 2)
        deaf(two)
        gate.open.set()
        assert (await first)[1]["reply"] == "begin one end"
        assert (await second)[1]["reply"] == "begin two end"


def deaf(magpie: Magpie) -> None:
    """Let a replica hear nothing from the others."""
    magpie.store.exchange._hear = lambda *_: None  # type: ignore[attr-defined]
    magpie.store.exchange._connection._listeners.clear()  # type: ignore[attr-defined]


async def test_limits_are_counted_once(database: str) -> None:
    async with replicas(database, user_messages_per_minute=3) as both:
        for n in range(10):
            assert await both.say(n % 2, f"m{n}") == 200
        await both.idle()
        assert sum("faster than" in text for text in both.shown()) == 1
    async with replicas(database, user_tokens_per_day=5) as both:
        await both.say(0, "one", chat="d", user="v")
        await both.idle()
        await both.say(1, "two", chat="e", user="v")
        await both.idle()
        assert "today's limit" in both.shown("e")[0]


async def test_a_token_is_refreshed_by_one_replica(database: str) -> None:
    fetched = 0

    async def fetch() -> tuple[str, float]:
        nonlocal fetched
        fetched += 1
        await asyncio.sleep(0.05)
        return "token", 7200

    async with opened(database) as one, opened(database) as two:
        states = (one.state("a"), two.state("a"))
        tokens = await asyncio.gather(*(shared_token(states[n % 2], fetch) for n in range(20)))
    assert set(tokens) == {"token"}
    assert fetched == 1


def shorten_leases(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in ("bot.store.postgres", "bot.dispatcher"):
        monkeypatch.setattr(f"{module}.LEASE", seconds)
    monkeypatch.setattr("bot.dispatcher.LOOK_EVERY", 0.05)


async def die(magpie: Magpie, monkeypatch: pytest.MonkeyPatch) -> None:
    """End a replica's work as a killed process does: nothing is handed back."""

    async def nothing(*_: object, **__: object) -> None:
        pass

    dispatcher = magpie.dispatcher
    monkeypatch.setattr(dispatcher, "_hand_back", nothing)
    tasks = [*dispatcher._background, *dispatcher._lanes.values()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_lost_replica_is_replaced(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_leases(monkeypatch, 2.0)
    gate = Gate()
    async with replicas(database, gate.script) as both:
        await both.say(0, "hello")
        await gate.asked.wait()
        await die(both.magpies[0], monkeypatch)
        gate.open.set()
        await both.say(1, "more")
        await both.until(both.settled("begin more end"))
        await both.idle()
        assert [turn for turn in await both.history() if "begin" not in turn] == ["hello", "more"]


async def test_a_complete_answer_is_posted_by_the_other_replica_and_not_bought_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_leases(monkeypatch, 2.0)
    async with replicas(database) as both:
        posting = asyncio.Event()

        async def stuck(chat: Chat, page: object) -> str:
            posting.set()
            await asyncio.Event().wait()
            return ""

        monkeypatch.setattr(both.adapters[0], "send", stuck)
        await both.say(0, "hello")
        await posting.wait()
        await die(both.magpies[0], monkeypatch)
        await both.until(both.settled("You said: hello"))
        assert len(both.model.asked) == 1


async def test_a_replica_that_works_keeps_its_conversation(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that takes longer than the lease is not taken over."""
    shorten_leases(monkeypatch, 3.0)
    gate = Gate()
    async with replicas(database, gate.script) as both:
        await both.say(0, "hello")
        await gate.asked.wait()
        await asyncio.sleep(4)  # the lease is meant to run out
        assert both.magpies[1].dispatcher.busy == 0
        gate.open.set()
        await both.until(both.settled("begin hello end"))
        assert len(both.model.asked) == 1


# -- the database goes away -----------------------------------------------------------------------------------------


async def test_a_restart_of_the_database_loses_nothing(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.dispatcher.LOOK_EVERY", 0.05)

    async def slowly(turns: Sequence[Turn]) -> AsyncIterator[str]:
        for word in ("You ", "said: "):
            await asyncio.sleep(random.uniform(0, 0.02))
            yield word
        yield turns[-1].content

    async with replicas(database, slowly, user_messages_per_minute=0) as both:

        async def talk(chat: str) -> None:
            for n in range(15):
                await both.insist(n % 2, f"{chat}.{n}", chat=chat)
                await asyncio.sleep(random.uniform(0, 0.1))

        talking = asyncio.gather(*(talk(f"c{n}") for n in range(10)))
        for _ in range(2):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(postgres.stop, "immediate")
            refused = await both.say(0, "meanwhile", chat="meanwhile")
            await asyncio.to_thread(postgres.start)
            assert refused == 503
        await talking
        await both.idle()
        for n in range(10):
            questions = [turn for turn in await both.history(f"c{n}") if not turn.startswith("You said")]
            assert questions == [f"c{n}.{m}" for m in range(15)]
            assert max(Counter(both.shown(f"c{n}")).values()) == 1


async def test_an_outage_longer_than_a_lease_does_not_buy_answers_again(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_leases(monkeypatch, 2.0)
    gates = {name: Gate() for name in ("one", "two")}

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        async for word in gates[turns[-1].content].script(turns):
            yield word

    async with replicas(database, script) as both:
        for replica, (name, gate) in enumerate(gates.items()):
            await both.say(replica, name, chat=name)
            await gate.asked.wait()
        await asyncio.to_thread(postgres.stop, "immediate")
        for gate in gates.values():
            gate.open.set()
        await asyncio.sleep(3)  # the leases are meant to run out
        await asyncio.to_thread(postgres.start)
        await both.idle()
        assert [both.shown(name) for name in gates] == [["begin one end"], ["begin two end"]]
        assert len(both.model.asked) == 2


async def test_a_read_only_database_refuses_and_comes_back(postgres: PostgresServer, database: str) -> None:
    async with replicas(database) as both:
        await postgres.read_only(True)
        try:
            assert await both.say(0, "hello") == 503
            assert await ready(both.magpies[0]) == 503
        finally:
            await postgres.read_only(False)
        assert await both.say(1, "hello") == 200
        await both.until(both.settled("You said: hello"))
        assert await ready(both.magpies[1]) == 200


async def ready(magpie: Magpie) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{magpie.port}/readyz") as answer,
    ):
        return answer.status


# -- real processes -------------------------------------------------------------------------------------------------

SHORT_LEASES = (
    "import bot.store; bot.store.LEASE = 5; from bot.cli import main; import sys; sys.argv[1:] = ['serve']; main()"
)


class Cluster:
    """Telegram, a model, and two processes between them."""

    def __init__(self, telegram: TelegramServer, model: Answers, directory: Path, database: str) -> None:
        self.telegram = telegram
        self.model = model
        env = {
            "BOT_DATABASE_URL": database,
            "BOT_ADAPTERS": "telegram",
            "BOT_USER_MESSAGES_PER_MINUTE": "0",
            "TELEGRAM_BOT_TOKEN": telegram.token,
            "TELEGRAM_WEBHOOK_SECRET": SECRET,
            "TELEGRAM_API_BASE": telegram.base,
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "test-key",
        }
        self.processes = []
        for name in ("one", "two"):
            (directory / name).mkdir()
            self.processes.append(Process(directory / name, env, ("-c", SHORT_LEASES)))

    async def say(self, room: Room, text: str) -> None:
        """Deliver a message to one replica or the other until one of them takes it."""
        update = self.telegram.written(room, text)
        while True:
            url = f"{random.choice(self.processes).url}/webhooks/telegram"
            self.telegram.webhook = {"url": url, "secret_token": SECRET}
            with contextlib.suppress(aiohttp.ClientError, OSError):
                if await self.telegram.deliver(update) == 200:
                    return
            await asyncio.sleep(0.05)

    async def talk(self, room: Room, questions: Sequence[str], pause: float) -> None:
        for question in questions:
            await self.say(room, question)
            await asyncio.sleep(random.uniform(0, pause))

    def answered(self, room: Room) -> list[str]:
        """The questions whose complete answers the chat shows, in order."""
        end = f"w{self.model.words - 1}"
        texts = [message.text for message in self.telegram.shown(room)]
        return [match[1] for text in texts if (match := re.match(r"answer to (\S+)", text)) and text.endswith(end)]


@contextlib.asynccontextmanager
async def cluster(directory: Path, database: str) -> AsyncIterator[Cluster]:
    async with TelegramServer() as telegram, Answers(words=6, pause=0.02).serve() as model:
        stage = Cluster(telegram, model, directory, database)
        await asyncio.gather(*(process.start() for process in stage.processes))
        try:
            yield stage
        finally:
            for process in stage.processes:
                await process.kill()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_processes_that_end_under_load(tmp_path: Path, database: str, how: str) -> None:
    random.seed(5)
    async with cluster(tmp_path, database) as stage:
        rooms = [stage.telegram.private(f"person {n}") for n in range(6)]
        questions = {room.id: [f"q{room.id}.{n}" for n in range(12)] for room in rooms}
        talking = asyncio.gather(*(stage.talk(room, questions[room.id], 1.0) for room in rooms))
        for number in range(4):
            process = stage.processes[number % 2]
            await asyncio.sleep(random.uniform(0.1, 0.9))
            await (process.kill() if how == "killed" else process.stop())
            await process.start()
        await talking

        await stage.telegram.until(lambda: all(questions[room.id][-1] in stage.answered(room) for room in rooms), 60)
        for room in rooms:
            shown = stage.answered(room)
            order = [questions[room.id].index(question) for question in shown]
            assert order == sorted(order), shown
            repeats = sum(count - 1 for count in Counter(shown).values())
            assert repeats <= (4 if how == "killed" else 0), shown
        bought = {question: count for question, count in Counter(stage.model.completed).items() if count > 1}
        assert len(bought) <= (2 if how == "killed" else 0), bought
