"""Delivery: one page or many, growing or whole, through every kind of refusal, resumed by another process."""

from __future__ import annotations

import asyncio

import pytest

from bot.adapter import AdapterSettings, Capabilities, Chat, Context, Post
from bot.delivery import Delivery
from bot.errors import PlatformError, Refused, Throttled, Unavailable
from bot.store import Draft
from bot.testing import PlainRecordingAdapter, RecordingAdapter, RecordingSettings, context

CHAT = Chat("c")


def draft(**values: object) -> Draft:
    return Draft(CHAT, ("m1",), "key", **values)  # type: ignore[arg-type]


class Bench:
    """A delivery with a recording platform behind it."""

    def __init__(self, lent: Context, draft: Draft, adapter: type[RecordingAdapter] = RecordingAdapter) -> None:
        self.adapter = adapter(RecordingSettings(), lent)
        self.notes: list[Draft] = []
        self.draft = draft
        self.delivery = Delivery(self.adapter, draft, self._note)

    async def _note(self) -> None:
        self.notes.append(Draft(self.draft.chat, self.draft.answers, closed=self.draft.closed))

    @property
    def shown(self) -> list[str]:
        return self.adapter.shown.get("c", [])

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.adapter.calls if kind != "typing"]


@pytest.fixture(params=[RecordingAdapter, PlainRecordingAdapter])
async def bench(request: pytest.FixtureRequest) -> object:
    async with context() as lent:
        yield Bench(lent, draft(), request.param)


async def test_a_whole_answer_is_one_post(bench: Bench) -> None:
    bench.delivery.start()
    bench.delivery.feed("Hello ")
    bench.delivery.feed("there")
    await bench.delivery.finish()
    assert bench.shown == ["Hello there"]
    assert bench.kinds == ["send"]


async def test_a_growing_answer_is_begun_and_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.delivery.TYPING_AFTER", 0)
    async with context() as lent:
        bench = Bench(lent, draft())
        bench.delivery.start()
        bench.delivery.feed("Hel")
        await bench.adapter.until(lambda: bench.shown == ["Hel"])
        bench.delivery.feed("lo")
        await bench.adapter.until(lambda: bench.shown == ["Hello"])
        bench.delivery.feed("!")
        await bench.delivery.finish()
        assert bench.shown == ["Hello!"]
        assert bench.kinds[0] == "begin"
        assert set(bench.kinds[1:]) == {"edit"}
        assert ("typing", "c", "") in bench.adapter.calls


async def test_long_answers_continue_on_further_pages(bench: Bench) -> None:
    words = [f"word{n} " for n in range(300)]
    bench.delivery.start()
    for word in words:
        bench.delivery.feed(word)
        await asyncio.sleep(0)
    await bench.delivery.finish()
    assert len(bench.shown) > 5
    assert all(len(page) <= 200 for page in bench.shown)
    assert " ".join(bench.shown).split() == "".join(words).split()


@pytest.mark.parametrize("error", [Throttled("slow", 0.01), Unavailable("gone")])
async def test_a_passing_failure_of_the_last_post_is_tried_again(
    bench: Bench, error: PlatformError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01, 0.01))
    bench.adapter.failures = [error, error]
    bench.delivery.feed("Hello")
    await bench.delivery.finish()
    assert bench.shown == ["Hello"]


@pytest.mark.parametrize("error", [Throttled("slow", 0.01), Unavailable("gone")])
async def test_a_passing_failure_while_growing_costs_nothing(error: PlatformError) -> None:
    async with context() as lent:
        bench = Bench(lent, draft())
        bench.adapter.failures = [error, error]
        bench.delivery.start()
        bench.delivery.feed("Hel")
        await bench.adapter.until(lambda: len(bench.kinds) >= 1)
        bench.delivery.feed("lo")
        await bench.adapter.until(lambda: len(bench.kinds) >= 2)
        await bench.delivery.finish()
        assert bench.shown == ["Hello"]


async def test_what_was_throttled_is_shown_although_nothing_comes_meanwhile() -> None:
    async with context() as lent:
        bench = Bench(lent, draft())
        bench.adapter.failures = [Throttled("slow", 0.02), Unavailable("gone")]
        bench.delivery.start()
        bench.delivery.feed("Hello")
        await bench.adapter.until(lambda: bench.shown == ["Hello"])
        await bench.delivery.finish()


async def test_an_outage_ends_in_unavailable_and_another_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01,))
    async with context() as lent:
        bench = Bench(lent, draft(), PlainRecordingAdapter)
        text = "\n\n".join(f"paragraph {n} " + "x" * 120 for n in range(4))
        bench.delivery.feed(text)
        original = bench.adapter.send
        sent: list[object] = []

        async def send_two(*args: object) -> str:
            if len(sent) == 2:
                raise Unavailable("network")
            sent.append(args)
            return await original(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(bench.adapter, "send", send_two)
        with pytest.raises(Unavailable):
            await bench.delivery.finish()
        assert len(bench.shown) == 2
        assert bench.notes[-1].closed == 2  # known before the third page was tried
        monkeypatch.setattr(bench.adapter, "send", original)
        await Delivery(bench.adapter, bench.draft, bench._note).finish()
        assert [page.split()[1] for page in bench.shown] == ["0", "1", "2", "3"]


async def test_a_refusal_stops_the_reply_at_once() -> None:
    async with context() as lent:
        bench = Bench(lent, draft())
        bench.adapter.failures = [Refused("blocked")] * 9
        bench.delivery.start()
        bench.delivery.feed("Hel")
        await bench.adapter.until(lambda: bench.delivery.refused is not None)
        with pytest.raises(Refused):
            bench.delivery.feed("lo")
        with pytest.raises(Refused):
            await bench.delivery.finish()


async def test_what_an_earlier_attempt_shows_is_written_over() -> None:
    async with context() as lent:
        earlier = [Post("0", "Old beginning"), Post("1", "Old page two")]
        bench = Bench(lent, draft(posts=earlier))
        bench.adapter.shown["c"] = ["Old beginning", "Old page two"]
        bench.delivery.feed("New answer")
        await bench.delivery.finish()
        assert bench.shown == ["New answer", "⤴"]


async def test_nothing_to_say_posts_nothing(bench: Bench) -> None:
    bench.delivery.start()
    await bench.delivery.finish()
    assert bench.shown == []


async def test_each_page_has_one_idempotency_key_for_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01,) * 4)
    async with context() as lent:
        bench = Bench(lent, draft(), PlainRecordingAdapter)
        keys = []
        original = bench.adapter.send

        async def send(chat: Chat, page: object) -> str:
            keys.append(page.key)  # type: ignore[attr-defined]
            if len(keys) in (1, 3):
                raise Unavailable("network")
            return await original(chat, page)  # type: ignore[arg-type]

        monkeypatch.setattr(bench.adapter, "send", send)
        bench.delivery.feed("a" * 150 + "\n\n" + "b" * 150)
        await bench.delivery.finish()
        assert keys == ["key:0", "key:0", "key:1", "key:1"]


def test_settings_base_is_what_adapters_extend() -> None:
    assert AdapterSettings().system_prompt == ""
    assert Capabilities().answer_within == 0
