"""What must survive: the inbox, conversations, usage and small shared state.

The inbox is the queue. A conversation is worked on by whoever holds its lease (`owner` until `due`); an invariant
carries everything: a conversation has waiting messages exactly when its `due` is set, so whatever was accepted is
found again by `claim`, after a crash as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import msgspec

from bot.adapter import Chat, Message, Post, State, Turn
from bot.errors import MagpieError

LEASE = 30.0  # seconds a lane stays with its owner without being extended
BATCH = 32  # messages answered together at most; the rest of a flood comes next
KEEP = 8 * 86400.0  # seconds a message's id is remembered: a day more than the longest redelivery we know


class LostLease(MagpieError):
    """Somebody else works on this conversation by now; what was written here does not count."""


class Arrival(msgspec.Struct, frozen=True):
    """A message on its way into the inbox. `per_minute` is the person's limit, 0 for none."""

    instance: str
    conversation: str
    person: str
    message: Message
    per_minute: int = 0


class Waiting(msgspec.Struct):
    """A message of the inbox. `limited` says that it is the first one over the person's limit."""

    message: Message
    accepted: float = 0
    tries: int = 0
    limited: bool = False
    used: int = -1  # tokens the person has used today; -1: look it up


class Draft(msgspec.Struct, omit_defaults=True):
    """A reply under way, kept so that another process can go on with it.

    `rest` is the Markdown that is not in a closed page yet; `posts` are the messages begun in the chat, of which the
    first `closed` are finished. `complete` says that the model has ended: from then on the reply is only posted.
    """

    chat: Chat
    answers: tuple[str, ...]  # ids of the messages it answers
    key: str = ""  # the stem of the pages' idempotency keys
    rest: str = ""
    posts: list[Post] = []
    closed: int = 0
    complete: bool = False
    failure: str = ""
    turn: int = 0
    outcome: str = "answered"
    reason: str = ""


class Lane(msgspec.Struct):
    """A conversation under lease, with what waits in it."""

    conversation: str
    instance: str
    seq: int = 0  # of the last turn
    window_start: int = 1  # seq of the first turn the model is sent
    draft: Draft | None = None
    waiting: list[Waiting] = []
    lease: int = 0  # which lease it is, where the store tells an owner's leases apart


class Receipt(msgspec.Struct, frozen=True):
    """What became of an arrival: new or a redelivery; refused for its rate; with the lease when it was free."""

    new: bool
    refused: bool = False
    lane: Lane | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How a message ended: answered, ignored, refused or failed, and why. `parked` keeps it for the operator."""

    message: str
    outcome: str
    reason: str = ""
    turn: int = 0
    parked: bool = False


class Used(msgspec.Struct, frozen=True):
    """What an answer cost, or what somebody used in a day."""

    messages: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that count against the limits."""
        return self.prompt + self.completion


class Entry(msgspec.Struct, frozen=True):
    """A turn to append, with its size in tokens and, for an answer, who paid which model how much for it."""

    turn: Turn
    tokens: int
    person: str = ""
    model: str = ""
    spent: Used = Used()


class Remembered(msgspec.Struct):
    """A turn of the history, with its size in tokens."""

    seq: int
    turn: Turn
    tokens: int


class Parked(msgspec.Struct):
    """A message that was given up, kept for the operator."""

    conversation: str
    message: Message
    accepted: float
    tries: int
    reason: str
    turn: int = 0  # seq of the answer, where the model had written one

    @property
    def id(self) -> str:
        """A short name to type."""
        return hashlib.sha256(f"{self.conversation}\n{self.message.id}".encode("utf-8", "replace")).hexdigest()[:10]

    @property
    def instance(self) -> str:
        """The instance it came by."""
        return self.conversation.partition("\n")[0]


NOTHING = Used()


class Store(Protocol):
    """One database. Every method is one transaction and raises StoreUnavailable when it cannot be done."""

    async def open(self) -> None:
        """Connect and bring the schema up to date."""

    async def close(self) -> None:
        """Finish what was submitted, then disconnect."""

    async def accept(self, arrivals: Sequence[Arrival], owner: str | None) -> list[Receipt]:
        """Write messages down, and lease their conversations to `owner` where nobody works on them.

        With `owner` None they only wait. A message that is there already is a redelivery and changes nothing.
        """

    async def claim(self, owner: str, instances: Sequence[str], limit: int) -> list[Lane]:
        """Lease up to `limit` conversations that are due, the longest waiting first."""

    async def extend(self, owner: str, conversations: Sequence[str]) -> None:
        """Lengthen the leases of what `owner` works on. Others of its leases run out: nobody knows of them any more."""

    async def save_draft(self, lane: Lane, owner: str) -> None:
        """Note how far the reply has come. Raises LostLease."""

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
        """Append turns, book what was `spent` to the `payer`, keep `lane.draft` and `lane.window_start`.

        `discard` is the seq of an earlier turn that is not to be sent to the model any more; `forget` begins the
        conversation afresh behind its last turn. Both stay stored.
        Returns the tokens all people together have used today. Raises LostLease.
        """

    async def finish(self, lane: Lane, owner: str, outcomes: Sequence[Outcome]) -> Lane | None:
        """Note how messages ended; return the lane with what waits next, or None and give back the lease.

        Raises LostLease.
        """

    async def postpone(self, lane: Lane, owner: str, seconds: float, failed: bool = True) -> None:
        """Give back the lease, to be due again after `seconds`; `failed` counts a try. Raises LostLease."""

    async def history(self, conversation: str, start: int) -> list[Remembered]:
        """Return the turns from seq `start` on, without the discarded ones."""

    async def recent(self, conversation: str, count: int) -> list[Turn]:
        """Return the last turns since the conversation began or was forgotten, oldest first."""

    async def answer(self, conversation: str, message: str) -> tuple[str, str, Turn | None]:
        """Return how a message ended ("" while it waits), why, and the turn that answered it."""

    async def used(self, person: str) -> Used:
        """Return what a person has used today; "*" is everybody."""

    async def move(self, instance: str, old_chat: str, new_chat: str) -> None:
        """Let the conversations of a chat go on under its new id."""

    async def purge(self) -> None:
        """Forget what has run out: redelivery marks, expired state."""

    async def probe(self) -> None:
        """Write something. Raises StoreUnavailable."""

    async def counts(self) -> dict[str, int]:
        """Return the number of waiting and of parked messages, and of conversations that are due."""

    async def parked(self, limit: int) -> list[Parked]:
        """Return the messages that were given up, the newest first."""

    async def revive(self, parked: Parked) -> bool:
        """Bring a parked message back into its conversation, with all that was to be answered together with it.

        An answer the model had written is only posted. False when it is not parked any more, or, with such an answer,
        while the conversation is being worked on.
        """

    async def drop(self, parked: Parked) -> bool:
        """Give up a parked message for good. False when it is not parked any more."""

    def state(self, instance: str) -> State:
        """Return an instance's own view of the shared state."""


def conversation_id(instance: str, chat: Chat, member: str = "") -> str:
    """Name a conversation: the chat, its thread and, where people are remembered one by one, the member."""
    parts = (part.replace("\n", "\\n").replace("\x00", "\ufffd") for part in (instance, chat.id, chat.thread, member))
    return "\n".join(parts)


def reply_key(conversation: str, message: str) -> str:
    """Return the stem of the idempotency keys of the reply to a message."""
    return hashlib.sha256(f"{conversation}\n{message}".encode("utf-8", "replace")).hexdigest()[:32]


def revived(conversation: str, messages: Sequence[Message], turn: int, content: str) -> Draft:
    """Return the draft of a reply that was written and not delivered."""
    answers = tuple(message.id for message in messages)
    key = reply_key(conversation, answers[0])
    return Draft(messages[-1].chat, answers, key, rest=content, complete=True, turn=turn)


def open_store(url: str) -> Store:
    """Return the store for a database URL, not opened yet. Raises ConfigError."""
    if url.startswith("sqlite:///"):
        from bot.store.sqlite import SQLiteStore

        return SQLiteStore(url.removeprefix("sqlite:///"))
    from bot.store.postgres import PostgresStore

    return PostgresStore(url)
