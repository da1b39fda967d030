"""Fill Magpie's database before a measurement.

    python benchmarks/seed.py FILE HISTORY STORED

HISTORY turns in each conversation that will be used; STORED messages in others, done long ago.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time

from bot.adapter import Chat
from bot.store import conversation_id, open_store

USED = [1000 + number * 20 + turn for number in range(550) for turn in range(20)]  # chats of benchmarks/world.py


def turns(conversation: str, count: int) -> list[tuple[object, ...]]:
    now = time.time()
    return [
        (conversation, n + 1, ("user", "assistant")[n % 2], f"remembered message number {n} of this talk", 10, now)
        for n in range(count)
    ]


def main(file: str, history: int, stored: int) -> None:
    async def create() -> None:
        store = open_store(f"sqlite:///{file}")
        await store.open()
        await store.close()

    asyncio.run(create())
    db = sqlite3.connect(file)
    insert = "INSERT INTO turns (conversation, seq, role, content, tokens, at) VALUES (?, ?, ?, ?, ?, ?)"
    talk = "INSERT INTO conversations (conversation, instance, seq) VALUES (?, 'telegram', ?)"
    done = (
        "INSERT INTO inbox (conversation, message, number, accepted, state, outcome) VALUES (?, ?, ?, ?, 1, 'answered')"
    )
    chats = [chat for chat in USED if chat < 2000 + 1000 or 11000 <= chat < 12000] if history else []
    for chat in chats:
        conversation = conversation_id("telegram", Chat(str(chat)))
        db.executemany(insert, turns(conversation, history))
        db.execute(talk, (conversation, history))
    each = 50
    for number in range(stored // each):
        conversation = conversation_id("telegram", Chat(str(50_000_000 + number * 7919 % 1_000_003)))
        db.executemany(insert, turns(conversation, each))
        db.execute(talk, (conversation, each))
        db.executemany(done, [(conversation, str(n), n, time.time()) for n in range(each // 2)])
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
