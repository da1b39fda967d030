"""The store in PostgreSQL, for several replicas: batched statements, the database's clock, LISTEN and NOTIFY.

Each call of a kind that comes while one is under way joins the next batch; a batch is one round trip and one
transaction. What it does is in `migrations/postgres-*.sql`.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from bot.adapter import Message, State, Turn
from bot.errors import ConfigError
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
    pool,
    revived,
)
from bot.store.batch import Batch
from bot.store.bus import Ear
from bot.store.exchange import Exchange
from bot.store.pool import SCHEMA, Pool, Row, Session, Unknown

DONE, PARKED = 1, 2
LIMITED = "limited"  # the reason of the first message over a person's limit, while it waits for its refusal
EVERYBODY = ["*", *(f"*{n}" for n in range(1, 16))]  # the rows that together are everybody
PURGE = 2000  # messages forgotten in one statement

_encode = msgspec.json.Encoder().encode
_message = msgspec.json.Decoder(Message).decode
_draft = msgspec.json.Decoder(Draft).decode

ACCEPT = "SELECT * FROM accept($1, $2, $3, $4, $5, $6, $7, $8, $9)"
CLAIM = "SELECT * FROM claim($1, $2, $3, $4, $5, $6)"
GIVE_BACK = "UPDATE conversations SET owner = NULL, due = clock() WHERE due IS NOT NULL AND owner = $1 AND lease = $2"
WAITING = "SELECT * FROM waiting($1, $2)"
EXTEND = "SELECT extend($1, $2, $3)"
SAVE_DRAFTS = "SELECT kept FROM save_drafts($1, $2, $3, $4) ORDER BY nr"
COMPLETE = """
    SELECT kept, total FROM complete($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
        $19, $20, $21, $22, $23, $24) ORDER BY nr"""
FINISH = "SELECT result FROM finish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ORDER BY nr"
POSTPONE = "SELECT postpone($1, $2, $3, $4, $5, $6)"
HISTORY = """
    SELECT seq, role, content, tokens FROM turns
    WHERE conversation = $1 AND seq >= $2 AND role <> 'discarded' ORDER BY seq"""
RECENT = """
    SELECT role, content FROM turns WHERE conversation = $1 AND role <> 'discarded'
        AND seq >= (SELECT opened FROM conversations WHERE conversation = $1) ORDER BY seq DESC LIMIT $2"""
ANSWER = """
    SELECT i.outcome, i.reason, t.role, t.content FROM inbox i
    LEFT JOIN turns t ON t.conversation = i.conversation AND t.seq = i.turn
    WHERE i.conversation = $1 AND i.message = $2 AND i.state <> 0"""
USED = """
    SELECT coalesce(sum(messages), 0)::bigint, coalesce(sum(prompt), 0)::bigint, coalesce(sum(cached), 0)::bigint,
        coalesce(sum(completion), 0)::bigint
    FROM people WHERE person = ANY ($1) AND day = floor(clock() / 86400)::integer"""
COUNTS = "SELECT * FROM counts()"
PARKED_MESSAGES = """
    SELECT conversation, payload, accepted, tries, reason, turn FROM inbox
    WHERE state = 2 ORDER BY accepted DESC LIMIT $1"""
TOGETHER = """
    SELECT i.payload, t.content FROM inbox i JOIN turns t ON t.conversation = i.conversation AND t.seq = i.turn
    WHERE i.conversation = $1 AND i.state = 2 AND i.turn = $2 ORDER BY i.number"""
REVIVE = "SELECT revive($1, $2, $3)"
DROP = "UPDATE inbox SET state = 1, payload = NULL WHERE conversation = $1 AND message = $2 AND state = 2 RETURNING 1"
GET = "SELECT value FROM state WHERE key = $1 AND expires > clock()"
PUT = """
    INSERT INTO state (key, value, expires) VALUES ($1, $2, clock() + $3)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires"""
CREATE = PUT + " WHERE state.expires <= clock() RETURNING 1"
REPLACE = """
    UPDATE state SET value = $2, expires = clock() + $3
    WHERE key = $1 AND value = $4 AND expires > clock() RETURNING 1"""
DELETE = "DELETE FROM state WHERE key = $1 AND value = $2 AND expires > clock() RETURNING 1"


class _Accept(NamedTuple):
    arrivals: Sequence[Arrival]
    payloads: Sequence[bytes]
    owner: str | None


class _Save(NamedTuple):
    lane: Lane
    owner: str
    draft: bytes | None


class _Complete(NamedTuple):
    lane: Lane
    owner: str
    draft: bytes | None
    start: int
    entries: Sequence[Entry]
    payer: str
    spent: Used
    discard: int
    forget: bool


class _Finish(NamedTuple):
    lane: Lane
    owner: str
    outcomes: Sequence[Outcome]


class PostgresStore:
    """Implements `bot.store.Store` on PostgreSQL. Any number of replicas may share the database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = Pool(url)
        self.exchange = Exchange(url)
        self._everybody = secrets.choice(EVERYBODY)  # the row in which this replica books for everybody
        self._accepts = Batch(self._accept)
        self._saves = Batch(self._save)
        self._completes = Batch(self._complete)
        self._finishes = Batch(self._finish)

    async def open(self) -> None:
        """Connect and bring the schema up to date. What others work on stays theirs."""
        await _migrate(self._url)
        await self._pool.open()
        await self.exchange.open()

    async def close(self) -> None:
        """Finish what was submitted, then disconnect."""
        for batch in (self._accepts, self._saves, self._completes, self._finishes):
            await batch.drain()
        await self.exchange.close()
        await self._pool.close()

    # -- the queue ------------------------------------------------------------------------------------------------

    async def accept(self, arrivals: Sequence[Arrival], owner: str | None) -> list[Receipt]:
        payloads = [_encode(arrival.message) for arrival in arrivals]
        return await self._accepts.do(_Accept(arrivals, payloads, owner))

    async def _accept(self, calls: Sequence[_Accept]) -> list[list[Receipt]]:
        arrivals = [arrival for call in calls for arrival in call.arrivals]
        owners = [call.owner for call in calls for _ in call.arrivals]
        ticket = _ticket()
        rows = await self._leasing(
            {owner for owner in owners if owner is not None},
            ticket,
            ACCEPT,
            LEASE,
            [arrival.conversation for arrival in arrivals],
            [arrival.instance for arrival in arrivals],
            owners,
            [clean(arrival.message.id) for arrival in arrivals],
            [payload for call in calls for payload in call.payloads],
            [clean(arrival.person) for arrival in arrivals],
            [arrival.per_minute for arrival in arrivals],
        )
        receipts = (_receipt(arrival, row, ticket) for arrival, row in zip(arrivals, rows, strict=True))
        return [list(itertools.islice(receipts, len(call.arrivals))) for call in calls]

    async def claim(self, owner: str, instances: Sequence[str], limit: int) -> list[Lane]:
        ticket = _ticket()
        # After an outage leases have run out of replicas that are alive: those extend them first.
        take_over = self._pool.steady > LEASE / 2
        rows = await self._leasing({owner}, ticket, CLAIM, LEASE, owner, list(instances), limit, take_over)
        lanes = {row["conversation"]: _lane(row, ticket) for row in rows}
        await self._fill(lanes)
        return list(lanes.values())

    async def _leasing(self, owners: Iterable[str], ticket: int, sql: str, *parameters: object) -> list[Row]:
        """Run a statement that leases; when its answer gets lost, give back what it leased and run it again."""
        try:
            return await self._pool.fetch_once(sql, ticket, *parameters)
        except Unknown:
            for owner in owners:
                await self._pool.fetch(GIVE_BACK, owner, ticket)
            return await self._pool.fetch_once(sql, ticket, *parameters)

    async def _fill(self, lanes: dict[str, Lane]) -> None:
        """Fetch what waits in lanes that are ours already."""
        if not lanes:
            return
        for name, payload, accepted, tries, reason in await self._pool.fetch(WAITING, list(lanes), BATCH):
            lanes[name].waiting.append(Waiting(_message(payload), accepted, tries, reason == LIMITED))

    async def extend(self, owner: str, conversations: Sequence[str]) -> None:
        if conversations:
            await self._pool.fetch(EXTEND, LEASE, owner, list(conversations))

    async def save_draft(self, lane: Lane, owner: str) -> None:
        await self._saves.do(_Save(lane, owner, _encoded(lane.draft)))

    async def _save(self, calls: Sequence[_Save]) -> list[Exception | None]:
        rows = await self._pool.fetch(SAVE_DRAFTS, *_leases(calls), [call.draft for call in calls])
        return [None if row["kept"] else _lost() for row in rows]

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
        call = _Complete(
            lane, owner, _encoded(lane.draft), lane.window_start, entries, clean(payer), spent, discard, forget
        )
        total = await self._completes.do(call)
        lane.seq += len(entries)
        return total

    async def _complete(self, calls: Sequence[_Complete]) -> list[int | Exception]:
        entries = [entry for call in calls for entry in call.entries]
        rows = await self._pool.fetch(
            COMPLETE,
            *_leases(calls),
            [call.lane.seq for call in calls],
            [call.start for call in calls],
            [call.draft for call in calls],
            [call.discard for call in calls],
            [call.forget for call in calls],
            [call.payer for call in calls],
            *_costs(call.spent for call in calls),
            *_slices(len(call.entries) for call in calls),
            [entry.turn.role for entry in entries],
            [clean(entry.turn.content) for entry in entries],
            [entry.tokens for entry in entries],
            [clean(entry.person) or None for entry in entries],
            [clean(entry.model) or None for entry in entries],
            *_costs(entry.spent for entry in entries),
            self._everybody,
            EVERYBODY,
        )
        return [row["total"] if row["kept"] else _lost() for row in rows]

    async def finish(self, lane: Lane, owner: str, outcomes: Sequence[Outcome]) -> Lane | None:
        if not await self._finishes.do(_Finish(lane, owner, outcomes)):
            return None
        rest = Lane(lane.conversation, lane.instance, lane.seq, lane.window_start, lease=lane.lease)
        await self._fill({lane.conversation: rest})
        return rest

    async def _finish(self, calls: Sequence[_Finish]) -> list[bool | Exception]:
        outcomes = [outcome for call in calls for outcome in call.outcomes]
        rows = await self._pool.fetch(
            FINISH,
            LEASE,
            *_leases(calls),
            *_slices(len(call.outcomes) for call in calls),
            [clean(outcome.message) for outcome in outcomes],
            [PARKED if outcome.parked else DONE for outcome in outcomes],
            [outcome.outcome for outcome in outcomes],
            [clean(outcome.reason) or None for outcome in outcomes],
            [outcome.turn or None for outcome in outcomes],
        )
        return [_lost() if row["result"] == "lost" else row["result"] == "more" for row in rows]

    async def postpone(self, lane: Lane, owner: str, seconds: float, failed: bool = True) -> None:
        tried = lane.draft.answers if lane.draft else [waiting.message.id for waiting in lane.waiting]
        ids = [clean(message) for message in tried] if failed else []
        reply = _encoded(lane.draft)
        rows = await self._pool.fetch(POSTPONE, lane.conversation, owner, lane.lease, float(seconds), reply, ids)
        if not rows[0]["postpone"]:
            raise _lost()

    # -- history and usage ----------------------------------------------------------------------------------------

    async def history(self, conversation: str, start: int) -> list[Remembered]:
        rows = await self._pool.fetch(HISTORY, conversation, start)
        return [Remembered(seq, Turn(role, content), tokens) for seq, role, content, tokens in rows]

    async def recent(self, conversation: str, count: int) -> list[Turn]:
        rows = await self._pool.fetch(RECENT, conversation, count)
        return [Turn(role, content) for role, content in reversed(rows)]

    async def answer(self, conversation: str, message: str) -> tuple[str, str, Turn | None]:
        rows = await self._pool.fetch(ANSWER, conversation, clean(message))
        if not rows:
            return "", "", None
        outcome, reason, role, content = rows[0]
        return outcome or "", reason or "", Turn(role, content) if role else None

    async def used(self, person: str) -> Used:
        rows = await self._pool.fetch(USED, EVERYBODY if person == EVERYBODY[0] else [clean(person)])
        return Used(*rows[0])

    # -- housekeeping ---------------------------------------------------------------------------------------------

    async def move(self, instance: str, old_chat: str, new_chat: str) -> None:
        old, new = f"{instance}\n{clean(old_chat)}\n", f"{instance}\n{clean(new_chat)}\n"
        await self._pool.fetch("SELECT move($1, $2, $3)", old, old[:-1] + "\v", new)

    async def purge(self) -> None:
        removed = PURGE
        while removed == PURGE:
            removed = (await self._pool.fetch("SELECT purge($1, $2)", KEEP, PURGE))[0]["purge"]

    async def probe(self) -> None:
        await self._pool.fetch(PUT, "probe", "", 0.0)

    async def counts(self) -> dict[str, int]:
        return dict((await self._pool.fetch(COUNTS))[0].items())

    async def parked(self, limit: int) -> list[Parked]:
        rows = await self._pool.fetch(PARKED_MESSAGES, limit)
        return [
            Parked(conversation, _message(payload), accepted, tries, reason or "", turn or 0)
            for conversation, payload, accepted, tries, reason, turn in rows
        ]

    async def revive(self, parked: Parked) -> bool:
        together = await self._pool.fetch(TOGETHER, parked.conversation, parked.turn)
        messages, reply = [parked.message], None
        if together:
            messages = [_message(row["payload"]) for row in together]
            reply = _encode(revived(parked.conversation, messages, parked.turn, together[0]["content"]))
        ids = [clean(message.id) for message in messages]
        return bool((await self._pool.fetch_once(REVIVE, parked.conversation, ids, reply))[0]["revive"])

    async def drop(self, parked: Parked) -> bool:
        return bool(await self._pool.fetch_once(DROP, parked.conversation, clean(parked.message.id)))

    def state(self, instance: str) -> State:
        return PostgresState(self._pool, self.exchange, instance)


class PostgresState:
    """Implements `bot.adapter.State`: keys and topics are the instance's own."""

    def __init__(self, pool: Pool, exchange: Exchange, instance: str) -> None:
        self._pool = pool
        self._exchange = exchange
        self._prefix = f"{instance}/"

    def _key(self, key: str) -> str:
        return clean(self._prefix + key)

    async def get(self, key: str) -> str | None:
        rows = await self._pool.fetch(GET, self._key(key))
        return rows[0]["value"] if rows else None

    async def set(self, key: str, value: str, ttl: float) -> None:
        await self._pool.fetch(PUT, self._key(key), clean(value), float(ttl))

    async def swap(self, key: str, old: str | None, new: str | None, ttl: float) -> bool:
        name = self._key(key)
        if old is None and new is None:
            return await self.get(key) is None
        if old is None:
            rows = await self._pool.fetch_once(CREATE, name, clean(new or ""), float(ttl))
        elif new is None:
            rows = await self._pool.fetch_once(DELETE, name, clean(old))
        else:
            rows = await self._pool.fetch_once(REPLACE, name, clean(new), float(ttl), clean(old))
        return bool(rows)

    async def publish(self, topic: str, data: str) -> None:
        await self._exchange.publish(self._prefix + topic, data)

    def subscribe(self, topic: str) -> Ear:
        return self._exchange.subscribe(self._prefix + topic)


async def _migrate(url: str) -> None:
    """Apply the numbered migrations that are missing; replicas that start together do it one after the other."""
    folder = files("bot.store") / "migrations"
    scripts = sorted(file.name for file in folder.iterdir() if file.name.startswith("postgres-"))
    connection = await pool.connect(url, server_settings={"statement_timeout": "0"})
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('magpie migrations', 0))")
            done = await _applied(connection)
            if done - set(scripts):
                raise ConfigError(["BOT_DATABASE_URL: this database belongs to a newer version of Magpie"])
            for name in scripts:
                if name not in done:
                    await connection.execute((folder / name).read_text())
                    await connection.execute("INSERT INTO migrations VALUES ($1)", name)
    except pool.FAILURES as error:
        raise pool.ours(error) from None
    finally:
        connection.terminate()


async def _applied(connection: Session) -> set[str]:
    """Return the names of the migrations that were applied. Where there are some, no right to create is needed."""
    if not await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.migrations"):
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        await connection.execute("CREATE TABLE migrations (name text PRIMARY KEY)")
    return {row["name"] for row in await connection.fetch("SELECT name FROM migrations")}


def _ticket() -> int:
    return secrets.randbits(62)


def clean(text: str) -> str:
    """Return a text without what PostgreSQL cannot store: NUL, and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _encoded(draft: Draft | None) -> bytes | None:
    return _encode(draft) if draft is not None else None


def _lost() -> LostLease:
    return LostLease("the lease went to somebody else")


def _leases(calls: Sequence[_Save] | Sequence[_Complete] | Sequence[_Finish]) -> tuple[list[str], list[str], list[int]]:
    """Return conversations, owners and leases."""
    return (
        [call.lane.conversation for call in calls],
        [call.owner for call in calls],
        [call.lane.lease for call in calls],
    )


def _slices(lengths: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return where the rows of each call begin and end in the arrays that hold those of all, counted from 1."""
    lasts = list(itertools.accumulate(lengths))
    return [last + 1 for last in [0, *lasts[:-1]]], lasts


def _costs(spent: Iterable[Used]) -> tuple[list[int], list[int], list[int]]:
    known = list(spent)
    return [used.prompt for used in known], [used.cached for used in known], [used.completion for used in known]


def _receipt(arrival: Arrival, row: Row, ticket: int) -> Receipt:
    accepted, fresh, over, used, leased, seq, window_start = row
    if not leased:
        return Receipt(new=fresh, refused=over > 1)
    waiting = [Waiting(arrival.message, accepted, 0, over == 1, used)]
    lane = Lane(arrival.conversation, arrival.instance, seq, window_start, waiting=waiting, lease=ticket)
    return Receipt(new=True, lane=lane)


def _lane(row: Any, ticket: int) -> Lane:
    conversation, instance, seq, window_start, draft = row
    return Lane(conversation, instance, seq, window_start, _draft(draft) if draft else None, lease=ticket)
