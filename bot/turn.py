"""One turn of a conversation: what waits in its lane -> history -> model -> delivery -> written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from bot import metrics, question
from bot.adapter import AnyAdapter, Message
from bot.answers import HeldPoster
from bot.commands import Command, command
from bot.config import BotSettings
from bot.delivery import Delivery, Poster
from bot.errors import ModelError, PlatformError, Refused, StoreUnavailable, Throttled
from bot.health import Health
from bot.history import History, Window
from bot.model import Model
from bot.store import Draft, Entry, Lane, Outcome, Remembered, Store, Waiting, reply_key
from bot.texts import language_of, say
from bot.writing import Writing

log = structlog.get_logger()
T = TypeVar("T")

LONGEST_TURN = 900.0  # seconds after which an answer that is still being written is given up
CRASHES = 3  # times a batch may fail without an answer before the person is told and it is parked
POSTINGS = 10  # times a finished reply is brought to the platform before it is parked
NOT_ALLOWED = "not_allowed"  # the sentence for strangers
FIRST_GAP, LONGEST_GAP = 5.0, 600.0  # seconds between those


class Notice(Exception):
    """The bot answers instead of the model. `key` names the sentence in `bot/texts.py`."""

    def __init__(self, key: str, outcome: str = "answered", **values: object) -> None:
        super().__init__(key)
        self.key = key
        self.outcome = outcome
        self.values = values


class Turns:
    """Answers what waits in a lane, one batch at a time."""

    def __init__(
        self,
        store: Store,
        model: Model,
        adapters: Mapping[str, AnyAdapter],
        settings: BotSettings,
        owner: str,
        health: Health,
    ) -> None:
        self._store = store
        self._model = model
        self._adapters = adapters
        self._settings = settings
        self._owner = owner
        self._health = health
        self._history = History(store, settings.history_tokens)
        self._writings: dict[str, Writing] = {}  # by conversation
        self._stopped: set[str] = set()  # conversations whose answer was stopped, until that is confirmed
        self.used_by_all = 0  # tokens today

    async def take(self, lane: Lane) -> Lane | None:
        """Answer the next batch of a lane. Returns the lane with what came meanwhile, None when it was given back.

        Raises LostLease when somebody else has taken over.
        """
        if lane.draft is not None and lane.draft.complete:
            return await self._deliver(lane, self._delivery(lane))
        batch = next_batch(lane.waiting)
        if not batch:
            return await self._insist(lambda: self._store.finish(lane, self._owner, ()))
        lane.draft = new_draft(lane, batch)
        try:
            await self._admit(lane, batch)
            await self._obey(lane, batch[-1].message)
            return await self._ask(lane, [waiting.message for waiting in batch])
        except Notice as notice:
            return await self._say(lane, batch[-1].message, notice)

    def stop(self, conversation: str) -> None:
        """Stop the answer that the model is writing here; what there is of it stays."""
        writing = self._writings.get(conversation)
        if writing is not None and writing.stop():
            self._stopped.add(conversation)

    # -- who may ask, and commands --------------------------------------------------------------------------------

    async def _admit(self, lane: Lane, batch: Sequence[Waiting]) -> None:
        """Raise Notice where a limit or an allow-list says no."""
        waiting, message, limits = batch[-1], batch[-1].message, self._settings
        if max(one.tries for one in batch) >= CRASHES:
            raise Notice("model_error", "failed")
        if waiting.limited:
            raise Notice("rate_limited", "refused")
        if not (
            listed(limits.allowed_users, lane.instance, message.user)
            and listed(limits.allowed_chats, lane.instance, message.chat.id)
        ):
            raise Notice(NOT_ALLOWED, "refused", user=message.user)
        if (command(message.text) or Command.RETRY) is not Command.RETRY or not message.wants_reply:
            return
        if limits.tokens_per_day and self.used_by_all >= limits.tokens_per_day:
            raise Notice("total_quota", "refused")
        if limits.user_tokens_per_day:
            used = waiting.used
            if used < 0:
                used = (await self._insist(lambda: self._store.used(person(lane.instance, message.user)))).tokens
            if used >= limits.user_tokens_per_day:
                raise Notice("user_quota", "refused")

    async def _obey(self, lane: Lane, message: Message) -> None:
        """Carry out a command or an option of the message; raise Notice with what there is to say."""
        order = command(message.text)
        if order is Command.RESET or message.reset:
            await self._insist(lambda: self._store.complete(lane, self._owner, forget=True))
        if order is Command.RESET:
            raise Notice("reset")
        if order is Command.HELP:
            raise Notice("help")
        if order is Command.STOP:
            stopped = lane.conversation in self._stopped
            self._stopped.discard(lane.conversation)
            raise Notice("stopped" if stopped else "nothing_to_stop")
        if order is Command.USAGE:
            used = await self._insist(lambda: self._store.used(person(lane.instance, message.user)))
            limit = self._settings.user_tokens_per_day
            raise Notice("usage", messages=used.messages, tokens=used.tokens, cached=used.cached, limit=limit)

    # -- the model ------------------------------------------------------------------------------------------------

    async def _ask(self, lane: Lane, messages: Sequence[Message]) -> Lane | None:
        """Let the model answer, while the chat is shown what it writes."""
        window = await self._insist(lambda: self._history.window(lane))
        again = command(messages[-1].text) is Command.RETRY
        if again:
            discard = _take_back_answer(window)
            writing = Writing(lane, window, (), persona=self._persona(lane), payer=_payer(lane, messages))
        else:
            discard = 0
            writing = await self._question(lane, window, messages)
        if not messages[-1].wants_reply:
            await self._write_down(writing)
            return await self._end(lane, "ignored", "the client asked for no reply")
        self._history.fit(lane, window, sum(entry.tokens for entry in writing.asked))
        delivery = self._delivery(lane)
        delivery.start()
        try:
            failure = await self._write(writing, delivery, messages[-1])
            await delivery.settle()
        except BaseException:
            delivery.abandon()
            raise
        await self._book(writing, failure, discard)
        return await self._deliver(lane, delivery)

    async def _question(self, lane: Lane, window: Window, messages: Sequence[Message]) -> Writing:
        adapter = self._adapters[lane.instance]
        named = self._settings.group_memory == "chat" and messages[0].chat.kind == "group"
        asked = await question.entries(adapter, messages, named)
        if not any(entry.turn.role == "user" for entry in asked):
            raise Notice("no_text", "refused")
        pictures = await question.pictures(adapter, messages)
        persona = self._persona(lane)
        return Writing(lane, window, asked, persona=persona, pictures=pictures, payer=_payer(lane, messages))

    async def _write(self, writing: Writing, delivery: Delivery, message: Message) -> str:
        """Let the model write into the delivery. Returns the code of what went wrong, "" for nothing."""
        language = self._language(message)
        self._writings[writing.lane.conversation] = writing
        try:
            async with asyncio.timeout(LONGEST_TURN):
                await writing.read(self._model, self._history, delivery.feed)
        except ModelError as error:
            return self._excuse(writing, delivery, error.code, str(error), error.hint, language)
        except TimeoutError:
            return self._excuse(
                writing, delivery, "turn_timeout", "the answer never ended", "lower OPENAI_MAX_TOKENS", language
            )
        except Refused:
            return ""  # the platform will not show it: `_deliver` meets the same refusal and parks the reply
        finally:
            self._writings.pop(writing.lane.conversation, None)
        if writing.finish == "length":
            delivery.feed("\n\n" + say("cut_by_length", language))
        return ""

    def _excuse(self, writing: Writing, delivery: Delivery, failure: str, error: str, hint: str, language: str) -> str:
        """Tell the person in a sentence, and the operator what to do."""
        instance = writing.lane.instance
        log.warning("no complete answer", instance=instance, failure=failure, error=error, hint=hint)
        metrics.MODEL_FAILURES.labels(failure).inc()
        self._health.failed(instance, f"{failure}: {error}")
        if delivery.refused is None:
            delivery.feed(("\n\n" if writing.text else "") + say(failure, language))
        return failure

    async def _book(self, writing: Writing, failure: str, discard: int) -> None:
        """Store question, answer and cost, and that from now on the reply is only to be posted."""
        draft = the_draft(writing.lane)
        self._health.model = failure or "ok"
        draft.complete = True
        draft.failure = failure
        draft.outcome, draft.reason = ("failed", failure) if failure else ("answered", "")
        if writing.stopped:
            draft.reason = "stopped"
        await self._write_down(writing, discard)
        metrics.PROMPT_TOKENS.inc(writing.spent.prompt)
        metrics.COMPLETION_TOKENS.inc(writing.spent.completion)

    async def _write_down(self, writing: Writing, discard: int = 0) -> None:
        lane, window = writing.lane, writing.window
        entries: list[Entry] = writing.entries()
        first = lane.seq + 1
        if writing.text:
            the_draft(lane).turn = lane.seq + len(entries)
        self.used_by_all = await self._insist(
            lambda: self._store.complete(
                lane, self._owner, entries, payer=writing.payer, spent=writing.spent, discard=discard
            )
        )
        window.turns += [Remembered(seq, entry.turn, entry.tokens) for seq, entry in enumerate(entries, first)]
        self._history.remember(lane, window)

    async def _say(self, lane: Lane, message: Message, notice: Notice) -> Lane | None:
        """Answer with a sentence of the bot's own."""
        draft, language = the_draft(lane), self._language(message)
        if notice.key == NOT_ALLOWED and message.chat.kind == "group" and not message.awaited:
            return await self._end(lane, notice.outcome, notice.key)  # a group we do not serve is not talked to
        values = dict(notice.values)
        if limit := values.pop("limit", None):
            values["limit"] = say("usage_limit", language, limit=limit)
        elif values:
            values.setdefault("limit", "")
        draft.rest = say(notice.key, language, **values)
        draft.outcome, draft.reason = notice.outcome, notice.key
        draft.failure = "" if notice.outcome == "answered" else notice.key
        draft.complete = True
        return await self._deliver(lane, self._delivery(lane))

    # -- to the chat ----------------------------------------------------------------------------------------------

    def _delivery(self, lane: Lane) -> Delivery:
        adapter, draft = self._adapters[lane.instance], the_draft(lane)
        poster: Poster = adapter
        if adapter.can.answer_within:
            state = self._store.state(lane.instance)
            poster = HeldPoster(adapter, state, lane.conversation, draft.answers)
        return Delivery(poster, draft, lambda: self._store.save_draft(lane, self._owner))

    async def _deliver(self, lane: Lane, delivery: Delivery) -> Lane | None:
        """Post what is missing of a finished reply; postpone it or park it when the platform does not take it."""
        draft = the_draft(lane)
        try:
            await delivery.finish()
        except Refused as error:
            self._health.failed(lane.instance, str(error))
            return await self._end(lane, "failed", f"platform: {error}", parked=True)
        except PlatformError as error:
            self._health.failed(lane.instance, str(error))
            return await self._later(lane, error)
        self._health.sent(lane.instance)
        return await self._end(lane, draft.outcome, draft.reason)

    async def _later(self, lane: Lane, error: PlatformError) -> Lane | None:
        """Try a reply again after a while that grows with every try."""
        answered = the_draft(lane).answers
        tries = max((waiting.tries for waiting in lane.waiting if waiting.message.id in answered), default=0)
        if tries + 1 >= POSTINGS:
            return await self._end(lane, "failed", f"platform: {error}", parked=True)
        gap = min(FIRST_GAP * 2**tries, LONGEST_GAP)
        if isinstance(error, Throttled):
            gap = max(gap, error.retry_after)
        log.warning("reply postponed", instance=lane.instance, seconds=gap, tries=tries + 1, error=str(error))
        await self._insist(lambda: self._store.postpone(lane, self._owner, gap))
        return None

    async def _end(self, lane: Lane, outcome: str, reason: str = "", parked: bool = False) -> Lane | None:
        """Close the books on a batch: one logged outcome for each message."""
        draft = the_draft(lane)
        outcomes = [Outcome(message, outcome, reason, draft.turn, parked) for message in draft.answers]
        rest = await self._insist(lambda: self._store.finish(lane, self._owner, outcomes))
        accepted = {waiting.message.id: waiting.accepted for waiting in lane.waiting}
        now = time.time()
        for message in draft.answers:
            seconds = round(now - accepted.get(message, now), 3)
            metrics.ended(lane.instance, outcome, seconds)
            log.info(outcome, instance=lane.instance, message=message, reason=reason or None, seconds=seconds)
        return rest

    def _persona(self, lane: Lane) -> str:
        return self._adapters[lane.instance].settings.system_prompt or self._settings.system_prompt

    def _language(self, message: Message) -> str:
        return language_of(message.text, message.locale, self._settings.language)

    async def _insist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do something with the store, however long the database is away: what was paid for is not dropped."""
        pause = 0.2
        while True:
            try:
                return await operation()
            except StoreUnavailable as error:
                log.error("store unavailable", error=str(error), retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5)


def person(instance: str, user: str) -> str:
    """Name who is counted and pays: a user of one instance."""
    return f"{instance}/{user}"


def next_batch(waiting: Sequence[Waiting]) -> list[Waiting]:
    """Return what is answered together: the first message and those behind it, up to one that stands for itself."""
    batch = list(waiting[:1])
    if batch and not _alone(batch[0]):
        for following in waiting[1:]:
            if _alone(following) or following.message.reset:
                break
            batch.append(following)
    return batch


def _alone(waiting: Waiting) -> bool:
    message = waiting.message
    return command(message.text) is not None or waiting.limited or message.awaited or not message.wants_reply


def new_draft(lane: Lane, batch: Sequence[Waiting]) -> Draft:
    """Begin a reply. What an earlier attempt at it already shows in the chat is written over."""
    answers = tuple(waiting.message.id for waiting in batch)
    earlier = lane.draft.posts if lane.draft and lane.draft.answers[:1] == answers[:1] else []
    key = reply_key(lane.conversation, answers[0])
    return Draft(batch[-1].message.chat, answers, key, posts=list(earlier))


def the_draft(lane: Lane) -> Draft:
    """Return the reply under way in a lane that has one."""
    assert lane.draft is not None
    return lane.draft


def listed(allowed: Sequence[str], instance: str, identity: str) -> bool:
    """Whether an allow-list lets somebody in: it is empty, or names the id, alone or as instance:id."""
    return not allowed or identity in allowed or f"{instance}:{identity}" in allowed


def _payer(lane: Lane, messages: Sequence[Message]) -> str:
    return person(lane.instance, messages[-1].user)


def _take_back_answer(window: Window) -> int:
    """Drop the last answer from the window; return its seq, 0 when the question has none. Raises Notice."""
    discard = 0
    if window.turns and window.turns[-1].turn.role == "assistant":
        discard = window.turns.pop().seq
    if not window.turns or window.turns[-1].turn.role != "user":
        raise Notice("nothing_to_retry")
    return discard
