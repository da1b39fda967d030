"""Feishu (飞书) and Lark: https://open.feishu.cn/document/server-docs/event-subscription-guide/overview

Private chats, groups and topics. An answer grows as a streamed card (CardKit); where the app may not do that, as a card
that is replaced; where cards are refused it is a plain message.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import secrets
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from pydantic import Field

from adapters.feishu.api import OUTRUN, STALE, Answer, Bot, Created, Granted, Me, Sent, failure
from adapters.feishu.cards import ELEMENT, MARKDOWN, as_json, card, few_tables, finished, growing
from adapters.feishu.crypto import FORGED, decrypt, encrypt, matches, signature
from adapters.feishu.events import (
    HANDSHAKE,
    MESSAGE,
    Callback,
    Encrypted,
    Incoming,
    Received,
    attached,
    content_of,
    spoken,
    written,
)
from adapters.feishu.setup import steps
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
    Response,
    WebhookAdapter,
    decode,
)
from bot.client import Client, shared_token
from bot.config import HttpUrl, Secret, variable
from bot.errors import Malformed, PlatformError, Refused, Unverified

T = TypeVar("T")
WINDOW = 86400.0  # seconds a signed request is taken; Feishu repeats an event for seven hours
LEARN_GAPS = (1.0, 5.0, 30.0, 300.0)  # seconds between attempts to learn our own id
STREAMS_PAUSE = 600.0  # seconds until streams are tried again after they were refused
UUID_LIVES = 3600.0  # seconds for which Feishu sends a message with the same uuid only once
LEAP = 3_600_000  # by how much a sequence number jumps that was too low
ME = "/bot/v3/info"


class FeishuSettings(AdapterSettings):
    """Variables FEISHU_*."""

    app_id: str = Field(min_length=1, description="Credentials & basic info (凭证与基础信息): App ID, cli_...")
    app_secret: Secret = Field(min_length=1, description="Credentials & basic info (凭证与基础信息): App Secret")
    verification_token: Secret = Field(
        min_length=1, description="Events & callbacks, encryption strategy (加密策略): Verification Token"
    )
    encrypt_key: Secret = Field(
        Secret(""), description="Beside it: Encrypt Key; with it, events are encrypted and signed. Recommended"
    )
    api_base: HttpUrl = Field(
        "https://open.feishu.cn", min_length=1, description="The open platform; Lark: https://open.larksuite.com"
    )


class FeishuAdapter(WebhookAdapter[FeishuSettings]):
    """A self-built app with a bot."""

    name = "feishu"
    title = "Feishu / Lark (飞书)"
    docs = "https://open.feishu.cn/document/server-docs/im-v1/introduction"
    Settings = FeishuSettings
    can = Capabilities(
        max_length=4000,  # characters. A card may have 30 KB as JSON, and no 4000 characters take more
        dialect=MARKDOWN,
        edit_every=0.8,  # a card may change ten times a second, all cards together 1000 times a minute
        pages_per_second=2,  # a chat takes five messages a second
    )

    def __init__(self, settings: FeishuSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.client = Client(f"{settings.api_base}/open-apis", failure=failure)
        self.id = ""  # our own open_id, learned after the start
        self.learning: asyncio.Task[None] | None = None
        self._token = settings.verification_token.get_secret_value()
        self._key = settings.encrypt_key.get_secret_value()
        self._streams_from = 0.0  # time.monotonic() from which streams may be tried
        self._clock = 0

    async def start(self) -> None:
        """Begin to learn our own id; messages may come before it is known."""
        self.learning = asyncio.create_task(self._learn())

    async def stop(self) -> None:
        """Close the connections."""
        if self.learning:
            self.learning.cancel()
        await self.client.close()

    async def _learn(self) -> None:
        for gap in itertools.chain(LEARN_GAPS, itertools.repeat(LEARN_GAPS[-1])):
            with contextlib.suppress(PlatformError):
                self.id = (await self._me()).open_id
                return
            await asyncio.sleep(gap)

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check signature and token. Only the test of the URL is not signed.

        https://open.feishu.cn/document/server-docs/event-subscription-guide/event-subscription-configure-/encrypt-key-encryption-configuration-case
        """
        signed = self._is_signed(request)
        callback = self._opened(request)
        if not matches(callback.secret, self._token):
            raise Unverified(FORGED)
        if self._key and not signed and callback.kind != HANDSHAKE:
            raise Unverified(FORGED)

    def _is_signed(self, request: Request) -> bool:
        timestamp, nonce = (request.header(f"x-lark-request-{name}") for name in ("timestamp", "nonce"))
        expected = signature(self._key, timestamp, nonce, request.body)
        if not self._key or not matches(request.header("x-lark-signature"), expected):
            return False
        signing.fresh(timestamp, WINDOW, "X-Lark-Request-Timestamp", 0.001 if len(timestamp) > 11 else 1)
        return True

    def _opened(self, request: Request) -> Callback:
        """Decrypt and read a body. Raises Unverified also for what cannot be read: it holds no token."""
        try:
            encrypted = request.json(Encrypted).encrypt
            if encrypted and not self._key:
                raise Unverified(f"the body is encrypted; set {variable(self.context.instance, 'encrypt_key')}")
            if self._key:
                return decode(decrypt(self._key, encrypted), Callback)
            return request.json(Callback)
        except Malformed:
            raise Unverified(FORGED) from None

    def parse(self, request: Request) -> Inbound:
        """Translate an event, or answer the test of the URL."""
        callback = self._opened(request)
        if callback.kind == HANDSHAKE:
            return Inbound(response=Response.json({"challenge": callback.challenge}), ignored="test of the URL")
        if callback.kind != MESSAGE:
            return Inbound(response=Response.json({}), ignored=f"event {callback.kind[:60]}")
        received = decode(bytes(callback.event), Received)
        if reason := self._no_question(received):
            return Inbound(response=Response.json({}), ignored=reason)
        return Inbound((self._message(received),), Response.json({}))

    def _no_question(self, received: Received) -> str:
        """Return why nobody asks us anything with this message, "" when somebody may."""
        sender = received.sender
        if sender.sender_type != "user" or not sender.sender_id or sender.sender_id.open_id in (None, "", self.id):
            return "message of a bot"
        return "message of the system" if received.message.message_type == "system" else ""

    def _message(self, received: Received) -> Message:
        incoming, content = received.message, content_of(received.message)
        assert received.sender.sender_id is not None
        direct = incoming.chat_type == "p2p"
        mine = set(self._mentions_of_me(incoming))
        names = {mention.key: "" if mention.key in mine else mention.name for mention in incoming.mentions or ()}
        return Message(
            id=incoming.message_id,
            chat=Chat(incoming.chat_id, "direct" if direct else "group", incoming.thread_id or "", incoming.message_id),
            user=received.sender.sender_id.open_id or "",
            text=spoken(written(content), names),
            addressed=direct or bool(mine),
            attachments=tuple(attached(incoming, content)),
            reply_to=incoming.parent_id or "",
        )

    def _mentions_of_me(self, incoming: Incoming) -> Iterator[str]:
        """Yield the keys. Until our id is known the first mention will do: mostly we are sent what is meant for us."""
        mentions = [mention for mention in incoming.mentions or () if mention.open_id]
        me = self.id or next((mention.open_id for mention in mentions if incoming.chat_type != "p2p"), "")
        yield from (mention.key for mention in mentions if mention.open_id == me)

    def sample(self) -> Request:
        """Return an event of no kind, encrypted and signed where there is a key."""
        body = msgspec.json.encode({"schema": "2.0", "header": {"event_type": "sample", "token": self._token}})
        if not self._key:
            return Request(body=body)
        body = msgspec.json.encode({"encrypt": encrypt(self._key, body)})
        now = str(int(time.time()))
        signed = {"x-lark-signature": signature(self._key, now, "sample", body)}
        return Request(headers=signed | {"x-lark-request-timestamp": now, "x-lark-request-nonce": "sample"}, body=body)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a card, or a plain message where cards are refused; finish the card whose message we never heard of."""
        if await self.context.state.get(begun(page)) is None:
            return await self._whole(chat, page, "send")
        return await self.edit(chat, Post(await self.begin(chat, page)), page, True)

    async def _whole(self, chat: Chat, page: Page, what: str) -> str:
        try:
            shown = card(page.text, finished(page.plain))
            return await self._post(chat, "interactive", shown, idempotency(page, what))
        except Refused:  # when it is the chat that is refused, and not the card, this is refused as well
            text = (page.plain or page.text).replace("<at", "<\u200bat")
            return await self._post(chat, "text", as_json({"text": text}), idempotency(page, f"{what} text"))

    async def begin(self, chat: Chat, page: Page) -> str:
        """Post a card that streams: https://open.feishu.cn/document/cardkit-v1/streaming-updates-openapi-overview

        Returns the ids of message and card, and when the card was made.
        """
        if time.monotonic() < self._streams_from:
            return await self._whole(chat, page, "send")
        try:
            made = await self._made(page)
            shown = as_json({"type": "card", "data": {"card_id": made.split()[0]}})
            return f"{await self._post(chat, 'interactive', shown, idempotency(page, 'begin'))} {made}"
        except Refused:
            id = await self._whole(chat, page, "send")  # raises when it is the chat that is refused, not the stream
            self._streams_from = time.monotonic() + STREAMS_PAUSE
            return id

    async def _made(self, page: Page) -> str:
        """Make a card; the same for every attempt, as the message with it is sent only once."""
        made = await self.context.state.get(begun(page))
        if made is None:
            body = {"type": "card_json", "data": card(page.text, growing())}
            created = await self._call("POST", "/cardkit/v1/cards", Answer[Created], body)
            made = f"{created.data.card_id} {self._tick()}"
            await self.context.state.set(begun(page), made, UUID_LIVES)
        return made

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Stream to the card, or replace it; post the page anew when the last one is refused."""
        try:
            return await self._show(post.id, page, last)
        except Refused:
            if not last or not page.key:  # a page without a key only blanks what an earlier attempt has left
                return post.id
        with contextlib.suppress(Refused):
            await self._call("DELETE", f"/im/v1/messages/{post.id.split()[0]}", msgspec.Raw)
        return await self._whole(chat, page, "again")

    async def _show(self, id: str, page: Page, last: bool) -> str:
        message, *streamed = id.split()
        if not streamed:
            return await self._replace(id, page)
        card_id, born, *ended = streamed
        try:
            if not ended:
                await self._stream(card_id, int(born), page, last)
                return id
        except Refused as error:  # Feishu ends a stream after ten minutes
            self._clock += LEAP if error.code == OUTRUN else 0
        swap = {"card": {"type": "card_json", "data": card(page.text, finished(page.plain))}}
        await self._change("PUT", f"/cardkit/v1/cards/{card_id}", int(born), swap)
        return f"{message} {card_id} {born} ended"

    async def _stream(self, card_id: str, born: int, page: Page, last: bool) -> None:
        """Show the whole text so far, of which the client types what is new; in the end, end the stream.

        https://open.feishu.cn/document/cardkit-v1/card-element/content
        """
        path = f"/cardkit/v1/cards/{card_id}"
        await self._change("PUT", f"{path}/elements/{ELEMENT}/content", born, {"content": few_tables(page.text)})
        if last:
            settings = as_json({"config": finished(page.plain)})
            await self._change("PATCH", f"{path}/settings", born, {"settings": settings})

    async def _change(self, method: str, path: str, born: int, body: dict[str, Any]) -> None:
        """Change a card. Each change has to have a higher number than those before, whichever process made them.

        The number is the milliseconds since the card was made.
        """
        await self._call(method, path, msgspec.Raw, body | {"sequence": max(self._tick() - born, 1)})

    def _tick(self) -> int:
        """Return the milliseconds since 1970, never the same number twice."""
        self._clock = max(self._clock + 1, milliseconds())
        return self._clock

    async def _replace(self, id: str, page: Page) -> str:
        """Replace a card that does not stream: https://open.feishu.cn/document/server-docs/im-v1/message-card/patch"""
        body = {"content": card(page.text, finished(page.plain))}
        await self._call("PATCH", f"/im/v1/messages/{id}", msgspec.Raw, body)
        return id

    async def _post(self, chat: Chat, kind: str, content: str, uuid: str) -> str:
        """Answer the question in a group or a topic, else post to the chat; also when the question is gone.

        https://open.feishu.cn/document/server-docs/im-v1/message/reply
        """
        body = {"msg_type": kind, "content": content, "uuid": uuid}
        if chat.ticket and (chat.kind == "group" or chat.thread):
            with contextlib.suppress(Refused):
                reply = body | {"reply_in_thread": bool(chat.thread)}
                return (
                    await self._call("POST", f"/im/v1/messages/{chat.ticket}/reply", Answer[Sent], reply)
                ).data.message_id
        body |= {"receive_id": chat.id}
        query = {"receive_id_type": "chat_id"}
        return (await self._call("POST", "/im/v1/messages", Answer[Sent], body, query)).data.message_id

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file of a message, which the path in `ref` leads to."""
        try:
            return await self._fetch(attachment.ref, limit)
        except Refused:
            await self._me()  # gets a new access token if it was the token
            return await self._fetch(attachment.ref, limit)

    async def _fetch(self, path: str, limit: int) -> bytes:
        headers = bearer(await shared_token(self.context.state, self._granted))
        return await self.client.download(self.client.base + path, limit=limit, headers=headers)

    async def _call(
        self, method: str, path: str, kind: type[T], body: object = None, query: dict[str, str] | None = None
    ) -> T:
        """Call the API with the access token that all replicas share; with a new one when it is refused."""
        token = await shared_token(self.context.state, self._granted)
        try:
            return (await self.client.call(method, path, json=body, query=query, headers=bearer(token))).json(kind)
        except Refused as error:
            if error.code not in STALE:
                raise
        token = await shared_token(self.context.state, self._granted, stale=token)
        return (await self.client.call(method, path, json=body, query=query, headers=bearer(token))).json(kind)

    async def _granted(self) -> tuple[str, float]:
        """https://open.feishu.cn/document/server-docs/authentication-management/access-token/tenant_access_token_internal"""
        secret = {"app_id": self.settings.app_id, "app_secret": self.settings.app_secret.get_secret_value()}
        granted = (await self.client.call("POST", "/auth/v3/tenant_access_token/internal", json=secret)).json(Granted)
        return granted.tenant_access_token, granted.expire

    async def _me(self) -> Bot:
        return (await self._call("GET", ME, Me)).bot

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        token, key = (variable(self.context.instance, field) for field in ("verification_token", "encrypt_key"))
        return [Finding(True, step) for step in steps(self.settings.api_base, url, token, key)]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are, and make a card that nobody sees to learn whether we may.

        https://open.feishu.cn/document/client-docs/bot-v3/obtain-bot-info
        """
        try:
            me = await self._me()
        except PlatformError as error:
            return [Finding(False, f"app {self.settings.app_id}: {error}", self._advice(error))]
        return [
            Finding(True, f"the secret is valid; the bot is {me.app_name} ({me.open_id})"),
            Finding(
                me.activate_status == 2, f"the bot's status is {me.activate_status}", "publish a version of the app"
            ),
            await self._may_stream(),
            Finding(bool(self._key), "events are signed", f"set {variable(self.context.instance, 'encrypt_key')}"),
            Finding(True, f"whether Feishu calls {url} cannot be asked: write to the bot to see"),
        ]

    async def _may_stream(self) -> Finding:
        try:
            body = {"type": "card_json", "data": card("-", growing())}
            await self._call("POST", "/cardkit/v1/cards", Answer[Created], body)
        except PlatformError as error:
            return Finding(False, f"no streamed cards: {error}", "add cardkit:card:write and publish a version")
        return Finding(True, "the bot may stream cards")

    def _advice(self, error: PlatformError) -> str:
        app, secret, base = (variable(self.context.instance, name) for name in ("app_id", "app_secret", "api_base"))
        if not isinstance(error, Refused):
            return f"check {base} and the network, then try again"
        return f"check {app} and {secret}; add the bot and publish a version; for Lark set {base}"


def milliseconds() -> int:
    """Return the time since 1970."""
    return int(time.time() * 1000)


def bearer(token: str) -> dict[str, str]:
    """Return the header that authorizes a call."""
    return {"Authorization": f"Bearer {token}"}


def idempotency(page: Page, what: str) -> str:
    """Return the `uuid` (at most 50 characters) with which one message is sent once, however often it is tried."""
    return hashlib.sha256(f"{what}/{page.key or secrets.token_hex()}".encode()).hexdigest()[:40]


def begun(page: Page) -> str:
    """Return the key of the state under which the card of a page that grows is kept."""
    return f"card/{page.key}"
