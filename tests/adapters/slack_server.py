"""A strict Slack on loopback: it refuses what Slack refuses, and writes down what people would see.

    async with SlackServer() as slack:
        ada = slack.direct("U1ADA")
        adapter = SlackAdapter(settings(slack.api), context)
        slack.webhook = "http://127.0.0.1:8080/webhooks/slack"
        await slack.say(ada, "hello")  # calls the webhook, signed by Slack's own SDK
        [shown] = slack.shown(ada)

Errors carry the codes of https://docs.slack.dev/reference/methods. `script` makes calls fail.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from slack_sdk.signature import SignatureVerifier

BOT, TEAM = "U0BOT", "T0TEAM"
SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
TOKEN = "xoxb-1-test"
MARKDOWN_LIMIT, TEXT_LIMIT, UPDATED_TEXT_LIMIT = 12_000, 40_000, 4_000
SCOPES = "app_mentions:read,assistant:write,chat:write,commands,files:read,im:history,mpim:history"
Fields = dict[str, Any]
State = Literal["", "streaming", "stopped_by_user"]


class Refusal(Exception):
    """An answer that is not ok."""

    def __init__(self, error: str, status: int = 200, retry_after: int | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.status = status
        self.retry_after = retry_after


def flood(seconds: int) -> Refusal:
    """A rate limit: come back in `seconds`."""
    return Refusal("ratelimited", 429, seconds)


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Shown:
    """A message as people see it. `history` holds every text it had, the current one last."""

    ts: str
    text: str
    markdown: bool = True
    thread: str = ""
    by_bot: bool = True
    state: State = ""
    history: list[str] = field(default_factory=list)

    def become(self, text: str, markdown: bool = True) -> None:
        """Show another text."""
        self.text, self.markdown = text, markdown
        self.history.append(text)


@dataclass
class Channel:
    """A conversation. `streams`: whether it takes native streams; `member`: whether the bot is in it."""

    id: str
    kind: str
    streams: bool = True
    member: bool = True
    person: str = "U1ADA"
    messages: dict[str, Shown] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=list)
    whispers: list[str] = field(default_factory=list)  # what only the person of a command sees


class SlackServer:
    """Slack for one app in one workspace."""

    def __init__(self, token: str = TOKEN, secret: str = SECRET) -> None:
        self.token = token
        self.origin = self.api = ""
        self.webhook = ""
        self.scopes = SCOPES
        self.streaming = True  # False: a workspace without the streaming methods
        self.channels: dict[str, Channel] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[str, Fields]] = []
        self._signer = SignatureVerifier(secret)
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._clock = itertools.count(1)
        self._events = itertools.count(1)
        self._hooks: dict[str, tuple[Channel, int]] = {}  # channel, uses left
        self._news = asyncio.Event()

    async def __aenter__(self) -> SlackServer:
        app = web.Application()
        app.router.add_route("*", "/api/{method}", self._api)
        app.router.add_post("/commands/{id}", self._hook)
        app.router.add_get("/files-pri/{id}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.origin = f"http://{host}:{port}"
        self.api = f"{self.origin}/api"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    # -- the people's side

    def direct(self, person: str) -> Channel:
        """Let a person open a direct message with the app."""
        return self._open(Channel(f"D{len(self.channels)}{person}", "im", person=person))

    def channel(self, id: str = "C1GENERAL", member: bool = True) -> Channel:
        """Make a channel, with the bot in it or not."""
        return self._open(Channel(id, "channel", member=member))

    def _open(self, channel: Channel) -> Channel:
        self.channels[channel.id] = channel
        return channel

    def shown(self, channel: Channel) -> list[Shown]:
        """Return the bot's messages in a channel, oldest first."""
        return [message for message in channel.messages.values() if message.by_bot]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def called(self, method: str) -> list[Fields]:
        """Return the fields of every call of a method."""
        return [fields for name, fields in self.calls if name == method]

    def script(self, method: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls of a method fail in these ways, one each."""
        self._scripts[method].extend(outcomes)

    def expire(self, channel: Channel) -> None:
        """End every stream, as Slack does after five minutes."""
        self._end_streams(channel, "")

    def press_stop(self, channel: Channel) -> None:
        """Press the stop button of a stream."""
        self._end_streams(channel, "stopped_by_user")

    def _end_streams(self, channel: Channel, state: State) -> None:
        for message in channel.messages.values():
            message.state = state if message.state == "streaming" else message.state

    def written(self, channel: Channel, text: str, *, thread: str = "", type: str = "message", **more: Any) -> Fields:
        """Let a person write; return the event's envelope, not yet delivered."""
        ts = self._now()
        channel.messages[ts] = Shown(ts, text, thread=thread, by_bot=False)
        event = {
            "type": "message",
            "user": channel.person,
            "ts": ts,
            "channel": channel.id,
            "event_ts": ts,
            "channel_type": channel.kind,
            "team": TEAM,
            "text": text,
            **({"thread_ts": thread} if thread else {}),
            **more,
        }
        return self.envelope(event)

    def envelope(self, event: Fields) -> Fields:
        """Return a delivery of an event."""
        return {
            "token": "unused",
            "team_id": TEAM,
            "api_app_id": "A1",
            "type": "event_callback",
            "event_id": f"Ev{next(self._events)}",
            "event_time": int(time.time()),
            "authorizations": [
                {"enterprise_id": None, "team_id": TEAM, "user_id": BOT, "is_bot": True, "is_enterprise_install": False}
            ],
            "event": event,
        }

    def mention(self, envelope: Fields) -> Fields:
        """Return the second delivery that Slack makes of a message which mentions the app."""
        event = {name: value for name, value in envelope["event"].items() if name != "channel_type"}
        return self.envelope({**event, "type": "app_mention"})

    async def say(self, channel: Channel, text: str, **more: Any) -> Fields:
        """Let a person write and deliver it; return the envelope."""
        envelope = self.written(channel, text, **more)
        await self.deliver(envelope)
        return envelope

    async def deliver(self, envelope: Fields) -> tuple[int, str]:
        """Call the webhook with an event."""
        return await self.call(json.dumps(envelope).encode(), "application/json")

    async def command(self, channel: Channel, text: str, command: str = "/magpie") -> tuple[int, str]:
        """Let a person use a slash command."""
        id = f"{next(self._clock)}"
        self._hooks[id] = (channel, 5)
        form = {
            "token": "unused",
            "team_id": TEAM,
            "channel_id": channel.id,
            "user_id": channel.person,
            "user_name": "ada",
            "command": command,
            "text": text,
            "response_url": f"{self.origin}/commands/{id}",
            "trigger_id": f"{id}.0.x",
        }
        return await self.call(urlencode(form).encode(), "application/x-www-form-urlencoded")

    async def call(self, body: bytes, content_type: str) -> tuple[int, str]:
        """Call the webhook as Slack does, which waits three seconds."""
        headers = {"Content-Type": content_type, **self.signed(body)}
        limit = aiohttp.ClientTimeout(total=3)
        async with self._session.post(self.webhook, data=body, headers=headers, timeout=limit) as answer:
            return answer.status, await answer.text()

    def signed(self, body: bytes, at: float | None = None) -> dict[str, str]:
        """Return the headers of a signed request."""
        timestamp = str(int(time.time() if at is None else at))
        signature = self._signer.generate_signature(timestamp=timestamp, body=body)
        assert signature
        return {"X-Slack-Request-Timestamp": timestamp, "X-Slack-Signature": signature}

    def _now(self) -> str:
        return f"1790000000.{next(self._clock):06}"

    # -- the bot's side

    async def _api(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        try:
            fields = await self._fields(request)
            self.calls.append((method, fields))
            self._news.set()
            outcome = self._scripts[method].popleft() if self._scripts[method] else None
            if isinstance(outcome, Refusal):
                raise outcome
            if outcome and not outcome.after:
                return _hang_up(request)
            act = getattr(self, "_" + method.replace(".", "_"), None)
            if act is None or (not self.streaming and method.endswith("Stream")):
                raise Refusal("unknown_method")
            result = act(fields)
            self._news.set()
            headers = {"X-OAuth-Scopes": self.scopes}
            return _hang_up(request) if outcome else web.json_response({"ok": True, **result}, headers=headers)
        except Refusal as error:
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            return web.json_response({"ok": False, "error": error.error}, status=error.status, headers=headers)

    async def _fields(self, request: web.Request) -> Fields:
        given = request.headers.get("Authorization", "")
        if not given.startswith("Bearer "):
            raise Refusal("not_authed")
        if given != f"Bearer {self.token}":
            raise Refusal("invalid_auth")
        if request.method == "GET" or not request.can_read_body:
            return dict(request.query)
        if request.content_type != "application/json":
            return dict(await request.post())
        fields = await request.json()
        if not isinstance(fields, dict):
            raise Refusal("json_not_object")
        return fields

    async def _hook(self, request: web.Request) -> web.StreamResponse:
        channel, left = self._hooks.get(request.match_info["id"], (Channel("", ""), 0))
        if "Authorization" in request.headers:
            raise web.HTTPBadRequest(text="the token does not belong here")
        if not left:
            return web.json_response({"ok": False, "error": "used_url"}, status=404)
        self._hooks[request.match_info["id"]] = (channel, left - 1)
        fields = await request.json()
        assert fields["response_type"] == "ephemeral"
        [block] = fields["blocks"]
        assert block["type"] == "markdown"
        assert len(block["text"]) <= MARKDOWN_LIMIT
        channel.whispers.append(block["text"])
        self._news.set()
        return web.Response(text="ok")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        """Without a token, or without files:read, Slack sends its login page in place of the file."""
        granted = "files:read" in self.scopes.split(",")
        if request.headers.get("Authorization") != f"Bearer {self.token}" or not granted:
            return web.Response(text="<!DOCTYPE html><html>Sign in</html>", content_type="text/html")
        return web.Response(body=self.files[request.match_info["id"]])

    def _auth_test(self, fields: Fields) -> Fields:
        return {"url": self.origin, "team": "Readers", "user": "magpie", "team_id": TEAM, "user_id": BOT}

    def _files_info(self, fields: Fields) -> Fields:
        if fields.get("file") not in self.files:
            raise Refusal("file_not_found")
        return {"file": {"id": fields["file"], "url_private_download": f"{self.origin}/files-pri/{fields['file']}"}}

    def _place(self, fields: Fields, name: str = "channel") -> Channel:
        id = fields.get(name)
        if isinstance(id, str) and id.startswith("U"):  # a person's id stands for the direct message with them
            return next((one for one in self.channels.values() if one.person == id and one.kind == "im"), None) or (
                self.direct(id)
            )
        channel = self.channels.get(id or "")
        if channel is None:
            raise Refusal("channel_not_found")
        if not channel.member:
            raise Refusal("not_in_channel")
        return channel

    def _thread(self, channel: Channel, fields: Fields, error: str = "thread_not_found") -> str:
        thread = fields.get("thread_ts", "")
        if thread and thread not in channel.messages:
            raise Refusal(error)
        return str(thread)

    def _words(self, fields: Fields, text_limit: int) -> tuple[str, bool]:
        text, markdown = fields.get("text", ""), fields.get("markdown_text", "")
        if text and markdown:
            raise Refusal("markdown_text_conflict")
        if not (text or markdown).strip():
            raise Refusal("no_text")
        if len(markdown) > MARKDOWN_LIMIT or len(text) > text_limit:
            raise Refusal("msg_too_long")
        return text or markdown, bool(markdown)

    def _mine(self, fields: Fields) -> Shown:
        channel = self._place(fields)
        message = channel.messages.get(fields.get("ts", ""))
        if message is None:
            raise Refusal("message_not_found")
        if not message.by_bot:
            raise Refusal("cant_update_message")
        return message

    def _chat_postMessage(self, fields: Fields) -> Fields:
        channel = self._place(fields)
        thread = self._thread(channel, fields)
        text, markdown = self._words(fields, TEXT_LIMIT)
        shown = Shown(self._now(), "", thread=thread)
        shown.become(text, markdown)
        channel.messages[shown.ts] = shown
        return {"channel": channel.id, "ts": shown.ts}

    def _chat_update(self, fields: Fields) -> Fields:
        message = self._mine(fields)
        if message.state == "streaming":
            raise Refusal("streaming_state_conflict")
        text, markdown = self._words(fields, UPDATED_TEXT_LIMIT)
        message.state = ""
        message.become(text, markdown)
        return {"channel": fields["channel"], "ts": message.ts, "text": text}

    def _chat_delete(self, fields: Fields) -> Fields:
        message = self._mine(fields)
        del self.channels[fields["channel"]].messages[message.ts]
        return {"channel": fields["channel"], "ts": message.ts}

    def _chat_startStream(self, fields: Fields) -> Fields:
        channel = self._place(fields)
        if not channel.streams:
            raise Refusal("channel_type_not_supported")
        thread = self._thread(channel, fields, "invalid_thread_ts")
        if not thread:
            raise Refusal("invalid_thread_ts")
        for name in ("recipient_user_id", "recipient_team_id"):
            if channel.kind != "im" and not fields.get(name):
                raise Refusal(f"missing_{name}")
        shown = Shown(self._now(), "", thread=thread, state="streaming")
        self._grow(shown, fields)
        channel.messages[shown.ts] = shown
        return {"channel": channel.id, "ts": shown.ts}

    def _chat_appendStream(self, fields: Fields) -> Fields:
        message = self._mine(fields)
        if message.state == "stopped_by_user":
            raise Refusal("stopped_by_user")
        if message.state != "streaming":
            raise Refusal("message_not_in_streaming_state")
        if not _piece(fields):
            raise Refusal("no_text")
        self._grow(message, fields)
        return {"channel": fields["channel"], "ts": message.ts}

    def _chat_stopStream(self, fields: Fields) -> Fields:
        message = self._mine(fields)
        if message.state != "streaming":
            raise Refusal("message_not_in_streaming_state")
        self._grow(message, fields)
        message.state = ""
        return {"channel": fields["channel"], "ts": message.ts, "message": {"ts": message.ts, "text": message.text}}

    def _grow(self, message: Shown, fields: Fields) -> None:
        """Add a piece. White space at its beginning is dropped, and the whole has a limit, too."""
        piece = _piece(fields)
        whole = message.text + (piece.lstrip() if message.text else piece)
        if len(piece) > MARKDOWN_LIMIT or len(whole) > MARKDOWN_LIMIT:
            raise Refusal("msg_too_long")
        if piece:
            message.become(whole)

    def _assistant_threads_setStatus(self, fields: Fields) -> Fields:
        channel = self._place(fields, "channel_id")
        if not self._thread(channel, fields, "invalid_thread_ts"):
            raise Refusal("invalid_thread_ts")
        channel.statuses.append(fields["status"])
        return {}


def _piece(fields: Fields) -> str:
    """Return the text of a piece, given as it is or in chunks, as the SDK does."""
    chunks = fields.get("chunks") or []
    if chunks and fields.get("markdown_text"):
        raise Refusal("cannot_provide_both_markdown_text_and_chunks")
    return str(fields.get("markdown_text", "")) + "".join(chunk["text"] for chunk in chunks)


def _hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
