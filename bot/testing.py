"""For tests, ours and those of adapters elsewhere: a scripted model, a recording adapter, a running bot, the promises.

class TestAcme(AdapterPromises):
    adapter = AcmeAdapter
    settings = {"token": "t", "secret": "s"}

    def text_message(self) -> Request: ...   # one signed message of a person, addressed to the bot
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import aiohttp
import msgspec

from bot import signing
from bot.adapter import (
    Adapter,
    AdapterSettings,
    AnyAdapter,
    Capabilities,
    Chat,
    Context,
    Finding,
    Inbound,
    Message,
    Page,
    Post,
    Request,
    Response,
    State,
    Turn,
    WebhookAdapter,
)
from bot.app import Magpie
from bot.config import BotSettings, ModelSettings, Secret
from bot.errors import Malformed, Rejected, StoreUnavailable, Unverified
from bot.markup import pages
from bot.model import Completion, Model, Picture, Usage
from bot.registry import Config, Configured
from bot.store import Store, open_store

# -- a model that says what a test tells it ---------------------------------------------------------------------------

Script = Callable[[Sequence[Turn]], Iterable[str] | AsyncIterator[str]]


def echo(turns: Sequence[Turn]) -> Iterable[str]:
    """Answer "You said: ..." in two pieces."""
    return ("You said: ", turns[-1].content)


class ScriptedModel:
    """Implements `bot.model.Model`. `asked` holds every prompt; `script` may yield, wait, or raise ModelError."""

    name = "scripted"

    def __init__(self, script: Script = echo) -> None:
        self.script = script
        self.asked: list[list[Turn]] = []
        self.pictures: list[Sequence[Picture]] = []

    def ask(self, turns: Sequence[Turn], pictures: Sequence[Picture] = (), person: str = "") -> Completion:
        """Begin an answer."""
        self.asked.append(list(turns))
        self.pictures.append(pictures)
        return ScriptedCompletion(self.script(turns), sum(len(turn.content) for turn in turns))

    async def check(self) -> list[Finding]:
        """Say that all is well."""
        return [Finding(True, "scripted model")]

    async def close(self) -> None:
        """Nothing to close."""


class ScriptedCompletion:
    """Implements `bot.model.Completion`: a token a character."""

    def __init__(self, words: Iterable[str] | AsyncIterator[str], prompt: int) -> None:
        self.usage = Usage("scripted", prompt=prompt)
        self.finish = ""
        self._words = words

    async def __aiter__(self) -> AsyncIterator[str]:
        async for word in _asynchronous(self._words):
            self.usage.completion += len(word)
            yield word
        self.finish = "stop"

    async def aclose(self) -> None:
        """Nothing to close."""


async def _asynchronous(words: Iterable[str] | AsyncIterator[str]) -> AsyncIterator[str]:
    if isinstance(words, AsyncIterator):
        async for word in words:
            yield word
        return
    for word in words:
        await asyncio.sleep(0)
        yield word


# -- an adapter that writes down what it is told ------------------------------------------------------------


class RecordingSettings(AdapterSettings):
    """Settings of the recording adapter."""

    token: Secret = Secret("test-token")


class RecordingAdapter(WebhookAdapter[RecordingSettings]):
    """A platform without a network: the request's body is a Message as JSON, posts go into `shown`."""

    name = "recording"
    title = "Recording"
    docs = "bot/testing.py"
    Settings = RecordingSettings
    can = Capabilities(max_length=200, edit_every=0.01, typing_every=1, pages_per_second=1000)

    def __init__(self, settings: RecordingSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.shown: dict[str, list[str]] = {}  # what each chat shows
        self.calls: list[tuple[str, str, str]] = []  # (what, chat, text)
        self.read: list[str] = []  # ids marked as read
        self.failures: list[Exception] = []  # raised by the next calls, one each
        self.news = asyncio.Event()

    async def verify(self, request: Request) -> None:
        """Compare the token."""
        signing.equal(request.header("x-token"), self.settings.token.get_secret_value(), "X-Token")

    def parse(self, request: Request) -> Inbound:
        """Read a Message, or nothing from {}."""
        if request.body == b"{}":
            return Inbound(ignored="empty")
        return Inbound((request.json(Message),))

    def sample(self) -> Request:
        """Return a signed request that holds nothing."""
        return Request(headers={"x-token": self.settings.token.get_secret_value()}, body=b"{}")

    async def send(self, chat: Chat, page: Page) -> str:
        """Show a page."""
        self._call("send", chat, page)
        posts = self.shown.setdefault(chat.id, [])
        posts.append(page.text)
        return str(len(posts) - 1)

    async def begin(self, chat: Chat, page: Page) -> str:
        """Show the beginning of a page."""
        self._call("begin", chat, page)
        posts = self.shown.setdefault(chat.id, [])
        posts.append(page.text)
        return str(len(posts) - 1)

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Show a page in the place of its beginning."""
        self._call("edit", chat, page)
        posts = self.shown.setdefault(chat.id, [""] * (int(post.id) + 1))
        posts[int(post.id)] = page.text
        return post.id

    async def typing(self, chat: Chat) -> None:
        """Note it."""
        self.calls.append(("typing", chat.id, ""))

    async def acknowledge(self, message: Message) -> None:
        """Note it."""
        self.read.append(message.id)

    def _call(self, what: str, chat: Chat, page: Page) -> None:
        self.calls.append((what, chat.id, page.text))
        self.news.set()
        if self.failures:
            raise self.failures.pop(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what is shown fulfils a condition."""
        while not condition():
            self.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), 0.02)


class PlainRecordingAdapter(RecordingAdapter):
    """The same on a platform that cannot edit."""

    name = "plain"
    can = Capabilities(max_length=200, pages_per_second=1000)


# -- a running bot ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(
    *instances: Configured, model: Model | None = None, store: Store | None = None, **settings: Any
) -> AsyncIterator[Magpie]:
    """Run a bot on a free port, with a database in memory unless told otherwise."""
    bot = BotSettings(**{"port": 0, "database_url": "sqlite:///:memory:", **settings})
    chosen = instances or (Configured("recording", RecordingAdapter, RecordingSettings()),)
    config = Config(bot=bot, model=ModelSettings(), instances=tuple(chosen))
    magpie = Magpie(config, model=model or ScriptedModel(), store=store)
    await magpie.start()
    try:
        yield magpie
    finally:
        await magpie.stop(grace=2)


async def call(magpie: Magpie, instance: str, request: Request) -> tuple[int, bytes]:
    """Send a request to an instance's webhook over HTTP; return status and body."""
    url = f"http://127.0.0.1:{magpie.port}/webhooks/{instance}{request.path}"
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            request.method, url, params=request.query, data=io.BytesIO(request.body), headers=request.headers
        ) as answer,
    ):
        return answer.status, await answer.read()


def signed(message: Message, token: str = "test-token") -> Request:  # noqa: S107
    """Return what the recording platform sends for a message."""
    return Request(headers={"x-token": token}, body=msgspec.json.encode(message))


@contextlib.asynccontextmanager
async def context(instance: str = "test", public_url: str = "https://bot.example.com") -> AsyncIterator[Context]:
    """Lend a Context with a State of its own, for testing an adapter alone."""
    store = open_store("sqlite:///:memory:")
    await store.open()
    try:
        yield Context(instance, store.state(instance), public_url)
    finally:
        await store.close()


# -- what every adapter promises ------------------------------------------------------------

GARBAGE = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'"text"',
    b"\xff\xfe\x00",
    b"{" * 2000,
    b"[" * 100_000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b'{"type":1e999,"id":-1,"message":[],"event":7,"events":{},"entry":"x"}',
    b'{"message":{"text":{"text":[]},"chat":null,"from":0}}',
    b"<xml><ToUserName>x</ToUserName></xml>",
    b"a=1&payload=%7B%7D",
    b'{"text":"\\ud800"}',
)
LONG_ANSWER = "\n\n".join(
    [
        "# Heading 标题",
        "**粗体**文字 and *italics* with `code` & <tags>",
        "| a | b |\n|---|---|\n" + "\n".join(f"| {n} | 单元格 {n} |" for n in range(80)),
        "```python\n" + "\n".join(f"print({n})  # 行" for n in range(400)) + "\n```",
        "\n".join(f"{n}. item 项目 {n} 👩‍👩‍👧" for n in range(1, 300)),
        "word " * 3000,
        "字" * 12000,
    ]
)


class AdapterPromises:
    """Subclass it in a test module; pytest (with pytest-asyncio in auto mode) runs the promises against the adapter."""

    adapter: ClassVar[type[AnyAdapter]]
    settings: ClassVar[Mapping[str, object]] = {}
    optional_secrets: ClassVar[bool] = False  # True for the few that are open to everybody on purpose

    def text_message(self) -> Request:
        """Return one signed message of a person that is addressed to the bot."""
        raise NotImplementedError

    def build(self, lent: Context) -> WebhookAdapter[Any]:
        """Build the adapter with the test's settings."""
        adapter: AnyAdapter = self.adapter(self.adapter.Settings.model_validate(self.settings), lent)
        assert isinstance(adapter, WebhookAdapter)
        return adapter

    def test_declares_who_it_is(self) -> None:
        assert self.adapter.name.islower()
        assert self.adapter.title
        assert self.adapter.docs
        for field, info in self.adapter.Settings.model_fields.items():
            assert info.description, f"{field} has no description"

    def test_declarations_and_methods_agree(self) -> None:
        can = self.adapter.can
        pairs = [
            ("edit_every", can.edit_every is not None, Adapter.edit, self.adapter.edit),
            ("typing_every", can.typing_every is not None, Adapter.typing, self.adapter.typing),
        ]
        if issubclass(self.adapter, WebhookAdapter):
            pairs.append(("answer_within", can.answer_within > 0, WebhookAdapter.respond, self.adapter.respond))
        for what, declared, default, own in pairs:
            assert declared == (default is not own), f"{what} and its method do not agree"
        assert can.max_length >= 100
        assert can.pages_per_second > 0

    def test_does_not_start_without_its_secret(self) -> None:
        if self.optional_secrets:
            return
        try:
            self.adapter.Settings()
        except ValueError:
            return
        raise AssertionError("can be configured without any secret")

    def test_long_answers_fit(self) -> None:
        can = self.adapter.can
        shown = pages(LONG_ANSWER, can.max_length, can.dialect, can.measure)
        assert all(can.measure(page) <= can.max_length for page in shown)
        assert "print(399)" in shown[-1] or any("print(399)" in page for page in shown)

    async def test_forged_requests_are_refused(self) -> None:
        if self.optional_secrets:
            return
        true = self.text_message()
        async with context() as lent:
            adapter = self.build(lent)
            for headers in ({}, dict.fromkeys(true.headers, "x"), dict.fromkeys(true.headers, "é\udce9")):
                forged = msgspec.structs.replace(true, headers=headers, query=dict.fromkeys(true.query, "x"))
                await _refuses(adapter, forged)

    async def test_true_requests_are_taken(self) -> None:
        async with context() as lent:
            adapter = self.build(lent)
            request = self.text_message()
            await adapter.verify(request)
            (message,) = adapter.parse(request).messages
            assert message.text
            assert message.user
            assert message.addressed
            assert adapter.parse(request).messages[0].id == message.id
            assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message

    async def test_sample_is_genuine_and_holds_no_message(self) -> None:
        async with context() as lent:
            adapter = self.build(lent)
            sample = adapter.sample()
            if sample is not None:
                await adapter.verify(sample)
                assert adapter.parse(sample).messages == ()

    async def test_garbage_is_malformed_or_ignored(self) -> None:
        async with context() as lent:
            adapter = self.build(lent)
            for body in GARBAGE:
                with contextlib.suppress(Rejected):
                    adapter.parse(msgspec.structs.replace(self.text_message(), body=body))

    async def test_redelivery_is_answered_once(self) -> None:
        recorded, shown = recording(self.adapter)
        instance = Configured("it", recorded, self.adapter.Settings.model_validate(self.settings))
        async with running(instance, model=ScriptedModel(), user_messages_per_minute=0) as magpie:
            statuses = [await call(magpie, "it", self.text_message()) for _ in range(3)]
            assert all(200 <= status < 300 for status, _ in statuses)
            await _idle(magpie)
        assert isinstance(magpie.model, ScriptedModel)
        assert len(magpie.model.asked) == 1
        if not self.adapter.can.answer_within:
            assert len(shown) == 1

    async def test_what_cannot_be_stored_is_not_accepted(self) -> None:
        recorded, _ = recording(self.adapter)
        instance = Configured("it", recorded, self.adapter.Settings.model_validate(self.settings))
        async with running(instance, model=ScriptedModel()) as magpie:
            accept = magpie.store.accept
            magpie.store.accept = _unavailable  # type: ignore[method-assign, assignment]
            status, _ = await call(magpie, "it", self.text_message())
            assert status == 503
            magpie.store.accept = accept  # type: ignore[method-assign]
            status, _ = await call(magpie, "it", self.text_message())
            assert 200 <= status < 300
            await _idle(magpie)
        assert isinstance(magpie.model, ScriptedModel)
        assert len(magpie.model.asked) == 1


def recording(adapter: type[AnyAdapter]) -> tuple[type[AnyAdapter], dict[str, str]]:
    """Return the adapter with its sending half replaced, and where it writes what it would have shown."""
    shown: dict[str, str] = {}

    async def send(self: AnyAdapter, chat: Chat, page: Page) -> str:
        identity = str(len(shown))
        shown[identity] = page.text
        return identity

    async def edit(self: AnyAdapter, chat: Chat, post: Post, page: Page, last: bool) -> str:
        shown[post.id] = page.text
        return post.id

    async def nothing(self: AnyAdapter, *_: object) -> None:
        return None

    members = {"send": send, "begin": send, "edit": edit, "typing": nothing, "acknowledge": nothing}
    members |= {"start": nothing, "stop": nothing}
    if adapter.can.edit_every is None:
        del members["edit"]
    return type(f"Recorded{adapter.__name__}", (adapter,), members), shown


async def _refuses(adapter: WebhookAdapter[Any], request: Request) -> None:
    try:
        await adapter.verify(request)
    except Unverified:
        return
    except Malformed as error:
        raise AssertionError("a forged request must be Unverified, before it is looked at") from error
    raise AssertionError("a forged request was taken")


async def _unavailable(*_: object) -> Any:
    raise StoreUnavailable("for a test")


async def _idle(magpie: Magpie) -> None:
    while magpie.dispatcher.busy:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


__all__ = [
    "AdapterPromises",
    "PlainRecordingAdapter",
    "RecordingAdapter",
    "RecordingSettings",
    "Response",
    "ScriptedModel",
    "State",
    "call",
    "context",
    "echo",
    "recording",
    "running",
    "signed",
]
