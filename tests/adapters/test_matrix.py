"""Matrix against a strict fake: what is taken from a transaction, what people see, and whole conversations."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.matrix.errands
from adapters.matrix import MatrixAdapter, MatrixSettings, plain, size
from adapters.matrix.api import Homeserver
from bot.adapter import Attachment, Chat, Context, Message, Page, Post, Request, State
from bot.app import Magpie
from bot.config import Environment
from bot.errors import (
    Malformed,
    PlatformError,
    Refused,
    Rejected,
    Throttled,
    Unauthorized,
    Unavailable,
    Unverified,
)
from bot.markup import PLAIN, pages, render
from bot.registry import Configured
from bot.testing import LONG_ANSWER, AdapterPromises, ScriptedModel, call, context, running
from tests.adapters.matrix_server import (
    ALICE,
    AS_TOKEN,
    BOB,
    CAROL,
    FORBIDDEN,
    HS_TOKEN,
    ME,
    Allowed,
    Cut,
    MatrixServer,
    Refusal,
    Room,
    transaction,
)

FIXTURES = {file.stem: file.read_text() for file in sorted(Path(__file__).with_name("fixtures").glob("matrix/*.json"))}
NO_STATE = Context("matrix", create_autospec(State))
MENTION: dict[str, Any] = {"m.mentions": {"user_ids": [ME]}}
PAGE = Page("<p>Hello &amp; <strong>welcome</strong></p>", "Hello & welcome", "reply:0")
DOWN, UNKNOWN = Refusal(502, "M_UNKNOWN"), Refusal(401, "M_UNKNOWN_TOKEN")
LIMITED = Refusal(429, "M_LIMIT_EXCEEDED", retry_after_ms=50)


def make(lent: Context = NO_STATE, **settings: object) -> MatrixAdapter:
    given = {"api_base": "http://127.0.0.1:9", "user_id": ME, "as_token": AS_TOKEN, "hs_token": HS_TOKEN, **settings}
    return MatrixAdapter(MatrixSettings.model_validate(given), lent)


@pytest.fixture
async def matrix() -> AsyncIterator[MatrixServer]:
    async with MatrixServer() as server:
        yield server


@pytest.fixture
async def adapter(matrix: MatrixServer) -> AsyncIterator[MatrixAdapter]:
    async with context("matrix") as lent:
        adapter = make(lent, api_base=matrix.base)
        yield adapter
        await adapter.stop()


@pytest.fixture(autouse=True)
def _in_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.matrix.errands, "GAPS", (0.01,))


class TestPromises(AdapterPromises):
    adapter = MatrixAdapter
    settings = MatrixServer().settings()

    @pytest.fixture(autouse=True)
    def _out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Homeserver, "call", AsyncMock(side_effect=Unavailable("no homeserver here")))

    def text_message(self) -> Request:
        server = MatrixServer()
        return transaction(server.written(server.room(ALICE, ME), "hello", **MENTION))


# -- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("USER_ID", "magpie"),
        ("USER_ID", "@Magpie:example.org"),
        ("API_BASE", None),
        ("API_BASE", "matrix.example.org"),
        ("AS_TOKEN", "with a space"),
        ("AS_TOKEN", None),
        ("HS_TOKEN", "é"),
        ("MESSAGE_TYPE", "m.image"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    given = {f"MATRIX_{name.upper()}": str(text) for name, text in MatrixServer().settings().items()}
    env = Environment({**given, f"MATRIX_{field}": value})
    assert env.read(MatrixSettings, "matrix") is None
    [problem] = env.problems
    assert problem.startswith(f"MATRIX_{field}: ")
    assert not [secret for secret in (AS_TOKEN, HS_TOKEN, "with a") if secret in problem]


def test_secrets_are_hidden() -> None:
    shown = repr(MatrixSettings.model_validate(MatrixServer().settings()))
    assert not [secret for secret in (AS_TOKEN, HS_TOKEN) if secret in shown]


# -- verification and paths

VECTOR = "312df522183efd404ec1cd22d2ffa4bbc76a8c1ccf541dd692eef281356bb74e"
Shows = dict[str, str]


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"authorization": f"Bearer {VECTOR}"}, {}),
        ({"authorization": f"bearer {VECTOR}"}, {}),
        ({}, {"access_token": VECTOR}),
        ({"authorization": f"Bearer {VECTOR}"}, {"access_token": VECTOR}),
    ],
)
async def test_the_homeserver_shows_its_token(headers: Shows, query: Shows) -> None:
    await make(hs_token=VECTOR).verify(Request("POST", "/_matrix/app/v1/ping", headers, query, b"{}"))


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, {}),
        ({"authorization": "Bearer"}, {}),
        ({"authorization": VECTOR}, {}),
        ({"authorization": f"Basic {VECTOR}"}, {}),
        ({"authorization": f"Bearer {VECTOR[:-1]}"}, {}),
        ({"authorization": "Bearer é\udce9"}, {}),
        ({"authorization": f"Bearer {VECTOR}"}, {"access_token": "other"}),
        ({"authorization": "Bearer other"}, {"access_token": VECTOR}),
        ({"authorization": f"Bearer {AS_TOKEN}"}, {}),
        ({}, {"access_token": ""}),
    ],
)
async def test_another_token_is_refused_as_the_specification_says(headers: Shows, query: Shows) -> None:
    with pytest.raises(Unverified) as refused:
        await make(hs_token=VECTOR).verify(Request("PUT", "/_matrix/app/v1/transactions/1", headers, query, b"{}"))
    response = refused.value.response
    assert response is not None
    assert (response.status, json.loads(response.body)["errcode"]) == (403, "M_FORBIDDEN")
    assert VECTOR not in str(refused.value)


@pytest.mark.parametrize("prefix", ["/_matrix/app/v1", ""])
@pytest.mark.parametrize(
    ("method", "path", "status", "errcode"),
    [
        ("PUT", "/transactions/7", 200, None),
        ("POST", "/ping", 200, None),
        ("GET", f"/users/{ME}", 200, None),
        ("GET", "/users/@other:example.org", 404, "M_NOT_FOUND"),
        ("GET", "/rooms/#birds:example.org", 404, "M_NOT_FOUND"),
        ("GET", "/thirdparty/protocol/irc", 404, "M_UNRECOGNIZED"),
        ("POST", "/transactions/7", 404, "M_UNRECOGNIZED"),
        ("GET", "", 404, "M_UNRECOGNIZED"),
    ],
)
def test_paths(prefix: str, method: str, path: str, status: int, errcode: str | None) -> None:
    response = make().parse(Request(method, prefix + path, body=b'{"events":[]}')).response
    assert (response.status, response.content_type) == (status, "application/json")
    assert json.loads(response.body).get("errcode") == errcode


# -- inbound


@pytest.mark.parametrize("name", FIXTURES)
async def test_parse(matrix: MatrixServer, adapter: MatrixAdapter, name: str) -> None:
    case = json.loads(FIXTURES[name])
    room = case["event"]["room_id"]
    matrix.rooms[room] = Room(room, case["members"])
    request = transaction(case["event"])
    await adapter.verify(request)
    inbound = adapter.parse(request)
    assert list(inbound.messages) == [msgspec.convert(case["message"], Message) for _ in range("message" in case)]
    assert inbound.ignored == case.get("ignored", "")
    assert (inbound.response.status, inbound.response.body) == (200, b"{}")


async def taken(adapter: MatrixAdapter, *events: object) -> list[Message]:
    request = transaction(*events)
    await adapter.verify(request)
    return list(adapter.parse(request).messages)


async def test_an_odd_event_does_not_hold_up_the_others(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    odd = [
        {},
        5,
        None,
        {**matrix.written(room, "x"), "content": {"body": 5}},
        {**matrix.written(room, "y"), "sender": 1},
    ]
    messages = await taken(adapter, *odd, matrix.written(room, "hello"), matrix.written(room, "there"))
    assert [message.text for message in messages] == ["hello", "there"]


async def test_who_comes_and_goes_decides_whether_we_are_alone_with_somebody(
    matrix: MatrixServer, adapter: MatrixAdapter
) -> None:
    room = matrix.room(ALICE, ME)

    def member(membership: str) -> dict[str, Any]:
        content = {"membership": membership, "displayname": "Bobby"}
        return matrix.happen(room, BOB, "m.room.member", content, state_key=BOB)

    [alone] = await taken(adapter, matrix.written(room, "hello"))
    [together] = await taken(adapter, member("join"), matrix.written(room, "hello", by=BOB))
    [again] = await taken(adapter, member("leave"), matrix.written(room, "hello"))
    assert [(one.chat.kind, one.addressed) for one in (alone, together, again)] == [
        ("direct", True),
        ("group", False),
        ("direct", True),
    ]
    assert together.user_name == "Bobby"
    assert len(matrix.called("joined_members")) == 1


async def test_who_comes_while_we_ask_is_counted(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    asked, ask = asyncio.Event(), adapter.rooms._ask

    async def slowly(id: str) -> dict[str, str]:
        members = await ask(id)
        if not asked.is_set():
            asked.set()
            await taken(adapter, matrix.happen(room, BOB, "m.room.member", {"membership": "join"}, state_key=BOB))
        return members

    room.members[BOB] = "Bob"
    adapter.rooms._ask = slowly  # type: ignore[method-assign, assignment]
    [message] = await taken(adapter, matrix.written(room, "hello"))
    assert message.chat.kind == "group"
    assert len(matrix.called("joined_members")) == 2


@pytest.mark.parametrize("outcome", [DOWN, UNKNOWN, LIMITED, Cut()], ids=str)
async def test_while_it_is_not_known_who_is_there_the_homeserver_has_to_wait(
    matrix: MatrixServer, adapter: MatrixAdapter, outcome: Refusal | Cut
) -> None:
    room = matrix.room(ALICE, ME)
    hello = matrix.written(room, "hello")
    matrix.script("joined_members", outcome, outcome)
    with pytest.raises(Rejected) as later:
        await taken(adapter, hello)
    assert later.value.response is not None
    assert later.value.response.status == 503
    [called] = await taken(adapter, matrix.written(room, "hello", **MENTION))
    assert (called.chat.kind, called.addressed) == ("group", True)
    [known] = await taken(adapter, hello)
    assert known.chat.kind == "direct"


async def test_a_forged_request_asks_the_homeserver_nothing(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    hello = matrix.written(matrix.room(ALICE, ME), "hello")
    with pytest.raises(Unverified):
        await adapter.verify(transaction(hello, token="guessed"))
    assert not matrix.calls


async def test_what_is_answered_is_quoted_as_it_reads_now(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, BOB, ME)
    before = matrix.written(room, "a brid", by=BOB)
    edit = {"rel_type": "m.replace", "event_id": before["event_id"]}
    new = {"msgtype": "m.text", "body": "a bird"}
    matrix.written(room, "* a bird", by=BOB, **{"m.new_content": new, "m.relates_to": edit})
    reply: dict[str, Any] = {"m.relates_to": {"m.in_reply_to": {"event_id": before["event_id"]}}}
    [message] = await taken(adapter, matrix.written(room, "what is that?", **MENTION, **reply))
    assert (message.quote, message.reply_to) == ("a bird", before["event_id"])


BODY = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode())


@given(BODY)
def test_garbage_is_malformed(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        inbound = make().parse(Request("PUT", "/transactions/1", body=body))
        assert not inbound.messages


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


@given(st.data())
def test_a_wrong_type_anywhere_is_left_out_or_harmless(data: st.DataObject) -> None:
    event = json.loads(data.draw(st.sampled_from(list(FIXTURES.values()))))["event"]
    path = data.draw(st.sampled_from(leaves(event)[1:]))
    holder = event
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(st.sampled_from([None, True, -1, 1e30, "", "@x", [], [[]], {}, {"event_id": 1}]))
    with contextlib.suppress(Rejected):
        msgspec.json.encode(make().parse(transaction(event)).messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@magpie你好", "你好"),
        ("MAGPIE： 你好", "你好"),
        ("so, @Magpie, what?", "so,  what?"),
        (f"{ME}: hello", "hello"),
        ("@magpie: hello", "hello"),
        ("@magpie:elsewhere.org hello", None),
        ("magpies sing", None),
        ("magpie sings", None),
        ("mail me@magpie.org", None),
        ("@magpie_bot hello", None),
    ],
)
async def test_a_name_calls_us(matrix: MatrixServer, adapter: MatrixAdapter, text: str, expected: str | None) -> None:
    [message] = await taken(adapter, matrix.written(matrix.room(ALICE, BOB, ME), text))
    assert (message.addressed, message.text) == (expected is not None, expected or text)


@given(st.text("magpie@:example.org, 你喜鹊<>!", max_size=60), st.booleans())
def test_our_name_is_found_in_any_text(text: str, mentioned: bool) -> None:
    event = MatrixServer().written(Room("!r"), text, **(MENTION if mentioned else {}))
    with contextlib.suppress(Rejected):
        for message in make().parse(transaction(event)).messages:
            assert len(message.text) <= len(text)


# -- send

DIRECT, GROUP = "direct", "group"


def chat(room: Room, thread: str = "", asker: str = "") -> Chat:
    return Chat(room.id, "group" if asker else "direct", thread, asker)


@pytest.mark.parametrize("kind", ["m.notice", "m.text"])
async def test_a_page_is_html_with_plain_words_for_others(matrix: MatrixServer, kind: str) -> None:
    async with context("matrix") as lent:
        adapter = make(lent, api_base=matrix.base, message_type=kind)
        room = matrix.room(ALICE, ME)
        id = await adapter.send(chat(room), PAGE)
        await adapter.stop()
    [shown] = matrix.shown(room)
    assert shown.id == id
    assert shown.content == {
        "msgtype": kind,
        "body": "Hello & welcome",
        "format": "org.matrix.custom.html",
        "formatted_body": PAGE.text,
        "m.mentions": {},
    }


async def test_in_a_group_an_answer_is_a_reply_and_notifies_who_asked(
    matrix: MatrixServer, adapter: MatrixAdapter
) -> None:
    room = matrix.room(ALICE, BOB, ME)
    question = matrix.written(room, "who?")["event_id"]
    await adapter.send(chat(room, asker=ALICE), Page("<p>@bob</p>", "@bob", "k", question))
    [shown] = matrix.shown(room)
    assert shown.content["m.relates_to"] == {"m.in_reply_to": {"event_id": question}}
    assert shown.content["m.mentions"] == {"user_ids": [ALICE]}


async def test_a_thread_is_kept(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    root, question = (matrix.written(room, text)["event_id"] for text in ("root", "who?"))
    await adapter.send(chat(room, root), Page("<p>I</p>", "I", "k", question))
    [shown] = matrix.shown(room)
    assert shown.content["m.relates_to"] == {
        "rel_type": "m.thread",
        "event_id": root,
        "is_falling_back": True,
        "m.in_reply_to": {"event_id": question},
    }


async def grow(adapter: MatrixAdapter, chat: Chat, *texts: str) -> Post:
    """Let an answer grow as the core does."""
    post = Post(await adapter.begin(chat, Page(texts[0], texts[0], "k:0")), texts[0])
    for text in texts[1:]:
        id = await adapter.edit(chat, post, Page(text, text, "k:0"), last=text == texts[-1])
        post = Post(id, text, post.edits + 1)
    return post


async def test_an_answer_grows_by_edits(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    post = await grow(adapter, chat(room), "<p>One</p>", "<p>One &lt; two</p>", "<p>One &lt; two, three</p>")
    [shown] = matrix.shown(room)
    assert (shown.id, shown.history) == (post.id, ["One", "One < two", "One < two, three"])
    assert matrix.called("send")[-1]["body"] == "* One < two, three"


async def test_a_lost_response_repeats_nothing(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    matrix.script("send", Cut(after=True))
    with pytest.raises(Unavailable):
        await adapter.send(chat(room), PAGE)
    await adapter.send(chat(room), PAGE)
    assert len(matrix.shown(room)) == 1


async def test_a_beginning_that_may_be_there_becomes_the_answer(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    matrix.script("send", Cut(after=True), Cut())
    for page in (Page("<p>Hel</p>", "", "k"), Page("<p>Hello</p>", "", "k")):
        with pytest.raises(Unavailable):
            await adapter.begin(chat(room), page)
    await adapter.send(chat(room), Page("<p>Hello you</p>", "Hello you", "k"))
    await adapter.send(chat(room), Page("<p>Second</p>", "Second", "k2"))
    assert [shown.history for shown in matrix.shown(room)] == [["Hel", "Hello you"], ["Second"]]


async def test_a_lost_edit_does_not_swallow_the_next(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    post = Post(await adapter.begin(chat(room), Page("<p>1</p>", "", "k")))
    matrix.script("send", Cut(after=True))
    with pytest.raises(Unavailable):
        await adapter.edit(chat(room), post, Page("<p>12</p>", "12", "k"), last=False)
    for _ in range(2):  # the last one twice, as after a crash
        await adapter.edit(chat(room), post, Page("<p>12</p>", "12", "k"), last=True)
    assert matrix.shown(room)[0].history == ["1", "12", "12"]


async def test_typing_ends_with_the_answer(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    await adapter.typing(chat(room))
    await adapter.send(chat(room), PAGE)
    await adapter.send(chat(room), PAGE)
    assert room.typing == [True, False]
    await adapter.typing(chat(room))
    matrix.script("typing", Refusal(500, "M_UNKNOWN"))
    await grow(adapter, chat(room), "<p>1</p>", "<p>2</p>")
    assert matrix.shown(room)[-1].text == "2"


async def test_a_question_is_marked_as_read(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    [message] = await taken(adapter, matrix.written(room, "hello"))
    await adapter.acknowledge(message)
    assert room.read == [message.id]


Act = Callable[[MatrixAdapter, Chat, Post], Any]
ACTS: dict[str, tuple[str, Act]] = {
    "send": ("send", lambda adapter, chat, post: adapter.send(chat, PAGE)),
    "begin": ("send", lambda adapter, chat, post: adapter.begin(chat, PAGE)),
    "edit": ("send", lambda adapter, chat, post: adapter.edit(chat, post, PAGE, last=False)),
    "typing": ("typing", lambda adapter, chat, post: adapter.typing(chat)),
}
FAILURES: list[tuple[Refusal | Cut, type[PlatformError]]] = [
    (Refusal(429, "M_LIMIT_EXCEEDED", retry_after_ms=7000), Throttled),
    (Refusal(500, "M_UNKNOWN"), Unavailable),
    (Refusal(504, ""), Unavailable),
    (Cut(), Unavailable),
    (Cut(after=True), Unavailable),
    (FORBIDDEN, Refused),
    (Refusal(403, ""), Unauthorized),
    (UNKNOWN, Unauthorized),
    (Refusal(413, "M_TOO_LARGE"), Refused),
    (Refusal(404, ""), Refused),
]


@pytest.mark.parametrize(("what", "act"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(("outcome", "error"), FAILURES, ids=str)
async def test_failures(
    matrix: MatrixServer,
    adapter: MatrixAdapter,
    what: str,
    act: Act,
    outcome: Refusal | Cut,
    error: type[PlatformError],
) -> None:
    room = matrix.room(ALICE, ME)
    post = Post(await adapter.begin(chat(room), Page("first", "", "first")))
    matrix.script(what, outcome)
    with pytest.raises(error) as failed:
        await act(adapter, chat(room), post)
    assert type(failed.value) is error
    assert not [secret for secret in (AS_TOKEN, "Hello", "said by") if secret in str(failed.value)]
    if isinstance(failed.value, Throttled):
        assert failed.value.retry_after == 7
    await act(adapter, chat(room), post)


# -- the dialect

MARKDOWN = """# A **bold** heading

中**粗体**文 *italic* ~~gone~~ `a < b` [a & b](https://example.com/?a=1&b=2) <script> &copy;

- one
  1. two

> quoted

| a | b |
|---|---|
| 1 | x<y |

```python
if a < b: print("&amp;")
```
"""


async def test_the_dialect_is_what_apps_show(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    text = render(MARKDOWN, adapter.can.dialect)
    await adapter.send(chat(room), Page(text, render(MARKDOWN, PLAIN), "k"))
    [shown] = matrix.shown(room)
    for words in ("<h1>", "中<strong>粗体</strong>文", "<del>gone</del>", "<td>x&lt;y</td>", 'class="language-python"'):
        assert words in shown.content["formatted_body"]
    for words in ("A bold heading", "中粗体文 italic gone a < b", "<script>", "x<y", 'if a < b: print("&amp;")'):
        assert words in shown.text


@given(st.text("ab *_`~[]()<>&|#>-1.\n!:\"'\\中🐦\t", max_size=200))
def test_whatever_a_model_writes_is_markup_that_apps_show(source: str) -> None:
    Allowed().check(render(source, MatrixAdapter.can.dialect))


@pytest.mark.parametrize("answer", [LONG_ANSWER, '"' * 20_000, "\x01字\\" * 3000, ("| h |\n|-|\n" + "| x |\n" * 1500)])
async def test_pages_fit_into_events_also_as_edits(matrix: MatrixServer, adapter: MatrixAdapter, answer: str) -> None:
    room = matrix.room(ALICE, ME)
    can = adapter.can
    for number, text in enumerate(pages(answer, can.max_length, can.dialect, can.measure)):
        page = Page(text, "plain words that are longer " * 3000, f"k:{number}")
        post = Post(await adapter.begin(chat(room), page))
        await adapter.edit(chat(room), post, page, last=True)
    assert len(matrix.shown(room)) > 1


@given(st.text('a<b>&;p/"\n中', max_size=100), st.text(max_size=100))
def test_plain_words_are_never_longer_than_the_page(text: str, own: str) -> None:
    assert size(plain(Page(text, own))) <= size(text)


# -- files


async def test_files_are_fetched_with_our_token(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    matrix.media["example.org:8448/aB-_9"] = b"bytes"
    file = Attachment("image", "mxc://example.org:8448/aB-_9")
    assert await adapter.download(file, 5) == b"bytes"
    with pytest.raises(Refused, match="larger"):
        await adapter.download(file, 4)
    with pytest.raises(Refused):
        await adapter.download(Attachment("image", "mxc://example.org/gone"), 5)


@pytest.mark.parametrize(
    "ref",
    ["", "https://evil.example/x", "mxc://example.org", "mxc://a/b/c", "mxc://a/..", "mxc://a?b/c", "mxc://a/b?c"],
)
async def test_only_media_are_fetched(matrix: MatrixServer, adapter: MatrixAdapter, ref: str) -> None:
    with pytest.raises(Refused):
        await adapter.download(Attachment("image", ref), 5)
    assert not matrix.calls


# -- set up

URL = "https://bot.example.com/webhooks/matrix"


async def test_register_writes_the_registration_file(adapter: MatrixAdapter, tmp_path: Path) -> None:
    file = tmp_path / "new" / "magpie.yaml"
    own = make(adapter.context, registration_file=str(file))
    for _ in range(2):
        findings = await own.register(URL)
    assert all(finding.ok for finding in findings)
    assert str(file) in findings[0].what
    assert URL in findings[2].what
    assert not [secret for secret in (AS_TOKEN, HS_TOKEN) if any(secret in finding.what for finding in findings)]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == (
        f'id: "magpie-matrix"\nurl: "{URL}"\nas_token: "{AS_TOKEN}"\nhs_token: "{HS_TOKEN}"\n'
        'sender_localpart: "magpie"\nrate_limited: false\nnamespaces:\n  users:\n    - exclusive: true\n'
        '      regex: "^@magpie:example\\\\.org$"\n  aliases: []\n  rooms: []\n'
    )


async def test_register_says_where_it_cannot_write(adapter: MatrixAdapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [finding] = await make(adapter.context, registration_file=str(tmp_path / "file" / "x.yaml")).register(URL)
    assert not finding.ok
    assert "MATRIX_REGISTRATION_FILE" in finding.advice


@pytest.mark.parametrize(
    ("outcome", "advice"),
    [
        (UNKNOWN, "register again"),
        (FORBIDDEN, "another user"),
        (DOWN, "the network"),
        (Cut(), "the network"),
    ],
    ids=str,
)
async def test_check_says_when_we_are_not_known(
    matrix: MatrixServer, adapter: MatrixAdapter, outcome: Refusal | Cut, advice: str
) -> None:
    matrix.script("whoami", outcome)
    [finding] = await adapter.check(URL)
    assert not finding.ok
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("outcome", "advice"),
    [
        (Refusal(400, "M_URL_NOT_SET"), "no url"),
        (Refusal(502, "M_CONNECTION_FAILED"), URL),
        (Refusal(504, "M_CONNECTION_TIMEOUT"), "firewall"),
        (Refusal(502, "M_BAD_STATUS"), "hs_token"),
        (Refusal(404, "M_UNRECOGNIZED"), "write to the bot"),
        (FORBIDDEN, "another instance"),
        (Refusal(500, "M_UNKNOWN"), "log"),
    ],
    ids=str,
)
async def test_check_says_why_we_are_not_reached(
    matrix: MatrixServer, adapter: MatrixAdapter, outcome: Refusal, advice: str
) -> None:
    matrix.script("ping", outcome)
    known, reached = await adapter.check(URL)
    assert known.ok
    assert not reached.ok
    assert advice in reached.advice


# -- whole conversations


@contextlib.asynccontextmanager
async def at_matrix(
    model: ScriptedModel, matrix: MatrixServer, adapter: type[MatrixAdapter] = MatrixAdapter, **changes: Any
) -> AsyncIterator[Magpie]:
    settings = MatrixSettings.model_validate(matrix.settings())
    async with running(Configured("matrix", adapter, settings), model=model, **changes) as magpie:
        matrix.push_to(f"http://127.0.0.1:{magpie.port}/webhooks/matrix")
        yield magpie


async def test_a_question_is_answered_once_whatever_is_delivered_again(matrix: MatrixServer) -> None:
    model = ScriptedModel()
    async with at_matrix(model, matrix) as magpie:
        room = matrix.room(ALICE, ME)
        event = matrix.written(room, "hello")
        assert await asyncio.gather(*(matrix.deliver(event) for _ in range(4))) == [(200, {})] * 4
        await matrix.say(room, "again")
        await matrix.until(lambda: len(matrix.shown(room)) == 2)
        assert [shown.text for shown in matrix.shown(room)] == ["You said: hello", "You said: again"]
        assert len(model.asked) == 2
        status, body = await call(magpie, "matrix", transaction(event, token="guessed"))
        assert (status, json.loads(body)["errcode"]) == (403, "M_FORBIDDEN")


async def test_in_a_group_who_mentions_us_is_answered(matrix: MatrixServer) -> None:
    model = ScriptedModel()
    async with at_matrix(model, matrix):
        room = matrix.room(ALICE, BOB, CAROL, ME)
        await matrix.say(room, "nice weather", by=BOB)
        question = await matrix.say(room, "Magpie, who sings?")
        await matrix.until(lambda: matrix.shown(room))
        [shown] = matrix.shown(room)
        assert shown.text == "You said: who sings?"
        assert shown.content["m.relates_to"]["m.in_reply_to"]["event_id"] == question["event_id"]
    assert len(model.asked) == 1


async def test_a_growing_answer_survives_a_rate_limit(matrix: MatrixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MatrixAdapter, "can", msgspec.structs.replace(MatrixAdapter.can, edit_every=0.01))
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[str]:
        yield "One"
        await go_on.wait()
        yield " two"

    async with at_matrix(ScriptedModel(lambda turns: slowly()), matrix):
        room = matrix.room(ALICE, ME)
        matrix.script("send", LIMITED)
        await matrix.say(room, "count")
        await matrix.until(lambda: matrix.shown(room))
        matrix.script("send", LIMITED, LIMITED)
        go_on.set()
        await matrix.until(lambda: matrix.shown(room)[0].text == "One two")
    assert [shown.history[0] for shown in matrix.shown(room)] == ["One"]


async def test_a_long_answer_is_whole(matrix: MatrixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MatrixAdapter, "can", msgspec.structs.replace(MatrixAdapter.can, pages_per_second=1000))
    long = "\n\n".join(f"第 {n} 段：" + "字" * 200 for n in range(60))
    async with at_matrix(ScriptedModel(lambda turns: [long]), matrix):
        room = matrix.room(ALICE, ME)
        await matrix.say(room, "long please")
        await matrix.until(lambda: any("第 59 段" in shown.text for shown in matrix.shown(room)))
    shown = [message.text for message in matrix.shown(room)]
    assert len(shown) == 2
    assert "".join(shown).count("字") == 12_000


async def test_an_invite_is_accepted_and_what_was_written_before_is_answered(matrix: MatrixServer) -> None:
    model = ScriptedModel()
    async with at_matrix(model, matrix):
        room = matrix.room(ALICE, invited=(ME,))
        invite = room.events[0]
        hello = matrix.written(room, "hello")
        matrix.script("join", DOWN, LIMITED, UNKNOWN)
        matrix.script("messages", Refusal(500, "M_UNKNOWN"))
        assert await matrix.deliver(invite) == (200, {})
        await matrix.until(lambda: matrix.shown(room))
        assert await matrix.deliver(invite, hello) == (200, {})  # again, and what we have read already
        await matrix.say(room, "there")
        await matrix.until(lambda: len(matrix.shown(room)) == 2)
    assert [shown.text for shown in matrix.shown(room)] == ["You said: hello", "You said: there"]
    assert len(model.asked) == 2


async def test_an_invite_outlives_us(matrix: MatrixServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.matrix.errands, "GAPS", (300.0,))
    room = matrix.room(ALICE, invited=(ME,))
    database = f"sqlite:///{tmp_path}/magpie.db"
    async with at_matrix(ScriptedModel(), matrix, database_url=database):
        matrix.script("join", DOWN)
        assert await matrix.deliver(*room.events) == (200, {})
        await matrix.until(lambda: matrix.called("join"))
    async with at_matrix(ScriptedModel(), matrix, database_url=database):
        await matrix.until(lambda: ME in room.members)


async def test_an_invite_that_was_taken_back_is_forgotten(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, invited=(ME,))
    room.invited.clear()
    request = transaction(*room.events)
    assert await adapter.at_once(request, adapter.parse(request)) is None  # type: ignore[func-returns-value]
    assert await adapter.context.state.get("invites") == room.id
    listening = asyncio.create_task(adapter.listen(_nothing))
    await matrix.until(lambda: matrix.called("join"))
    while await adapter.context.state.get("invites") is not None:
        await asyncio.sleep(0.01)
    listening.cancel()
    await asyncio.wait([listening])
    assert ME not in room.members


async def _nothing(messages: object) -> None:
    pass


async def test_an_encrypted_room_is_told_once(matrix: MatrixServer) -> None:
    async with at_matrix(ScriptedModel(), matrix):
        room, other = matrix.room(ALICE, ME), matrix.room(ALICE, invited=(ME,))

        def encrypted(room: Room) -> dict[str, Any]:
            return matrix.happen(room, ALICE, "m.room.encrypted", {"algorithm": "m.megolm.v1.aes-sha2"})

        matrix.script("send", Refusal(500, "M_UNKNOWN"))
        assert await matrix.deliver(encrypted(room), encrypted(room)) == (200, {})
        await matrix.until(lambda: matrix.shown(room))
        encrypted(other)
        await matrix.deliver(encrypted(room), *other.events[:1])
        await matrix.until(lambda: matrix.shown(other))
    for told in (room, other):
        [shown] = matrix.shown(told)
        assert shown.content["msgtype"] == "m.notice"
        assert "encrypted" in shown.text
        assert "加密" in shown.text


async def test_who_told_a_room_does_not_matter(matrix: MatrixServer, adapter: MatrixAdapter) -> None:
    room = matrix.room(ALICE, ME)
    other = make(adapter.context, api_base=matrix.base)
    for replica in (adapter, other, adapter):
        await replica.errands.explain(room.id)
    await other.stop()
    assert len(matrix.called("send")) == 1


async def test_at_the_start_our_user_is_made_and_the_homeserver_is_told_that_we_are_there(matrix: MatrixServer) -> None:
    pinged: list[Request] = []

    class Pinged(MatrixAdapter):
        async def verify(self, request: Request) -> None:
            pinged.append(request)
            await super().verify(request)

    matrix.script("register", UNKNOWN)  # the homeserver does not have the file yet
    matrix.script("ping", UNKNOWN)
    async with at_matrix(ScriptedModel(), matrix, Pinged):
        await matrix.until(lambda: matrix.users and len(matrix.called("ping")) == 2)
    assert matrix.users == {ME}
    assert [request.path for request in pinged] == ["/_matrix/app/v1/ping"]
