"""The store's contract, on SQLite and on PostgreSQL: what is accepted is there, leases are exclusive, order is kept."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.adapter import Chat, Message, Post, Turn
from bot.errors import ConfigError, StoreUnavailable
from bot.store import (
    Arrival,
    Draft,
    Entry,
    Lane,
    LostLease,
    Outcome,
    Parked,
    Store,
    Used,
    conversation_id,
    open_store,
)
from bot.store.postgres import PostgresStore
from bot.store.sqlite import SQLiteStore
from tests.postgres_server import PostgresServer


def arrival(number: int = 1, chat: str = "c", user: str = "u", per_minute: int = 0) -> Arrival:
    message = Message(f"m{number}", Chat(chat), user, f"text {number}")
    return Arrival("it", conversation_id("it", message.chat), f"it/{user}", message, per_minute)


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/magpie.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return await server.create()


only_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as store:
        yield store


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class Constants:
    """Changes a number in both engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def set(self, name: str, value: float) -> None:
        for engine in ("sqlite", "postgres"):
            self._monkeypatch.setattr(f"bot.store.{engine}.{name}", value)


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> Constants:
    return Constants(monkeypatch)


async def leased(store: Store, *arrivals: Arrival, owner: str = "me") -> Lane:
    """Accept messages of one conversation; return its lane."""
    receipts = await store.accept(arrivals or [arrival()], owner)
    assert receipts[0].lane is not None
    return receipts[0].lane


async def test_first_message_gets_the_lease_and_later_ones_wait(store: Store) -> None:
    first, second = await store.accept([arrival(1), arrival(2)], "me")
    assert first.lane is not None
    assert [waiting.message.id for waiting in first.lane.waiting] == ["m1"]
    assert second.new
    assert second.lane is None
    lane = await store.finish(first.lane, "me", [Outcome("m1", "answered")])
    assert lane is not None
    assert [waiting.message.text for waiting in lane.waiting] == ["text 2"]
    assert await store.finish(lane, "me", [Outcome("m2", "answered")]) is None
    third = (await store.accept([arrival(3)], "other"))[0]
    assert third.lane is not None


async def test_redelivery_changes_nothing(store: Store) -> None:
    (first,) = await store.accept([arrival(1)], "me")
    (again,) = await store.accept([arrival(1)], "me")
    assert first.new
    assert not again.new
    assert again.lane is None
    assert first.lane is not None
    assert await store.finish(first.lane, "me", [Outcome("m1", "answered")]) is None
    (late,) = await store.accept([arrival(1)], "me")
    assert not late.new


async def test_many_redeliveries_at_once_are_one_message(store: Store) -> None:
    receipts = await asyncio.gather(*(store.accept([arrival(1)], f"replica {n}") for n in range(50)))
    assert sum(receipt.new for (receipt,) in receipts) == 1
    assert sum(receipt.lane is not None for (receipt,) in receipts) == 1


async def test_lease_that_ran_out_is_claimed_by_another(store: Store, constants: Constants) -> None:
    constants.set("LEASE", -1.0)
    (receipt,) = await store.accept([arrival(1)], "dead")
    assert receipt.lane is not None
    constants.set("LEASE", 30.0)
    (lane,) = await store.claim("alive", ["it"], 10)
    assert [waiting.message.id for waiting in lane.waiting] == ["m1"]
    with pytest.raises(LostLease):
        await store.finish(receipt.lane, "dead", [Outcome("m1", "answered")])
    with pytest.raises(LostLease):
        await store.complete(receipt.lane, "dead", [Entry(Turn("user", "x"), 1)])
    assert await store.finish(lane, "alive", [Outcome("m1", "answered")]) is None
    assert await store.claim("alive", ["it"], 10) == []


async def test_a_lost_lease_leaves_no_outcome_behind(store: Store, constants: Constants) -> None:
    constants.set("LEASE", -1.0)
    (receipt,) = await store.accept([arrival(1)], "dead")
    assert receipt.lane is not None
    await store.claim("alive", ["it"], 1)
    with pytest.raises(LostLease):
        await store.finish(receipt.lane, "dead", [Outcome("m1", "answered")])
    (lane,) = await store.claim("third", ["it"], 1)
    assert [waiting.message.id for waiting in lane.waiting] == ["m1"]


async def test_messages_without_a_place_wait_for_a_claim(store: Store) -> None:
    (receipt,) = await store.accept([arrival(1)], None)
    assert receipt.new
    assert receipt.lane is None
    assert await store.claim("me", ["another instance"], 10) == []
    (lane,) = await store.claim("me", ["it"], 10)
    assert lane.waiting[0].message.id == "m1"


async def test_postponed_lane_is_due_later_and_hastened_by_a_new_message(store: Store) -> None:
    (receipt,) = await store.accept([arrival(1)], "me")
    lane = receipt.lane
    assert lane is not None
    lane.draft = Draft(Chat("c"), ("m1",), rest="half", posts=[Post("p", "ha")], complete=True)
    await store.postpone(lane, "me", 1000)
    assert await store.claim("me", ["it"], 10) == []
    await store.accept([arrival(2)], "me")
    (lane,) = await store.claim("me", ["it"], 10)
    assert lane.draft is not None
    assert lane.draft.rest == "half"
    assert lane.draft.posts == [Post("p", "ha")]
    assert [waiting.tries for waiting in lane.waiting] == [1, 0]


async def test_history_and_usage(store: Store) -> None:
    (receipt,) = await store.accept([arrival(1)], "me")
    lane = receipt.lane
    assert lane is not None
    lane.draft = Draft(Chat("c"), ("m1",))
    spent = Used(prompt=10, cached=4, completion=5)
    entries = [Entry(Turn("user", "hi"), 3), Entry(Turn("assistant", "hello"), 5, "it/u", "gpt", spent)]
    assert await store.complete(lane, "me", entries, payer="it/u", spent=spent) == 15
    assert lane.seq == 2
    assert [kept.turn.content for kept in await store.history(lane.conversation, 1)] == ["hi", "hello"]
    assert await store.used("it/u") == Used(1, 10, 4, 5)
    assert (await store.used("*")).tokens == 15
    await store.finish(lane, "me", [Outcome("m1", "answered", turn=2)])
    assert await store.answer(lane.conversation, "m1") == ("answered", "", Turn("assistant", "hello"))


async def test_a_discarded_answer_is_kept_but_not_shown(store: Store) -> None:
    (receipt,) = await store.accept([arrival(1)], "me")
    lane = receipt.lane
    assert lane is not None
    await store.complete(lane, "me", [Entry(Turn("user", "a"), 1), Entry(Turn("assistant", "b"), 1)])
    await store.complete(lane, "me", [Entry(Turn("assistant", "c"), 1)], discard=2)
    assert [kept.turn.content for kept in await store.history(lane.conversation, 1)] == ["a", "c"]
    assert [turn.content for turn in await store.recent(lane.conversation, 10)] == ["a", "c"]
    await store.complete(lane, "me", forget=True)
    assert await store.recent(lane.conversation, 10) == []
    assert len(await store.history(lane.conversation, 1)) == 2


async def test_rate_limit_counts_in_the_same_transaction(store: Store) -> None:
    receipts = await store.accept([arrival(n, per_minute=3) for n in range(1, 8)], "me")
    assert [receipt.refused for receipt in receipts] == [False] * 4 + [True] * 3
    lane = receipts[0].lane
    assert lane is not None
    rest = await store.finish(lane, "me", [Outcome("m1", "answered")])
    assert rest is not None
    assert [waiting.limited for waiting in rest.waiting] == [False, False, True]


async def test_state_is_shared_expires_and_swaps(store: Store) -> None:
    state, other = store.state("a"), store.state("b")
    await state.set("k", "1", 100)
    assert await state.get("k") == "1"
    assert await other.get("k") is None
    assert not await state.swap("k", None, "2", 100)
    assert await state.swap("k", "1", "2", 100)
    assert await state.swap("k", "2", None, 100)
    assert await state.get("k") is None
    await state.set("old", "1", -1)
    assert await state.get("old") is None
    assert await state.swap("old", None, "new", 100)


async def test_only_one_of_many_wins_a_swap(store: Store) -> None:
    state = store.state("a")
    wins = await asyncio.gather(*(state.swap("lock", None, str(n), 100) for n in range(40)))
    assert sum(wins) == 1


async def test_subscribers_hear_what_is_published(store: Store) -> None:
    state = store.state("a")
    async with state.subscribe("t") as ear:
        await state.publish("t", "one")
        await state.publish("other", "no")
        await state.publish("t", "two")
        assert [await anext(ear), await anext(ear)] == ["one", "two"]


async def test_an_entry_of_7000_bytes_fits_and_a_larger_one_does_not(store: Store) -> None:
    state = store.state("a")
    async with state.subscribe("x" * 1000) as ear:
        await state.publish("x" * 1000, "漢" * 2333)
        assert await anext(ear) == "漢" * 2333
        with pytest.raises(ValueError, match="7000"):
            await state.publish("t", "漢" * 2334)


async def test_a_chat_that_moves_keeps_its_conversation(store: Store) -> None:
    (receipt,) = await store.accept([arrival(1, chat="old")], "me")
    lane = receipt.lane
    assert lane is not None
    await store.complete(lane, "me", [Entry(Turn("user", "remember me"), 3)])
    await store.finish(lane, "me", [Outcome("m1", "answered")])
    await store.move("it", "old", "new")
    (receipt,) = await store.accept([arrival(2, chat="new")], "me")
    assert receipt.lane is not None
    assert receipt.lane.seq == 1
    assert (await store.history(receipt.lane.conversation, 1))[0].turn.content == "remember me"


async def test_a_killed_process_leaves_its_lanes_to_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/magpie.db"
    first = open_store(url)
    await first.open()
    await first.accept([arrival(1)], "killed")
    await first.close()
    second = open_store(url)
    await second.open()
    (lane,) = await second.claim("next", ["it"], 10)
    assert lane.waiting[0].message.id == "m1"
    await second.close()


async def test_a_second_process_does_not_take_what_the_first_works_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/magpie.db"
    first, second = open_store(url), open_store(url)
    await first.open()
    await first.accept([arrival(1)], "first")
    await second.open()
    assert await second.claim("second", ["it"], 10) == []
    await second.close()
    await first.close()


async def test_a_locked_database_is_unavailable_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.store.sqlite.BUSY_MS", 50)
    store = open_store(f"sqlite:///{tmp_path}/magpie.db")
    await store.open()
    blocker = sqlite3.connect(tmp_path / "magpie.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable):
        await store.accept([arrival(1)], "me")
    with pytest.raises(StoreUnavailable):
        await store.probe()
    blocker.execute("ROLLBACK")
    blocker.close()
    (receipt,) = await store.accept([arrival(1)], "me")
    assert receipt.new
    await store.close()


@only_sqlite
async def test_a_full_disk_is_unavailable_and_loses_nothing(store: Store) -> None:
    await store.accept([arrival(1)], "me")
    writer = store._writer  # type: ignore[attr-defined]
    pages = await writer.submit(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await writer.submit(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))
    big = arrival(2)
    big = Arrival(big.instance, big.conversation, big.person, Message("m2", Chat("c"), "u", "x" * 100_000))
    with pytest.raises(StoreUnavailable, match="full"):
        await store.accept([big], "me")
    await writer.submit(lambda db: db.execute("PRAGMA max_page_count = 1000000"))
    (receipt,) = await store.accept([big], "me")
    assert receipt.new


@only_sqlite
async def test_one_failing_operation_does_not_fail_its_neighbours(store: Store) -> None:
    writer = store._writer  # type: ignore[attr-defined]

    def broken(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO state VALUES ('half', 'done', 1e12)")
        raise ValueError("broken")

    good = [asyncio.ensure_future(store.state("a").set(str(n), "1", 100)) for n in range(5)]
    bad = writer.submit(broken)
    good += [asyncio.ensure_future(store.state("a").set(str(n), "1", 100)) for n in range(5, 10)]
    with pytest.raises(ValueError, match="broken"):
        await bad
    await asyncio.gather(*good)
    assert all([await store.state("a").get(str(n)) for n in range(10)])
    assert await store.state("half").get("") is None


async def test_purge_forgets_only_what_has_run_out(store: Store, constants: Constants) -> None:
    (receipt,) = await store.accept([arrival(1)], "me")
    assert receipt.lane is not None
    await store.finish(receipt.lane, "me", [Outcome("m1", "answered")])
    await store.purge()
    assert not (await store.accept([arrival(1)], "me"))[0].new
    constants.set("KEEP", -1.0)
    await store.purge()
    assert (await store.accept([arrival(1)], "me"))[0].new


async def test_only_the_leases_of_what_is_worked_on_are_extended(store: Store, constants: Constants) -> None:
    constants.set("LEASE", -1.0)
    kept = await leased(store, arrival(1, chat="kept"))
    await leased(store, arrival(2, chat="forgotten"))
    constants.set("LEASE", 30.0)
    await store.extend("me", [kept.conversation])
    await store.extend("somebody else", [kept.conversation])
    (lane,) = await store.claim("other", ["it"], 10)
    assert lane.waiting[0].message.id == "m2"


async def parked_message(store: Store, answered: bool) -> Parked:
    """Park m1 and m2, which were to be answered together."""
    lane = await leased(store, arrival(1), arrival(2))
    turn = 0
    if answered:
        await store.complete(lane, "me", [Entry(Turn("user", "text 1"), 1), Entry(Turn("assistant", "the answer"), 1)])
        turn = 2
    outcomes = [Outcome(message, "failed", "platform: blocked", turn, parked=True) for message in ("m1", "m2")]
    assert await store.finish(lane, "me", outcomes) is None
    assert (await store.counts())["parked"] == 2
    parked = {parked.message.id: parked for parked in await store.parked(10)}
    assert parked["m1"].reason == "platform: blocked"
    assert parked["m1"].instance == "it"
    assert len(await store.parked(1)) == 1
    return parked["m1"]


async def test_a_parked_answer_comes_back_to_be_posted_and_is_not_asked_for_again(store: Store) -> None:
    parked = await parked_message(store, answered=True)
    assert await store.revive(parked)
    assert not await store.revive(parked)
    (lane,) = await store.claim("me", ["it"], 10)
    assert lane.draft is not None
    assert lane.draft.complete
    assert (lane.draft.rest, lane.draft.answers, lane.draft.turn) == ("the answer", ("m1", "m2"), 2)
    assert [waiting.message.id for waiting in lane.waiting] == ["m1", "m2"]
    assert await store.finish(lane, "me", [Outcome(id, "answered", turn=2) for id in lane.draft.answers]) is None
    assert await store.counts() == {"waiting": 0, "parked": 0, "due": 0}


async def test_a_parked_question_comes_back_to_be_asked(store: Store) -> None:
    parked = await parked_message(store, answered=False)
    busy = await leased(store, arrival(3))
    assert await store.revive(parked)
    rest = await store.finish(busy, "me", [Outcome("m3", "answered")])
    assert rest is not None
    assert [waiting.message.id for waiting in rest.waiting] == ["m1"]
    assert rest.draft is None


async def test_a_parked_answer_waits_until_its_conversation_is_free(store: Store) -> None:
    parked = await parked_message(store, answered=True)
    busy = await leased(store, arrival(3))
    assert not await store.revive(parked)
    assert await store.finish(busy, "me", [Outcome("m3", "answered")]) is None
    assert await store.revive(parked)


async def test_a_dropped_message_is_gone_and_not_accepted_again(store: Store) -> None:
    parked = await parked_message(store, answered=False)
    assert await store.drop(parked)
    assert not await store.drop(parked)
    assert not await store.revive(parked)
    assert [kept.message.id for kept in await store.parked(10)] == ["m2"]
    assert not (await store.accept([arrival(1)], "me"))[0].new
    assert await store.answer(parked.conversation, "m1") == ("failed", "platform: blocked", None)


async def test_a_newer_database_is_refused(url: str) -> None:
    async with opened(url) as store:
        if isinstance(store, SQLiteStore):
            await store._write(lambda db: db.execute("PRAGMA user_version = 999"))
        else:
            assert isinstance(store, PostgresStore)
            await store._pool.fetch("INSERT INTO migrations VALUES ('postgres-999.sql')")
    with pytest.raises(ConfigError, match="newer"):
        await open_store(url).open()


async def test_a_chat_that_moves_to_where_one_is_leaves_that_alone(store: Store) -> None:
    old = await leased(store, arrival(1, chat="old"))
    await store.complete(old, "me", [Entry(Turn("user", "old"), 1)])
    new = await leased(store, arrival(2, chat="new"))
    await store.move("it", "old", "new")
    assert await store.finish(new, "me", [Outcome("m2", "answered")]) is None
    assert [kept.turn.content for kept in await store.history(old.conversation, 1)] == ["old"]
    assert await store.finish(old, "me", [Outcome("m1", "answered")]) is None
