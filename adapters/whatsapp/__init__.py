"""WhatsApp Cloud API: https://developers.facebook.com/documentation/business-messaging/whatsapp

Private chats with one business number. WhatsApp shows no message that grows: an answer is sent when it is finished,
under "typing...".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from urllib.parse import quote

import msgspec
from pydantic import Field

import adapters.meta as meta
from adapters.meta import Data, Object
from adapters.whatsapp.api import CODES, Located, Number, Sent, Subscriber, recipient
from adapters.whatsapp.notifications import (
    QUIET,
    Change,
    Contact,
    Incoming,
    Notification,
    Value,
    attachments,
    became,
    sender,
    words,
)
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
    Request,
    WebhookAdapter,
    decode,
)
from bot.client import Client, Reply
from bot.config import HttpUrl, Secret, variable
from bot.errors import Refused
from bot.markup import Dialect, apart, triple_backticks, utf16

OBJECT = "whatsapp_business_account"
FIELDS = ("messages", "user_id_update")
SCOPES = ("whatsapp_business_messaging", "whatsapp_business_management")
TYPING = 15.0  # seconds in which "typing...", which fades after 25, needs no renewal
MEDIA_HOSTS = ("lookaside.fbsbx.com",)  # where files lie; it wants our token

COMMANDS = {
    "help": "What I can do / 使用说明",
    "reset": "Forget our conversation / 忘掉之前的对话",
    "stop": "Stop the answer being written / 停止正在写的回答",
    "retry": "Answer the last question again / 重新回答上一个问题",
    "usage": "What you have used today / 查看今天的用量",
}

STEPS = (
    "Open https://developers.facebook.com/apps, your app, WhatsApp, Configuration. / "
    "打开 https://developers.facebook.com/apps，进入你的应用，选择 WhatsApp 的 Configuration。",
    "Callback URL: {url} Verify token: what {verify_token} holds. Press Verify and save while the bot is running. / "
    "Callback URL 填 {url}，Verify token 填 {verify_token} 的值，保持机器人运行，点 Verify and save。",
    "Webhook fields: subscribe to {fields}. / 在 Webhook fields 中订阅 {fields}。",
    "Tell WhatsApp that this app answers for the account: POST {base}/(account id)/subscribed_apps with the token; the "
    "id is under WhatsApp, API Setup. / 用令牌向 {base}/（账号 ID）/subscribed_apps 发一次 POST，"
    "账号 ID 见 WhatsApp 的 API Setup。",
)


# -- dialect -----------------------------------------------------------------------------------------------------------


def monospace(code: str) -> str:
    """Write inline code; three backticks do that as well, around code that holds one."""
    return f"```{code.replace('```', '`' + chr(0x200B) + '``')}```" if "`" in code else f"`{code}`"


# https://faq.whatsapp.com/539178204879377 - marks count at the edge of a word only, and nothing can be escaped
FORMATTING = Dialect(
    "whatsapp",
    boundary=apart("\u200a"),
    bold=("*", "*"),
    italic=("_", "_"),
    strike=("~", "~"),
    code=monospace,
    heading=(("*", "*"),),
    fence=lambda code, language: triple_backticks(code, ""),
    bullets=("- ", "◦ ", "▪ "),  # the first of them WhatsApp knows as a list
    nested_quotes=False,
)


# -- settings ----------------------------------------------------------------------------------------------------------


class WhatsAppSettings(AdapterSettings):
    """Settings of one business number."""

    access_token: Secret = Field(
        min_length=1,
        description="Permanent token of a system user (business.facebook.com, Settings, System users) with "
        "whatsapp_business_messaging and whatsapp_business_management",
    )
    app_secret: Secret = Field(
        min_length=1, description="developers.facebook.com, your app, App settings, Basic: App secret"
    )
    verify_token: Secret = Field(
        min_length=1,
        description="Any long random text; Meta repeats it when the webhook is set",
        json_schema_extra={"invented": True},
    )
    phone_number_id: str = Field(
        pattern=r"^[0-9]+$", description="Your app, WhatsApp, API Setup: Phone number ID (not the number itself)"
    )
    api_base: HttpUrl = Field(meta.GRAPH, min_length=1, description="The Graph API with its version")


class WhatsAppAdapter(WebhookAdapter[WhatsAppSettings]):
    """A business number."""

    name = "whatsapp"
    title = "WhatsApp"
    docs = "https://developers.facebook.com/documentation/business-messaging/whatsapp"
    Settings = WhatsAppSettings
    can = Capabilities(max_length=4096, measure=utf16, dialect=FORMATTING, typing_every=20)

    def __init__(self, settings: WhatsAppSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.number = settings.phone_number_id
        self._token = settings.access_token.get_secret_value()
        self._secret = settings.app_secret.get_secret_value()
        self._verify_token = settings.verify_token.get_secret_value()
        self.client = Client(
            settings.api_base, headers={"Authorization": f"Bearer {self._token}"}, failure=meta.failure(CODES)
        )
        self._typing: dict[str, float] = {}  # question: time.monotonic() until which "typing..." is fresh

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the verify token of a handshake, the app's signature of everything else."""
        meta.verify(request, self._secret, self._verify_token)

    def parse(self, request: Request) -> Inbound:
        """Translate a notification, which may hold many messages of many people."""
        if request.method == "GET":
            return meta.handshake(request)
        notification = request.json(Notification)
        if notification.object != OBJECT:
            return Inbound(ignored=f"object {notification.object}")
        return meta.batch(partial(self._change, change) for entry in notification.entry for change in entry.changes)

    def _change(self, change: Change) -> Inbound:
        if change.field not in FIELDS:
            return Inbound(ignored=f"field {change.field}")
        value = decode(bytes(change.value), Value)
        if value.metadata.phone_number_id != self.number:
            return Inbound(ignored=f"for another number (see {variable(self.context.instance, 'phone_number_id')})")
        if value.user_id_update:
            renamed = value.user_id_update[0].user_id
            return Inbound(ignored="a person has a new id", moved=(renamed.previous, renamed.current))
        messages = (partial(self._message, value.contacts, message) for message in value.messages)
        return meta.batch([*messages, *(partial(became, status) for status in value.statuses)])

    def _message(self, contacts: list[Contact], raw: msgspec.Raw) -> Inbound:
        it = decode(bytes(raw), Incoming)
        if it.type in QUIET or it.group_id:
            return Inbound(ignored="group message" if it.group_id else it.type)
        who = sender(it, contacts)
        user = who.user_id or who.wa_id
        if not user:
            return Inbound(ignored="message of nobody")
        message = Message(
            id=it.id,
            chat=Chat(user, ticket=f"{it.id} {who.wa_id or ''}"),
            user=user,
            user_name=who.profile.name or who.profile.username or "",
            text=words(it),
            attachments=attachments(it),
            reply_to=it.context.id or "",
        )
        return Inbound((message,))

    def sample(self) -> Request:
        """Return a notification of nothing."""
        return meta.sample(self._secret, OBJECT)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message: .../whatsapp/messages/text-messages"""
        text = {"body": page.text, "preview_url": False}
        sent = await self._post(recipient_type="individual", type="text", text=text, **recipient(chat))
        return sent.json(Sent).messages[0].id

    async def acknowledge(self, message: Message) -> None:
        """Mark a message as read and show "typing...", both in one call."""
        await self._read(message.chat)

    async def typing(self, chat: Chat) -> None:
        """Show "typing..." for 25 seconds: .../whatsapp/typing-indicators"""
        await self._read(chat)

    async def _read(self, chat: Chat) -> None:
        question, now = chat.ticket.partition(" ")[0], time.monotonic()
        self._typing = {id: until for id, until in self._typing.items() if until > now}
        if question and question not in self._typing:
            self._typing[question] = now + TYPING
            await self._post(status="read", message_id=question, typing_indicator={"type": "text"})

    async def _post(self, **fields: object) -> Reply:
        return await self.client.call(
            "POST", f"/{self.number}/messages", json={"messaging_product": "whatsapp", **fields}
        )

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Ask where a file lies and fetch it from there, both with our token: .../whatsapp/cloud-api/reference/media"""
        where = await self.client.call(
            "GET", f"/{quote(attachment.ref, safe='')}", query={"phone_number_id": self.number}
        )
        url = where.json(Located).url
        return await self.client.download(url, limit=limit, trusted=MEDIA_HOSTS, headers=self.client.headers)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """Subscribe the app to the number's messages; what Meta does not let us do is listed for the console."""
        found = await meta.collected(self._register(url), self.context.instance, "access_token")
        return found if all(finding.ok for finding in found) else [*found, *self._steps(url)]

    async def _register(self, url: str) -> AsyncIterator[Finding]:
        app = await meta.app_of(self.client, self._secret)
        token = await meta.inspect(self.client, app, self._token)
        yield await meta.subscribe(self.client, app, OBJECT, FIELDS, url, self._verify_token)
        account = await self._account(token)
        if not account:
            yield Finding(False, "the token does not tell which account the number is in", "see the last step below")
            return
        await self.client.call("POST", f"/{account}/subscribed_apps")
        yield Finding(True, f"app {app.id} answers for account {account}")
        menu = [{"command_name": name, "command_description": what} for name, what in COMMANDS.items()]
        await self.client.call("POST", f"/{self.number}/conversational_automation", json={"commands": menu})
        yield Finding(True, 'the commands are set; people see them when they type "/"')

    async def _account(self, token: meta.Token) -> str:
        """Find our number's account among those that the token may manage, "" when it does not say."""
        for account in (
            id for grant in token.granular_scopes for id in grant.target_ids or () if grant.scope in SCOPES
        ):
            with contextlib.suppress(Refused):  # some of them are other things
                reply = await self.client.call(
                    "GET", f"/{account}/phone_numbers", query={"fields": "id", "limit": "100"}
                )
                if Object(self.number) in reply.json(Data[list[Object]]).data:
                    return account
        return ""

    def _steps(self, url: str) -> list[Finding]:
        name = variable(self.context.instance, "verify_token")
        facts = {"url": url, "verify_token": name, "fields": ", ".join(FIELDS), "base": self.settings.api_base}
        return [Finding(True, f"{number}. {step.format(**facts)}") for number, step in enumerate(STEPS, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask about the number, the token and where the number's messages go."""
        return await meta.collected(self._check(url), self.context.instance, "access_token")

    async def _check(self, url: str) -> AsyncIterator[Finding]:
        instance = self.context.instance
        fields = {"fields": "display_phone_number,verified_name,webhook_configuration"}
        number = (await self.client.call("GET", f"/{self.number}", query=fields)).json(Number)
        yield Finding(True, f"the token may write as {number.display_phone_number} ({number.verified_name})")
        app = await meta.app_of(self.client, self._secret)
        token = await meta.inspect(self.client, app, self._token)
        for finding in meta.permissions(token, SCOPES, variable(instance, "access_token")):
            yield finding
        subscription = await meta.subscription(self.client, app, OBJECT)
        override = number.webhook_configuration
        target = override.phone_number or override.whatsapp_business_account or subscription.callback_url
        yield meta.goes_to(target, url, instance)
        for finding in meta.topics(subscription, FIELDS[:1], instance):
            yield finding
        if account := await self._account(token):
            yield await self._answers_for(account, app)

    async def _answers_for(self, account: str, app: meta.App) -> Finding:
        """Judge whether the account sends its messages to the app at all, the step that is easily forgotten."""
        apps = (await self.client.call("GET", f"/{account}/subscribed_apps")).json(Data[list[Subscriber]]).data
        subscribed = any(one.whatsapp_business_api_data.id == app.id for one in apps)
        what = f"app {app.id} {'answers' if subscribed else 'does not answer'} for account {account}"
        return Finding(subscribed, what, f"run: magpie register {self.context.instance}")
