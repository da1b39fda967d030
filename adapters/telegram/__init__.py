"""Telegram, Bot API 10.3: https://core.telegram.org/bots/api

Private chats, groups, supergroups and forum topics. In a private chat an answer grows as a draft where the server
takes drafts; everywhere else it is a message that is edited.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from pydantic import AfterValidator, Field

from adapters.telegram.api import (
    GONE,
    NO_PREVIEW,
    NOT_MODIFIED,
    Answer,
    Located,
    Migrated,
    Sent,
    Webhook,
    failure,
    may_move,
    repaired,
)
from adapters.telegram.updates import (
    FILES,
    UNREADABLE,
    UPDATES,
    Entity,
    Incoming,
    Sender,
    Update,
    answered_by,
    attached,
    content,
    place,
    span,
)
from bot import signing
from bot.adapter import (
    AdapterSettings,
    Attachment,
    Capabilities,
    Chat,
    Context,
    Finding,
    Inbound,
    Message,
    Page,
    Post,
    Request,
    WebhookAdapter,
)
from bot.client import Client
from bot.config import HttpUrl, Secret, variable
from bot.errors import PlatformError, Refused, Throttled
from bot.markup import Dialect, escape_html, html_fence, html_link, utf16

T = TypeVar("T")
SECRET_HEADER = "x-telegram-bot-api-secret-token"  # noqa: S105 - a header's name
LEARN_GAPS = (1.0, 5.0, 30.0, 300.0)  # seconds between attempts to learn our own username
MOVED_FOR = 30 * 86400.0  # seconds a group's new id is remembered
DRAFT = "draft:"  # the id of a post that is a draft; it fades after 30 s unless it is renewed
DRAFTS_PAUSE = 600.0  # seconds until drafts are tried again after they were refused
GROUP_EDIT_EVERY = 3.0  # seconds; Telegram takes 20 messages and edits a minute in a group
RECENT = 3600  # seconds for which an error of the webhook is a problem
# https://core.telegram.org/bots/api#html-style
HTML = Dialect(
    "telegram-html",
    escape=escape_html,
    escape_code=escape_html,
    escape_url=escape_html,
    bold=("<b>", "</b>"),
    italic=("<i>", "</i>"),
    strike=("<s>", "</s>"),
    code=("<code>", "</code>"),
    heading=(("<b>", "</b>"),),
    fence=html_fence,
    link=html_link,
    image=html_link,
    quote=("<blockquote>", "</blockquote>"),
    nested_quotes=False,
    table="code",
)

COMMANDS = {
    "help": ("What I can do", "使用说明"),
    "reset": ("Forget our conversation", "忘掉之前的对话"),
    "stop": ("Stop the answer being written", "停止正在写的回答"),
    "retry": ("Answer the last question again", "重新回答上一个问题"),
    "usage": ("What you have used today", "查看今天的用量"),
}


# -- settings -----------------------------------------------------------------------------------------------------


def _like(pattern: str, form: str) -> AfterValidator:
    def check(value: Secret) -> Secret:
        if not re.fullmatch(pattern, value.get_secret_value()):
            raise ValueError(f"must be {form}")
        return value

    return AfterValidator(check)


Token = Annotated[Secret, _like(r"[1-9][0-9]{0,15}:[A-Za-z0-9_-]+", "the whole token, like 123456:ABC-DEF")]
WebhookSecret = Annotated[Secret, _like(r"[A-Za-z0-9_-]{1,256}", "1 to 256 of A-Z a-z 0-9 _ -")]


class TelegramSettings(AdapterSettings):
    """Settings of one bot."""

    bot_token: Token = Field(description="The bot's token, from @BotFather")
    webhook_secret: WebhookSecret = Field(
        description="Any 1 to 256 of A-Z a-z 0-9 _ - that nobody can guess; Telegram sends it with every update"
    )
    api_base: HttpUrl = Field("https://api.telegram.org", min_length=1, description="The Bot API server")


class TelegramAdapter(WebhookAdapter[TelegramSettings]):
    """A Telegram bot."""

    name = "telegram"
    title = "Telegram"
    docs = "https://core.telegram.org/bots/api"
    Settings = TelegramSettings
    # The limit counts what is shown, our measure the markup as well: what fits us fits Telegram.
    can = Capabilities(max_length=4096, measure=utf16, dialect=HTML, edit_every=1.2, typing_every=4)

    def __init__(self, settings: TelegramSettings, context: Context) -> None:
        super().__init__(settings, context)
        token = settings.bot_token.get_secret_value()
        self.id = int(token.partition(":")[0])
        self.username = ""  # learned after the start
        self.client = Client(f"{settings.api_base}/bot{token}", failure=failure)
        self._files = f"{settings.api_base}/file/bot{token}/"
        self._secret = settings.webhook_secret.get_secret_value()
        self._drafts_from = 0.0  # time.monotonic() from which drafts may be tried
        self._paced: dict[str, float] = {}  # group: time.monotonic() from which it may be edited
        self.learning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to learn our username; messages may come before it is known."""
        self.learning = asyncio.create_task(self._learn_username())

    async def stop(self) -> None:
        """Close the connections."""
        if self.learning:
            self.learning.cancel()
        await self.client.close()

    async def _learn_username(self) -> None:
        for gap in itertools.chain(LEARN_GAPS, itertools.repeat(LEARN_GAPS[-1])):
            with contextlib.suppress(PlatformError):
                self.username = (await self._call("getMe", Answer[Sender])).username
                return
            await asyncio.sleep(gap)

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Compare the secret token: https://core.telegram.org/bots/api#setwebhook"""
        signing.equal(request.header(SECRET_HEADER), self._secret, "X-Telegram-Bot-Api-Secret-Token")

    def parse(self, request: Request) -> Inbound:
        """Translate one update."""
        update = request.json(Update)
        if update.message:
            return self._message(update.update_id, update.message)
        if stopped := update.stopped_message_generation:
            # Drafts exist in private chats only, where the chat has the person's id.
            chat = place(stopped.chat, stopped.message_thread_id)
            message = Message(str(update.update_id), chat, chat.id, "/stop", stopped.chat.first_name)
            return Inbound((message,))
        kinds = (kind for kind in request.json(dict[str, msgspec.Raw]) if kind != "update_id")
        return Inbound(ignored=next(kinds, "empty update").replace("_", " "))

    def _message(self, update_id: int, incoming: Incoming) -> Inbound:
        if incoming.migrate_to_chat_id:
            moved = (str(incoming.chat.id), str(incoming.migrate_to_chat_id))
            return Inbound(ignored="the group became a supergroup", moved=moved)
        if reason := self._no_question(incoming):
            return Inbound(ignored=reason)
        sender = incoming.sender_chat or incoming.sender
        assert sender is not None
        text, named = self._without_my_name(*content(incoming))
        answered = answered_by(incoming)
        thread = incoming.message_thread_id if incoming.is_topic_message else 0
        message = Message(
            id=str(update_id),
            chat=place(incoming.chat, thread, str(incoming.message_id)),
            user=str(sender.id),
            user_name=sender.title or f"{sender.first_name} {sender.last_name}".strip(),
            text=text,
            addressed=incoming.chat.type == "private" or named or self._wrote(answered),
            attachments=tuple(attached(incoming)),
            reply_to=str(answered.message_id) if answered else "",
            quote=incoming.quote.text if incoming.quote else content(answered)[0] if answered else "",
            locale=sender.language_code,
        )
        return Inbound((message,))

    def _no_question(self, incoming: Incoming) -> str:
        """Return why nobody asks us anything with this message, "" when somebody may."""
        # The `from` of an anonymous admin is a stand-in; the group itself is the sender.
        sender = incoming.sender_chat or incoming.sender
        if sender is None or incoming.chat.type == "channel" or incoming.is_automatic_forward:
            return "channel post"
        if sender.is_bot:
            return "message of a bot"
        text, entities = content(incoming)
        if not text and not any(getattr(incoming, field) for field in (*FILES, *UNREADABLE)):
            return "service message"
        if self._commands_another(text, entities):
            return "command for another bot"
        return ""

    def _wrote(self, message: Incoming | None) -> bool:
        return bool(message and message.sender and message.sender.id == self.id)

    def _is_me(self, username: str) -> bool:
        """Compare usernames. Until ours is known any bot's will do: mostly we see only what is meant for us."""
        return username.lower() == self.username.lower() if self.username else username.lower().endswith("bot")

    def _commands_another(self, text: str, entities: Sequence[Entity]) -> bool:
        """Whether the text begins with "/command@another_bot"."""
        leading = (span(text, entity) for entity in entities if entity.type == "bot_command" and entity.offset == 0)
        _, _, username = text[slice(*next(leading, (0, 0)))].partition("@")
        return username != "" and not self._is_me(username)

    def _without_my_name(self, text: str, entities: Sequence[Entity]) -> tuple[str, bool]:
        """Return the text without our name, and whether it names us or begins with a command."""
        named = False
        for entity in sorted(entities, key=lambda entity: entity.offset, reverse=True):
            start, end = span(text, entity)
            command = entity.type == "bot_command" and start == 0
            if command or self._mentions_me(text[start:end], entity):
                kept = text[:end].partition("@")[0] + " " if command else text[:start]
                text, named = kept + text[end:].lstrip(), True
        return text.strip(), named

    def _mentions_me(self, word: str, entity: Entity) -> bool:
        if entity.type == "text_mention":
            return entity.user is not None and entity.user.id == self.id
        return entity.type == "mention" and self._is_me(word.removeprefix("@"))

    def sample(self) -> Request:
        """Return an update of no kind."""
        return Request(headers={SECRET_HEADER: self._secret}, body=b'{"update_id":0}')

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message: https://core.telegram.org/bots/api#sendmessage"""
        fields = await self._where(chat) | NO_PREVIEW
        if chat.kind == "group" and chat.ticket and page.reply_to:
            fields["reply_parameters"] = {"message_id": int(chat.ticket), "allow_sending_without_reply": True}
        return str((await self._post("sendMessage", Answer[Sent], page, fields)).message_id)

    async def begin(self, chat: Chat, page: Page) -> str:
        """Show a draft in a private chat, post a message elsewhere."""
        if chat.kind == "direct" and time.monotonic() >= self._drafts_from:
            return await self._draft(chat, page, draft_id(page))
        return await self.send(chat, page)

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Edit a message: https://core.telegram.org/bots/api#editmessagetext

        A draft is renewed instead, and in the end sent as a message, which takes its place.
        """
        if post.id.startswith(DRAFT):
            return await self._edit_draft(chat, post.id, page, last)
        if chat.kind == "group" and not last:
            self._pace(chat.id)
        fields = {"chat_id": await self._peer(chat), "message_id": int(post.id)} | NO_PREVIEW
        try:
            await self._post("editMessageText", Answer[Any], page, fields)
        except Refused as error:
            if any(reason in str(error) for reason in GONE):
                return await self.send(chat, page)
            if NOT_MODIFIED not in str(error):
                raise
        return post.id

    async def _edit_draft(self, chat: Chat, id: str, page: Page, last: bool) -> str:
        if not last:
            return await self._draft(chat, page, id)
        # Another page's draft needs no last word: it fades by itself.
        return await self.send(chat, page) if id == draft_id(page) else id

    async def _draft(self, chat: Chat, page: Page, id: str) -> str:
        """Show a draft, or a message where drafts are refused; return the id of what is shown.

        https://core.telegram.org/bots/api#sendmessagedraft
        """
        options = {"draft_id": int(id.removeprefix(DRAFT)), "can_stop": True, "keep_on_stop": True}
        try:
            await self._post("sendMessageDraft", Answer[bool], page, await self._where(chat) | options)
        except Refused:
            id = await self.send(chat, page)  # raises when it is the chat that is refused, not the draft
            self._drafts_from = time.monotonic() + DRAFTS_PAUSE
        return id

    def _pace(self, group: str) -> None:
        """Raise Throttled when the group was edited a moment ago, before Telegram makes us wait much longer.

        https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this
        """
        now = time.monotonic()
        if (wait := self._paced.get(group, now) - now) > 0:
            raise Throttled("the group was edited a moment ago", wait)
        self._paced = {id: until for id, until in self._paced.items() if until > now}
        self._paced[group] = now + GROUP_EDIT_EVERY

    async def typing(self, chat: Chat) -> None:
        """Show that we are typing, for five seconds: https://core.telegram.org/bots/api#sendchataction"""
        await self._call("sendChatAction", Answer[bool], await self._where(chat) | {"action": "typing"})

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file, at most 20 MB: https://core.telegram.org/bots/api#getfile"""
        located = await self._call("getFile", Answer[Located], {"file_id": attachment.ref})
        return await self.client.download(self._files + quote(located.file_path), limit=limit)

    async def _where(self, chat: Chat) -> dict[str, Any]:
        thread = {"message_thread_id": int(chat.thread)} if chat.thread else {}
        return {"chat_id": await self._peer(chat)} | thread

    async def _peer(self, chat: Chat) -> int:
        """Return the chat's id, or the one it has had since it became a supergroup."""
        id = int(chat.id)
        moved = await self.context.state.get(f"moved/{id}") if may_move(id) else None
        return int(moved or id)

    async def _post(self, method: str, kind: type[Answer[T]], page: Page, fields: dict[str, Any]) -> T:
        """Post a page, to where the chat is now and without what Telegram does not take of it."""
        fields = fields | {"text": page.text, "parse_mode": "HTML"}
        while True:
            try:
                return await self._call(method, kind, fields)
            except Migrated as error:
                if not may_move(fields["chat_id"]):
                    raise
                await self.context.state.set(f"moved/{fields['chat_id']}", str(error.to), MOVED_FOR)
                if "message_id" in fields:  # of a message that stayed behind
                    raise Refused(GONE[0]) from None
                fields = fields | {"chat_id": error.to}
            except Refused as error:
                fields = repaired(fields, page.plain, error)

    async def _call(self, method: str, kind: type[Answer[T]], fields: dict[str, Any] | None = None) -> T:
        return (await self.client.call("POST", f"/{method}", json=fields or {})).json(kind).result

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """Set the webhook and the menu of commands: https://core.telegram.org/bots/api#setwebhook"""
        webhook = {"url": url, "secret_token": self._secret, "allowed_updates": UPDATES, "max_connections": 100}
        try:
            await self._call("setWebhook", Answer[bool], webhook)
            for number, language in enumerate(("", "zh")):
                menu = [{"command": name, "description": told[number]} for name, told in COMMANDS.items()]
                await self._call("setMyCommands", Answer[bool], {"commands": menu, "language_code": language})
            told = await self._call("getWebhookInfo", Answer[Webhook])
        except PlatformError as error:
            return [self._trouble(error)]
        return [self._points_here(told, url), Finding(True, "the menu of commands is set, in English and Chinese")]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are and how the webhook fares: https://core.telegram.org/bots/api#getwebhookinfo"""
        try:
            me = await self._call("getMe", Answer[Sender])
            webhook = await self._call("getWebhookInfo", Answer[Webhook])
        except PlatformError as error:
            return [self._trouble(error)]
        seen = "every message" if me.can_read_all_group_messages else "commands, mentions and replies"
        waiting = webhook.pending_update_count
        return [
            Finding(True, f"the token is that of @{me.username}, who sees {seen} in groups"),
            self._points_here(webhook, url),
            Finding(waiting < 100, f"{waiting} updates wait at Telegram", "see the last error, or give it a moment"),
            *last_error(webhook),
        ]

    def _points_here(self, webhook: Webhook, url: str) -> Finding:
        if webhook.url == url:
            return Finding(True, f"the webhook is {url}")
        found = f"the webhook is {webhook.url or 'not set'}, not {url}"
        return Finding(False, found, f"run: magpie register {self.context.instance}")

    def _trouble(self, error: PlatformError) -> Finding:
        token, base = (variable(self.context.instance, field) for field in ("bot_token", "api_base"))
        if not isinstance(error, Refused):
            return Finding(False, f"the Bot API does not serve us: {error}", f"wait; check {base} and the network")
        if error.code in (401, 404):
            return Finding(False, f"the token is refused: {error}", f"copy {token} from @BotFather again")
        return Finding(False, f"refused: {error}", "the webhook must be https, public, on port 443, 80, 88 or 8443")


def draft_id(page: Page) -> str:
    """Return the id of a page's draft, which any process can tell from its key."""
    return f"{DRAFT}{zlib.crc32(page.key.encode()) >> 1 or 1}"


def last_error(webhook: Webhook) -> Iterator[Finding]:
    """Yield what last went wrong when Telegram called us."""
    if webhook.last_error_date:
        at = f"{datetime.fromtimestamp(webhook.last_error_date, UTC):%Y-%m-%d %H:%M:%S} UTC"
        old = time.time() - webhook.last_error_date > RECENT
        advice = "is the bot running, and does its public address lead to it?"
        yield Finding(old, f"the last error was at {at}: {webhook.last_error_message}", advice)
