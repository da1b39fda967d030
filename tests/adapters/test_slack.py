"""Slack: every kind of delivery, streams that die in every way, and a whole bot against a strict server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as relax
from hypothesis import strategies as st
from pydantic import ValidationError
from slack_sdk.signature import SignatureVerifier
from slack_sdk.web.async_client import AsyncWebClient

import adapters.slack
from adapters.slack import SlackAdapter, SlackSettings
from adapters.slack.console import EVENTS, SCOPES, manifest
from adapters.slack.text import settled, spoken
from bot.adapter import Attachment, Chat, Context, Inbound, Message, Page, Post, Request, State, Turn
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render
from bot.registry import Configured
from bot.testing import AdapterPromises, Script, ScriptedModel, echo, running
from tests.adapters.slack_server import BOT, SECRET, TEAM, TOKEN, Channel, Cut, Refusal, SlackServer, flood

RELAXED = relax(deadline=None)
FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("slack/*.json"))
ROOT = Path(__file__).parents[2]
VECTORS = {  # the first is the vendor's own: https://docs.slack.dev/authentication/verifying-requests-from-slack
    "official": (
        "1531420618",
        "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name="
        "foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2F"
        "hooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015."
        "47445629121.803a0bc887a14d10d2c447fce8b6703c",
    ),
    "event": (
        "1700000000",
        "v0=3d92bced493bf3c8782380b924d3785dc928aa1382b45e109bc061f9644ede95",
        '{"token":"t","team_id":"T1","api_app_id":"A1","event":{"type":"app_mention","user":"U1","text":"<@U0BOT> hi",'
        '"ts":"1700000000.000100","channel":"C1"},"type":"event_callback","event_id":"Ev1","event_time":1700000000}',
    ),
}
JSON, FORM = {"content-type": "application/json"}, {"content-type": "application/x-www-form-urlencoded"}
ANSWER = Page("**Hello** & welcome", "Hello & welcome", "reply:0")


def settings(api: str = "http://127.0.0.1:9/api", token: str = TOKEN, **more: Any) -> SlackSettings:
    return SlackSettings.model_validate({"bot_token": token, "signing_secret": SECRET, "api_base": api, **more})


def make(api: str = "http://127.0.0.1:9/api", token: str = TOKEN, **more: Any) -> SlackAdapter:
    return SlackAdapter(settings(api, token, **more), Context("slack", create_autospec(State)))


def parse(adapter: SlackAdapter, event: object) -> Inbound:
    return adapter.parse(Request(headers=JSON, body=json.dumps(event).encode()))


def parse_form(adapter: SlackAdapter, **fields: str) -> Inbound:
    return adapter.parse(Request(headers=FORM, body=urlencode(fields).encode()))


def signed(body: bytes, at: float | None = None) -> Request:
    headers = {name.lower(): value for name, value in SlackServer().signed(body, at).items()}
    return Request(headers=headers | JSON, body=body)


@pytest.fixture
async def slack() -> AsyncIterator[SlackServer]:
    async with SlackServer() as server:
        yield server


@pytest.fixture
async def adapter(slack: SlackServer) -> AsyncIterator[SlackAdapter]:
    adapter = make(slack.api)
    yield adapter
    await adapter.stop()


def asked(slack: SlackServer, channel: Channel, text: str = "<@U0BOT> hi") -> Chat:
    """Let a person ask something; return where the answer goes."""
    return parse(make(slack.api), slack.written(channel, text)).messages[0].chat


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_the_secrets_hidden() -> None:
    env = Environment({"SALES_BOT_TOKEN": TOKEN, "SALES_SIGNING_SECRET": SECRET})
    read = env.read(SlackSettings, "sales")
    assert read is not None
    assert read.api_base == "https://slack.com/api"
    assert TOKEN not in repr(read)
    assert SECRET not in repr(read)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("BOT_TOKEN", None),
        ("BOT_TOKEN", "xapp-1-A1-x"),
        ("BOT_TOKEN", "xoxp-1-x"),
        ("SIGNING_SECRET", None),
        ("API_BASE", "slack.com"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    env = Environment({"S_BOT_TOKEN": TOKEN, "S_SIGNING_SECRET": SECRET, f"S_{field}": value})
    assert env.read(SlackSettings, "s") is None
    [problem] = env.problems
    assert problem.startswith(f"S_{field}: ")
    assert value is None or value not in problem


@pytest.mark.parametrize("field", ["bot_token", "signing_secret"])
def test_an_empty_secret_does_not_pass(field: str) -> None:
    with pytest.raises(ValidationError):
        SlackSettings.model_validate({"bot_token": TOKEN, "signing_secret": SECRET, field: " "})


# -- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timestamp", "signature", "body"), VECTORS.values(), ids=VECTORS)
async def test_the_vendors_vectors_verify(
    monkeypatch: pytest.MonkeyPatch, timestamp: str, signature: str, body: str
) -> None:
    monkeypatch.setattr(time, "time", lambda: float(timestamp) + 299)
    headers = {"x-slack-request-timestamp": timestamp, "x-slack-signature": signature}
    await make().verify(Request(headers=headers, body=body.encode()))


@pytest.mark.parametrize("body", [b"", b"{}", '{"text":"喜鹊 🐦"}'.encode(), b"payload=%7B%7D"])
@pytest.mark.parametrize("age", [-290, 0, 290])
async def test_what_the_vendors_sdk_signs_we_take(body: bytes, age: int) -> None:
    await make().verify(signed(body, time.time() - age))


def test_what_we_sign_the_vendors_sdk_takes() -> None:
    sample = make().sample()
    assert SignatureVerifier(SECRET).is_valid_request(sample.body, dict(sample.headers))


def old(request: Request) -> Request:
    return signed(request.body, time.time() - 301)


def early(request: Request) -> Request:
    return signed(request.body, time.time() + 301)


def changed(request: Request) -> Request:
    return msgspec.structs.replace(request, body=request.body + b" ")


def with_header(name: str, value: str | None) -> Callable[[Request], Request]:
    def change(request: Request) -> Request:
        rest = {key: given for key, given in request.headers.items() if key != name}
        return msgspec.structs.replace(request, headers=rest if value is None else rest | {name: value})

    return change


@pytest.mark.parametrize(
    "forge",
    [
        old,
        early,
        changed,
        *(with_header("x-slack-signature", value) for value in (None, "", "v0=", "v0=00", "v1=x", "ключ", "\udcff")),
        *(with_header("x-slack-request-timestamp", value) for value in (None, "", "x", "1e9", "9" * 400, "\udcff")),
    ],
)
async def test_everything_else_is_refused(forge: Callable[[Request], Request]) -> None:
    with pytest.raises(Unverified) as refused:
        await make().verify(forge(signed(b'{"type":"x"}')))
    assert SECRET not in str(refused.value)


async def test_another_apps_signature_is_refused() -> None:
    headers = SlackServer(secret="another").signed(b"{}")
    with pytest.raises(Unverified):
        await make().verify(Request(headers={name.lower(): value for name, value in headers.items()}, body=b"{}"))


# -- parse ------------------------------------------------------------------------------------------------------------


def test_the_url_is_verified() -> None:
    inbound = parse(make(), {"token": "x", "type": "url_verification", "challenge": "3eZbrw1aB"})
    assert (inbound.messages, json.loads(inbound.response.body)) == ((), {"challenge": "3eZbrw1aB"})


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(make(), case["event"])
    expected = [msgspec.convert(case["message"], Message)] if "message" in case else []
    assert list(inbound.messages) == expected
    assert inbound.ignored == case.get("ignored", "")
    assert (inbound.response.status, inbound.response.body) == (200, b"")


def test_one_message_that_arrives_as_two_events_is_one_message() -> None:
    server = SlackServer()
    message = server.written(Channel("C1", "channel"), f"<@{BOT}> hi")
    first, second = (parse(make(), event).messages for event in (message, server.mention(message)))
    assert first == second


@pytest.mark.parametrize(("separate", "thread"), [(False, ""), (True, "1790000000.000001")])
def test_direct_messages_share_a_memory_unless_told_otherwise(separate: bool, thread: str) -> None:
    envelope = SlackServer().written(Channel("D1", "im"), "hi")
    [message] = parse(make(thread_memory=separate), envelope).messages
    assert message.chat.thread == thread
    assert json.loads(message.chat.ticket)["thread"] == "1790000000.000001"


SLASH = {
    "team_id": TEAM,
    "channel_id": "C1",
    "user_id": "U1ADA",
    "user_name": "ada",
    "trigger_id": "1.2.x",
    "response_url": "https://hooks.slack.com/commands/T0TEAM/1/x",
}


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("/magpie", "What is a magpie?", "What is a magpie?"),
        ("/magpie", "a &lt; b", "a < b"),
        ("/magpie", " Reset ", "/reset"),
        ("/magpie", "/reset", "/reset"),
        ("/magpie", "reset my mind", "reset my mind"),
        ("/magpie", "", "/help"),
        ("/stop", "", "/stop"),
    ],
)
def test_a_slash_command(command: str, text: str, said: str) -> None:
    [message] = parse_form(make(), **SLASH, command=command, text=text).messages
    assert (message.id, message.user, message.user_name, message.text) == ("command/1.2.x", "U1ADA", "ada", said)
    assert message.addressed
    assert message.chat.kind == "group"
    assert json.loads(message.chat.ticket)["reply"] == SLASH["response_url"]


def test_a_command_in_a_direct_message_belongs_to_its_conversation() -> None:
    [message] = parse_form(make(), **{**SLASH, "channel_id": "D1"}, command="/magpie", text="reset").messages
    [direct] = parse(make(), SlackServer().written(Channel("D1", "im"), "hi")).messages
    assert (message.chat.id, message.chat.thread, message.chat.kind) == (direct.chat.id, direct.chat.thread, "direct")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.slack.com/x",
        "https://[",
        "https://hooks.slack.com@evil.example/",
        "https://hooks.slack.com.evil.example/x",
        "https://evil.example/",
        "",
        "file:///x",
    ],
)
def test_an_answer_goes_to_no_address_outside_of_slack(url: str) -> None:
    [message] = parse_form(make(), **{**SLASH, "response_url": url}, command="/magpie", text="x").messages
    assert "reply" not in json.loads(message.chat.ticket)


def press(**interaction: Any) -> Inbound:
    payload = {
        "type": "block_actions",
        "trigger_id": "1.2.x",
        "user": {"id": "U1ADA", "name": "ada", "team_id": TEAM},
        "team": {"id": TEAM, "domain": "readers"},
        "channel": {"id": "C1", "name": "general"},
        "message": {"ts": "17.2", "thread_ts": "17.1", "text": "Which one?"},
        "response_url": SLASH["response_url"],
        **interaction,
    }
    return parse_form(make(), payload=json.dumps(payload))


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"type": "button", "value": "the first", "text": {"text": "One"}}, "the first"),
        ({"type": "button", "text": {"type": "plain_text", "text": "One"}}, "One"),
        ({"type": "static_select", "selected_option": {"value": "two", "text": {"text": "Two"}}}, "two"),
        ({"type": "plain_text_input", "value": "three"}, "three"),
    ],
)
def test_a_button_says_something_in_its_thread(action: dict[str, Any], said: str) -> None:
    [message] = press(actions=[{"action_id": "a", **action}]).messages
    assert (message.id, message.text, message.user) == ("interaction/1.2.x", said, "U1ADA")
    assert (message.chat.id, message.chat.thread) == ("C1", "17.1")
    assert "reply" not in json.loads(message.chat.ticket)


def test_a_shortcut_asks_about_a_message_for_the_person_alone() -> None:
    files = [{"id": "F1", "mimetype": "image/png"}]
    [message] = press(type="message_action", message={"ts": "17.2", "text": "a &amp; b", "files": files}).messages
    assert (message.text, message.chat.thread) == ("a & b", "17.2")
    assert [file.kind for file in message.attachments] == ["image"]
    assert json.loads(message.chat.ticket)["reply"] == SLASH["response_url"]


@pytest.mark.parametrize(
    "interaction",
    [
        {"type": "view_submission", "view": {}, "channel": None},
        {"type": "view_closed"},
        {"actions": []},
        {"actions": [{"type": "button", "url": "https://example.com", "text": {"text": "Open"}}]},
        {"type": "shortcut", "channel": None, "message": None},
    ],
)
def test_other_interactions_are_acknowledged(interaction: dict[str, Any]) -> None:
    inbound = press(**interaction)
    assert (inbound.messages, inbound.ignored, inbound.response.body) == ((), "interaction without words", b"")


def test_the_check_of_a_commands_address_is_acknowledged() -> None:
    assert parse_form(make(), ssl_check="1", token="x").ignored == "ssl check"


BODY = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode())


@RELAXED
@given(BODY, st.sampled_from([JSON, FORM]))
def test_garbage_holds_no_message(body: bytes, headers: dict[str, str]) -> None:
    with contextlib.suppress(Malformed):
        assert make().parse(Request(headers=headers, body=body)).messages == ()


@RELAXED
@given(BODY)
def test_garbage_inside_of_a_form_holds_no_message(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert make().parse(Request(headers=FORM, body=urlencode({"payload": body}).encode())).messages == ()


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"type":"event_callback"}', b'{"type":"event_callback","event":7}'])
def test_what_slack_does_not_send_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        make().parse(Request(headers=JSON, body=body))


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


@RELAXED
@given(st.data())
def test_a_wrong_type_anywhere_is_malformed_or_harmless(data: st.DataObject) -> None:
    event = json.loads(data.draw(st.sampled_from(FIXTURES)).read_text())["event"]
    path = data.draw(st.sampled_from(leaves(event)[1:]))
    holder = event
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(
        st.sampled_from([None, True, -1, 10**30, 1.5, "", "\U0001f426", "<@U0BOT>", [], [[]], {}, {"id": 1}])
    )
    with contextlib.suppress(Malformed):
        parse(make(), event)


@RELAXED
@given(st.text("<>@#!|&;lt:U0 \nab中"))
def test_any_text_is_read(text: str) -> None:
    assert f"<@{BOT}" not in spoken(f"{text}<@{BOT}>", {BOT})


# -- send -------------------------------------------------------------------------------------------------------------


async def test_an_answer_goes_into_the_thread_of_its_question(slack: SlackServer, adapter: SlackAdapter) -> None:
    channel = slack.channel()
    chat = asked(slack, channel)
    id = await adapter.send(chat, ANSWER)
    [shown] = slack.shown(channel)
    assert (shown.ts, shown.text, shown.markdown, shown.thread) == (id, ANSWER.text, True, chat.thread)
    assert slack.called("chat.postMessage")[0]["unfurl_links"] is False


async def test_a_deleted_question_is_answered_all_the_same(slack: SlackServer, adapter: SlackAdapter) -> None:
    channel = slack.channel()
    chat = asked(slack, channel)
    channel.messages.clear()
    await adapter.send(chat, ANSWER)
    assert [(shown.text, shown.thread) for shown in slack.shown(channel)] == [(ANSWER.text, "")]


@pytest.mark.parametrize("error", ["invalid_blocks", "msg_blocks_too_long", "no_text"])
async def test_refused_markdown_is_sent_plain(slack: SlackServer, adapter: SlackAdapter, error: str) -> None:
    ada = slack.direct("U1ADA")
    slack.script("chat.postMessage", Refusal(error))
    await adapter.send(asked(slack, ada), ANSWER)
    [shown] = slack.shown(ada)
    assert (shown.text, shown.markdown) == ("Hello &amp; welcome", False)


@pytest.mark.parametrize("error", ["channel_not_found", "not_in_channel", "is_archived", "restricted_action"])
async def test_a_channel_that_is_lost_refuses(slack: SlackServer, adapter: SlackAdapter, error: str) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    slack.script("chat.startStream", Refusal(error))
    slack.script("chat.postMessage", Refusal(error))
    with pytest.raises(Refused, match=error) as refused:
        await adapter.begin(chat, ANSWER)
    assert not isinstance(refused.value, Unauthorized)
    await adapter.begin(chat, ANSWER)
    assert len(slack.called("chat.startStream")) == 2  # it was not the stream's fault


@pytest.mark.parametrize("error", ["invalid_auth", "account_inactive", "token_revoked", "missing_scope"])
async def test_a_token_that_is_refused_is_unauthorized(slack: SlackServer, adapter: SlackAdapter, error: str) -> None:
    slack.script("chat.postMessage", Refusal(error))
    with pytest.raises(Unauthorized) as refused:
        await adapter.send(asked(slack, slack.direct("U1ADA")), ANSWER)
    assert TOKEN not in str(refused.value)


Act = Callable[[SlackAdapter, Chat, str], Awaitable[object]]
ACTS: dict[str, tuple[str, Act]] = {
    "send": ("chat.postMessage", lambda adapter, chat, id: adapter.send(chat, ANSWER)),
    "begin": ("chat.startStream", lambda adapter, chat, id: adapter.begin(chat, ANSWER)),
    "edit": ("chat.update", lambda adapter, chat, id: adapter.edit(chat, Post(id), ANSWER, last=True)),
    "typing": ("assistant.threads.setStatus", lambda adapter, chat, id: adapter.typing(chat)),
    "download": ("files.info", lambda adapter, chat, id: adapter.download(Attachment("file", '{"id":"F1"}'), 10)),
}


@pytest.mark.parametrize(("method", "act"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (flood(7), Throttled),
        (Refusal("ratelimited"), Throttled),
        (Refusal("internal_error"), Unavailable),
        (Refusal("token_expired"), Unavailable),
        (Refusal("internal_error", 500), Unavailable),
        (Refusal("service_unavailable", 503), Unavailable),
        (Cut(), Unavailable),
        (Cut(after=True), Unavailable),
    ],
    ids=str,
)
async def test_failures_that_pass(
    slack: SlackServer,
    adapter: SlackAdapter,
    method: str,
    act: Act,
    outcome: Refusal | Cut,
    error: type[PlatformError],
) -> None:
    ada = slack.direct("U1ADA")
    slack.files["F1"] = b"bytes"
    chat = asked(slack, ada)
    id = await adapter.send(chat, Page("first"))
    slack.script(method, outcome)
    with pytest.raises(error) as failed:
        await act(adapter, chat, id)
    assert TOKEN not in str(failed.value)
    if isinstance(outcome, Refusal) and outcome.retry_after and isinstance(failed.value, Throttled):
        assert failed.value.retry_after == 7
    await act(adapter, chat, id)


async def test_an_unreachable_api_is_unavailable() -> None:
    adapter = make()
    with pytest.raises(Unavailable):
        await adapter.send(Chat("D1"), ANSWER)
    await adapter.stop()


async def test_thinking_is_shown_in_the_thread(slack: SlackServer, adapter: SlackAdapter) -> None:
    channel = slack.channel()
    await adapter.typing(asked(slack, channel))
    [status] = channel.statuses
    assert "thinking" in status
    assert "思考" in status


async def test_where_there_is_no_thread_there_is_no_status(slack: SlackServer, adapter: SlackAdapter) -> None:
    await adapter.typing(Chat(slack.channel().id, "group"))
    assert slack.calls == []


# -- the dialect ------------------------------------------------------------------------------------------------------

WRITTEN = """# A **bold** heading

中文**“粗体”**文字 *italic* ~~gone~~ `a < b` [docs](https://example.com/?a=1&b=2) ![bird](https://example.com/b.png)

- one
  - nested
    1. deep

> quoted

| a | b |
|---|---|
| 1 | x<y |

```python
if a < b: print("<!here>")
```

<!channel> <@U1ADA> <#C1>
"""
SHOWN = """# A **bold** heading

中文\u200a**“粗体”**\u200a文字 _italic_ ~~gone~~ `a < b` [docs](https://example.com/?a=1&b=2) [bird](https://example.com/b.png)

- one
  - nested
    1. deep

> quoted

| a | b |
| --- | --- |
| 1 | x<y |

```python
if a < b: print("<!here>")
```

<\u200b!channel> <\u200b@U1ADA> <\u200b#C1>"""


def test_the_dialect() -> None:
    assert render(WRITTEN, SlackAdapter.can.dialect) == SHOWN


@RELAXED
@given(st.text("ab *_`~[]()<>&|#@!>-1.\n:\"'\\中🐦\t", max_size=200))
def test_whatever_a_model_writes_calls_nobody(source: str) -> None:
    outside = render(source.replace("`", ""), SlackAdapter.can.dialect)
    if "    " not in source and "\t" not in source:  # code shows what it holds
        assert not any(call in outside for call in ("<@", "<!", "<#"))


@pytest.mark.parametrize(
    ("page", "sure"),
    [
        ("", ""),
        ("word", "wor"),
        ("two words", "two word"),
        ("two words ", "two word"),
        ("**bold**", "**bol"),
        ("plain **half", "plai"),
        ("plain `half", "plai"),
        ("done **bold** and more", "done **bold** and mor"),
        ("a\n\n- b\n- c", "a\n\n- b\n- "),
        ("```python\nx = 1\n```", "```python\nx = "),
    ],
)
def test_only_what_is_settled_is_streamed(page: str, sure: str) -> None:
    assert settled(page) == sure


# -- streams ----------------------------------------------------------------------------------------------------------


async def grow(adapter: SlackAdapter, chat: Chat, *texts: str, between: Callable[[int], object] = int) -> Post:
    """Let an answer grow as the core does. `between` is called before every edit with its number."""
    post = Post(await adapter.begin(chat, Page(texts[0], key="k:0")), texts[0])
    for number, text in enumerate(texts[1:], 1):
        between(number)
        id = await adapter.edit(chat, post, Page(text, text, "k:0"), last=text == texts[-1])
        post = Post(id, text, post.edits + 1)
    return post


TEXTS = ("One", "One two", "One two three", "One two three four.")


@pytest.mark.parametrize("kind", ["direct", "channel"])
async def test_an_answer_grows_as_a_stream(slack: SlackServer, adapter: SlackAdapter, kind: str) -> None:
    channel = slack.direct("U1ADA") if kind == "direct" else slack.channel()
    chat = asked(slack, channel)
    post = await grow(adapter, chat, *TEXTS)
    [shown] = slack.shown(channel)
    assert (shown.ts, shown.text, shown.state, shown.thread) == (
        post.id,
        TEXTS[-1],
        "",
        json.loads(chat.ticket)["thread"],
    )
    assert len(shown.history) == len(TEXTS)
    assert all(TEXTS[-1].startswith(text) for text in shown.history)
    [start] = slack.called("chat.startStream")
    assert (start["recipient_user_id"], start["recipient_team_id"]) == ("U1ADA", TEAM)
    assert not slack.called("chat.update")


async def test_white_space_between_two_pieces_is_kept(slack: SlackServer, adapter: SlackAdapter) -> None:
    ada = slack.direct("U1ADA")
    await grow(
        adapter,
        asked(slack, ada),
        "one",
        "one ",
        "one  two",
        "one  two\n\n",
        "one  two\n\n- three",
        "one  two\n\n- three\n- 4",
    )
    assert slack.shown(ada)[0].text == "one  two\n\n- three\n- 4"
    assert not slack.called("chat.update")


async def rendered(adapter: SlackAdapter, chat: Chat, source: str, step: int) -> None:
    """Let an answer grow as the core does, rendered at every step."""
    texts = [render(source[:end], adapter.can.dialect) for end in range(step, len(source) + step, step)]
    await grow(adapter, chat, *texts)


@pytest.mark.parametrize("step", [1, 7, 50])
async def test_markdown_that_grows_ends_as_it_should(slack: SlackServer, adapter: SlackAdapter, step: int) -> None:
    ada = slack.direct("U1ADA")
    await rendered(adapter, asked(slack, ada), WRITTEN, step)
    [shown] = slack.shown(ada)
    assert (shown.text, shown.state) == (SHOWN, "")


async def test_prose_is_streamed_to_its_end(slack: SlackServer, adapter: SlackAdapter) -> None:
    ada = slack.direct("U1ADA")
    source = (
        "喜鹊是**鸦科**的一种鸟，*Pica pica*。\n\n- 一\n- 二 `code`\n\n" + "A magpie is a **bird**, it *sings*. " * 20
    )
    await rendered(adapter, asked(slack, ada), source, 11)
    assert slack.shown(ada)[0].text == render(source, adapter.can.dialect)
    assert not slack.called("chat.update")


DEATHS: dict[str, Callable[[SlackServer, Channel], object]] = {
    "expired": lambda slack, channel: slack.expire(channel),
    "append refused": lambda slack, channel: slack.script("chat.appendStream", Refusal("msg_too_long")),
    "no such method any more": lambda slack, channel: slack.script("chat.appendStream", Refusal("method_deprecated")),
}


@pytest.mark.parametrize("dies", DEATHS.values(), ids=DEATHS)
@pytest.mark.parametrize("when", [1, 2, 3])
async def test_a_stream_that_dies_goes_on_by_edits(
    slack: SlackServer, adapter: SlackAdapter, dies: Callable[[SlackServer, Channel], object], when: int
) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    await grow(adapter, chat, *TEXTS, between=lambda number: number == when and dies(slack, ada))
    [shown] = slack.shown(ada)
    assert (shown.text, shown.state) == (TEXTS[-1], "")


@pytest.mark.parametrize("method", ["chat.appendStream", "chat.stopStream"])
@pytest.mark.parametrize("after", [True, False])
async def test_words_that_may_have_been_appended_are_not_appended_again(
    slack: SlackServer, adapter: SlackAdapter, method: str, after: bool
) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    post = Post(await adapter.begin(chat, Page("One two")), "One two")
    slack.script(method, Cut(after))
    last = method == "chat.stopStream"
    with pytest.raises(Unavailable):
        await adapter.edit(chat, post, Page("One two three"), last)
    await adapter.edit(chat, post, Page("One two three four"), last=False)
    await adapter.edit(chat, post, Page("One two three four."), last=True)
    [shown] = slack.shown(ada)
    assert (shown.text, shown.state) == ("One two three four.", "")
    assert all("One two three four.".startswith(text) for text in shown.history)


async def test_a_stream_that_was_throttled_goes_on(slack: SlackServer, adapter: SlackAdapter) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    post = Post(await adapter.begin(chat, Page(TEXTS[0])))
    for method, last in (("chat.appendStream", False), ("chat.stopStream", True)):
        slack.script(method, flood(1))
        with pytest.raises(Throttled):
            await adapter.edit(chat, post, Page(TEXTS[-1]), last)
        await adapter.edit(chat, post, Page(TEXTS[-1]), last)
    assert slack.shown(ada)[0].text == TEXTS[-1]
    assert not slack.called("chat.update")


@pytest.mark.parametrize("alive", [True, False])
async def test_a_fresh_process_finishes_a_stream_it_did_not_begin(
    slack: SlackServer, adapter: SlackAdapter, alive: bool
) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    post = Post(await adapter.begin(chat, Page(TEXTS[1])), TEXTS[0])
    if not alive:
        slack.expire(ada)
    after = make(slack.api)
    assert await after.edit(chat, post, Page(TEXTS[2]), last=False) == post.id
    assert await after.edit(chat, post, Page(TEXTS[3]), last=True) == post.id
    await after.stop()
    [shown] = slack.shown(ada)
    assert (shown.text, shown.state) == (TEXTS[-1], "")


def no_streams(slack: SlackServer, channel: Channel) -> None:
    channel.streams = False


def no_method(slack: SlackServer, channel: Channel) -> None:
    slack.streaming = False


@pytest.mark.parametrize("lacks", [no_streams, no_method])
async def test_where_streams_are_refused_the_answer_grows_by_edits(
    slack: SlackServer, adapter: SlackAdapter, lacks: Callable[[SlackServer, Channel], None]
) -> None:
    channel = slack.channel()
    lacks(slack, channel)
    await grow(adapter, asked(slack, channel), *TEXTS)
    await grow(adapter, asked(slack, channel), *TEXTS)
    assert [shown.history for shown in slack.shown(channel)] == [list(TEXTS), list(TEXTS)]
    assert len(slack.called("chat.startStream")) == 1  # not offered again for a while


async def test_streams_are_offered_again_after_a_while(
    slack: SlackServer, adapter: SlackAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = slack.channel()
    slack.script("chat.startStream", Refusal("feature_not_enabled"))
    await grow(adapter, asked(slack, channel), *TEXTS)
    later = time.monotonic() + adapters.slack.EDITS_FOR + 1
    monkeypatch.setattr("adapters.slack.time.monotonic", lambda: later)
    await grow(adapter, asked(slack, channel), *TEXTS)
    assert len(slack.called("chat.startStream")) == 2
    assert len(slack.called("chat.stopStream")) == 1


async def test_another_channel_is_offered_a_stream_all_the_same(slack: SlackServer, adapter: SlackAdapter) -> None:
    channel, ada = slack.channel(), slack.direct("U1ADA")
    channel.streams = False
    await grow(adapter, asked(slack, channel), *TEXTS)
    await grow(adapter, asked(slack, ada), *TEXTS)
    assert len(slack.called("chat.stopStream")) == 1


async def test_streams_that_nobody_ended_are_forgotten(
    slack: SlackServer, adapter: SlackAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = slack.direct("U1ADA")
    for _ in range(3):
        await adapter.begin(asked(slack, ada), ANSWER)
    later = time.monotonic() + adapters.slack.STREAM_LIVES + 1
    monkeypatch.setattr("adapters.slack.time.monotonic", lambda: later)
    await adapter.begin(asked(slack, ada), ANSWER)
    assert len(adapter._streams) == 1


async def test_a_deleted_post_is_posted_anew(slack: SlackServer, adapter: SlackAdapter) -> None:
    channel = slack.channel()
    chat = asked(slack, channel)
    id = await adapter.send(chat, ANSWER)
    del channel.messages[id]
    again = await adapter.edit(chat, Post(id), Page("all of it"), last=True)
    assert [(shown.ts, shown.text) for shown in slack.shown(channel)] == [(again, "all of it")]


async def test_a_page_that_slack_does_not_take_as_markdown_is_shown_plain(
    slack: SlackServer, adapter: SlackAdapter
) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    post = Post(await adapter.send(chat, Page("One")))
    for method in ("chat.update", "chat.update", "chat.postMessage"):
        slack.script(method, Refusal("msg_too_long"))
    assert await adapter.edit(chat, post, Page("One **two**"), last=False) == post.id
    await adapter.edit(chat, post, Page("One **two** three", "One two three"), last=True)
    assert [(shown.text, shown.markdown) for shown in slack.shown(ada)] == [("One two three", False)]


@pytest.mark.parametrize("error", ["channel_not_found", "invalid_auth"])
async def test_an_edit_that_is_refused_otherwise_says_so(slack: SlackServer, adapter: SlackAdapter, error: str) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    post = Post(await adapter.send(chat, ANSWER))
    slack.script("chat.update", Refusal(error))
    with pytest.raises(Refused, match=error):
        await adapter.edit(chat, post, Page("all of it"), last=True)


# -- commands ---------------------------------------------------------------------------------------------------------


def used(slack: SlackServer, channel: Channel, id: str = "1") -> Chat:
    """Let a person use a slash command; return where the answer goes."""
    slack._hooks[id] = (channel, 5)
    form = {**SLASH, "channel_id": channel.id, "response_url": f"{slack.origin}/commands/{id}"}
    return parse_form(make(slack.api), **form, command="/magpie", text="hi").messages[0].chat


async def test_a_command_is_answered_to_the_person_alone_and_once(slack: SlackServer, adapter: SlackAdapter) -> None:
    channel = slack.channel(member=False)
    chat = used(slack, channel)
    assert await adapter.begin(chat, Page("One")) == ""
    assert await adapter.edit(chat, Post(""), Page("One two"), last=False) == ""
    await adapter.edit(chat, Post(""), Page("One two three", key="k:0"), last=True)
    assert channel.whispers == ["One two three"]
    assert await adapter.edit(chat, Post(""), Page("⤴", "⤴"), last=True) == ""  # nothing was there to blank
    assert (channel.whispers, slack.shown(channel)) == (["One two three"], [])


async def test_after_five_answers_a_command_is_answered_in_a_direct_message(
    slack: SlackServer, adapter: SlackAdapter
) -> None:
    channel, ada = slack.channel(), slack.direct("U1ADA")
    chat = used(slack, channel)
    for number in range(7):
        await adapter.send(chat, Page(f"page {number}"))
    assert channel.whispers == [f"page {number}" for number in range(5)]
    assert [shown.text for shown in slack.shown(ada)] == ["page 5", "page 6"]
    assert slack.shown(channel) == []


# -- files ------------------------------------------------------------------------------------------------------------


def attachment(id: str, url: str = "", mime: str = "image/png") -> Attachment:
    return Attachment("image", json.dumps({"id": id, "url": url}), mime)


@pytest.mark.parametrize("stub", [False, True])
async def test_download(slack: SlackServer, adapter: SlackAdapter, stub: bool) -> None:
    slack.files["F1"] = b"content"
    url = "" if stub else f"{slack.origin}/files-pri/F1"
    assert await adapter.download(attachment("F1", url), 7) == b"content"


async def test_a_file_that_is_too_large_is_refused(slack: SlackServer, adapter: SlackAdapter) -> None:
    slack.files["F1"] = b"content"
    with pytest.raises(Refused):
        await adapter.download(attachment("F1"), 6)


async def test_a_login_page_is_no_file(slack: SlackServer, adapter: SlackAdapter) -> None:
    slack.files["F1"] = b"content"
    slack.scopes = "chat:write"
    with pytest.raises(Refused, match="files:read"):
        await adapter.download(attachment("F1"), 1000)


@pytest.mark.parametrize(
    "url", ["https://evil.example/x", "http://files.slack.com/x", "https://files.slack.com.evil.example/x"]
)
async def test_the_token_goes_to_no_other_host(adapter: SlackAdapter, url: str) -> None:
    with pytest.raises(Refused, match="not allowed"):
        await adapter.download(attachment("F1", url), 1000)


# -- register and check -----------------------------------------------------------------------------------------------

URL = "https://bot.example.com/webhooks/slack"


async def test_register_lists_the_steps_with_the_url(adapter: SlackAdapter) -> None:
    told = "\n".join(finding.what for finding in await adapter.register(URL))
    for words in ("https://api.slack.com/apps", "SLACK_BOT_TOKEN", "SLACK_SIGNING_SECRET", "安装到工作区", URL):
        assert words in told
    start = told.index('{"display_information"')
    assert json.JSONDecoder().raw_decode(told[start:])[0] == manifest(URL)


def test_the_manifest_has_one_address_and_what_we_need() -> None:
    made = manifest(URL)
    config = made["settings"]
    assert config["event_subscriptions"] == {"request_url": URL, "bot_events": list(EVENTS)}
    assert config["interactivity"]["request_url"] == made["features"]["slash_commands"][0]["url"] == URL
    assert made["oauth_config"]["scopes"]["bot"] == list(SCOPES)


def test_the_page_has_the_manifest() -> None:
    page = (ROOT / "docs" / "slack.md").read_text()
    block = page.split("```json\n")[1].split("```")[0]
    assert json.loads(block) == manifest(URL)


async def test_check_tells_whose_token_it_is(slack: SlackServer, adapter: SlackAdapter) -> None:
    findings = await adapter.check(URL)
    assert all(finding.ok for finding in findings)
    assert "@magpie in Readers" in findings[0].what


async def test_check_names_missing_scopes(slack: SlackServer, adapter: SlackAdapter) -> None:
    slack.scopes = "chat:write,im:history"
    [finding] = [finding for finding in await adapter.check(URL) if not finding.ok]
    assert "files:read" in finding.what
    assert "chat:write" not in finding.what


async def test_check_names_the_variable_of_a_wrong_token(slack: SlackServer) -> None:
    adapter = make(slack.api, "xoxb-revoked")
    [finding] = await adapter.check(URL)
    assert not finding.ok
    assert "SLACK_BOT_TOKEN" in finding.advice
    assert "revoked" not in finding.what + finding.advice
    await adapter.stop()


async def test_check_names_the_variable_of_an_unreachable_api() -> None:
    adapter = make()
    [finding] = await adapter.check(URL)
    assert "SLACK_API_BASE" in finding.advice
    await adapter.stop()


# -- with the core ----------------------------------------------------------------------------------------------------


class TestPromises(AdapterPromises):
    adapter = SlackAdapter
    settings = {"bot_token": TOKEN, "signing_secret": SECRET}

    def text_message(self) -> Request:
        return signed(json.dumps(json.loads((FIXTURES[0].parent / "direct_text.json").read_text())["event"]).encode())


class TestPromisesOfCommands(TestPromises):
    def text_message(self) -> Request:
        request = signed(urlencode({**SLASH, "command": "/magpie", "text": "hi"}).encode())
        return msgspec.structs.replace(request, headers={**request.headers, **FORM})


@contextlib.asynccontextmanager
async def serving(slack: SlackServer, script: Script = echo, **options: Any) -> AsyncIterator[Magpie]:
    """Run the whole bot, with Slack calling it."""
    instance = Configured("slack", SlackAdapter, settings(slack.api))
    async with running(instance, model=ScriptedModel(script), **options) as magpie:
        slack.webhook = f"http://127.0.0.1:{magpie.port}/webhooks/slack"
        yield magpie


def questions(magpie: Magpie) -> int:
    """Count what the model was asked."""
    assert isinstance(magpie.model, ScriptedModel)
    return len(magpie.model.asked)


def finished(slack: SlackServer, channel: Channel, count: int = 1) -> Callable[[], bool]:
    """Tell when a channel shows `count` answers, none of them still growing."""

    def look() -> bool:
        shown = slack.shown(channel)
        return len(shown) >= count and all(not message.state for message in shown)

    return look


async def test_saving_the_url_in_the_console_works(slack: SlackServer) -> None:
    async with serving(slack):
        status, body = await slack.call(b'{"type":"url_verification","challenge":"abc"}', "application/json")
    assert (status, json.loads(body)) == (200, {"challenge": "abc"})


async def test_a_forged_request_stores_and_sends_nothing(slack: SlackServer) -> None:
    async with serving(slack) as magpie:
        strange = SlackServer(secret="another")
        slack._signer = strange._signer
        status, _ = await slack.deliver(slack.written(slack.direct("U1ADA"), "hello"))
        assert status == 401
        assert (await magpie.store.counts())["waiting"] == 0
    assert slack.calls == []


async def test_a_question_is_answered_in_a_stream(slack: SlackServer) -> None:
    ada = slack.direct("U1ADA")
    go_on = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        await slack.until(lambda: ada.statuses)
        yield "A magpie is "
        await go_on.wait()
        yield "a **bird**."

    async with serving(slack, script):
        await slack.say(ada, "What is a magpie?")
        await slack.until(lambda: slack.shown(ada))
        assert slack.shown(ada)[0].state == "streaming"
        go_on.set()
        await slack.until(finished(slack, ada))
    [shown] = slack.shown(ada)
    assert shown.text == "A magpie is a **bird**."
    assert slack.called("chat.stopStream")


async def test_a_mention_that_arrives_as_two_events_three_times_is_answered_once(slack: SlackServer) -> None:
    channel = slack.channel()
    async with serving(slack) as magpie:
        await slack.say(channel, "nobody asks")
        message = slack.written(channel, f"<@{BOT}> who?")
        both = [message, slack.mention(message)]
        answers = await asyncio.gather(*(slack.deliver(event) for event in both * 3))
        assert {status for status, _ in answers} == {200}
        await slack.until(finished(slack, channel))
        await slack.say(slack.direct("U1ADA"), "hello")
        await slack.until(finished(slack, [*slack.channels.values()][-1]))
        assert questions(magpie) == 2
    [shown] = slack.shown(channel)
    assert (shown.text, shown.thread) == ("You said: who?", message["event"]["ts"])


async def test_a_thread_and_a_direct_message_have_memories(slack: SlackServer) -> None:
    ada, channel = slack.direct("U1ADA"), slack.channel()
    async with serving(slack, lambda turns: (str(len(turns)),)):
        root = (await slack.say(ada, "one"))["event"]["ts"]
        await slack.until(finished(slack, ada))
        await slack.say(ada, "two", thread=root)
        await slack.until(finished(slack, ada, 2))
        thread = (await slack.say(channel, f"<@{BOT}> one"))["event"]["ts"]
        await slack.until(finished(slack, channel))
        await slack.say(channel, f"<@{BOT}> two", thread=thread)
        await slack.until(finished(slack, channel, 2))
        await slack.say(channel, f"<@{BOT}> elsewhere")
        await slack.until(finished(slack, channel, 3))
    counts = [int(shown.text) for shown in (*slack.shown(ada), *slack.shown(channel))]
    first = counts[0]
    assert counts == [first, first + 2, first, first + 2, first]


async def test_a_long_answer_arrives_whole_in_pages(slack: SlackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = msgspec.structs.replace(SlackAdapter.can, pages_per_second=1000)
    monkeypatch.setattr(SlackAdapter, "can", fast)
    ada = slack.direct("U1ADA")
    words = [f"**word{number}** " for number in range(2500)]
    async with serving(slack, lambda turns: words):
        await slack.say(ada, "tell me everything")
        await slack.until(lambda: "word2499" in slack.shown(ada)[-1].text if finished(slack, ada)() else False)
    shown = slack.shown(ada)
    assert len(shown) > 1
    assert " ".join(message.text for message in shown).split() == [f"**word{number}**" for number in range(2500)]


async def test_the_stop_button_ends_the_answer(slack: SlackServer) -> None:
    ada = slack.direct("U1ADA")
    pressed = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "Once upon a time "
        await pressed.wait()
        while True:
            yield "and then "
            await asyncio.sleep(0.05)

    async with serving(slack, script):
        await slack.say(ada, "a story")
        await slack.until(lambda: slack.shown(ada))
        slack.press_stop(ada)
        pressed.set()
        await slack.until(lambda: slack.called("chat.update"))
    [shown] = slack.shown(ada)
    assert (shown.text.startswith("Once upon a time"), shown.state) == (True, "")


@pytest.mark.parametrize(
    "outcomes", [(flood(1),), (Refusal("token_expired"),), (Refusal("internal_error", 500), Cut())], ids=str
)
async def test_what_passes_is_waited_for_and_nothing_is_lost(
    slack: SlackServer, outcomes: tuple[Refusal | Cut, ...]
) -> None:
    ada = slack.direct("U1ADA")
    for method in ("chat.startStream", "chat.stopStream", "chat.postMessage"):
        slack.script(method, *outcomes)
    async with serving(slack):
        await slack.say(ada, "hello")
        await slack.until(finished(slack, ada))
    assert [shown.text for shown in slack.shown(ada)] == ["You said: hello"]


async def test_an_answer_outlives_its_stream(slack: SlackServer) -> None:
    ada = slack.direct("U1ADA")

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "One **two** "
        await slack.until(lambda: slack.called("chat.startStream"))
        slack.script("chat.appendStream", flood(1))
        yield "three "
        await slack.until(lambda: slack.called("chat.appendStream"))
        slack.expire(ada)
        yield "four "
        await slack.until(lambda: slack.called("chat.update"))
        yield "five."

    async with serving(slack, script):
        await slack.say(ada, "count")
        await slack.until(lambda: slack.shown(ada) and "five" in slack.shown(ada)[0].text)
    assert [shown.text for shown in slack.shown(ada)] == ["One **two** three four five."]


async def test_without_streams_an_answer_grows_by_edits(slack: SlackServer) -> None:
    channel = slack.channel()
    channel.streams = False

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "One "
        await slack.until(lambda: slack.shown(channel))
        yield "two."

    async with serving(slack, script):
        await slack.say(channel, f"<@{BOT}> count")
        await slack.until(lambda: slack.shown(channel) and "two" in slack.shown(channel)[0].text)
    assert [shown.history for shown in slack.shown(channel)] == [["One", "One two."]]


async def test_a_command_is_answered_in_private_and_resets(slack: SlackServer) -> None:
    channel = slack.channel(member=False)
    async with serving(slack):
        assert await slack.command(channel, "hello") == (200, "")
        await slack.until(lambda: len(channel.whispers) == 1)
        await slack.command(channel, "reset")
        await slack.until(lambda: len(channel.whispers) == 2)
    assert channel.whispers[0] == "You said: hello"
    assert "afresh" in channel.whispers[1] or "忘掉" in channel.whispers[1]


async def test_a_picture_reaches_the_model(slack: SlackServer) -> None:
    ada = slack.direct("U1ADA")
    slack.files["F1"] = b"\x89PNG picture"
    file = {"id": "F1", "mimetype": "image/png", "url_private_download": f"{slack.origin}/files-pri/F1", "size": 12}
    async with serving(slack) as magpie:
        await slack.say(ada, "what is it?", subtype="file_share", files=[file])
        await slack.until(finished(slack, ada))
        assert isinstance(magpie.model, ScriptedModel)
        [[picture]] = magpie.model.pictures
    assert (picture.mime, picture.data) == ("image/png", b"\x89PNG picture")


# -- the server itself is what Slack's SDK expects, and strict --------------------------------------------------------


@pytest.fixture
def sdk(slack: SlackServer) -> AsyncWebClient:
    return AsyncWebClient(TOKEN, base_url=f"{slack.api}/")


async def test_the_vendors_sdk_streams_into_the_server(slack: SlackServer, sdk: AsyncWebClient) -> None:
    channel = slack.channel()
    thread = slack.written(channel, "hi")["event"]["ts"]
    stream = await sdk.chat_stream(
        channel=channel.id, thread_ts=thread, recipient_user_id="U1ADA", recipient_team_id=TEAM, buffer_size=1
    )
    await stream.append(markdown_text="One ")
    await stream.append(markdown_text="two")
    await stream.stop()
    [shown] = slack.shown(channel)
    assert (shown.text, shown.state) == ("One two", "")


async def test_our_requests_have_the_form_of_the_vendors_sdk(
    slack: SlackServer, adapter: SlackAdapter, sdk: AsyncWebClient
) -> None:
    ada = slack.direct("U1ADA")
    chat = asked(slack, ada)
    thread = json.loads(chat.ticket)["thread"]
    post = await grow(adapter, chat, "One", "One two", "One two three")
    await adapter.edit(chat, post, Page("Other"), last=True)
    await adapter.typing(chat)
    ours = dict(slack.calls)
    slack.calls.clear()
    begun = await sdk.chat_startStream(
        channel=chat.id, thread_ts=thread, markdown_text="On", recipient_user_id="U1ADA", recipient_team_id=TEAM
    )
    await sdk.chat_appendStream(channel=chat.id, ts=begun["ts"], markdown_text="e two")
    await sdk.chat_stopStream(channel=chat.id, ts=begun["ts"], markdown_text=" three")
    await sdk.chat_update(channel=chat.id, ts=begun["ts"], markdown_text="Other")
    await sdk.assistant_threads_setStatus(channel_id=chat.id, thread_ts=thread, status="x")
    assert {method: fields.keys() for method, fields in slack.calls} == {
        method: fields.keys() for method, fields in ours.items()
    }


@pytest.mark.parametrize(
    ("method", "fields", "error"),
    [
        ("chat.postMessage", {"channel": "C9", "text": "x"}, "channel_not_found"),
        ("chat.postMessage", {"channel": "C2OTHER", "text": "x"}, "not_in_channel"),
        ("chat.postMessage", {"channel": "C1GENERAL"}, "no_text"),
        ("chat.postMessage", {"channel": "C1GENERAL", "text": "x", "markdown_text": "x"}, "markdown_text_conflict"),
        ("chat.postMessage", {"channel": "C1GENERAL", "markdown_text": "x" * 12_001}, "msg_too_long"),
        ("chat.update", {"channel": "C1GENERAL", "ts": "1.1", "text": "x"}, "message_not_found"),
        ("chat.update", {"channel": "C1GENERAL", "ts": "1790000000.000001", "text": "x"}, "cant_update_message"),
        ("chat.startStream", {"channel": "C1GENERAL"}, "invalid_thread_ts"),
        ("chat.startStream", {"channel": "C1GENERAL", "thread_ts": "1790000000.000001"}, "missing_recipient_user_id"),
        ("chat.appendStream", {"channel": "C1GENERAL", "ts": "1.1", "markdown_text": "x"}, "message_not_found"),
        ("assistant.threads.setStatus", {"channel_id": "C1GENERAL", "status": "x"}, "invalid_thread_ts"),
        ("files.info", {"file": "F9"}, "file_not_found"),
        ("chat.telepathy", {}, "unknown_method"),
    ],
)
async def test_the_server_refuses(
    slack: SlackServer, adapter: SlackAdapter, method: str, fields: dict[str, Any], error: str
) -> None:
    slack.written(slack.channel(), "hi")
    slack.channel("C2OTHER", member=False)
    with pytest.raises(Refused, match=error):
        await adapter.client.call("POST", f"/{method}", json=fields)
