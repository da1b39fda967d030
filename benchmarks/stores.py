"""What the store costs: messages a second, waiting and CPU a message, on SQLite and on PostgreSQL.

    python -m benchmarks.stores [--rounds 3] [--messages 10000] [--stored 1000000]

A message's life is what the bot asks of the store for one answer: accept, note a draft, complete, finish. PostgreSQL is
started with its own settings (every commit is on disk) on the same machine, and its CPU time is counted beside ours.
`--stored` puts so many answered messages of others into the database first. Medians of the rounds; engines take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bot.adapter import Chat, Message, Turn
from bot.store import Arrival, Draft, Entry, Lane, Outcome, Store, Used, conversation_id, open_store
from tests import postgres_server
from tests.postgres_server import PostgresServer

OWNER = "benchmark"
SPENT = Used(prompt=100, completion=150)
ENTRIES = (Entry(Turn("user", "x" * 200), 50), Entry(Turn("assistant", "y" * 600), 150, "it/u", "gpt", SPENT))
DURABLE = {"max_connections": "60", "listen_addresses": "127.0.0.1"}
TICKS = os.sysconf("SC_CLK_TCK")
STORED = """
    INSERT INTO turns (conversation, seq, role, content, tokens, at)
    SELECT 'old' || n / 20, 1 + n % 20, 'user', repeat('z', 300), 70, 0 FROM generate_series(1, {0}) AS n;
    INSERT INTO inbox (conversation, message, accepted, state)
    SELECT 'old' || n / 20, n, extract(epoch FROM now()), 1 FROM generate_series(1, {0}) AS n;
    INSERT INTO conversations (conversation, instance, seq)
    SELECT 'old' || n, 'it', 20 FROM generate_series(0, {0} / 20) AS n"""

Use = Callable[[Store, int], Awaitable[None]]
Figures = dict[str, float]


async def accept(store: Store, number: int) -> None:
    """Write one message down."""
    await _lane(store, number)


async def live(store: Store, number: int) -> None:
    """Do with one message all that an answer needs."""
    lane = await _lane(store, number)
    lane.draft = Draft(Chat("c"), (str(number),))
    await store.save_draft(lane, OWNER)
    await store.complete(lane, OWNER, ENTRIES, payer=f"it/{number}", spent=SPENT)
    await store.finish(lane, OWNER, [Outcome(str(number), "answered", turn=lane.seq)])


async def _lane(store: Store, number: int) -> Lane:
    message = Message(str(number), Chat(str(number)), str(number), "x" * 200)
    (receipt,) = await store.accept(
        [Arrival("it", conversation_id("it", message.chat), f"it/{number}", message, 20)], OWNER
    )
    assert receipt.lane is not None
    return receipt.lane


async def measure(store: Store, use: Use, numbers: Iterator[int], count: int, at_once: int) -> Figures:
    """Use the store for `count` messages, `at_once` of them at the same time."""
    waits: list[float] = []
    left = iter(range(count))

    async def person() -> None:
        for _ in left:
            begun = time.perf_counter()
            await use(store, next(numbers))
            waits.append(time.perf_counter() - begun)

    begun, cpu, theirs = time.perf_counter(), time.process_time(), server_cpu()
    await asyncio.gather(*(person() for _ in range(at_once)))
    seconds = time.perf_counter() - begun
    waits.sort()
    return {
        "a second": count / seconds,
        "median ms": waits[count // 2] * 1000,
        "p99 ms": waits[count * 99 // 100] * 1000,
        "our CPU µs": (time.process_time() - cpu) / count * 1e6,
        "its CPU µs": (server_cpu() - theirs) / count * 1e6,
    }


def server_cpu() -> float:
    """Seconds of CPU that all PostgreSQL processes of this machine have used."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = stat.read_text().partition(") ")
            if name.endswith("(postgres"):
                total += sum(map(int, fields.split()[11:15]))
    return total / TICKS


@contextlib.asynccontextmanager
async def engines(stored: int) -> AsyncIterator[dict[str, Store]]:
    """Open one store of each kind."""
    postgres_server.OPTIONS.clear()
    postgres_server.OPTIONS.update(DURABLE)
    server = PostgresServer()
    server.start()
    with TemporaryDirectory(prefix="magpie-") as folder:
        urls = {"SQLite": f"sqlite:///{folder}/magpie.db", "PostgreSQL": await server.create()}
        stores = {name: open_store(url) for name, url in urls.items()}
        for store in stores.values():
            await store.open()
        if stored:
            await fill(server, urls["PostgreSQL"], stored)
        try:
            yield stores
        finally:
            for store in stores.values():
                await store.close()
            server.stop()
            server.remove()


async def fill(server: PostgresServer, url: str, stored: int) -> None:
    for sql in STORED.format(stored).split(";"):
        await server.run(sql, url.rpartition("/")[2])
    await server.run("VACUUM ANALYZE", url.rpartition("/")[2])


CASES: tuple[tuple[str, Use, int, float], ...] = (
    ("accept, one at a time", accept, 1, 0.1),
    ("accept, 50 at once", accept, 50, 1),
    ("accept, 500 at once", accept, 500, 1),
    ("whole life, one at a time", live, 1, 0.1),
    ("whole life, 50 at once", live, 50, 1),
    ("whole life, 300 at once", live, 300, 1),
)


async def main(rounds: int, messages: int, stored: int) -> None:
    """Print a table."""
    found: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    numbers = iter(range(10**9))
    async with engines(stored) as stores:
        for _ in range(rounds):
            for case, use, at_once, share in CASES:
                for name, store in stores.items():
                    found[case, name].append(await measure(store, use, numbers, int(messages * share), at_once))
    heads = list(next(iter(found.values()))[0])
    print("| | engine |", " | ".join(heads), "|")
    print("|---|---|", "---|" * len(heads), sep="")
    for (case, name), figures in found.items():
        medians = (statistics.median(figure[head] for figure in figures) for head in heads)
        print(
            f"| {case} | {name} |",
            " | ".join(f"{value:,.1f}" if value < 10 else f"{value:,.0f}" for value in medians),
            "|",
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--stored", type=int, default=0)
    chosen = parser.parse_args()
    uvloop.run(main(chosen.rounds, chosen.messages, chosen.stored))
