"""A conversation through the whole bot: HTTP in, store, dispatcher, scripted model, recording platform."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import cast

import pytest

from bot import errors
from bot.adapter import Attachment, Chat, Message, Turn
from bot.app import Magpie
from bot.errors import ModelError, Refused, TooLong, Unavailable
from bot.registry import Configured
from bot.testing import (
    PlainRecordingAdapter,
    RecordingAdapter,
    RecordingSettings,
    ScriptedModel,
    call,
    running,
    signed,
)


class Talk:
    """One person at the recording platform."""

    def __init__(self, magpie: Magpie, name: str = "recording") -> None:
        self.magpie = magpie
        self.name = name
        self.adapter = cast(RecordingAdapter, magpie.adapters[name])
        self.model = cast(ScriptedModel, magpie.model)
        self.count = 0

    async def say(self, text: str, chat: str = "c", user: str = "u", **fields: object) -> int:
        self.count += 1
        place = Chat(chat, kind=fields.pop("kind", "direct"))  # type: ignore[arg-type]
        message = Message(str(fields.pop("id", f"m{self.count}")), place, user, text, **fields)  # type: ignore[arg-type]
        status, _ = await call(self.magpie, self.name, signed(message))
        return status

    async def idle(self) -> None:
        while self.magpie.dispatcher.busy:
            await asyncio.sleep(0.005)

    async def ask(self, text: str, **fields: object) -> str:
        """Say something and return the last thing the chat shows once all is quiet."""
        assert await self.say(text, **fields) == 200  # type: ignore[arg-type]
        await self.idle()
        return self.shown(str(fields.get("chat", "c")))[-1]

    def shown(self, chat: str = "c") -> list[str]:
        return self.adapter.shown.get(chat, [])


class Gate:
    """A model that waits for the test in the middle of its answer."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Event()

    async def script(self, turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield f"begin {turns[-1].content} "
        self.asked.set()
        await self.open.wait()
        yield "end"


def plain() -> Configured:
    return Configured("recording", PlainRecordingAdapter, RecordingSettings())


async def test_a_question_is_answered_and_remembered() -> None:
    async with running() as magpie:
        talk = Talk(magpie)
        assert await talk.ask("hello") == "You said: hello"
        assert await talk.ask("again") == "You said: again"
        roles = [turn.role for turn in talk.model.asked[1]]
        assert roles == ["system", "user", "assistant", "user"]
        assert talk.adapter.read == ["m1", "m2"]


async def test_platform_is_answered_before_the_model() -> None:
    gate = Gate()
    async with running(model=ScriptedModel(gate.script)) as magpie:
        talk = Talk(magpie)
        assert await talk.say("hello") == 200  # although the model is silent
        gate.open.set()
        await talk.idle()
        assert talk.shown() == ["begin hello end"]


async def test_messages_that_arrive_meanwhile_are_answered_next_together() -> None:
    gate = Gate()
    async with running(model=ScriptedModel(gate.script)) as magpie:
        talk = Talk(magpie)
        await talk.say("one")
        await gate.asked.wait()
        for text in ("two", "three", "four"):
            await talk.say(text)
        gate.open.set()
        await talk.idle()
        assert len(talk.model.asked) == 2
        assert [turn.content for turn in talk.model.asked[1][-3:]] == ["two", "three", "four"]
        assert talk.shown() == ["begin one end", "begin four end"]


async def test_conversations_do_not_wait_for_each_other() -> None:
    gate = Gate()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        if turns[-1].content == "slow":
            await gate.open.wait()
        yield turns[-1].content

    async with running(model=ScriptedModel(script)) as magpie:
        talk = Talk(magpie)
        await talk.say("slow", chat="a")
        await talk.say("fast", chat="b")
        await talk.adapter.until(lambda: talk.shown("b") == ["fast"])
        assert talk.shown("a") == []
        gate.open.set()


async def test_redelivery_at_the_same_time_is_one_answer() -> None:
    async with running() as magpie:
        talk = Talk(magpie)
        statuses = await asyncio.gather(*(talk.say("hello", id="same") for _ in range(20)))
        assert set(statuses) == {200}
        await talk.idle()
        assert talk.shown() == ["You said: hello"]
        assert len(talk.model.asked) == 1


async def test_more_conversations_than_places_wait_in_the_inbox() -> None:
    async with running(max_concurrent=2) as magpie:
        talk = Talk(magpie)
        await asyncio.gather(*(talk.say(f"q{n}", chat=f"c{n}") for n in range(12)))
        await talk.adapter.until(lambda: len(talk.adapter.shown) == 12)
        assert all(talk.shown(f"c{n}") == [f"You said: q{n}"] for n in range(12))


FAILURES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ModelError) and value is not TooLong
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.code)
@pytest.mark.parametrize(("text", "language"), [("hello", "en"), ("你好", "zh")])
async def test_every_failure_of_the_model_is_said(failure: type[ModelError], text: str, language: str) -> None:
    def broken(turns: Sequence[Turn]) -> list[str]:
        raise failure("secret detail sk-12345678")

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        broken(turns)
        yield ""

    async with running(model=ScriptedModel(script)) as magpie:
        talk = Talk(magpie)
        answer = await talk.ask(text)
        assert "secret" not in answer
        assert any("\u4e00" <= letter <= "\u9fff" for letter in answer) == (language == "zh")
        talk.model.script = lambda turns: ["fine"]
        assert await talk.ask("and now?") == "fine"


async def test_an_interrupted_answer_keeps_what_there_is_and_says_so() -> None:
    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "The first half"
        raise errors.Interrupted("stream broke")

    async with running(model=ScriptedModel(script)) as magpie:
        answer = await Talk(magpie).ask("hello")
        assert answer.startswith("The first half\n\n")
        assert "interrupted" in answer


async def test_a_conversation_that_is_too_long_is_shortened_and_asked_once_more() -> None:
    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        if len(turns) > 4:
            raise TooLong("context")
        yield "ok"

    async with running(model=ScriptedModel(script)) as magpie:
        talk = Talk(magpie)
        for n in range(4):
            assert await talk.ask(f"question {n}") == "ok"
        assert await talk.say("x" * 100) == 200
        await talk.idle()
        assert talk.shown()[-1] == "ok"


async def test_the_window_moves_in_big_steps() -> None:
    async with running(
        model=ScriptedModel(lambda turns: ["a" * 100]), history_tokens=2000, user_messages_per_minute=0
    ) as magpie:
        talk = Talk(magpie)
        starts = []
        for n in range(40):
            await talk.ask(f"{n:03} " + "q" * 96)
            starts.append(talk.model.asked[-1][1].content[:3])
        changes = sum(a != b for a, b in pairwise(starts))
        assert 1 <= changes <= 8  # not one a turn
        assert all(turns[1].role == "user" for turns in talk.model.asked)
        assert len(await magpie.store.history(next(iter(magpie.turns._history._windows)), 1)) == 80


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("/help", "/reset"),
        ("/帮助", "/重置"),
        ("/start", "/reset"),
        ("／帮助", "/重置"),
        ("/stop", "not writing"),
        ("/停止", "没有正在写"),
        ("/retry", "no question"),
        ("/重试", "没有可以"),
        ("/usage", "0 tokens"),
        ("/用量", "0 个 token"),
        ("/reset", "afresh"),
        ("/重置", "已忘掉"),
    ],
)
async def test_commands_answer_in_their_language_without_the_model(text: str, part: str) -> None:
    async with running() as magpie:
        talk = Talk(magpie)
        await talk.ask(text)
        assert part in "\n".join(talk.shown())
        assert talk.model.asked == []


async def test_reset_forgets_for_the_model_but_keeps_the_record() -> None:
    async with running() as magpie:
        talk = Talk(magpie)
        await talk.ask("my name is Ann")
        await talk.ask("/reset")
        await talk.ask("who am I?")
        assert [turn.role for turn in talk.model.asked[-1]] == ["system", "user"]
        conversation = magpie.dispatcher.conversation("recording", Message("x", Chat("c"), "u"))
        assert len(await magpie.store.history(conversation, 1)) == 4


async def test_retry_answers_the_last_question_again() -> None:
    answers = iter(["first", "second", "third"])
    async with running(model=ScriptedModel(lambda turns: [next(answers)])) as magpie:
        talk = Talk(magpie)
        await talk.ask("question")
        assert await talk.ask("/retry") == "second"
        assert talk.model.asked[1] == talk.model.asked[0]
        await talk.ask("next")
        assert [turn.content for turn in talk.model.asked[2][1:]] == ["question", "second", "next"]


async def test_stop_ends_the_answer_and_keeps_what_there_is() -> None:
    gate = Gate()
    async with running(model=ScriptedModel(gate.script)) as magpie:
        talk = Talk(magpie)
        await talk.say("hello")
        await gate.asked.wait()
        await talk.adapter.until(lambda: bool(talk.shown()))
        await talk.say("/stop")
        await talk.idle()
        assert [text.strip() for text in talk.shown()] == ["begin hello", "Stopped."]


async def test_usage_is_counted_and_told() -> None:
    async with running(user_tokens_per_day=1000) as magpie:
        talk = Talk(magpie)
        await talk.ask("hello")
        answer = await talk.ask("/usage")
        used = await magpie.store.used("recording/u")
        assert used.completion == len("You said: hello")
        assert f"{used.tokens} tokens" in answer
        assert "of 1000 a day" in answer


@pytest.mark.parametrize("kind", ["direct", "group"])
@pytest.mark.parametrize(
    ("limits", "part"),
    [({"user_tokens_per_day": 5}, "today's limit"), ({"tokens_per_day": 5}, "its limit for today")],
)
async def test_quotas_refuse_kindly_before_the_model_is_asked(limits: dict[str, int], part: str, kind: str) -> None:
    async with running(**limits) as magpie:  # type: ignore[arg-type]
        talk = Talk(magpie)
        assert await talk.ask("hello", kind=kind) == "You said: hello"
        assert part in await talk.ask("more", kind=kind)
        assert len(talk.model.asked) == 1


async def test_a_flood_is_refused_once_and_not_paid_for() -> None:
    async with running(user_messages_per_minute=3) as magpie:
        talk = Talk(magpie)
        for n in range(10):
            assert await talk.say(f"m{n}") == 200
        await talk.idle()
        assert sum("faster than" in text for text in talk.shown()) == 1
        assert sum(len(turns) for turns in talk.model.asked) < 20


async def test_strangers_are_told_and_not_served() -> None:
    async with running(allowed_users=("recording:u", "friend")) as magpie:
        talk = Talk(magpie)
        assert await talk.ask("hello", user="u", chat="a") == "You said: hello"
        assert await talk.ask("hello", user="friend", chat="b") == "You said: hello"
        assert "private" in await talk.ask("hello", user="stranger", chat="c")
        await talk.say("hello", user="stranger", chat="g", kind="group")
        await talk.idle()
        assert talk.shown("g") == []
        assert len(talk.model.asked) == 2


async def test_group_members_have_their_own_memory_or_share_one() -> None:
    for memory, turns in (("user", 2), ("chat", 4)):
        async with running(group_memory=memory) as magpie:
            talk = Talk(magpie)
            await talk.ask("I am Ann", user="ann", user_name="Ann", kind="group", chat="g")
            await talk.ask("and I Bob", user="bob", user_name="Bob", kind="group", chat="g")
            assert len(talk.model.asked[1]) == turns
            assert talk.model.asked[1][-1].content == ("Bob: and I Bob" if memory == "chat" else "and I Bob")


async def test_who_sees_that_an_answer_is_coming_gets_one_each() -> None:
    gate = Gate()
    async with running(model=ScriptedModel(gate.script), user_messages_per_minute=3) as magpie:
        talk = Talk(magpie)
        for text in ("one", "two", "three", "four"):
            await talk.say(text, kind="group", awaited=True)
        gate.open.set()
        await talk.idle()
        assert talk.shown()[:3] == [f"begin {text} end" for text in ("one", "two", "three")]
        assert "faster than" in talk.shown()[3]  # although it is a group


async def test_a_group_and_a_person_of_the_same_number_are_two_conversations() -> None:
    async with running(group_memory="chat") as magpie:
        talk = Talk(magpie)
        await talk.ask("secret of the group", kind="group", chat="7")
        await talk.ask("what do you know?", chat="7", user="7")
        assert [turn.role for turn in talk.model.asked[1]] == ["system", "user"]


async def test_chatter_that_is_not_for_the_bot_is_not_stored() -> None:
    async with running() as magpie:
        talk = Talk(magpie)
        assert await talk.say("just talking", kind="group", addressed=False) == 200
        await talk.idle()
        assert talk.shown() == []
        assert (await magpie.store.counts())["waiting"] == 0


async def test_options_of_a_message() -> None:
    async with running() as magpie:
        talk = Talk(magpie)
        await talk.ask("old")
        await talk.ask("new", reset=True, context=(Turn("assistant", "I am a pirate"),))
        assert [turn.content for turn in talk.model.asked[-1][1:]] == ["I am a pirate", "new"]
        await talk.say("remember 42", wants_reply=False)
        await talk.idle()
        assert talk.shown()[-1] == "You said: new"
        await talk.ask("what?")
        assert "remember 42" in [turn.content for turn in talk.model.asked[-1]]


async def test_pictures_and_text_files_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def download(self: object, attachment: Attachment, limit: int) -> bytes:
        return {"pic": b"\x89PNG", "txt": b"a,b\n1,2"}[attachment.ref]

    monkeypatch.setattr(RecordingAdapter, "download", download)
    async with running() as magpie:
        talk = Talk(magpie)
        files = (Attachment("image", "pic", "image/png"), Attachment("file", "txt", "text/csv", "data.csv"))
        await talk.ask("look", attachments=files)
        assert talk.model.pictures[0][0].data == b"\x89PNG"
        assert "a,b\n1,2" in talk.model.asked[0][-1].content
        assert "not this kind" in await talk.ask("", attachments=(Attachment("audio", "v"),))


async def test_a_reply_the_platform_refuses_is_parked_with_its_reason_and_blocks_nobody() -> None:
    async with running(plain()) as magpie:
        talk = Talk(magpie)
        talk.adapter.failures = [Refused("blocked by the person")]
        await talk.say("hello")
        await talk.idle()
        assert (await magpie.store.counts())["parked"] == 1
        assert await talk.ask("again") == "You said: again"


async def test_an_outage_of_the_platform_postpones_the_reply_and_pays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01,))
    monkeypatch.setattr("bot.turn.FIRST_GAP", 0.05)
    monkeypatch.setattr("bot.dispatcher.LOOK_EVERY", 0.02)
    async with running(plain()) as magpie:
        talk = Talk(magpie)
        talk.adapter.failures = [Unavailable("down")] * 5
        await talk.say("hello")
        await talk.adapter.until(lambda: talk.shown() == ["You said: hello"])
        await talk.idle()
        assert len(talk.model.asked) == 1
        assert await talk.ask("again") == "You said: again"


async def test_a_turn_that_crashes_is_tried_again_then_parked_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.dispatcher.CRASH_GAP", 0.02)
    monkeypatch.setattr("bot.dispatcher.LOOK_EVERY", 0.01)

    def broken(turns: Sequence[Turn]) -> list[str]:
        if turns[-1].content == "poison":
            raise ZeroDivisionError
        return ["fine"]

    async with running(model=ScriptedModel(broken)) as magpie:
        talk = Talk(magpie)
        await talk.say("poison")
        await talk.adapter.until(lambda: bool(talk.shown()))
        await talk.idle()
        assert "Something went wrong" in talk.shown()[0]
        assert await talk.ask("hello") == "fine"
        assert talk.model.asked[0][-1].content == "poison"


async def test_shutdown_hands_back_what_is_unfinished(tmp_path: object) -> None:
    url = f"sqlite:///{tmp_path}/magpie.db"
    gate = Gate()
    async with running(model=ScriptedModel(gate.script), database_url=url) as magpie:
        await Talk(magpie).say("hello")
        await gate.asked.wait()
        await magpie.dispatcher.stop(grace=0)
    async with running(database_url=url) as magpie:
        talk = Talk(magpie)
        await talk.adapter.until(lambda: bool(talk.shown()) and talk.shown()[-1] == "You said: hello")
