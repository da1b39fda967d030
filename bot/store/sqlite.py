"""The store in one SQLite file: write-ahead log, synchronous=FULL, one writing thread with group commit.

`python -m bot` on one machine needs nothing else. Reads have a connection and a thread of their own, so they never
wait for the disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, TypeVar

import msgspec

from bot.adapter import Message, State, Turn
from bot.errors import ConfigError, StoreUnavailable
from bot.store import (
    BATCH,
    KEEP,
    LEASE,
    NOTHING,
    Arrival,
    Draft,
    Entry,
    Lane,
    LostLease,
    Outcome,
    Parked,
    Receipt,
    Remembered,
    Used,
    Waiting,
    revived,
)
from bot.store.bus import Bus, Ear, fitting
from bot.store.writer import Writer

T = TypeVar("T")
WAITING, DONE, PARKED = 0, 1, 2
BUSY_MS = 5000  # how long another process may hold the file
EVERYBODY = "*"
LIMITED = "limited"  # the reason of the first message over a person's limit, while it waits for its refusal

_encode = msgspec.json.Encoder().encode
_message = msgspec.json.Decoder(Message).decode
_draft = msgspec.json.Decoder(Draft).decode

INSERT_MESSAGE = """
    INSERT INTO inbox (conversation, message, number, accepted, payload) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
COUNT_MESSAGE = """
    INSERT INTO people (person, day, messages, minute, in_minute) VALUES (?1, ?2, 1, ?3, 1)
    ON CONFLICT DO UPDATE SET messages = messages + 1, minute = ?3,
        in_minute = CASE minute WHEN ?3 THEN in_minute + 1 ELSE 1 END
    RETURNING in_minute, prompt + completion"""
REFUSE_MESSAGE = """
    UPDATE inbox SET state = 1, payload = NULL, outcome = 'refused', reason = 'rate_limited'
    WHERE conversation = ? AND message = ?"""
LIMIT_MESSAGE = "UPDATE inbox SET reason = 'limited' WHERE conversation = ? AND message = ?"
LEASE_FREE = """
    INSERT INTO conversations (conversation, instance, owner, due) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET owner = excluded.owner, due = excluded.due WHERE conversations.due IS NULL
    RETURNING seq, window_start"""
EXTEND = "UPDATE conversations SET due = ? WHERE conversation = ? AND owner = ? AND due IS NOT NULL"
HASTEN = "UPDATE conversations SET due = ?1 WHERE conversation = ?2 AND owner IS NULL AND due > ?1"
CLAIM = """
    UPDATE conversations SET owner = ?, due = ? WHERE conversation IN (
        SELECT conversation FROM conversations
        WHERE due <= ? AND instance IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT ?)
    RETURNING conversation, instance, seq, window_start, draft"""
WAITING_MESSAGES = """
    SELECT payload, accepted, tries, reason FROM inbox
    WHERE conversation = ? AND state = 0 ORDER BY number LIMIT ?"""
OUTCOME = """
    UPDATE inbox SET state = ?, outcome = ?, reason = ?, turn = ?, payload = CASE ?1 WHEN 2 THEN payload END
    WHERE conversation = ? AND message = ?"""
KEEP_LEASE = "UPDATE conversations SET due = ?, draft = NULL WHERE conversation = ? AND owner = ?"
RELEASE = "UPDATE conversations SET owner = NULL, due = NULL, draft = NULL WHERE conversation = ? AND owner = ?"
POSTPONE = "UPDATE conversations SET owner = NULL, due = ?, draft = ? WHERE conversation = ? AND owner = ?"
COUNT_TRY = "UPDATE inbox SET tries = tries + 1 WHERE conversation = ? AND message = ?"
SAVE_DRAFT = "UPDATE conversations SET draft = ? WHERE conversation = ? AND owner = ?"
PROGRESS = """
    UPDATE conversations SET seq = ?, window_start = ?, draft = ? WHERE conversation = ? AND owner = ?"""
INSERT_TURN = """
    INSERT INTO turns (conversation, seq, role, content, tokens, at, person, model, prompt, cached, completion)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
FORGET = "UPDATE conversations SET opened = seq + 1 WHERE conversation = ?"
DISCARD = "UPDATE turns SET role = 'discarded' WHERE conversation = ? AND seq = ?"
BOOK = """
    INSERT INTO people (person, day, prompt, cached, completion) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET prompt = prompt + excluded.prompt, cached = cached + excluded.cached,
        completion = completion + excluded.completion
    RETURNING prompt + completion"""
HISTORY = """
    SELECT seq, role, content, tokens FROM turns
    WHERE conversation = ? AND seq >= ? AND role <> 'discarded' ORDER BY seq"""
RECENT = """
    SELECT role, content FROM turns WHERE conversation = ?1 AND role <> 'discarded'
        AND seq >= (SELECT opened FROM conversations WHERE conversation = ?1) ORDER BY seq DESC LIMIT ?2"""
ANSWER = """
    SELECT i.state, i.outcome, i.reason, t.role, t.content FROM inbox i
    LEFT JOIN turns t ON t.conversation = i.conversation AND t.seq = i.turn
    WHERE i.conversation = ? AND i.message = ?"""
PARKED_MESSAGES = """
    SELECT conversation, payload, accepted, tries, reason, turn FROM inbox
    WHERE state = 2 ORDER BY accepted DESC LIMIT ?"""
TOGETHER = """
    SELECT i.payload, t.content FROM inbox i JOIN turns t ON t.conversation = i.conversation AND t.seq = i.turn
    WHERE i.conversation = ? AND i.state = 2 AND i.turn = ? ORDER BY i.number"""
REVIVE = """
    UPDATE inbox SET state = 0, tries = 0, outcome = NULL, reason = NULL
    WHERE conversation = ? AND message = ? AND state = 2"""
WAKE = """
    UPDATE conversations SET due = ?1, draft = coalesce(?2, draft)
    WHERE conversation = ?3 AND owner IS NULL AND (due IS NULL OR due > ?1)"""
BUSY = "SELECT 1 FROM conversations WHERE conversation = ? AND due IS NOT NULL"
DROP = "UPDATE inbox SET state = 1, payload = NULL WHERE conversation = ? AND message = ? AND state = 2"
PUT = """
    INSERT INTO state (key, value, expires) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires"""


class SQLiteStore:
    """Implements `bot.store.Store` on one file. `:memory:` is a file that goes with the process, for tests."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.bus = Bus()
        self.alone = False  # no other process serves this file
        self._clock = itertools.count(time.time_ns() // 1000)  # order of arrival, growing over restarts
        self._writer: Writer | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="magpie-read")
        self._lock: IO[str] | None = None
        self._temporary: TemporaryDirectory[str] | None = None

    async def open(self) -> None:
        """Create the file if need be, bring the schema up to date, take over what a killed process left."""
        if self.path == ":memory:":
            self._temporary = TemporaryDirectory(prefix="magpie-")
            self.path = f"{self._temporary.name}/magpie.db"
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._lock = Path(f"{self.path}.lock").open("a")  # noqa: SIM115, ASYNC230 - held as long as the process lives
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}") from None
        self._writer = Writer(self._connect)
        await self._writer.submit(_migrate)
        self._reader = await self._read_in_thread(lambda: self._connect())
        self.alone = self._alone()
        if self.alone:
            await self._writer.submit(lambda db: db.execute("UPDATE conversations SET due = 0 WHERE due IS NOT NULL"))

    async def close(self) -> None:
        """Finish what was submitted, then close the file."""
        if self._writer is not None:
            await self._writer.close()
        if self._reader is not None:
            await self._read_in_thread(self._reader.close)
        self._reading.shutdown()
        if self._lock is not None:
            self._lock.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -16000")
        return db

    def _alone(self) -> bool:
        """Take the file's lock. Whoever has it knows that earlier leases belong to nobody who is alive."""
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        assert self._writer is not None
        return await self._writer.submit(operation)

    async def _read_in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, function)

    async def _read(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        def run() -> list[tuple[Any, ...]]:
            assert self._reader is not None
            try:
                return self._reader.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise StoreUnavailable(f"SQLite: {error}") from None

        return await self._read_in_thread(run)

    # -- the queue ------------------------------------------------------------------------------------------------

    async def accept(self, arrivals: Sequence[Arrival], owner: str | None) -> list[Receipt]:
        payloads = [_encode(arrival.message) for arrival in arrivals]

        def run(db: sqlite3.Connection) -> list[Receipt]:
            now = time.time()
            return [self._accept(db, now, *pair, owner) for pair in zip(arrivals, payloads, strict=True)]

        return await self._write(run)

    def _accept(
        self, db: sqlite3.Connection, now: float, arrival: Arrival, payload: bytes, owner: str | None
    ) -> Receipt:
        key = (arrival.conversation, arrival.message.id)
        if not db.execute(INSERT_MESSAGE, (*key, next(self._clock), now, payload)).rowcount:
            return Receipt(new=False)
        in_minute, used = db.execute(COUNT_MESSAGE, (arrival.person, _day(now), int(now // 60))).fetchone()
        over = in_minute - arrival.per_minute if arrival.per_minute else 0
        if over > 1:
            db.execute(REFUSE_MESSAGE, key)
            return Receipt(new=True, refused=True)
        if over == 1:
            db.execute(LIMIT_MESSAGE, key)
        due = now if owner is None else now + LEASE
        row = db.execute(LEASE_FREE, (arrival.conversation, arrival.instance, owner, due)).fetchone()
        if row is None:
            db.execute(HASTEN, (now, arrival.conversation))
        if row is None or owner is None:
            return Receipt(new=True)
        waiting = [Waiting(arrival.message, now, 0, over == 1, used)]
        lane = Lane(arrival.conversation, arrival.instance, row[0], row[1], waiting=waiting)
        return Receipt(new=True, lane=lane)

    async def claim(self, owner: str, instances: Sequence[str], limit: int) -> list[Lane]:
        names = _encode(list(instances)).decode()

        def run(db: sqlite3.Connection) -> list[Lane]:
            now = time.time()
            rows = db.execute(CLAIM, (owner, now + LEASE, now, names, limit)).fetchall()
            return [_lane(db, row) for row in rows]

        return await self._write(run)

    async def extend(self, owner: str, conversations: Sequence[str]) -> None:
        due = time.time() + LEASE
        rows = [(due, conversation, owner) for conversation in conversations]
        await self._write(lambda db: db.executemany(EXTEND, rows))

    async def save_draft(self, lane: Lane, owner: str) -> None:
        draft = _encode(lane.draft) if lane.draft else None
        await self._write(lambda db: _owned(db, SAVE_DRAFT, (draft, lane.conversation, owner)))

    async def complete(
        self,
        lane: Lane,
        owner: str,
        entries: Sequence[Entry] = (),
        *,
        payer: str = "",
        spent: Used = NOTHING,
        discard: int = 0,
        forget: bool = False,
    ) -> int:
        if forget:
            lane.window_start = lane.seq + 1
        draft = _encode(lane.draft) if lane.draft else None
        seq = lane.seq + len(entries)
        cost = (spent.prompt, spent.cached, spent.completion)

        def run(db: sqlite3.Connection) -> int:
            now = time.time()
            _owned(db, PROGRESS, (seq, lane.window_start, draft, lane.conversation, owner))
            if forget:
                db.execute(FORGET, (lane.conversation,))
            if discard:
                db.execute(DISCARD, (lane.conversation, discard))
            rows = [_turn_row(lane.conversation, lane.seq + n, entry, now) for n, entry in enumerate(entries, 1)]
            db.executemany(INSERT_TURN, rows)
            if payer:
                db.execute(BOOK, (payer, _day(now), *cost)).fetchone()
            return int(db.execute(BOOK, (EVERYBODY, _day(now), *cost)).fetchone()[0])

        total = await self._write(run)
        lane.seq = seq
        return total

    async def finish(self, lane: Lane, owner: str, outcomes: Sequence[Outcome]) -> Lane | None:
        rows = [
            (
                PARKED if o.parked else DONE,
                o.outcome,
                o.reason or None,
                o.turn or None,
                lane.conversation,
                o.message,
            )
            for o in outcomes
        ]

        def run(db: sqlite3.Connection) -> Lane | None:
            db.executemany(OUTCOME, rows)
            waiting = _waiting(db, lane.conversation)
            if not waiting:
                _owned(db, RELEASE, (lane.conversation, owner))
                return None
            _owned(db, KEEP_LEASE, (time.time() + LEASE, lane.conversation, owner))
            return Lane(lane.conversation, lane.instance, lane.seq, lane.window_start, waiting=waiting)

        return await self._write(run)

    async def postpone(self, lane: Lane, owner: str, seconds: float, failed: bool = True) -> None:
        draft = _encode(lane.draft) if lane.draft else None
        tried = lane.draft.answers if lane.draft else [waiting.message.id for waiting in lane.waiting]

        def run(db: sqlite3.Connection) -> None:
            _owned(db, POSTPONE, (time.time() + seconds, draft, lane.conversation, owner))
            if failed:
                db.executemany(COUNT_TRY, [(lane.conversation, message) for message in tried])

        await self._write(run)

    # -- history and usage ----------------------------------------------------------------------------------------

    async def history(self, conversation: str, start: int) -> list[Remembered]:
        rows = await self._read(HISTORY, conversation, start)
        return [Remembered(seq, Turn(role, content), tokens) for seq, role, content, tokens in rows]

    async def recent(self, conversation: str, count: int) -> list[Turn]:
        rows = await self._read(RECENT, conversation, count)
        return [Turn(role, content) for role, content in reversed(rows)]

    async def answer(self, conversation: str, message: str) -> tuple[str, str, Turn | None]:
        rows = await self._read(ANSWER, conversation, message)
        if not rows or rows[0][0] == WAITING:
            return "", "", None
        _, outcome, reason, role, content = rows[0]
        return outcome or "", reason or "", Turn(role, content) if role else None

    async def used(self, person: str) -> Used:
        rows = await self._read(
            "SELECT messages, prompt, cached, completion FROM people WHERE person = ? AND day = ?",
            person,
            _day(time.time()),
        )
        return Used(*rows[0]) if rows else Used()

    # -- housekeeping ---------------------------------------------------------------------------------------------

    async def move(self, instance: str, old_chat: str, new_chat: str) -> None:
        old, new = f"{instance}\n{old_chat}\n", f"{instance}\n{new_chat}\n"
        change = "UPDATE OR IGNORE {} SET conversation = ?2 || substr(conversation, length(?1) + 1) WHERE "
        change += "conversation >= ?1 AND conversation < ?3"
        moved = " AND conversation NOT IN (SELECT conversation FROM conversations)"  # nobody had the new name

        def run(db: sqlite3.Connection) -> None:
            for table, condition in (("conversations", ""), ("inbox", moved), ("turns", moved)):
                db.execute(change.format(table) + condition, (old, new, old[:-1] + "\v"))

        await self._write(run)

    async def purge(self) -> None:
        now = time.time()
        for sql, limit in (
            ("DELETE FROM state WHERE expires < ?", now),
            ("DELETE FROM inbox WHERE state = 1 AND accepted < ?", now - KEEP),
        ):
            await self._write(lambda db, sql=sql, limit=limit: db.execute(sql, (limit,)))  # type: ignore[misc]

    async def probe(self) -> None:
        await self._write(lambda db: db.execute(PUT, ("probe", "", 0)))

    async def counts(self) -> dict[str, int]:
        rows = await self._read(
            """SELECT (SELECT count(*) FROM inbox WHERE state = 0), (SELECT count(*) FROM inbox WHERE state = 2),
                      (SELECT count(*) FROM conversations WHERE due IS NOT NULL)"""
        )
        return dict(zip(("waiting", "parked", "due"), rows[0], strict=True))

    async def parked(self, limit: int) -> list[Parked]:
        rows = await self._read(PARKED_MESSAGES, limit)
        return [
            Parked(conversation, _message(payload), accepted, tries, reason or "", turn or 0)
            for conversation, payload, accepted, tries, reason, turn in rows
        ]

    async def revive(self, parked: Parked) -> bool:
        def run(db: sqlite3.Connection) -> bool:
            messages, reply = _together(db, parked)
            if reply and db.execute(BUSY, (parked.conversation,)).fetchone():
                return False
            back = [db.execute(REVIVE, (parked.conversation, message.id)).rowcount for message in messages]
            if any(back):
                db.execute(WAKE, (time.time(), reply, parked.conversation))
            return any(back)

        return await self._write(run)

    async def drop(self, parked: Parked) -> bool:
        key = (parked.conversation, parked.message.id)
        return await self._write(lambda db: db.execute(DROP, key).rowcount > 0)

    def state(self, instance: str) -> State:
        return SQLiteState(self, instance)


class SQLiteState:
    """Implements `bot.adapter.State`: keys and topics are the instance's own."""

    def __init__(self, store: SQLiteStore, instance: str) -> None:
        self._store = store
        self._prefix = f"{instance}/"

    async def get(self, key: str) -> str | None:
        rows = await self._store._read(
            "SELECT value FROM state WHERE key = ? AND expires > ?", self._prefix + key, time.time()
        )
        return rows[0][0] if rows else None

    async def set(self, key: str, value: str, ttl: float) -> None:
        row = (self._prefix + key, value, time.time() + ttl)
        await self._store._write(lambda db: db.execute(PUT, row))

    async def swap(self, key: str, old: str | None, new: str | None, ttl: float) -> bool:
        name = self._prefix + key

        def run(db: sqlite3.Connection) -> bool:
            now = time.time()
            row = db.execute("SELECT value FROM state WHERE key = ? AND expires > ?", (name, now)).fetchone()
            if (row[0] if row else None) != old:
                return False
            if new is None:
                db.execute("DELETE FROM state WHERE key = ?", (name,))
            else:
                db.execute(PUT, (name, new, now + ttl))
            return True

        return await self._store._write(run)

    async def publish(self, topic: str, data: str) -> None:
        self._store.bus.publish(self._prefix + topic, fitting(data))

    def subscribe(self, topic: str) -> Ear:
        return self._store.bus.subscribe(self._prefix + topic)


def _migrate(db: sqlite3.Connection) -> None:
    """Apply the numbered migrations that are missing; `user_version` counts them."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    scripts = sorted(
        file.name for file in (files("bot.store") / "migrations").iterdir() if file.name.startswith("sqlite-")
    )
    if version > len(scripts):
        raise ConfigError(["BOT_DATABASE_URL: this file belongs to a newer version of Magpie"])
    for name in scripts[version:]:
        for statement in (files("bot.store") / "migrations" / name).read_text().split(";\n"):
            if statement.strip():
                db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(scripts)}")


def _day(now: float) -> int:
    return int(now // 86400)


def _lane(db: sqlite3.Connection, row: tuple[Any, ...]) -> Lane:
    conversation, instance, seq, window_start, draft = row
    waiting = _waiting(db, conversation)
    return Lane(conversation, instance, seq, window_start, _draft(draft) if draft else None, waiting)


def _waiting(db: sqlite3.Connection, conversation: str) -> list[Waiting]:
    rows = db.execute(WAITING_MESSAGES, (conversation, BATCH))
    return [Waiting(_message(payload), accepted, tries, reason == LIMITED) for payload, accepted, tries, reason in rows]


def _together(db: sqlite3.Connection, parked: Parked) -> tuple[list[Message], bytes | None]:
    """Return the messages that one stored answer is for, with that answer; without one, the message alone."""
    rows = db.execute(TOGETHER, (parked.conversation, parked.turn)).fetchall()
    if not rows:
        return [parked.message], None
    messages = [_message(payload) for payload, _ in rows]
    return messages, _encode(revived(parked.conversation, messages, parked.turn, rows[0][1]))


def _owned(db: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> None:
    if not db.execute(sql, parameters).rowcount:
        raise LostLease("the lease went to somebody else")


def _turn_row(conversation: str, seq: int, entry: Entry, now: float) -> tuple[object, ...]:
    return (
        conversation,
        seq,
        entry.turn.role,
        entry.turn.content,
        entry.tokens,
        now,
        entry.person or None,
        entry.model or None,
        entry.spent.prompt,
        entry.spent.cached,
        entry.spent.completion,
    )
