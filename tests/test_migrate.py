"""`magpie migrate`: a SQLite file goes on in PostgreSQL, nothing lost, nothing of others overwritten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bot.adapter import Chat, Message, Turn
from bot.cli import speech
from bot.cli.commands import app
from bot.errors import MagpieError
from bot.store import Arrival, Draft, Entry, Outcome, Store, Used
from bot.store.migrate import ROWS, Conflict, Progress, migrate
from tests.test_store import arrival, leased, opened


async def fill(store: Store) -> None:
    """Answered, waiting, postponed and parked messages; usage; state."""
    done = await leased(store, arrival(1))
    spent = Used(prompt=3, cached=1, completion=4)
    entries = [Entry(Turn("user", "hi\x00"), 2), Entry(Turn("assistant", "hello"), 3, "it/u", "gpt", spent)]
    await store.complete(done, "me", entries, payer="it/u", spent=spent)
    await store.finish(done, "me", [Outcome("m1", "answered", turn=2)])
    await leased(store, arrival(2, chat="busy"))
    await store.accept([arrival(n, chat="waiting") for n in range(3, 6)], None)
    written = await leased(store, arrival(6, chat="postponed"))
    written.draft = Draft(Chat("postponed"), ("m6",), rest="rest", complete=True)
    await store.postpone(written, "me", 0)
    parked = await leased(store, arrival(7, chat="parked"))
    await store.finish(parked, "me", [Outcome("m7", "failed", "blocked", parked=True)])
    await store.state("it").set("token", "secret", 1000)
    await store.state("it").set("old", "gone", -1)


@pytest.fixture
async def file(tmp_path: Path) -> str:
    path = str(tmp_path / "magpie.db")
    async with opened(f"sqlite:///{path}") as store:
        await fill(store)
    return path


class BrokenOff(Exception):
    """Somebody pressed Ctrl-C."""


def break_off_after(transactions: int) -> Progress:
    left = iter(range(transactions))

    def progress(table: str, done: int, total: int) -> None:
        if done and next(left, None) is None:
            raise BrokenOff

    return progress


def silent(table: str, done: int, total: int) -> None:
    pass


async def check(url: str) -> None:
    """Find everything again, and work on it."""
    async with opened(url) as store:
        assert await store.counts() == {"waiting": 5, "parked": 1, "due": 3}
        assert [kept.turn.content for kept in await store.history("it\nc\n\n", 1)] == ["hi\ufffd", "hello"]
        assert await store.answer("it\nc\n\n", "m1") == ("answered", "", Turn("assistant", "hello"))
        assert await store.used("it/u") == Used(7, 3, 1, 4)
        assert (await store.used("*")).tokens == 7
        assert await store.state("it").get("token") == "secret"
        assert (await store.parked(10))[0].reason == "blocked"
        assert not (await store.accept([arrival(1)], "me"))[0].new
        await store.accept([arrival(8, chat="waiting")], None)
        lanes = {lane.conversation: lane for lane in await store.claim("me", ["it"], 10)}
        assert [waiting.message.id for waiting in lanes["it\nwaiting\n\n"].waiting] == ["m3", "m4", "m5", "m8"]
        draft = lanes["it\npostponed\n\n"].draft
        assert draft is not None
        assert draft.rest == "rest"
        lane = await leased(store, arrival(9))
        assert lane.seq == 2


async def test_everything_goes_on(file: str, database: str) -> None:
    await migrate(file, database, silent)
    await check(database)


async def test_it_may_be_broken_off_and_run_again(tmp_path: Path, database: str) -> None:
    path = str(tmp_path / "magpie.db")
    async with opened(f"sqlite:///{path}") as store:
        await fill(store)
        for start in range(0, 3 * ROWS, 100):
            people = [Message(f"x{n}", Chat(f"x{n}"), f"x{n}") for n in range(start, start + 100)]
            receipts = await store.accept(
                [Arrival("x", f"x\n{one.id}\n\n", f"x/{one.id}", one) for one in people], "me"
            )
            lanes = [receipt.lane for receipt in receipts if receipt.lane]
            await asyncio.gather(
                *(store.finish(lane, "me", [Outcome(lane.waiting[0].message.id, "answered")]) for lane in lanes)
            )

    for times in (1, 3, 8):
        with pytest.raises(BrokenOff):
            await migrate(path, database, break_off_after(times))
    seen: dict[str, tuple[int, int]] = {}
    await migrate(path, database, lambda table, done, total: seen.update({table: (done, total)}))
    assert seen["inbox"] == (3 * ROWS + 7, 3 * ROWS + 7)
    assert seen["conversations"] == (3 * ROWS + 5, 3 * ROWS + 5)
    await check(database)


async def test_other_data_is_not_touched(file: str, database: str) -> None:
    async with opened(database) as store:
        lane = await leased(store, arrival(1))
        await store.complete(lane, "me", [Entry(Turn("user", "somebody else's"), 1)])
        await store.finish(lane, "me", [Outcome("m1", "answered")])
    with pytest.raises(Conflict, match="differ"):
        await migrate(file, database, silent)
    async with opened(database) as store:
        assert await store.counts() == {"waiting": 0, "parked": 0, "due": 0}
        assert [kept.turn.content for kept in await store.history("it\nc\n\n", 1)] == ["somebody else's"]


async def test_conversations_of_others_stay_beside(file: str, database: str) -> None:
    async with opened(database) as store:
        lane = await leased(store, Arrival("other", "other\nc\n\n", "other/u", Message("m1", Chat("c"), "u")))
        await store.finish(lane, "me", [Outcome("m1", "answered")])
    await migrate(file, database, silent)
    await check(database)


async def test_a_file_in_use_is_refused(file: str, database: str) -> None:
    async with opened(f"sqlite:///{file}"):
        with pytest.raises(MagpieError, match="running magpie"):
            await migrate(file, database, silent)


def test_the_command_shows_progress(file: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOT_LANGUAGE", "en")
    speech.language.cache_clear()
    runner = CliRunner()
    done = runner.invoke(app, ["migrate", f"sqlite:///{file}", database])
    assert done.exit_code == 0, done.output
    assert "turns" in done.output
    assert "2/2" in done.output
    assert "BOT_DATABASE_URL" in done.output
    asyncio.run(check(database))
    for arguments, problem in (
        ((file + "x", database), "no such file"),
        ((file, "sqlite:///x.db"), "postgresql://"),
        ((file, database), "differ"),
    ):
        failed = runner.invoke(app, ["migrate", *arguments])
        assert failed.exit_code in (1, 2)
        assert problem in failed.output
    assert "magpie migrate" in runner.invoke(app, ["migrate", "--help"]).output
