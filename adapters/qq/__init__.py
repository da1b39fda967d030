"""QQ, the official bot: https://bot.q.qq.com/wiki/develop/api-v2/

Private chats (C2C), groups, guild channels and their private chats. A bot may hardly ever write first: an answer hangs
on the message it answers, at most five on one, for an hour in private chats and five minutes elsewhere. A page that is
sent again is shown once: the platform knows it by `msg_id` and `msg_seq`. Nothing can be edited.
"""

from __future__ import annotations

import re
import time
from urllib.parse import quote

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from adapters.qq.errors import LATE, SHOWN_BEFORE, STALE, failure
from adapters.qq.events import EVENTS, SCENES, Incoming, Payload, Scene, Ticket, Validation, message_of
from adapters.qq.forms import FORMS, INSTEAD, MARKDOWN, NO_MARKDOWN, RICH, TEXT
from bot import signing
from bot.adapter import (
    AdapterSettings,
    Attachment,
    Capabilities,
    Chat,
    Context,
    Finding,
    Inbound,
    Page,
    Request,
    Response,
    WebhookAdapter,
    decode,
)
from bot.client import Client, Reply, shared_token
from bot.config import HttpUrl, Secret, variable
from bot.errors import Malformed, PlatformError, Refused, Unauthorized, Unavailable

SIGNATURE, TIMESTAMP = "x-signature-ed25519", "x-signature-timestamp"
FRESH = 3600.0  # seconds an event is taken: afterwards nobody could be answered any more
CHALLENGE_FRESH = 300.0
HEARTBEAT, VALIDATION = 1, 13
ACK = Response.json({"op": 12, "d": 0})
BEAT = Response.json({"op": 11})
REPLIES = 5  # to one message
SPARE = 10.0  # seconds before the end of its window in which a message is not replied to any more
HOSTS = (".qq.com", ".qq.com.cn", ".qpic.cn")  # where files lie
DAY = 86400.0
STEPS = (
    "Open https://q.qq.com, your bot, Development. / 打开 q.qq.com，进入机器人的「开发」。",
    "Development settings: copy AppID and AppSecret; put this server's address on the list of IPs. "
    "/ 「开发设置」：复制 AppID、AppSecret，并把本服务器出口 IP 加入「IP 白名单」。",
    "Callback settings, URL: {url} (port 443, 80, 8443 or 8080). / 「回调配置」填入该地址。",
    "Save while the bot is running: the platform calls at once. / 先启动机器人再点保存，平台会立即验证。",
    "Tick the events of private chats, groups and guilds. / 勾选单聊、群聊、频道的消息事件。",
    "Until the bot is published, add people and groups in Sandbox. / 上线前在「沙箱配置」里添加成员和群。",
)


class QqSettings(AdapterSettings):
    """Variables QQ_*."""

    app_id: str = Field(min_length=1, description="q.qq.com > Development > Development settings: AppID")
    app_secret: Secret = Field(min_length=1, description="The same page: AppSecret; it also checks what comes in")
    token_base: HttpUrl = Field("https://bots.qq.com", min_length=1, description="The server that gives access tokens")
    api_base: HttpUrl = Field(
        "https://api.sgroup.qq.com",
        min_length=1,
        description="The API server; sandbox: https://sandbox.api.sgroup.qq.com",
    )


# -- what it answers


class Granted(msgspec.Struct):
    access_token: str = ""
    expires_in: int | str = 0
    code: int = 0


class Sent(msgspec.Struct):
    id: str = ""


class Me(msgspec.Struct):
    username: str = ""


class QqAdapter(WebhookAdapter[QqSettings]):
    """An official bot of QQ."""

    name = "qq"
    title = "QQ official bot (QQ 机器人)"
    docs = "https://bot.q.qq.com/wiki/develop/api-v2/"
    Settings = QqSettings
    # No limit is printed; 5,000 characters pass. The margin is for pages that grow when they lose their markup.
    can = Capabilities(max_length=4000, dialect=MARKDOWN, pages_per_second=2)

    def __init__(self, settings: QqSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.client = Client(settings.api_base, failure=failure)
        self.tokens = Client(settings.token_base, failure=failure)
        self._key = private_key(settings.app_secret.get_secret_value())
        self._public_key = self._key.public_key().public_bytes_raw().hex()

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self.tokens.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the signature of time and raw body, of the URL's test too, which would else sign for anybody.

        https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/sign.html
        """
        timestamp = request.header(TIMESTAMP)
        signed = timestamp.encode(errors="surrogatepass") + request.body
        signing.ed25519(self._public_key, request.header(SIGNATURE), signed, "X-Signature-Ed25519")
        signing.fresh(timestamp, FRESH, "X-Signature-Timestamp")

    def parse(self, request: Request) -> Inbound:
        """Translate one call."""
        payload = request.json(Payload)
        if payload.op == VALIDATION:
            return Inbound(response=self._validated(decode(bytes(payload.d), Validation)), ignored="test of the URL")
        if payload.op == HEARTBEAT:
            return Inbound(response=BEAT, ignored="heartbeat")
        known = EVENTS.get(payload.t or "") if payload.op == 0 else None
        if known is None:
            return Inbound(response=ACK, ignored=payload.t or f"op {payload.op}")
        found = message_of(*known, decode(bytes(payload.d), Incoming))
        if isinstance(found, str):
            return Inbound(response=ACK, ignored=found)
        return Inbound((found,), response=ACK)

    def _validated(self, asked: Validation) -> Response:
        """Sign the test's token. What could be the beginning of an event is not signed."""
        if not re.fullmatch(r"[A-Za-z0-9_+/=.-]{1,256}", asked.plain_token):
            raise Malformed("plain_token: not what the platform sends")
        if not re.fullmatch(r"[0-9]{1,16}", asked.event_ts):
            raise Malformed("event_ts: not a number")
        signing.fresh(asked.event_ts, CHALLENGE_FRESH, "event_ts")
        signature = self._sign((asked.event_ts + asked.plain_token).encode())
        return Response.json({"plain_token": asked.plain_token, "signature": signature})

    def _sign(self, message: bytes) -> str:
        return self._key.sign(message).hex()

    def sample(self) -> Request:
        """Return a test of the URL, as the console sends it."""
        now = str(int(time.time()))
        body = msgspec.json.encode({"op": VALIDATION, "d": {"plain_token": "sample", "event_ts": now}})
        return Request(headers={TIMESTAMP: now, SIGNATURE: self._sign(now.encode() + body)}, body=body)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a page: as Markdown where the bot may, else as text, without addresses where they are not allowed.

        https://bot.q.qq.com/wiki/develop/api-v2/server-inter/message/send-receive/send.html
        """
        form = RICH if _scene(chat).rich and not await self.context.state.get("plain") else TEXT
        while True:
            try:
                return await self._post(chat, page, form)
            except Refused as error:
                instead = INSTEAD.get(int(error.code or 0), form)
                if instead <= form:
                    raise
                if error.code in NO_MARKDOWN:
                    await self.context.state.set("plain", "1", DAY)
                form = instead

    async def _post(self, chat: Chat, page: Page, form: int) -> str:
        """Reply while that is possible, else write first, which few bots may."""
        body = FORMS[form](page)
        if reply := _reply(chat, page, form):
            try:
                return await self._sent(chat, body | reply)
            except Refused as error:
                if error.code == SHOWN_BEFORE:  # the answer to an earlier attempt was lost
                    return page.key
                if error.code not in LATE:
                    raise
        return await self._sent(chat, body)

    async def _sent(self, chat: Chat, body: dict[str, object]) -> str:
        scene, id = _scene(chat), quote(chat.id.partition("/")[2], safe="")
        if not scene.rich:
            body = {key: value for key, value in body.items() if key not in ("msg_type", "msg_seq")}
        return (await self._call("POST", scene.path.format(id), body)).json(Sent).id

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file; the address itself is the permission."""
        return await self.client.download(attachment.ref, limit=limit, hosts=HOSTS)

    async def _call(self, method: str, path: str, body: object = None) -> Reply:
        """Make a call with the token of all replicas; with a new one when the platform refuses it."""
        token = await shared_token(self.context.state, self._token)
        try:
            return await self._authorized(token, method, path, body)
        except Unauthorized as error:
            if error.code not in STALE:
                raise
        token = await shared_token(self.context.state, self._token, stale=token)
        return await self._authorized(token, method, path, body)

    async def _authorized(self, token: str, method: str, path: str, body: object) -> Reply:
        return await self.client.call(method, path, json=body, headers={"Authorization": f"QQBot {token}"})

    async def _token(self) -> tuple[str, float]:
        """Get an access token: https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/api-use.html"""
        body = {"appId": self.settings.app_id, "clientSecret": self.settings.app_secret.get_secret_value()}
        granted = (await self.tokens.call("POST", "/app/getAppAccessToken", json=body)).json(Granted)
        if not granted.access_token or not re.fullmatch("[0-9]{1,9}", str(granted.expires_in)):
            raise Unavailable("no access token in the answer")
        return granted.access_token, float(granted.expires_in)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        return [Finding(True, f"{n}. {step.format(url=url)}") for n, step in enumerate(STEPS, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are: that takes the app id, the secret and a listed IP."""
        try:
            me = (await self._call("GET", "/users/@me")).json(Me)
        except Unauthorized as error:
            advice = ", ".join(variable(self.context.instance, name) for name in ("app_id", "app_secret"))
            return [Finding(False, f"not let in: {error}", f"check {advice} and the IP list in the console")]
        except PlatformError as error:
            bases = ", ".join(variable(self.context.instance, name) for name in ("token_base", "api_base"))
            return [Finding(False, f"no answer: {error}", f"check {bases} and the network, then try again")]
        return [
            Finding(True, f"the secret is that of {me.username}"),
            Finding(True, f"whether the bot calls {url} cannot be asked: write to it to see"),
        ]


def private_key(secret: str) -> Ed25519PrivateKey:
    """Make the key that signs events: its seed is the secret, repeated up to 32 bytes.

    https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/sign.html
    """
    seed = secret.encode()
    return Ed25519PrivateKey.from_private_bytes((seed * (32 // len(seed) + 1))[:32])


def _scene(chat: Chat) -> Scene:
    return SCENES[chat.id.partition("/")[0]]


def _reply(chat: Chat, page: Page, form: int) -> dict[str, object]:
    """Return what ties a page to its question, {} when that is over. One page in one form has one `msg_seq`."""
    number = int(page.key.rpartition(":")[2] or 0)
    ticket = msgspec.json.decode(chat.ticket or "{}", type=Ticket)
    if number >= REPLIES or time.time() > ticket.until - SPARE:
        return {}
    return {"msg_id": ticket.message, "msg_seq": 1 + number + 100 * form}
