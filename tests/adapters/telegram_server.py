"""A strict Bot API server on loopback: it refuses what Telegram refuses, and writes down what people would see.

    async with TelegramServer() as telegram:
        alice = telegram.private("Alice")
        adapter = TelegramAdapter(settings(api_base=telegram.base, bot_token=telegram.token), context)
        await telegram.say(alice, "hello")  # calls the webhook, once setWebhook was called
        [shown] = telegram.shown(alice)

Errors carry the descriptions of https://github.com/tdlib/telegram-bot-api. `script` makes calls fail.
"""

from __future__ import annotations

import asyncio
import html
import itertools
import re
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

BOT_ID = 123456
USERNAME = "magpie_test_bot"
LONGEST = 4096  # UTF-16 units after the markup is read
MARKUP = re.compile(r"<(/?)([^\s<>/]*)([^<>]*)>|<")
CHARACTERS = re.compile(r"&(?:lt|gt|amp|quot|#\d+|#x[0-9a-fA-F]+);")  # the only ones that HTML mode knows
TAGS = {
    "b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "code", "pre", "a", "blockquote", "span", "tg-spoiler",
    "tg-emoji",
}  # fmt: skip
UPDATES = {
    "message", "edited_message", "channel_post", "edited_channel_post", "business_connection", "business_message",
    "guest_message", "message_reaction", "inline_query", "callback_query", "my_chat_member", "chat_member",
    "chat_join_request", "poll", "poll_answer", "stopped_message_generation",
}  # fmt: skip
Kind = Literal["private", "group", "supergroup", "channel"]
Fields = dict[str, Any]


class Refusal(Exception):
    """An answer other than ok."""

    def __init__(self, status: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.parameters = parameters


def flood(seconds: int) -> Refusal:
    """Flood control: come back in `seconds`."""
    return Refusal(429, f"Too Many Requests: retry after {seconds}", retry_after=seconds)


def bad(description: str) -> Refusal:
    """A request that is wrong."""
    return Refusal(400, f"Bad Request: {description}")


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Call:
    """One call of the bot."""

    method: str
    fields: Fields


@dataclass
class Shown:
    """A message as people see it. `history` holds every text it had, the current one last."""

    id: int
    text: str
    html: str
    thread: int | None = None
    reply_to: int | None = None
    history: list[str] = field(default_factory=list)
    by_bot: bool = True

    def become(self, text: str, source: str) -> None:
        """Show another text."""
        self.text, self.html = text, source
        self.history.append(text)


@dataclass
class Room:
    """A chat."""

    id: int
    kind: Kind
    title: str
    threads: set[int] = field(default_factory=set)
    messages: dict[int, Shown] = field(default_factory=dict)
    drafts: dict[int, list[str]] = field(default_factory=dict)  # of each draft every text it had
    actions: list[Fields] = field(default_factory=list)
    lost: Refusal | None = None  # why the bot may not write here any more
    moved_to: int = 0
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))


class TelegramServer:
    """The Bot API for one bot. `local` is the self-hosted server, which takes http webhooks on any port."""

    def __init__(self, *, token: str = f"{BOT_ID}:AAtest-token_0123456789", local: bool = True) -> None:
        self.token = token
        self.local = local
        self.base = ""
        self.rooms: dict[int, Room] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.webhook: Fields = {"url": ""}
        self.commands: dict[str, list[Fields]] = {}
        self.drafts = True  # False: a server from before sendMessageDraft
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._updates = itertools.count(1000)
        self._served: set[str] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> TelegramServer:
        app = web.Application()
        app.router.add_route("*", "/bot{token}/{method}", self._call)
        app.router.add_get("/file/bot{token}/{path:.+}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base = f"http://{host}:{port}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    # -- the people's side

    def private(self, name: str, id: int = 0) -> Room:
        """Let a person open a chat with the bot."""
        return self._room(Room(id or 1000 + len(self.rooms), "private", name))

    def group(self, title: str, id: int = 0, kind: Kind = "supergroup", threads: tuple[int, ...] = ()) -> Room:
        """Add the bot to a group, a forum when it has threads."""
        base = -(10**12) if kind in ("supergroup", "channel") else 0
        return self._room(Room(id or base - 1000 - len(self.rooms), kind, title, set(threads)))

    def _room(self, room: Room) -> Room:
        self.rooms[room.id] = room
        return room

    def shown(self, room: Room) -> list[Shown]:
        """Return the bot's messages in a chat, oldest first."""
        return [message for message in room.messages.values() if message.by_bot]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def called(self, method: str) -> list[Fields]:
        """Return the fields of every call of a method."""
        return [call.fields for call in self.calls if call.method == method]

    def script(self, method: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls of a method fail in these ways, one each."""
        self._scripts[method].extend(outcomes)

    def unscript(self, method: str) -> None:
        """Let the calls of a method succeed again."""
        self._scripts[method].clear()

    def migrate(self, room: Room) -> Room:
        """Make a group a supergroup: it gets a new id, and its messages stay behind."""
        moved = self.group(room.title)
        room.moved_to = moved.id
        return moved

    def person(self, name: str, id: int) -> Fields:
        """Return a User object."""
        return {"id": id, "is_bot": False, "first_name": name, "language_code": "en"}

    def written(self, room: Room, text: str = "", *, by: int = 0, thread: int | None = None, **more: Any) -> Fields:
        """Let a person write into a chat; return the update about it, not yet delivered."""
        shown = Shown(next(room.ids), text, text, thread, by_bot=False)
        room.messages[shown.id] = shown
        private = room.kind == "private"
        title = {"first_name": room.title} if private else {"title": room.title}
        message = {
            "message_id": shown.id,
            "from": self.person(room.title if private else "Alice", by or (room.id if private else 7)),
            "chat": {"id": room.id, "type": room.kind, **title},
            "date": 1_790_000_000,
            **({"message_thread_id": thread, "is_topic_message": True} if thread else {}),
            **({"text": text, "entities": entities(text)} if text else {}),
            **more,
        }
        return {"update_id": next(self._updates), "message": message}

    async def say(self, room: Room, text: str = "", **more: Any) -> Fields:
        """Let a person write into a chat and deliver it; return the update."""
        update = self.written(room, text, **more)
        await self.deliver(update)
        return update

    async def deliver(self, update: Fields) -> int:
        """Call the webhook once and return the status it answered."""
        headers = {"X-Telegram-Bot-Api-Secret-Token": self.webhook["secret_token"]}
        async with self._session.post(self.webhook["url"], json=update, headers=headers) as answer:
            return answer.status

    async def press_stop(self, room: Room) -> int:
        """Press the stop button of the newest draft."""
        stopped = {"chat": {"id": room.id, "type": room.kind, "first_name": room.title}, "draft_id": [*room.drafts][-1]}
        return await self.deliver({"update_id": next(self._updates), "stopped_message_generation": stopped})

    # -- the bot's side

    async def _call(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.match_info["token"] != self.token:
                raise self._stranger(request.match_info["token"])
            fields = await self._fields(request)
            return await self._do(request, request.match_info["method"], fields)
        except Refusal as error:
            body = {"ok": False, "error_code": error.status, "description": error.description}
            if error.parameters:
                body["parameters"] = error.parameters
            return web.json_response(body, status=error.status)

    async def _do(self, request: web.Request, method: str, fields: Fields) -> web.StreamResponse:
        act = getattr(self, f"_{method}", None)
        if act is None or (method == "sendMessageDraft" and not self.drafts):
            raise Refusal(404, "Not Found: method not found")
        self.calls.append(Call(method, fields))
        outcome = self._scripts[method].popleft() if self._scripts[method] else None
        if isinstance(outcome, Refusal):
            raise outcome
        if isinstance(outcome, Cut) and not outcome.after:
            return self._hang_up(request)
        result = act(fields)
        self._news.set()
        return self._hang_up(request) if outcome else web.json_response({"ok": True, "result": result})

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    @staticmethod
    def _stranger(token: str) -> Refusal:
        return Refusal(401, "Unauthorized") if re.fullmatch(r"\d+:[\w-]+", token) else Refusal(404, "Not Found")

    @staticmethod
    async def _fields(request: web.Request) -> Fields:
        if request.method == "GET" or not request.can_read_body:
            return dict(request.query)
        if request.content_type != "application/json":
            return dict(await request.post())
        fields = await request.json()
        if not isinstance(fields, dict):
            raise bad("can't parse JSON object")
        return fields

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        if request.match_info["token"] != self.token or path not in self._served:
            raise web.HTTPNotFound
        return web.Response(body=self.files[path.removeprefix("files/")])

    def _place(self, fields: Fields) -> Room:
        id = number(fields, "chat_id", missing="chat_id is empty")
        room = self.rooms.get(id)
        if room is None or room.kind == "channel":
            raise bad("chat not found")
        if room.moved_to:
            description = "Bad Request: group chat was upgraded to a supergroup chat"
            raise Refusal(400, description, migrate_to_chat_id=room.moved_to)
        if room.lost:
            raise room.lost
        return room

    def _thread(self, room: Room, fields: Fields) -> int | None:
        thread = number(fields, "message_thread_id") if "message_thread_id" in fields else None
        if thread is not None and thread not in room.threads:
            raise bad("message thread not found")
        return thread

    def _text(self, fields: Fields, empty: bool = False) -> tuple[str, str]:
        source = fields.get("text", "")
        if not isinstance(source, str):
            raise bad("strings must be encoded in UTF-8")
        mode = fields.get("parse_mode", "")
        if mode not in ("", "HTML"):
            raise bad("unsupported parse_mode")
        text = parsed(source) if mode else source
        if not text.strip() and not empty:
            raise bad("message text is empty")
        if units(text) > LONGEST:
            raise bad("message is too long")
        return text, source

    def _reply(self, room: Room, fields: Fields) -> int | None:
        reply = fields.get("reply_parameters")
        if reply is None:
            return None
        if not isinstance(reply, dict):
            raise bad("object expected as reply parameters")
        id = number(reply, "message_id")
        if id in room.messages:
            return id
        if not reply.get("allow_sending_without_reply") or "message_thread_id" in fields:
            raise bad("message to be replied not found")
        return None

    def _getMe(self, fields: Fields) -> Fields:
        return {"id": BOT_ID, "is_bot": True, "first_name": "Magpie", "username": USERNAME}

    def _sendMessage(self, fields: Fields) -> Fields:
        room = self._place(fields)
        text, source = self._text(fields)
        thread, reply_to = self._thread(room, fields), self._reply(room, fields)
        shown = Shown(next(room.ids), "", "", thread, reply_to)
        shown.become(text, source)
        room.messages[shown.id] = shown
        return {"message_id": shown.id, "chat": {"id": room.id, "type": room.kind}, "date": 1_790_000_000, "text": text}

    def _editMessageText(self, fields: Fields) -> Fields:
        room = self._place(fields)
        text, source = self._text(fields)
        id = number(fields, "message_id", missing="message identifier is not specified")
        shown = room.messages.get(id)
        if shown is None:
            raise bad("message to edit not found")
        if not shown.by_bot:
            raise bad("message can't be edited")
        if shown.html == source:
            raise bad(
                "message is not modified: specified new message content and reply markup are exactly the same as a "
                "current content and reply markup of the message"
            )
        shown.become(text, source)
        return {"message_id": id, "chat": {"id": room.id, "type": room.kind}, "date": 1_790_000_000, "text": text}

    def _sendMessageDraft(self, fields: Fields) -> bool:
        room = self._place(fields)
        if room.kind != "private":
            raise bad("TEXTDRAFT_PEER_INVALID")
        self._thread(room, fields)
        draft = number(fields, "draft_id")
        if draft == 0:
            raise bad("draft_id must be non-zero")
        text, _ = self._text(fields, empty=True)
        room.drafts.setdefault(draft, []).append(text)
        return True

    def _sendChatAction(self, fields: Fields) -> bool:
        room = self._place(fields)
        self._thread(room, fields)
        if fields.get("action") != "typing":
            raise bad("wrong parameter action in request")
        room.actions.append(fields)
        return True

    def _getFile(self, fields: Fields) -> Fields:
        id = fields.get("file_id")
        if not isinstance(id, str) or id not in self.files:
            raise bad("invalid file_id")
        if len(self.files[id]) > 20_000_000:
            raise bad("file is too big")
        self._served.add(f"files/{id}")
        return {"file_id": id, "file_unique_id": id, "file_size": len(self.files[id]), "file_path": f"files/{id}"}

    def _setWebhook(self, fields: Fields) -> bool:
        parts = urlsplit(fields.get("url", ""))
        if not self.local and parts.scheme != "https":
            raise bad("bad webhook: HTTPS url must be provided for webhook")
        if not self.local and (parts.port or 443) not in (443, 80, 88, 8443):
            raise bad("bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443")
        if not re.fullmatch(r"[A-Za-z0-9_-]{0,256}", fields.get("secret_token", "")):
            raise bad("secret token contains unallowed characters")
        if not 1 <= fields.get("max_connections", 40) <= 100 or set(fields.get("allowed_updates", ())) - UPDATES:
            raise bad("can't parse the webhook's parameters")
        self.webhook = dict(fields)
        return True

    def _getWebhookInfo(self, fields: Fields) -> Fields:
        hidden = ("secret_token",)
        told = {name: value for name, value in self.webhook.items() if name not in hidden}
        return {"has_custom_certificate": False, "pending_update_count": 0, **told}

    def _setMyCommands(self, fields: Fields) -> bool:
        for command in fields["commands"]:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command["command"]):
                raise bad("BOT_COMMAND_INVALID")
            if not 1 <= len(command["description"]) <= 256:
                raise bad("BOT_COMMAND_DESCRIPTION_INVALID")
        self.commands[fields.get("language_code", "")] = fields["commands"]
        return True


def units(text: str) -> int:
    """Count as Telegram does, in UTF-16 units."""
    return len(text.encode("utf-16-le")) // 2


def number(fields: Fields, name: str, missing: str = "") -> int:
    """Read a whole number, which may come as a string."""
    value = fields.get(name)
    if value is None or value == "":
        raise bad(missing or f"{name} is not specified")
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
        raise bad(f"field {name} must be a number")
    return int(value)


def entities(text: str) -> list[Fields]:
    """Mark mentions and commands, as Telegram does before it delivers a text."""
    return [
        {
            "type": "mention" if found[0].startswith("@") else "bot_command",
            "offset": units(text[: found.start()]),
            "length": units(found[0]),
        }
        for found in re.finditer(r"(?<!\S)/[A-Za-z0-9_]+(?:@\w+)?|(?<!\w)@\w{4,}", text)
    ]


def parsed(source: str) -> str:
    """Return the text that HTML shows. Refuses tags that Telegram does not know, and tags left open.

    https://core.telegram.org/bots/api#html-style
    """
    open_tags: list[str] = []
    for tag in MARKUP.finditer(source):
        offset = len(source[: tag.start()].encode())
        closing, name, attributes = tag[1], (tag[2] or "").lower(), (tag[3] or "").strip()
        if closing:
            expected = open_tags.pop() if open_tags else None
            if expected is None:
                raise bad(f"can't parse entities: Unexpected end tag at byte offset {offset}")
            if name and name != expected:
                told = f'Unmatched end tag at byte offset {offset}, expected "</{expected}>", found "</{name}>"'
                raise bad(f"can't parse entities: {told}")
        elif name not in TAGS or (name == "span" and attributes != 'class="tg-spoiler"'):
            raise bad(f'can\'t parse entities: Unsupported start tag "{name}" at byte offset {offset}')
        else:
            open_tags.append(name)
    if open_tags:
        raise bad(f"can't parse entities: Can't find end tag corresponding to start tag \"{open_tags[-1]}\"")
    return CHARACTERS.sub(lambda reference: html.unescape(reference[0]), MARKUP.sub("", source)).strip()
