"""Telegram: every kind of update, and every way the Bot API says no, against a strict server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import adapters.telegram
from adapters.telegram import GROUP_EDIT_EVERY, TelegramAdapter, TelegramSettings
from bot.adapter import Attachment, Chat, Context, Inbound, Page, Post, Request, State, Turn
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render, utf16
from bot.registry import Configured
from bot.testing import AdapterPromises, Script, ScriptedModel, context, echo, running
from tests.adapters.telegram_server import (
    BOT_ID,
    USERNAME,
    Cut,
    Refusal,
    Room,
    TelegramServer,
    bad,
    flood,
    parsed,
)

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("telegram/*.json"))
SECRET = "s3cr3t_Token-1"
TOKEN = f"{BOT_ID}:AAtest-token_0123456789"
SIGNED = {"x-telegram-bot-api-secret-token": SECRET}
QUESTION = Page("<b>Hello</b> &amp; welcome", "Hello & welcome", "reply:0", "17")


def settings(base: str = "http://127.0.0.1:9", token: str = TOKEN) -> TelegramSettings:
    return TelegramSettings.model_validate({"bot_token": token, "webhook_secret": SECRET, "api_base": base})


def make(base: str = "http://127.0.0.1:9", token: str = TOKEN, lent: Context | None = None) -> TelegramAdapter:
    return TelegramAdapter(settings(base, token), lent or Context("telegram", create_autospec(State)))


def named() -> TelegramAdapter:
    adapter = make()
    adapter.username = USERNAME
    return adapter


def parse(adapter: TelegramAdapter, update: object) -> Inbound:
    return adapter.parse(Request(headers=SIGNED, body=json.dumps(update).encode()))


def chat(room: Room, thread: int = 0, ticket: int = 0) -> Chat:
    return Chat(str(room.id), "direct" if room.kind == "private" else "group", str(thread or ""), str(ticket or ""))


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramServer]:
    async with TelegramServer() as server:
        yield server


@pytest.fixture
async def adapter(telegram: TelegramServer) -> AsyncIterator[TelegramAdapter]:
    adapter = make(telegram.base)
    yield adapter
    await adapter.stop()


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_the_secrets_hidden() -> None:
    env = Environment({"SALES_BOT_TOKEN": "12:AB", "SALES_WEBHOOK_SECRET": "x"})
    settings = env.read(TelegramSettings, "sales")
    assert settings is not None
    assert settings.api_base == "https://api.telegram.org"
    assert "12:AB" not in repr(settings)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("WEBHOOK_SECRET", None),
        ("WEBHOOK_SECRET", "has space"),
        ("WEBHOOK_SECRET", "ключ"),
        ("WEBHOOK_SECRET", "x" * 257),
        ("BOT_TOKEN", None),
        ("BOT_TOKEN", "no-number"),
        ("BOT_TOKEN", "12:AB/../x"),
        ("BOT_TOKEN", "١٢:AB"),
        ("API_BASE", "ftp://example.com"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    env = Environment({"TG_BOT_TOKEN": "12:AB", "TG_WEBHOOK_SECRET": "x", f"TG_{field}": value})
    assert env.read(TelegramSettings, "tg") is None
    [problem] = env.problems
    assert problem.startswith(f"TG_{field}: ")
    assert value is None or value not in problem


def test_an_empty_secret_does_not_pass() -> None:
    with pytest.raises(ValidationError):
        TelegramSettings.model_validate({"bot_token": "12:AB", "webhook_secret": ""})


# -- verify -----------------------------------------------------------------------------------------------------------


async def test_verify_takes_the_secret() -> None:
    await make().verify(Request(headers=SIGNED))


@pytest.mark.parametrize("given", [None, "", "wrong", SECRET + "x", SECRET[:-1], SECRET.upper(), "ключ", "\udcff"])
async def test_verify_refuses_everything_else(given: str | None) -> None:
    headers = {} if given is None else {"x-telegram-bot-api-secret-token": given}
    with pytest.raises(Unverified) as refused:
        await make().verify(Request(headers=headers, body=b'{"update_id":1}'))
    assert SECRET not in str(refused.value)


async def test_the_sample_is_signed_and_holds_no_message() -> None:
    adapter = make()
    await adapter.verify(adapter.sample())
    assert adapter.parse(adapter.sample()).messages == ()


# -- parse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(named(), case["update"])
    assert [msgspec.to_builtins(message) for message in inbound.messages] == [
        {**case["message"], "attachments": tuple(case["message"]["attachments"])}
        if "attachments" in case["message"]
        else case["message"]
        for _ in range("message" in case)
    ]
    assert inbound.ignored == case.get("ignored", "")
    assert inbound.moved == (tuple(case["moved"]) if "moved" in case else None)
    assert inbound.response.status == 200


def test_a_redelivery_carries_the_same_id_and_two_chats_do_not_share_one() -> None:
    telegram = TelegramServer()
    one, two = (telegram.written(Room(id, "private", "Alice"), "hi") for id in (1, 2))
    assert one["message"]["message_id"] == two["message"]["message_id"]  # which is why that is not the id
    first, again, other = (parse(named(), update).messages[0].id for update in (one, one, two))
    assert first == again != other


@pytest.mark.parametrize(("word", "meant"), [("@some_other_bot", True), ("@ada_l", False)])
def test_until_our_name_is_known_any_bots_name_will_do(word: str, meant: bool) -> None:
    update = TelegramServer().written(Room(-5, "group", "G"), f"{word} hello")
    assert parse(make(), update).messages[0].addressed is meant


BODY = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode())


@given(BODY)
def test_garbage_is_malformed_or_holds_nothing(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert named().parse(Request(body=body)).messages == ()


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


@given(st.data())
def test_a_wrong_type_anywhere_is_malformed_or_harmless(data: st.DataObject) -> None:
    update = json.loads(data.draw(st.sampled_from(FIXTURES)).read_text())["update"]
    path = data.draw(st.sampled_from(leaves(update)[1:]))
    holder = update
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(
        st.sampled_from([None, True, -1, 10**30, 1.5, "", "\U0001f426", "@x", [], [[]], {}, {"id": 1}, {"text": 1}])
    )
    try:
        parse(named(), update)
    except Malformed:
        return


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("value", [-5, 0, 1, 10**18])
def test_entities_that_point_nowhere_are_harmless(field: str, value: int) -> None:
    update = TelegramServer().written(Room(-5, "group", "G"), "@magpie_test_bot 🐦 hi")
    update["message"]["entities"][0][field] = value
    assert parse(named(), update).messages


@pytest.mark.parametrize("depth", [5, 50, 200, 400, 100_000])
def test_a_rich_message_of_any_depth_is_read_or_refused(depth: int) -> None:
    message = (
        '{"message_id":1,"chat":{"id":1,"type":"private"},"from":{"id":1},"text":"","rich_message":{"blocks":[%s]}}'
    )
    body = '{"update_id":1,"message":' + message % ('{"blocks":[' * depth + '"x"' + "]}" * depth) + "}"
    try:
        inbound = named().parse(Request(body=body.encode()))
    except Malformed:
        assert depth > 100
    else:
        assert bool(inbound.messages) is (depth < 40)


# -- who we are -------------------------------------------------------------------------------------------------------


async def learned(adapter: TelegramAdapter) -> str:
    await adapter.start()
    assert adapter.learning is not None
    await asyncio.wait_for(adapter.learning, 10)
    return adapter.username


async def test_the_username_is_learned_in_the_background(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    assert await learned(adapter) == USERNAME


async def test_a_start_survives_a_telegram_that_is_down(
    telegram: TelegramServer, adapter: TelegramAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.telegram, "LEARN_GAPS", (0.0,))
    telegram.script("getMe", Cut(), Refusal(502, "Bad Gateway"), flood(1))
    assert await learned(adapter) == USERNAME
    assert len(telegram.called("getMe")) == 4


async def test_a_stop_ends_the_learning() -> None:
    adapter = make()
    await adapter.start()
    await adapter.stop()
    assert adapter.learning is not None
    await asyncio.wait([adapter.learning], timeout=10)
    assert adapter.learning.cancelled()


# -- send -------------------------------------------------------------------------------------------------------------


async def test_send_in_private(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    question = telegram.written(alice, "who?")["message"]["message_id"]
    id = await adapter.send(chat(alice, ticket=question), QUESTION)
    [shown] = telegram.shown(alice)
    assert (str(shown.id), shown.text, shown.html, shown.reply_to) == (id, "Hello & welcome", QUESTION.text, None)
    assert telegram.called("sendMessage")[0]["link_preview_options"] == {"is_disabled": True}


async def test_send_in_a_group_replies_to_the_question(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    group = telegram.group("Readers")
    question = telegram.written(group, "who?")["message"]["message_id"]
    await adapter.send(chat(group, ticket=question), QUESTION)
    assert telegram.shown(group)[0].reply_to == question


@pytest.mark.parametrize("thread", [0, 31])
async def test_a_deleted_question_is_answered_all_the_same(
    telegram: TelegramServer, adapter: TelegramAdapter, thread: int
) -> None:
    group = telegram.group("Readers", threads=(31,))
    await adapter.send(chat(group, thread, ticket=404), QUESTION)
    [shown] = telegram.shown(group)
    assert (shown.text, shown.thread, shown.reply_to) == ("Hello & welcome", thread or None, None)


async def test_a_topic_is_kept_on_every_call(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    forum = telegram.group("Readers", threads=(31, 32))
    await adapter.typing(chat(forum, 32))
    post = await adapter.begin(chat(forum, 32), QUESTION)
    await adapter.edit(chat(forum, 32), Post(post), Page("done"), last=True)
    [shown] = telegram.shown(forum)
    assert (shown.text, shown.thread) == ("done", 32)
    assert forum.actions[0]["message_thread_id"] == 32


async def test_a_deleted_topic_is_answered_in_the_chat(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    await adapter.send(chat(alice, thread=31), QUESTION)
    assert telegram.shown(alice)[0].text == "Hello & welcome"


@pytest.mark.parametrize("broken", ["a < b", "<b>open", "<i>x</b>", "<table>x</table>", "</b>"])
async def test_refused_markup_is_sent_plain(telegram: TelegramServer, adapter: TelegramAdapter, broken: str) -> None:
    alice = telegram.private("Alice")
    await adapter.send(chat(alice), Page(broken, "the plain words"))
    await adapter.begin(chat(alice), Page(broken, "the draft", "k"))
    post = await adapter.send(chat(alice), Page("something"))
    await adapter.edit(chat(alice), Post(post), Page(broken, "the edit"), last=True)
    assert [shown.text for shown in telegram.shown(alice)] == ["the plain words", "the edit"]
    assert [*alice.drafts.values()] == [["the draft"]]


async def test_the_longest_page_fits_and_no_more(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    longest = "🐦" * (adapter.can.max_length // 2)
    assert adapter.can.measure(longest) == adapter.can.max_length
    await adapter.send(chat(alice), Page(longest))
    assert utf16(telegram.shown(alice)[0].text) == 4096
    with pytest.raises(Refused, match="message is too long"):
        await adapter.send(chat(alice), Page(longest + "x"))


LOST = {
    "blocked": Refusal(403, "Forbidden: bot was blocked by the user"),
    "kicked": Refusal(403, "Forbidden: bot was kicked from the supergroup chat"),
    "deactivated": Refusal(403, "Forbidden: user is deactivated"),
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
@pytest.mark.parametrize("act", ["send", "begin"])
async def test_a_chat_that_is_lost_refuses(
    telegram: TelegramServer, adapter: TelegramAdapter, lost: Refusal, act: str
) -> None:
    alice = telegram.private("Alice")
    alice.lost = lost
    with pytest.raises(Refused) as refused:
        await getattr(adapter, act)(chat(alice), QUESTION)
    assert not isinstance(refused.value, Unauthorized)
    alice.lost = None
    assert (await adapter.begin(chat(alice), QUESTION)).startswith("draft:")  # it was not the drafts' fault


async def test_an_unknown_chat_refuses(adapter: TelegramAdapter) -> None:
    with pytest.raises(Refused, match="chat not found"):
        await adapter.send(Chat("5"), QUESTION)


@pytest.mark.parametrize("token", [f"{BOT_ID}:revoked", "1:x"])
async def test_a_wrong_token_is_unauthorized(telegram: TelegramServer, token: str) -> None:
    adapter = make(telegram.base, token)
    with pytest.raises(Unauthorized) as refused:
        await adapter.send(Chat("5"), QUESTION)
    assert token not in str(refused.value)
    await adapter.stop()


Act = Callable[[TelegramAdapter, Chat], Any]
ACTS: dict[str, tuple[str, Act]] = {
    "send": ("sendMessage", lambda adapter, chat: adapter.send(chat, QUESTION)),
    "begin": ("sendMessageDraft", lambda adapter, chat: adapter.begin(chat, QUESTION)),
    "edit": ("editMessageText", lambda adapter, chat: adapter.edit(chat, Post("1"), QUESTION, last=False)),
    "typing": ("sendChatAction", lambda adapter, chat: adapter.typing(chat)),
    "download": ("getFile", lambda adapter, chat: adapter.download(Attachment("file", "f"), 10)),
}


@pytest.mark.parametrize(("method", "act"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (flood(7), Throttled),
        (Refusal(500, "Internal Server Error"), Unavailable),
        (Refusal(502, "Bad Gateway"), Unavailable),
        (Cut(), Unavailable),
        (Cut(after=True), Unavailable),
    ],
    ids=str,
)
async def test_failures_that_pass(
    telegram: TelegramServer,
    adapter: TelegramAdapter,
    method: str,
    act: Act,
    outcome: Refusal | Cut,
    error: type[PlatformError],
) -> None:
    alice = telegram.private("Alice")
    telegram.files["f"] = b"bytes"
    await adapter.send(chat(alice), Page("first"))
    telegram.script(method, outcome)
    with pytest.raises(error) as failed:
        await act(adapter, chat(alice))
    assert telegram.token not in str(failed.value)
    assert telegram.token.split(":")[1] not in str(failed.value)
    if isinstance(failed.value, Throttled):
        assert failed.value.retry_after == 7
    await act(adapter, chat(alice))


async def test_an_unreachable_api_is_unavailable() -> None:
    adapter = make()
    with pytest.raises(Unavailable) as failed:
        await adapter.send(Chat("5"), QUESTION)
    assert "test-token" not in str(failed.value)
    await adapter.stop()


async def test_a_parse_error_does_not_repeat_our_text(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    refusals = [bad('can\'t parse entities: Unsupported start tag "secret" at byte offset 0')] * 2
    telegram.script("sendMessage", *refusals)
    with pytest.raises(Refused) as refused:
        await adapter.send(chat(alice), QUESTION)
    assert str(refused.value) == "400 Bad Request: can't parse entities"


MARKDOWN = """# A **bold** heading

*italic* ~~gone~~ `a < b` [a & b](https://example.com/?a=1&b=2) ![bird](https://example.com/b.png) <script> &copy;

> quoted
> > deeper

| a | b |
|---|---|
| 1 | x<y |

```python
if a < b: print("&amp;")
```
"""


async def test_the_dialect_is_what_telegram_takes(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    await adapter.send(chat(alice), Page(render(MARKDOWN, adapter.can.dialect), "refused"))
    [shown] = telegram.shown(alice)
    for words in ("A bold heading", "italic gone a < b a & b bird <script>", "quoted", "deeper", "x<y", '("&amp;")'):
        assert words in shown.text
    assert '<pre><code class="language-python">' in shown.html


@given(st.text("ab *_`~[]()<>&|#>-1.\n!:\"'\\中🐦\t", max_size=200))
def test_whatever_a_model_writes_is_markup_that_telegram_takes(source: str) -> None:
    parsed(render(source, TelegramAdapter.can.dialect))


# -- drafts and edits -------------------------------------------------------------------------------------------------


async def grow(adapter: TelegramAdapter, chat: Chat, *texts: str) -> Post:
    """Let an answer grow as the core does."""
    post = Post(await adapter.begin(chat, Page(texts[0], key="k:0")), texts[0])
    for text in texts[1:]:
        id = await adapter.edit(chat, post, Page(text, text, "k:0"), last=text == texts[-1])
        post = Post(id, text, post.edits + 1)
    return post


async def test_an_answer_grows_as_a_draft_in_private(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    post = await grow(adapter, chat(alice), "One", "One two", "One two three")
    assert [*alice.drafts.values()] == [["One", "One two"]]
    assert [(str(shown.id), shown.history) for shown in telegram.shown(alice)] == [(post.id, ["One two three"])]
    assert telegram.called("sendMessageDraft")[0]["can_stop"] is True


async def test_an_answer_grows_by_edits_in_a_group(
    telegram: TelegramServer, adapter: TelegramAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.telegram, "GROUP_EDIT_EVERY", 0.0)
    group = telegram.group("Readers")
    await grow(adapter, chat(group), "One", "One two", "One two three")
    assert [shown.history for shown in telegram.shown(group)] == [["One", "One two", "One two three"]]
    assert not telegram.called("sendMessageDraft")


async def test_a_group_is_edited_at_its_own_pace(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    group, other = telegram.group("Readers"), telegram.group("Writers")
    post, elsewhere = Post(await adapter.begin(chat(group), QUESTION)), Post(await adapter.begin(chat(other), QUESTION))
    await adapter.edit(chat(group), post, Page("1"), last=False)
    with pytest.raises(Throttled) as throttled:
        await adapter.edit(chat(group), post, Page("2"), last=False)
    assert 0 < throttled.value.retry_after <= GROUP_EDIT_EVERY
    await adapter.edit(chat(other), elsewhere, Page("3"), last=False)
    await adapter.edit(chat(group), post, Page("4"), last=True)
    assert telegram.shown(group)[0].history[1:] == ["1", "4"]


def no_method(telegram: TelegramServer) -> None:
    telegram.drafts = False


def wrong_peer(telegram: TelegramServer) -> None:
    telegram.script("sendMessageDraft", *[bad("TEXTDRAFT_PEER_INVALID")] * 9)


@pytest.mark.parametrize("breaks", [no_method, wrong_peer])
async def test_where_drafts_are_refused_the_answer_grows_by_edits(
    telegram: TelegramServer, adapter: TelegramAdapter, breaks: Callable[[TelegramServer], None]
) -> None:
    breaks(telegram)
    alice = telegram.private("Alice")
    await grow(adapter, chat(alice), "One", "One two", "One two three")
    tried = len(telegram.called("sendMessageDraft"))
    await grow(adapter, chat(alice), "Four", "Four five")
    assert [shown.history for shown in telegram.shown(alice)] == [
        ["One", "One two", "One two three"],
        ["Four", "Four five"],
    ]
    assert len(telegram.called("sendMessageDraft")) == tried <= 1


async def test_drafts_are_tried_again_after_a_while(
    telegram: TelegramServer, adapter: TelegramAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = telegram.private("Alice")
    telegram.script("sendMessageDraft", bad("TEXTDRAFT_PEER_INVALID"))
    assert not (await adapter.begin(chat(alice), QUESTION)).startswith("draft:")
    now = time.monotonic() + adapters.telegram.DRAFTS_PAUSE + 1
    monkeypatch.setattr("adapters.telegram.time.monotonic", lambda: now)
    assert (await adapter.begin(chat(alice), QUESTION)).startswith("draft:")


async def test_a_draft_that_breaks_off_goes_on_as_a_message(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    post = Post(await adapter.begin(chat(alice), Page("One", key="k:0")))
    telegram.drafts = False
    post = Post(await adapter.edit(chat(alice), post, Page("One two", key="k:0"), last=False))
    await adapter.edit(chat(alice), post, Page("One two three", key="k:0"), last=True)
    assert [shown.history for shown in telegram.shown(alice)] == [["One two", "One two three"]]


async def test_a_fresh_process_finishes_a_draft_it_did_not_begin(telegram: TelegramServer) -> None:
    alice = telegram.private("Alice")
    before, after = make(telegram.base), make(telegram.base)
    post = Post(await before.begin(chat(alice), Page("One", key="k:0")))
    await before.stop()
    assert await after.edit(chat(alice), post, Page("One two", key="k:0"), last=False) == post.id
    await after.edit(chat(alice), post, Page("One two three", key="k:0"), last=True)
    await after.stop()
    assert [*alice.drafts.values()] == [["One", "One two"]]
    assert [shown.text for shown in telegram.shown(alice)] == ["One two three"]


async def test_every_page_has_its_own_draft(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    alice = telegram.private("Alice")
    for key in ("", "k:0", "k:1", "k:0"):
        await adapter.begin(chat(alice), Page("x", key=key))
    assert [len(texts) for texts in alice.drafts.values()] == [1, 2, 1]
    assert all(0 < draft < 2**31 for draft in alice.drafts)


async def test_a_draft_nobody_needs_any_more_leaves_nothing_behind(
    telegram: TelegramServer, adapter: TelegramAdapter
) -> None:
    alice = telegram.private("Alice")
    spare = await adapter.begin(chat(alice), Page("Two", key="k:1"))
    assert await adapter.edit(chat(alice), Post(spare), Page("-", "-"), last=True) == spare
    assert telegram.shown(alice) == []


async def test_an_edit_that_changes_nothing_is_fine(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    group = telegram.group("Readers")
    id = await adapter.send(chat(group), QUESTION)
    assert await adapter.edit(chat(group), Post(id), QUESTION, last=True) == id


async def test_a_deleted_post_is_posted_anew(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    group = telegram.group("Readers")
    id = await adapter.begin(chat(group), QUESTION)
    group.messages.clear()
    again = await adapter.edit(chat(group), Post(id), Page("all of it"), last=True)
    assert again != id
    assert [shown.text for shown in telegram.shown(group)] == ["all of it"]


async def test_an_edit_that_is_refused_otherwise_says_so(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    group = telegram.group("Readers")
    id = await adapter.begin(chat(group), QUESTION)
    group.lost = LOST["kicked"]
    with pytest.raises(Refused, match="kicked"):
        await adapter.edit(chat(group), Post(id), Page("all of it"), last=True)


# -- a group that becomes a supergroup --------------------------------------------------------------------------------


async def test_a_group_that_moved_is_answered_in_its_new_place(telegram: TelegramServer) -> None:
    group = telegram.group("Readers", kind="group")
    moved = telegram.migrate(group)
    async with context("telegram") as lent:
        adapter = make(telegram.base, lent=lent)
        await adapter.send(chat(group), QUESTION)
        await adapter.stop()
    assert [shown.text for shown in telegram.shown(moved)] == ["Hello & welcome"]


async def test_a_group_that_moved_is_followed_and_remembered(telegram: TelegramServer) -> None:
    group = telegram.group("Readers", kind="group")
    async with context("telegram") as lent:
        adapter, replica = make(telegram.base, lent=lent), make(telegram.base, lent=lent)
        begun = await adapter.begin(chat(group), Page("One"))
        moved = telegram.migrate(group)
        assert await adapter.send(chat(moved), Page("another")) == begun  # ids begin anew there
        post = Post(await adapter.edit(chat(group), Post(begun), Page("One two"), last=True))
        calls = len(telegram.calls)
        await replica.edit(chat(group), post, Page("One two three"), last=True)
        assert [shown.history for shown in telegram.shown(moved)] == [["another"], ["One two", "One two three"]]
        assert len(telegram.calls) == calls + 1  # at once to the new id
        await adapter.stop()
        await replica.stop()


# -- files ------------------------------------------------------------------------------------------------------------


async def test_download(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    telegram.files["a b?c#d%20"] = b"content"
    assert await adapter.download(Attachment("file", "a b?c#d%20"), 7) == b"content"


@pytest.mark.parametrize(("id", "limit"), [("known", 6), ("unknown", 100)])
async def test_a_file_too_large_or_unknown_is_refused(
    telegram: TelegramServer, adapter: TelegramAdapter, id: str, limit: int
) -> None:
    telegram.files["known"] = b"content"
    with pytest.raises(Refused) as refused:
        await adapter.download(Attachment("file", id), limit)
    assert telegram.token not in str(refused.value)


# -- register and check -----------------------------------------------------------------------------------------------

URL = "https://bot.example.com/webhooks/telegram"


async def test_register(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    findings = await adapter.register(URL)
    assert all(finding.ok for finding in findings)
    assert telegram.webhook["url"] == URL
    assert telegram.webhook["secret_token"] == SECRET
    assert telegram.webhook["allowed_updates"] == ["message", "stopped_message_generation"]
    assert {language: [command["command"] for command in menu] for language, menu in telegram.commands.items()} == {
        "": ["help", "reset", "stop", "retry", "usage"],
        "zh": ["help", "reset", "stop", "retry", "usage"],
    }
    assert all(finding.ok for finding in await adapter.check(URL))


async def test_what_telegram_is_told_to_send_is_what_verify_takes(
    telegram: TelegramServer, adapter: TelegramAdapter
) -> None:
    await adapter.register(URL)
    await adapter.verify(Request(headers={"x-telegram-bot-api-secret-token": telegram.webhook["secret_token"]}))


async def test_register_says_what_telegram_does_not_take(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    telegram.local = False
    [finding] = await adapter.register("http://bot.example.com:8080/webhooks/telegram")
    assert not finding.ok
    assert "bad webhook" in finding.what
    assert "https" in finding.advice


async def test_check_finds_a_webhook_that_points_elsewhere(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    findings = await adapter.check(URL)
    assert [finding.advice for finding in findings if not finding.ok] == ["run: magpie register telegram"]
    assert f"@{USERNAME}" in findings[0].what


@pytest.mark.parametrize(("age", "fine"), [(60, False), (7200, True)])
async def test_check_tells_the_last_error_and_when(
    telegram: TelegramServer, adapter: TelegramAdapter, age: int, fine: bool
) -> None:
    at = int(time.time()) - age
    telegram.webhook = {"url": URL, "last_error_date": at, "last_error_message": "Connection refused"}
    finding = (await adapter.check(URL))[-1]
    assert finding.ok is fine
    assert "Connection refused" in finding.what
    assert time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at)) in finding.what


async def test_check_tells_that_updates_pile_up(telegram: TelegramServer, adapter: TelegramAdapter) -> None:
    telegram.webhook = {"url": URL, "pending_update_count": 5000}
    assert [finding.what for finding in await adapter.check(URL) if not finding.ok] == ["5000 updates wait at Telegram"]


@pytest.mark.parametrize("ask", ["check", "register"])
async def test_a_wrong_token_names_its_variable(telegram: TelegramServer, ask: str) -> None:
    adapter = make(telegram.base, f"{BOT_ID}:revoked")
    [finding] = await getattr(adapter, ask)(URL)
    assert not finding.ok
    assert "TELEGRAM_BOT_TOKEN" in finding.advice
    assert "revoked" not in finding.what + finding.advice
    await adapter.stop()


@pytest.mark.parametrize("ask", ["check", "register"])
async def test_an_unreachable_api_names_its_variable(ask: str) -> None:
    adapter = make()
    [finding] = await getattr(adapter, ask)(URL)
    assert "TELEGRAM_API_BASE" in finding.advice
    await adapter.stop()


# -- with the core ----------------------------------------------------------------------------------------------------


class TestPromises(AdapterPromises):
    adapter = TelegramAdapter
    settings = {"bot_token": TOKEN, "webhook_secret": SECRET}

    def text_message(self) -> Request:
        return Request(headers=SIGNED, body=json.dumps(UPDATE).encode())


UPDATE = json.loads((FIXTURES[0].parent / "private_text.json").read_text())["update"]


@contextlib.asynccontextmanager
async def serving(telegram: TelegramServer, script: Script = echo, **options: Any) -> AsyncIterator[Magpie]:
    """Run the whole bot, with the webhook registered."""
    instance = Configured("telegram", TelegramAdapter, settings(telegram.base))
    async with running(instance, model=ScriptedModel(script), **options) as magpie:
        findings = await magpie.adapters["telegram"].register(f"http://127.0.0.1:{magpie.port}/webhooks/telegram")
        assert all(finding.ok for finding in findings)
        yield magpie


async def test_a_question_in_private_is_answered(telegram: TelegramServer) -> None:
    alice = telegram.private("Alice")
    async with serving(telegram):
        await telegram.say(alice, "a <b> & c")
        await telegram.until(lambda: telegram.shown(alice))
    assert [shown.text for shown in telegram.shown(alice)] == ["You said: a <b> & c"]


async def test_a_long_answer_arrives_whole_in_pages(telegram: TelegramServer) -> None:
    alice = telegram.private("Alice")
    words = [f"**word{number}** " for number in range(1500)]
    async with serving(telegram, lambda turns: words):
        await telegram.say(alice, "tell me everything")
        await telegram.until(lambda: "word1499" in "".join(shown.text for shown in telegram.shown(alice)))
    shown = " ".join(shown.text for shown in telegram.shown(alice))
    assert shown.split() == [f"word{number}" for number in range(1500)]


async def test_a_group_hears_back_only_when_it_asks(telegram: TelegramServer) -> None:
    group = telegram.group("Readers", threads=(31,))
    async with serving(telegram):
        await telegram.say(group, "nobody asks", thread=31)
        update = await telegram.say(group, f"@{USERNAME} who?", thread=31)
        await asyncio.gather(*(telegram.deliver(update) for _ in range(3)))
        await telegram.until(lambda: telegram.shown(group))
        await telegram.say(telegram.private("Alice"), "hello")
        await telegram.until(lambda: telegram.shown([*telegram.rooms.values()][-1]))
    [shown] = telegram.shown(group)
    assert (shown.text, shown.thread, shown.reply_to) == ("You said: who?", 31, update["message"]["message_id"])


async def test_the_stop_button_ends_the_answer(telegram: TelegramServer) -> None:
    alice = telegram.private("Alice")
    endless = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "Once upon a time"
        await endless.wait()

    async with serving(telegram, script):
        await telegram.say(alice, "a story")
        await telegram.until(lambda: alice.drafts)
        await telegram.press_stop(alice)
        await telegram.until(lambda: telegram.shown(alice))
    assert telegram.shown(alice)[0].text.startswith("Once upon a time")


async def test_a_flood_wait_is_honoured_and_nothing_is_lost(telegram: TelegramServer) -> None:
    alice = telegram.private("Alice")
    telegram.script("sendMessage", flood(1), Refusal(502, "Bad Gateway"), Cut())
    async with serving(telegram):
        await telegram.say(alice, "hello")
        await telegram.until(lambda: telegram.shown(alice))
    assert [shown.text for shown in telegram.shown(alice)] == ["You said: hello"]


# -- the server itself is strict --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<b>a</b> &lt;&amp;&#33; &copy;", "a <&! &copy;"),
        ('<pre><code class="language-python">x</code></pre>', "x"),
        ('<a href="https://example.com/?a=1&amp;b=2">x</a>', "x"),
        ("<blockquote expandable>x</blockquote>", "x"),
    ],
)
def test_the_server_reads_html(source: str, text: str) -> None:
    assert parsed(source) == text


@pytest.mark.parametrize(
    ("method", "fields", "description"),
    [
        ("sendMessage", {"text": "x"}, "chat_id is empty"),
        ("sendMessage", {"chat_id": "x", "text": "x"}, "field chat_id must be a number"),
        ("sendMessage", {"chat_id": 1000}, "message text is empty"),
        ("sendMessage", {"chat_id": 1000, "text": "x" * 4097}, "message is too long"),
        ("sendMessage", {"chat_id": 1000, "text": "x", "parse_mode": "Markup"}, "unsupported parse_mode"),
        ("editMessageText", {"chat_id": 1000, "text": "x"}, "message identifier is not specified"),
        ("sendMessageDraft", {"chat_id": 1000, "draft_id": 0, "text": "x"}, "draft_id must be non-zero"),
        ("sendMessageDraft", {"chat_id": -1000000001001, "draft_id": 1, "text": "x"}, "TEXTDRAFT_PEER_INVALID"),
        ("sendChatAction", {"chat_id": 1000, "action": "dancing"}, "wrong parameter action in request"),
        ("sendTelepathy", {}, "method not found"),
    ],
)
async def test_the_server_refuses(
    telegram: TelegramServer, adapter: TelegramAdapter, method: str, fields: dict[str, Any], description: str
) -> None:
    telegram.private("Alice")
    telegram.group("Readers")
    with pytest.raises(Refused, match=description):
        await adapter.client.call("POST", f"/{method}", json=fields)
