"""What only PostgreSQL brings: several replicas, a network in between, a server that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from bot.adapter import Chat, Message, Turn
from bot.errors import StoreUnavailable
from bot.store import Arrival, Draft, Entry, Lane, Outcome, Store, Used, conversation_id, open_store
from bot.store.postgres import PostgresStore
from tests.postgres_server import PostgresServer
from tests.proxy import Proxy
from tests.test_store import arrival, leased, opened

Operation = Callable[[Store, Lane], Awaitable[object]]


@pytest.fixture
async def stores(database: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two replicas on one database."""
    async with opened(database) as one, opened(database) as two:
        yield one, two


@contextlib.asynccontextmanager
async def distant(postgres: PostgresServer, database: str) -> AsyncIterator[tuple[Proxy, Store]]:
    """A replica with a proxy before its database."""
    async with Proxy(postgres.port) as proxy, opened(database.replace(str(postgres.port), str(proxy.port))) as store:
        yield proxy, store


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


def able(store: Store) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the store can write."""

    async def probe() -> bool:
        with contextlib.suppress(StoreUnavailable):
            await store.probe()
            return True
        return False

    return probe


# -- what is stored -------------------------------------------------------------------------------------------------


async def test_what_postgresql_cannot_store_is_replaced(database: str) -> None:
    async with opened(database) as store:
        odd = Message("m\x00\ud800", Chat("c\x00"), "u\x00", "text\x00")
        arrived = Arrival("it", conversation_id("it", odd.chat), "it/u\x00", msgspec_safe(odd))
        (receipt,) = await store.accept([arrived], "me")
        lane = receipt.lane
        assert lane is not None
        await store.complete(lane, "me", [Entry(Turn("assistant", "a\x00b\ud800"), 1)], payer="it/u\x00")
        assert (await store.history(lane.conversation, 1))[0].turn.content == "a\ufffdb?"
        assert await store.finish(lane, "me", [Outcome("m\x00", "answered", "\x00")]) is None
        assert not (await store.accept([arrived], "me"))[0].new
        await store.state("a").set("k\x00", "v\x00", 100)
        assert await store.state("a").get("k\x00") == "v\ufffd"


def msgspec_safe(message: Message) -> Message:
    return Message("m\x00", message.chat, message.user, message.text)


async def test_large_messages_and_answers(database: str) -> None:
    async with opened(database) as store:
        text = "漢" * 1_000_000
        large = Message("m1", Chat("c"), "u", text)
        (receipt,) = await store.accept([Arrival("it", "it\nc\n\n", "it/u", large)], None)
        assert receipt.new
        (lane,) = await store.claim("me", ["it"], 1)
        assert lane.waiting[0].message.text == text
        await store.complete(lane, "me", [Entry(Turn("assistant", text), 1)])
        assert (await store.recent(lane.conversation, 1))[0].content == text


async def test_a_value_that_is_refused_fails_its_caller_only(database: str) -> None:
    async with opened(database) as store:
        good = [asyncio.ensure_future(store.accept([arrival(n, chat=str(n))], "me")) for n in range(5)]
        bad = asyncio.ensure_future(store.accept([arrival(9, chat=random.randbytes(9000).hex())], "me"))
        good += [asyncio.ensure_future(store.accept([arrival(n, chat=str(n))], "me")) for n in range(10, 15)]
        with pytest.raises(ValueError, match="does not take a value"):
            await bad
        assert all([(await receipts)[0].lane for receipts in good])


# -- several replicas -----------------------------------------------------------------------------------------------


async def test_replicas_may_start_at_once(database: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = await asyncio.gather(*(stack.enter_async_context(opened(database)) for _ in range(4)))
        for number, store in enumerate(stores):
            assert (await store.accept([arrival(number)], f"replica {number}"))[0].new


async def test_starting_leaves_the_others_their_leases(database: str) -> None:
    async with opened(database) as one:
        lane = await leased(one, owner="one")
        async with opened(database) as two:
            assert await two.claim("two", ["it"], 10) == []
        assert await one.finish(lane, "one", [Outcome("m1", "answered")]) is None


async def test_replicas_whose_clocks_differ_agree(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = stores
    lane = await leased(one, owner="one")
    await one.state("a").set("k", "v", 100)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400 * 400)
    assert await two.claim("two", ["it"], 10) == []
    assert await two.state("a").get("k") == "v"
    await one.postpone(lane, "one", 1000)
    assert await two.claim("two", ["it"], 10) == []


async def test_order_of_arrival_over_replicas(stores: tuple[Store, Store]) -> None:
    for number in range(20):
        await stores[number % 2].accept([arrival(number)], None)
    (lane,) = await stores[0].claim("me", ["it"], 10)
    assert [waiting.message.id for waiting in lane.waiting] == [f"m{number}" for number in range(20)]


async def test_claims_of_replicas_do_not_overlap_and_leave_nothing(stores: tuple[Store, Store]) -> None:
    await stores[0].accept([arrival(number, chat=f"c{number}") for number in range(100)], None)
    claims = await asyncio.gather(*(stores[n % 2].claim(f"replica {n}", ["it"], 10) for n in range(10)))
    lanes = [lane.conversation for lanes in claims for lane in lanes]
    assert len(set(lanes)) == len(lanes)
    rest = await stores[0].claim("last", ["it"], 100)
    assert len(lanes) + len(rest) == 100


async def test_a_lease_of_before_does_not_count(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same owner, having lost a conversation and got it back, is not confused by what it was doing before."""
    one, two = stores
    monkeypatch.setattr("bot.store.postgres.LEASE", -1.0)
    before = await leased(one)
    (elsewhere,) = await two.claim("two", ["it"], 1)
    assert await two.finish(elsewhere, "two", [Outcome("m1", "answered")]) is None
    now = await leased(one, arrival(2))
    for late in (
        one.finish(before, "me", [Outcome("m2", "answered")]),
        one.complete(before, "me", [Entry(Turn("user", "late"), 1)]),
        one.save_draft(before, "me"),
        one.postpone(before, "me", 0),
    ):
        with pytest.raises(Exception, match="somebody else"):
            await late
    assert await one.finish(now, "me", [Outcome("m2", "answered")]) is None


async def test_batches_of_replicas_never_wait_for_each_other_for_ever(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """People in many groups, in any order, on two replicas: the order in which locks are taken holds."""
    monkeypatch.setattr("bot.store.pool.RETRIES", 1)  # a deadlock would be an error
    rng = random.Random(7)

    async def live(store: Store, number: int) -> None:
        chat, user = f"c{rng.randrange(10)}", f"u{rng.randrange(10)}"
        arrived = [arrival(number * 3 + n, chat=chat, user=user) for n in range(rng.randrange(1, 4))]
        lane = (await store.accept(arrived, f"owner {number}"))[0].lane
        while lane is not None:
            ids = [waiting.message.id for waiting in lane.waiting]
            lane.draft = Draft(Chat(chat), tuple(ids))
            await store.save_draft(lane, f"owner {number}")
            spent = Used(prompt=1)
            await store.complete(
                lane, f"owner {number}", [Entry(Turn("user", "x"), 1)], payer=f"it/{user}", spent=spent
            )
            lane = await store.finish(lane, f"owner {number}", [Outcome(id, "answered") for id in ids])

    for start in range(0, 600, 100):
        await asyncio.gather(*(live(stores[n % 2], n) for n in range(start, start + 100)))
    assert (await stores[0].counts()) == {"waiting": 0, "parked": 0, "due": 0}
    everybody = await stores[0].used("*")
    assert everybody.prompt == sum([(await stores[0].used(f"it/u{n}")).prompt for n in range(10)])


@pytest.mark.parametrize("crossed", ["chats", "people"])
async def test_batches_in_opposite_orders(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch, crossed: str
) -> None:
    monkeypatch.setattr("bot.store.pool.RETRIES", 1)

    def batch(replica: int) -> list[Arrival]:
        count = range(300)
        order = reversed(count) if replica else count
        shared = [f"{crossed}{n}" for n in order]
        own = [f"replica {replica}, {n}" for n in count]
        chats, users = (shared, own) if crossed == "chats" else (own, shared)
        return [arrival(n + 1000 * replica, chat=chats[n], user=users[n]) for n in count]

    for _ in range(3):
        await asyncio.gather(*(store.accept(batch(n), None) for n, store in enumerate(stores)))
    assert (await stores[0].counts())["waiting"] == 600


# -- messages between replicas --------------------------------------------------------------------------------------


async def test_everybody_hears_everything_once_and_in_order(stores: tuple[Store, Store]) -> None:
    one, two = (store.state("a") for store in stores)
    async with one.subscribe("t") as near, two.subscribe("t") as far, two.subscribe("other") as other:
        for n in range(50):
            await one.publish("t", str(n // 2))  # equal neighbours are entries of their own
        await one.publish("other", "end")
        await two.publish("t", "end")
        for ear in (near, far):
            assert [await anext(ear) for _ in range(51)] == [*(str(n // 2) for n in range(50)), "end"]
        assert await anext(other) == "end"


async def test_a_lost_connection_is_made_again_and_the_own_process_misses_nothing(
    postgres: PostgresServer, database: str
) -> None:
    async with distant(postgres, database) as (proxy, store), opened(database) as far:
        state, heard = store.state("a"), list[str]()
        async with state.subscribe("t") as near, far.state("a").subscribe("t") as there:

            async def publish(n: int) -> None:
                if n == 30:
                    proxy.cut()
                await state.publish("t", str(n))

            await asyncio.gather(*(publish(n) for n in range(60)))
            while len(heard) < 60:
                heard.append(await anext(near))
            assert sorted(map(int, heard)) == list(range(60))

            async def over_there() -> bool:
                await state.publish("t", "back")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        while await anext(there) != "back":
                            pass
                        return True
                return False

            await until(over_there)


async def test_a_connection_that_died_silently_is_noticed(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.store.exchange.LISTEN_EVERY", 0.05)
    monkeypatch.setattr("bot.store.pool.PATIENCE", 0.3)
    async with distant(postgres, database) as (proxy, store):
        assert isinstance(store, PostgresStore)
        before = store.exchange._connection
        proxy.downstream.clear()

        async def noticed() -> bool:
            return store.exchange._connection is not before

        await until(noticed)
        proxy.cut()
        proxy.downstream.set()
        async with store.state("a").subscribe("t") as ear:
            await until(able(store))
            await store.state("a").publish("t", "again")
            assert await anext(ear) == "again"


# -- failures -------------------------------------------------------------------------------------------------------

FAILURES = {
    "disk full": "53100",
    "out of memory": "53200",
    "too many connections": "53300",
    "read-only": "25006",
    "statement timeout": "57014",
    "lock not available": "55P03",
    "input/output": "58030",
    "corrupted": "XX001",
    "no permission": "42501",
}


async def fail_inserts(postgres: PostgresServer, database: str, code: str, times: int = 1_000_000) -> None:
    """Let writing into the inbox fail with an SQLSTATE, the first `times` times."""
    body = (
        f"IF nextval('magpie.failures') <= {times} THEN RAISE EXCEPTION 'for a test' USING ERRCODE = '{code}'; END IF"
    )
    for sql in (
        "CREATE SEQUENCE failures",
        "GRANT ALL ON failures TO bot",
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION fail()",
    ):
        await postgres.run(sql, name_of(database))


def name_of(database: str) -> str:
    return database.rpartition("/")[2]


@pytest.mark.parametrize("code", FAILURES.values(), ids=FAILURES)
async def test_a_failure_of_the_database_is_unavailable_and_passes(
    postgres: PostgresServer, database: str, code: str
) -> None:
    async with opened(database) as store:
        await fail_inserts(postgres, database, code)
        with pytest.raises(StoreUnavailable, match="for a test"):
            await store.accept([arrival(1)], "me")
        await postgres.run("DROP TRIGGER fail ON inbox", name_of(database))
        assert (await store.accept([arrival(1)], "me"))[0].lane is not None


@pytest.mark.parametrize("code", ["40P01", "40001"], ids=["deadlock", "serialization"])
async def test_who_loses_a_deadlock_tries_again(postgres: PostgresServer, database: str, code: str) -> None:
    async with opened(database) as store:
        await fail_inserts(postgres, database, code, times=3)
        assert (await store.accept([arrival(1)], "me"))[0].lane is not None


async def test_no_message_gets_into_the_text_of_an_error(postgres: PostgresServer, database: str) -> None:
    async with opened(database) as store:
        await postgres.run("ALTER TABLE turns ADD CHECK (tokens < 5)", name_of(database))
        lane = await leased(store)
        with pytest.raises(StoreUnavailable) as failure:
            await store.complete(lane, "me", [Entry(Turn("user", "my secret"), 9)])
        assert "secret" not in str(failure.value)


async def test_the_server_restarts(postgres: PostgresServer, database: str) -> None:
    async with opened(database) as store:
        lane = await leased(store)
        postgres.stop("immediate")
        try:
            with pytest.raises(StoreUnavailable):
                await store.accept([arrival(2)], "me")
            with pytest.raises(StoreUnavailable):
                await store.history(lane.conversation, 1)
        finally:
            postgres.start()
        await until(able(store))
        assert await store.finish(lane, "me", [Outcome("m1", "answered")]) is None
        async with store.state("a").subscribe("t") as ear:
            await store.state("a").publish("t", "still here")
            assert await anext(ear) == "still here"


async def test_a_server_that_becomes_read_only(postgres: PostgresServer, database: str) -> None:
    async with opened(database) as store:
        await postgres.read_only(True)
        try:
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.accept([arrival(1)], "me")
            with pytest.raises(StoreUnavailable, match="read-only"):
                await store.probe()
        finally:
            await postgres.read_only(False)
        assert (await store.accept([arrival(1)], "me"))[0].lane is not None


async def test_no_connection_left(postgres: PostgresServer, database: str) -> None:
    name = name_of(database)
    async with opened(database) as store:
        await postgres.run(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        await postgres.end_sessions(database)
        with pytest.raises(StoreUnavailable):
            await store.accept([arrival(1)], "me")
        await postgres.run(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        assert (await store.accept([arrival(1)], "me"))[0].new


async def test_a_black_hole_is_noticed(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.store.pool.PATIENCE", 0.3)
    async with distant(postgres, database) as (proxy, store):
        proxy.upstream.clear()
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.accept([arrival(1)], "me")
        proxy.cut()
        proxy.upstream.set()
        await until(able(store))
        assert (await store.accept([arrival(2)], "me"))[0].lane is not None


async def test_a_database_that_is_not_there(postgres: PostgresServer) -> None:
    for url in (postgres.url("nowhere"), "postgresql://bot@127.0.0.1:1/x", "postgresql://bot@127.0.0.1:port/x"):
        with pytest.raises(StoreUnavailable):
            await open_store(url).open()


# -- answers that got lost ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def rehearsed(postgres: PostgresServer, database: str) -> AsyncIterator[tuple[Proxy, Store]]:
    """A distant replica that has prepared its statements, so that the next ones are one round trip."""
    async with distant(postgres, database) as (proxy, store):
        lane = await leased(store, arrival(100, chat="rehearsal", user="rehearsal"))
        await store.complete(lane, "me", [Entry(Turn("user", "x"), 1)])
        await store.postpone(lane, "me", 0)
        (lane,) = await store.claim("me", ["it"], 1)
        await store.finish(lane, "me", [Outcome("m100", "answered")])
        yield proxy, store


async def lose_answer(proxy: Proxy, doing: Awaitable[object], done: Callable[[], Awaitable[bool]]) -> object:
    """Let the database do something, lose its answer on the way, and return what came of it all the same."""
    proxy.downstream.clear()
    task = asyncio.ensure_future(doing)
    await until(done)
    proxy.cut()
    proxy.downstream.set()
    return await task


async def test_an_accept_whose_answer_got_lost_is_one_message_and_soon_taken_up(
    postgres: PostgresServer, database: str
) -> None:
    async with rehearsed(postgres, database) as (proxy, store), opened(database) as witness:

        async def stored() -> bool:
            return (await witness.counts())["waiting"] == 2

        arrived = [arrival(1), arrival(2)]
        receipts = await lose_answer(proxy, store.accept(arrived, "me"), stored)
        assert [receipt.lane for receipt in receipts] == [None, None]  # type: ignore[attr-defined]
        (lane,) = await store.claim("me", ["it"], 10)
        assert [waiting.message.id for waiting in lane.waiting] == ["m1", "m2"]
        assert (await store.used("it/u")).messages == 2


async def test_a_claim_whose_answer_got_lost_is_made_again(postgres: PostgresServer, database: str) -> None:
    async with rehearsed(postgres, database) as (proxy, store), opened(database) as witness:
        await witness.accept([arrival(1)], None)

        async def claimed() -> bool:
            return await witness.claim("witness", ["it"], 0) == [] and await owner(postgres, database) == "me"

        lanes = await lose_answer(proxy, store.claim("me", ["it"], 10), claimed)
        assert [lane.conversation for lane in lanes] == [arrival(1).conversation]  # type: ignore[attr-defined]


async def owner(postgres: PostgresServer, database: str) -> str | None:
    sql = f"SELECT owner FROM conversations WHERE conversation = E'{arrival().conversation}'".replace("\n", "\\n")
    found: str | None = (await postgres.run(sql, name_of(database)))[0]["owner"]
    return found


async def test_turns_are_appended_and_paid_once_although_the_answer_got_lost(
    postgres: PostgresServer, database: str
) -> None:
    async with rehearsed(postgres, database) as (proxy, store), opened(database) as witness:
        lane = await leased(store)

        async def appended() -> bool:
            return len(await witness.history(lane.conversation, 1)) == 2

        entries = [Entry(Turn("user", "a"), 1), Entry(Turn("assistant", "b"), 1)]
        total = await lose_answer(
            proxy, store.complete(lane, "me", entries, payer="it/u", spent=Used(prompt=7)), appended
        )
        assert total == 7
        assert lane.seq == 2
        assert len(await store.history(lane.conversation, 1)) == 2
        assert (await store.used("it/u")).prompt == 7
        assert await store.finish(lane, "me", [Outcome("m1", "answered", turn=2)]) is None


async def test_a_finish_whose_answer_got_lost_is_finished(postgres: PostgresServer, database: str) -> None:
    async with rehearsed(postgres, database) as (proxy, store), opened(database) as witness:
        lane = await leased(store)

        async def finished() -> bool:
            return (await witness.counts())["waiting"] == 0

        assert await lose_answer(proxy, store.finish(lane, "me", [Outcome("m1", "answered")]), finished) is None


async def test_a_try_is_counted_once_although_the_answer_got_lost(postgres: PostgresServer, database: str) -> None:
    async with rehearsed(postgres, database) as (proxy, store):
        lane = await leased(store)

        async def given_back() -> bool:
            return await owner(postgres, database) is None

        await lose_answer(proxy, store.postpone(lane, "me", 0), given_back)
        (again,) = await store.claim("me", ["it"], 10)
        assert again.waiting[0].tries == 1


def test_without_asyncpg_the_missing_extra_is_named() -> None:
    program = """
import sys
sys.modules["asyncpg"] = None
from bot.errors import ConfigError
from bot.store import open_store
try:
    open_store("postgresql://localhost/x")
except ConfigError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "magpie-im[postgres]" in told.stdout
