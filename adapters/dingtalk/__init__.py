"""DingTalk (钉钉), a robot of an internal app: https://open.dingtalk.com/document/orgapp/receive-message

Private chats and groups. Answers go out by the session webhook that came with the question while it is valid, later by
the robot's API. With the template of an AI card an answer grows.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from typing import Any, TypeVar

import msgspec
from pydantic import Field

from adapters.dingtalk.api import (
    PAUSE,
    STALE,
    Delivered,
    Granted,
    Located,
    Sent,
    Spaces,
    Stumbled,
    Undelivered,
    failure,
)
from adapters.dingtalk.callback import (
    Callback,
    Ticket,
    attached,
    is_trusted,
    quoted,
    said,
    seconds,
)
from adapters.dingtalk.cards import CARD, FAILED, FINISHED, MARKDOWN, WRITING, shown, title
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
from bot.config import HttpUrl, Secret, Words, variable
from bot.errors import PlatformError, Refused, Throttled

T = TypeVar("T")
WINDOW = 3600.0  # seconds a signed request is taken, as the vendor says
MARGIN = 10.0  # seconds before its end from which a session webhook is not used any more
CARDS_PAUSE = 600.0  # seconds until cards are tried again after one was refused
FRAMES = 20.0  # changes of cards a second; an app may make some forty calls
TOKEN_HEADER = "x-acs-dingtalk-access-token"  # noqa: S105 - a header's name
FILE_HOSTS = (".dingtalk.com", ".aliyuncs.com")
STEPS = (
    "Open https://open-dev.dingtalk.com, your app, add the robot. / 打开 https://open-dev.dingtalk.com，进入应用，添加「机器人」。",
    "Receive messages: HTTP mode, {url} / 「消息接收模式」选择 HTTP 模式，地址填 {url}",
    "Permissions: qyapi_robot_sendmsg; for AI cards Card.Instance.Write and Card.Streaming.Write / "
    "「权限管理」：qyapi_robot_sendmsg；使用 AI 卡片还要 Card.Instance.Write 和 Card.Streaming.Write",
    "Credentials: copy Client ID and Client Secret to {id} and {secret}. / 「凭证与基础信息」：填入 {id} 和 {secret}。",
    "Create a version and publish it, again after each change; add the robot to groups there. / "
    "「版本管理与发布」：发布版本，每次修改后都要重新发布；再在群里添加机器人。",
)


class DingtalkSettings(AdapterSettings):
    """Variables DINGTALK_*."""

    client_id: str = Field(min_length=1, description="Credentials (凭证与基础信息): Client ID, formerly AppKey")
    client_secret: Secret = Field(min_length=1, description="Beside it: Client Secret, formerly AppSecret")
    robot_code: str = Field(
        "", description="The robot's page: RobotCode. When it is set, messages to other robots are ignored"
    )
    card_template_id: str = Field("", description="Template of an AI card (....schema); empty: no streaming")
    card_content_key: str = Field("msgContent", min_length=1, description="The template's variable for the answer")
    file_hosts: Words = Field((), description="Further hosts of files, for organisations with a storage of their own")
    api_base: HttpUrl = Field("https://api.dingtalk.com", min_length=1, description="The API server")


class DingtalkAdapter(WebhookAdapter[DingtalkSettings]):
    """A robot that receives messages by HTTP."""

    name = "dingtalk"
    title = "DingTalk (钉钉)"
    docs = "https://open.dingtalk.com/document/orgapp/receive-message"
    Settings = DingtalkSettings
    # With a template. The limit is not documented; at 20,000 bytes of JSON a message is refused.
    can = Capabilities(max_length=3800, dialect=CARD, edit_every=1.0)

    def __init__(self, settings: DingtalkSettings, context: Context) -> None:
        super().__init__(settings, context)
        if not settings.card_template_id:
            self.can = msgspec.structs.replace(self.can, dialect=MARKDOWN, edit_every=None)
        self.client = Client(settings.api_base, failure=failure)
        self.hooks = Client("", failure=failure)  # without the token
        self._secret = settings.client_secret.get_secret_value()
        self._cards_from = 0.0  # time.monotonic() from which cards may be tried
        self._ending: set[str] = set()  # cards whose last word is on its way
        self._next_frame = 0.0  # time.monotonic() from which a card may be changed

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self.hooks.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check time and signature, which do not cover the body: https://open.dingtalk.com/document/orgapp/receive-message"""
        timestamp = request.header("timestamp")
        signing.fresh(timestamp, WINDOW, "timestamp", 0.001)
        signing.equal(request.header("sign"), self._signature(timestamp), "sign")

    def _signature(self, timestamp: str) -> str:
        return signing.digest(self._secret, f"{timestamp}\n{self._secret}".encode(), encoding="base64")

    def sample(self) -> Request:
        """Return a signed request without a message."""
        now = str(int(time.time() * 1000))
        return Request(headers={"timestamp": now, "sign": self._signature(now)}, body=b"{}")

    def parse(self, request: Request) -> Inbound:
        """Translate a message to the robot."""
        it = request.json(Callback)
        reason = self._no_question(it)
        return Inbound(() if reason else (self._message(it),), Response.json({}), reason)

    def _no_question(self, it: Callback) -> str:
        """Return why nobody asks us anything with this, "" when somebody does."""
        if not (it.msg_id and it.conversation_id and it.sender_id):
            return "no message"
        if self.settings.robot_code and it.robot_code not in (None, "", self.settings.robot_code):
            return "message to another robot (see the robot code)"
        return "own message" if it.sender_id == it.chatbot_user_id else ""

    def _message(self, it: Callback) -> Message:
        robot = it.robot_code or self.settings.robot_code or self.settings.client_id
        ticket = Ticket(it.sender_staff_id or "", robot)
        if is_trusted(webhook := it.session_webhook or "", self.client.base):
            ticket.webhook, ticket.until = webhook, seconds(it.session_webhook_expired_time)
        answered, quote = quoted(it)
        return Message(
            id=it.msg_id,
            chat=Chat(it.conversation_id, "direct" if it.direct else "group", ticket=as_json(ticket)),
            user=it.sender_staff_id or it.sender_id,
            user_name=it.sender_nick or "",
            text=said(it),
            addressed=it.direct or it.is_in_at_list is not False,
            attachments=tuple(attached(it, robot)),
            reply_to=answered,
            quote=quote,
            locale="zh",
        )

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message, or a card that is finished where there is a template."""
        if self.can.edit_every is None:
            return await self._post(chat, page)
        return await self.edit(chat, Post(await self.begin(chat, page)), page, True)

    async def begin(self, chat: Chat, page: Page) -> str:
        """Post an AI card; nothing yet where that is refused, as messages cannot be changed.

        https://open.dingtalk.com/document/development/create-and-deliver-cards
        """
        id, space = track(page), self._space(chat)
        tried = await self.context.state.get(f"card/{id}")
        if not space or (not tried and time.monotonic() < self._cards_from):
            return ""
        await self.context.state.set(f"card/{id}", "tried", CARDS_PAUSE)
        try:
            await self._deliver(id, space, page.text)
        except (Refused, Stumbled) as error:
            # After an attempt whose answer got lost this says, for all we know, that the card is there.
            if not tried or isinstance(error, Undelivered):
                self._cards_from = time.monotonic() + CARDS_PAUSE
                return ""
        return id

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Show the whole text so far; post it as a message when the last word is refused."""
        if post.id and not last:
            self._pace()
        try:
            if post.id:
                await (self._finish(post.id, page.text) if last else self._stream(post.id, page.text, False))
                return post.id
        except (Refused, Stumbled):
            if last:
                with contextlib.suppress(PlatformError):
                    await self._update(post.id, page.text, FAILED)
        # A page without a key only blanks what an earlier attempt has left.
        return await self._post(chat, page) if last and page.key else post.id

    def _pace(self) -> None:
        """Raise Throttled where all cards together would change too often: one frame less is not missed."""
        now = time.monotonic()
        if self._next_frame > now:
            raise Throttled("cards were changed a moment ago", self._next_frame - now)
        self._next_frame = now + 1 / FRAMES

    @staticmethod
    def _space(chat: Chat) -> dict[str, Any]:
        """Return where a card goes; nothing for people who are not in the organisation, whom it cannot reach."""
        ticket = ticket_of(chat)
        robot = {"robotCode": ticket.robot}
        if chat.kind == "group":
            return {"openSpaceId": f"dtv1.card//IM_GROUP.{chat.id}", "imGroupOpenDeliverModel": robot}
        if not ticket.staff:
            return {}
        model = robot | {"spaceType": "IM_ROBOT", "extension": {"dynamicSummary": "true"}}
        return {"openSpaceId": f"dtv1.card//IM_ROBOT.{ticket.staff}", "imRobotOpenDeliverModel": model}

    async def _deliver(self, id: str, space: dict[str, Any], text: str) -> None:
        body = {
            "cardTemplateId": self.settings.card_template_id,
            "outTrackId": id,
            "cardData": shown(self.settings.card_content_key, text, WRITING),
            "callbackType": "STREAM",
            "imGroupOpenSpaceModel": {"supportForward": True},
            "imRobotOpenSpaceModel": {"supportForward": True},
            "userIdType": 1,
        }
        delivered = await self._call("POST", "/v1.0/card/instances/createAndDeliver", Delivered, body | space)
        results = delivered.result.deliver_results if isinstance(delivered.result, Spaces) else None
        if not all(space.success for space in results or ()):
            raise Undelivered("the card did not reach the chat")

    async def _stream(self, id: str, text: str, last: bool) -> None:
        """https://open.dingtalk.com/document/development/api-streamingupdate"""
        frame = {"key": self.settings.card_content_key, "content": text, "isFull": True, "isFinalize": last}
        body = frame | {"outTrackId": id, "guid": secrets.token_hex(16), "isError": False}
        await self._call("PUT", "/v1.0/card/streaming", msgspec.Raw, body)

    async def _finish(self, id: str, text: str) -> None:
        """Show the last word. It is refused the second time, after an attempt that failed half-way."""
        again = id in self._ending
        self._ending.add(id)
        try:
            await self._stream(id, text, True)
        except (Refused, Stumbled):
            if not again:
                raise
        await self._update(id, text, FINISHED)
        self._ending.discard(id)

    async def _update(self, id: str, text: str, status: str) -> None:
        """Change the card's state; without that it would seem to go on for ever."""
        data = shown(self.settings.card_content_key, text, status)
        body = {"outTrackId": id, "cardData": data, "cardUpdateOptions": {"updateCardDataByKey": True}}
        await self._call("PUT", "/v1.0/card/instances", msgspec.Raw, body)

    async def _post(self, chat: Chat, page: Page) -> str:
        """Post a message: by the session webhook while it is valid, else by the robot's API."""
        markdown = {"title": title(page.plain or page.text), "text": page.text}
        text = {"content": page.plain or page.text}
        kind, key, content = (
            ("markdown", "sampleMarkdown", markdown) if self.can.dialect is MARKDOWN else ("text", "sampleText", text)
        )
        ticket = ticket_of(chat)
        if ticket.webhook and (not ticket.until or ticket.until - MARGIN > time.time()):
            with contextlib.suppress(Refused):
                await self.hooks.call("POST", ticket.webhook, json={"msgtype": kind, kind: content})
                return ""
        return await self._by_robot(chat, ticket, {"msgKey": key, "msgParam": as_json(content)})

    async def _by_robot(self, chat: Chat, ticket: Ticket, message: dict[str, Any]) -> str:
        """https://open.dingtalk.com/document/orgapp/chatbots-send-one-on-one-chat-messages-in-batches

        https://open.dingtalk.com/document/orgapp/the-robot-sends-a-group-message
        """
        body = message | {"robotCode": ticket.robot}
        if chat.kind == "group":
            path, body = "/v1.0/robot/groupMessages/send", body | {"openConversationId": chat.id}
        elif ticket.staff:
            path, body = "/v1.0/robot/oToMessages/batchSend", body | {"userIds": [ticket.staff]}
        else:
            raise Refused("the session webhook has expired, and the robot cannot write to people outside of it")
        sent = await self._call("POST", path, Sent, body)
        if sent.invalid_staff_id_list:
            raise Refused("the robot cannot write to this person")
        if sent.flow_controlled_staff_id_list:
            raise Throttled("too many messages to this person", PAUSE)
        return sent.process_query_key or ""

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file: https://open.dingtalk.com/document/development/download-the-file-content-of-the-robot-receiving-message"""
        robot, _, code = attachment.ref.partition("/")
        body = {"downloadCode": code, "robotCode": robot}
        url = (await self._call("POST", "/v1.0/robot/messageFiles/download", Located, body)).download_url
        if not url.startswith(self.client.base):
            url = re.sub(r"\Ahttp:", "https:", url)
        return await self.client.download(url, limit=limit, hosts=(*FILE_HOSTS, *self.settings.file_hosts))

    async def _call(self, method: str, path: str, kind: type[T], body: object) -> T:
        """Call the API with the access token that all replicas share; with a new one when it is refused."""
        token = await shared_token(self.context.state, self._granted)
        try:
            return (await self.client.call(method, path, json=body, headers={TOKEN_HEADER: token})).json(kind)
        except Refused as error:
            if error.code != STALE[0]:
                raise
        token = await shared_token(self.context.state, self._granted, stale=token)
        return (await self.client.call(method, path, json=body, headers={TOKEN_HEADER: token})).json(kind)

    async def _granted(self) -> tuple[str, float]:
        """https://open.dingtalk.com/document/orgapp/obtain-the-access_token-of-an-internal-app"""
        body = {"appKey": self.settings.client_id, "appSecret": self._secret}
        granted = (await self.client.call("POST", "/v1.0/oauth2/accessToken", json=body)).json(Granted)
        return granted.access_token, granted.expire_in

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        id, secret = (variable(self.context.instance, field) for field in ("client_id", "client_secret"))
        steps = (step.format(url=url, id=id, secret=secret) for step in STEPS)
        return [Finding(True, f"{number}. {step}") for number, step in enumerate(steps, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask for an access token; what else is right cannot be asked."""
        try:
            await self._granted()
        except PlatformError as error:
            return [Finding(False, f"app {self.settings.client_id}: {error}", self._advice(error))]
        cards = "AI cards" if self.settings.card_template_id else "messages, as there is no template of an AI card"
        return [
            Finding(True, f"the secret is valid; the robot answers with {cards}"),
            Finding(True, f"whether DingTalk calls {url} cannot be asked: write to the robot to see"),
        ]

    def _advice(self, error: PlatformError) -> str:
        id, secret, base = (
            variable(self.context.instance, name) for name in ("client_id", "client_secret", "api_base")
        )
        return f"check {id} and {secret}" if isinstance(error, Refused) else f"check {base} and the network"


def ticket_of(chat: Chat) -> Ticket:
    """Read the ticket of a chat."""
    return decode(chat.ticket or "{}", Ticket)


def as_json(value: object) -> str:
    """Write JSON that goes into a text."""
    return msgspec.json.encode(value).decode()


def track(page: Page) -> str:
    """Return the id of a page's card, which any process can tell from its key."""
    return hashlib.sha256(f"magpie/{page.key or secrets.token_hex()}".encode()).hexdigest()[:40]
