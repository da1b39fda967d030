"""A strict homeserver on loopback: it refuses what homeservers refuse, and shows rooms as people see them.

    async with MatrixServer() as matrix:
        matrix.push_to(f"http://127.0.0.1:{port}/webhooks/matrix")
        room = matrix.room(ALICE, ME)
        await matrix.say(room, "hello")  # one transaction
        [shown] = matrix.shown(room)

`script` makes calls fail. The real thing is in `synapse_server.py`; this one does on demand what that one does rarely.
"""

from __future__ import annotations

import asyncio
import html.parser
import itertools
import re
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web

from bot.adapter import Request

ME, ALICE, BOB, CAROL = (f"@{name}:example.org" for name in ("magpie", "alice", "bob", "carol"))
AS_TOKEN, HS_TOKEN = "as-secret-token", "hs-secret-token"
LARGEST = 65_536  # bytes of an event
# https://spec.matrix.org/v1.16/client-server-api/#mroommessage-msgtypes
TAGS = {
    "del", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "p", "a", "ul", "ol", "sup", "sub", "li", "b", "i", "u",
    "strong", "em", "s", "code", "hr", "br", "div", "table", "thead", "tbody", "tr", "th", "td", "caption", "pre",
    "span", "img", "details", "summary",
}  # fmt: skip
VOID = {"br", "hr", "img"}
Fields = dict[str, Any]


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, errcode: str, **more: Any) -> None:
        super().__init__(errcode)
        self.status = status
        self.body = {"errcode": errcode, "error": "said by the homeserver", **more}


@dataclass
class Cut:
    """The connection breaks, of a PUT or GET; with `after` the call was carried out all the same."""

    after: bool = False


FORBIDDEN = Refusal(403, "M_FORBIDDEN")


@dataclass
class Shown:
    """A message as people see it: the content it has now, and every text it had."""

    id: str
    content: Fields
    history: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it says now, without markup."""
        return self.history[-1]


@dataclass
class Room:
    """A room: its members with their names, those who are invited, its events, who is typing."""

    id: str
    members: dict[str, str] = field(default_factory=dict)
    invited: set[str] = field(default_factory=set)
    events: list[Fields] = field(default_factory=list)
    typing: list[bool] = field(default_factory=list)
    read: list[str] = field(default_factory=list)


class MatrixServer:
    """One homeserver with one application service."""

    def __init__(self) -> None:
        self.base = ""
        self.service = "magpie-matrix"
        self.rooms: dict[str, Room] = {}
        self.users: set[str] = set()  # of the application service, registered
        self.media: dict[str, bytes] = {}
        self.calls: list[tuple[str, str, Fields]] = []  # (method, what, body)
        self._posted: dict[str, str] = {}  # transaction: its event
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._ids = itertools.count(1)
        self._push = ""
        self._news = asyncio.Event()

    def settings(self, **changes: object) -> Fields:
        """Return the adapter's settings."""
        base = self.base or "http://127.0.0.1:9"
        return {"api_base": base, "user_id": ME, "as_token": AS_TOKEN, "hs_token": HS_TOKEN, **changes}

    async def __aenter__(self) -> MatrixServer:
        app = web.Application()
        app.router.add_route("*", "/_matrix/client/{version}/{what}{rest:.*}", self._call)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
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

    def room(self, *members: str, invited: tuple[str, ...] = ()) -> Room:
        """Make a room. Everybody is called by their localpart, with a capital letter."""
        room = Room(f"!room{next(self._ids)}:example.org")
        room.members = {member: member[1:].partition(":")[0].title() for member in members}
        for user in invited:
            room.invited.add(user)
            self.happen(room, members[0], "m.room.member", {"membership": "invite"}, state_key=user)
        self.rooms[room.id] = room
        return room

    def happen(self, room: Room, sender: str, type: str, content: Fields, **more: Any) -> Fields:
        """Let something happen in a room; return the event, not yet delivered."""
        event = {"type": type, "event_id": f"$event{next(self._ids)}", "room_id": room.id, "sender": sender, **more}
        event |= {"content": content, "origin_server_ts": 1_790_000_000_000}
        room.events.append(event)
        return event

    def written(self, room: Room, text: str, by: str = ALICE, **more: Any) -> Fields:
        """Let a person write into a room; return the event."""
        return self.happen(room, by, "m.room.message", {"msgtype": "m.text", "body": text, **more})

    async def say(self, room: Room, text: str, **more: Any) -> Fields:
        """Let a person write into a room, and deliver it."""
        event = self.written(room, text, **more)
        assert await self.deliver(event) == (200, {})
        return event

    def shown(self, room: Room, by: str = ME) -> list[Shown]:
        """Return somebody's messages in a room, edits applied."""
        shown: dict[str, Shown] = {}
        for event in room.events:
            content = event["content"]
            if event["sender"] != by or event["type"] != "m.room.message":
                continue
            if "m.new_content" in content:
                edited = shown[content["m.relates_to"]["event_id"]]
                edited.content = content["m.new_content"]
                edited.history.append(edited.content["body"])
            else:
                shown[event["event_id"]] = Shown(event["event_id"], content, [content["body"]])
        return list(shown.values())

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def script(self, what: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls of a kind ("send", "join", "joined_members", "typing" ...) end in these ways."""
        for outcome in outcomes:  # after a cut the client asks once more by itself
            self._scripts[what].extend([outcome] * (2 if isinstance(outcome, Cut) else 1))

    def called(self, what: str) -> list[Fields]:
        """Return the bodies of all calls of a kind."""
        return [body for _, name, body in self.calls if name == what]

    # -- to the application service

    def push_to(self, url: str) -> None:
        """Deliver events there."""
        self._push = url

    async def deliver(self, *events: Fields) -> tuple[int, Any]:
        """Send a transaction; return status and body."""
        request = transaction(*events)
        url = f"{self._push}{request.path}"
        async with self._session.put(url, data=request.body, headers=request.headers) as answer:
            return answer.status, await answer.json()

    # -- the client API

    async def _call(self, request: web.Request) -> web.StreamResponse:
        parts = [request.match_info["what"], *filter(None, request.match_info["rest"].split("/"))]
        body = await request.json() if request.can_read_body else {}
        what = self._name(parts)
        self.calls.append((request.method, what, body))
        outcome = self._scripts[what].popleft() if self._scripts[what] else None
        try:
            if isinstance(outcome, Refusal):
                raise outcome
            if isinstance(outcome, Cut) and not outcome.after:
                return hang_up(request)
            self._authorize(request)
            answer = await self._do(request, what, parts, body)
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        finally:
            self._news.set()
        if outcome:
            return hang_up(request)
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    @staticmethod
    def _name(parts: list[str]) -> str:
        if parts[0] == "rooms":
            return parts[2]
        return {"appservice": "ping", "account": "whoami"}.get(parts[0], parts[0])

    @staticmethod
    def _authorize(request: web.Request) -> None:
        token = request.headers.get("Authorization", "")
        if not token:
            raise Refusal(401, "M_MISSING_TOKEN")
        if token != f"Bearer {AS_TOKEN}":
            raise Refusal(401, "M_UNKNOWN_TOKEN")
        if request.query.get("user_id", ME) != ME:
            raise FORBIDDEN

    async def _do(self, request: web.Request, what: str, parts: list[str], body: Fields) -> Any:
        if parts[0] == "rooms":
            act = getattr(self, f"_{request.method}_{what}", None)
            room = self.rooms.get(parts[1])
            if act is None or room is None:
                raise Refusal(404, "M_UNRECOGNIZED" if act is None else "M_NOT_FOUND")
            if ME not in room.members and what != "join":
                raise FORBIDDEN
            return act(room, parts[3:], body)
        act = getattr(self, f"_{request.method}_{what}", None)
        if act is None:
            raise Refusal(404, "M_UNRECOGNIZED")
        return await act(parts[1:], body)

    async def _GET_whoami(self, parts: list[str], body: Fields) -> Fields:
        return {"user_id": ME, "is_guest": False}

    async def _POST_register(self, parts: list[str], body: Fields) -> Fields:
        if body["type"] != "m.login.application_service" or not body["inhibit_login"]:
            raise Refusal(400, "M_APPSERVICE_LOGIN_UNSUPPORTED")
        user = f"@{body['username']}:example.org"
        if user in self.users:
            raise Refusal(400, "M_USER_IN_USE")
        self.users.add(user)
        return {"user_id": user}

    async def _POST_ping(self, parts: list[str], body: Fields) -> Fields:
        if parts != [self.service, "ping"]:
            raise FORBIDDEN
        if not self._push:
            raise Refusal(400, "M_URL_NOT_SET")
        url, headers = f"{self._push}/_matrix/app/v1/ping", {"Authorization": f"Bearer {HS_TOKEN}"}
        try:
            async with self._session.post(url, json=body, headers=headers) as answer:
                if answer.status != 200:
                    raise Refusal(502, "M_BAD_STATUS")
        except aiohttp.ClientError:
            raise Refusal(502, "M_CONNECTION_FAILED") from None
        return {"duration_ms": 3}

    async def _GET_media(self, parts: list[str], body: Fields) -> web.Response:
        name = "/".join(parts[1:])
        if parts[0] != "download" or name not in self.media:
            raise Refusal(404, "M_NOT_FOUND")
        return web.Response(body=self.media[name])

    def _POST_join(self, room: Room, parts: list[str], body: Fields) -> Fields:
        if ME not in room.invited and ME not in room.members:
            raise FORBIDDEN
        room.invited.discard(ME)
        room.members[ME] = "Magpie"
        self.happen(room, ME, "m.room.member", {"membership": "join", "displayname": "Magpie"}, state_key=ME)
        return {"room_id": room.id}

    def _GET_joined_members(self, room: Room, parts: list[str], body: Fields) -> Fields:
        return {"joined": {user: {"display_name": name or None} for user, name in room.members.items()}}

    def _GET_messages(self, room: Room, parts: list[str], body: Fields) -> Fields:
        return {"chunk": room.events[::-1][:50], "start": "s1"}

    def _GET_event(self, room: Room, parts: list[str], body: Fields) -> Fields:
        event = self._event(room, parts[0])
        edits = [other for other in room.events if edited(other) == parts[0]]
        return event | ({"unsigned": {"m.relations": {"m.replace": edits[-1]}}} if edits else {})

    @staticmethod
    def _event(room: Room, id: str) -> Fields:
        for event in room.events:
            if event["event_id"] == id:
                return event
        raise Refusal(404, "M_NOT_FOUND")

    def _PUT_send(self, room: Room, parts: list[str], body: Fields) -> Fields:
        type, txn = parts
        key = f"{room.id}/{type}/{txn}"
        if key not in self._posted:
            self._check(room, body)
            self._posted[key] = self.happen(room, ME, type, body)["event_id"]
        return {"event_id": self._posted[key]}

    def _check(self, room: Room, content: Fields) -> None:
        """Refuse what homeservers refuse, and what no app could show."""
        if len(msgspec.json.encode(content)) + 2000 > LARGEST:  # signature, hashes, earlier events
            raise Refusal(413, "M_TOO_LARGE")
        for said in filter(None, (content, content.get("m.new_content"))):
            if said.get("msgtype") not in ("m.text", "m.notice") or not isinstance(said.get("body"), str):
                raise Refusal(400, "M_BAD_JSON")
            if "formatted_body" in said:
                if said.get("format") != "org.matrix.custom.html":
                    raise Refusal(400, "M_BAD_JSON")
                Allowed().check(said["formatted_body"])
        relation = content.get("m.relates_to", {})
        if relation.get("rel_type") == "m.replace":
            target = self._event(room, relation["event_id"])
            if target["sender"] != ME or "m.new_content" not in content or edited(target):
                raise Refusal(400, "M_INVALID_PARAM")
        if (
            relation.get("rel_type") == "m.thread"
            and "m.relates_to" in self._event(room, relation["event_id"])["content"]
        ):
            raise Refusal(400, "M_UNKNOWN")
        if reply := relation.get("m.in_reply_to"):
            self._event(room, reply["event_id"])

    def _PUT_typing(self, room: Room, parts: list[str], body: Fields) -> Fields:
        if parts != [ME] or (body["typing"] and not 0 < body["timeout"] <= 60_000):
            raise FORBIDDEN
        room.typing.append(body["typing"])
        return {}

    def _POST_receipt(self, room: Room, parts: list[str], body: Fields) -> Fields:
        type, event = parts
        if type != "m.read":
            raise Refusal(400, "M_INVALID_PARAM")
        room.read.append(self._event(room, event)["event_id"])
        return {}


class Allowed(html.parser.HTMLParser):
    """Refuses markup that is not closed, and elements and attributes that apps leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def check(self, text: str) -> None:
        """Raise Refusal."""
        self.feed(text)
        self.close()
        if self.open:
            raise Refusal(400, "M_BAD_JSON", open=self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {"a": {"href"}, "ol": {"start"}, "code": {"class"}}.get(tag, set())
        if tag not in TAGS or {name for name, _ in attrs} - known:
            raise Refusal(400, "M_BAD_JSON", tag=tag)
        for name, value in attrs:
            form = {"href": "(https?|ftp|mailto|magnet):", "class": "language-"}.get(name, "")
            if not re.match(form, value or ""):
                raise Refusal(400, "M_BAD_JSON", tag=tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise Refusal(400, "M_BAD_JSON", tag=tag)


def edited(event: Fields) -> str:
    """Return the id of the event that this one edits, "" for none."""
    relation = event["content"].get("m.relates_to", {})
    return str(relation["event_id"]) if relation.get("rel_type") == "m.replace" else ""


def transaction(*events: object, id: str = "1", token: str = HS_TOKEN) -> Request:
    """Return what a homeserver sends for events."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    path = f"/_matrix/app/v1/transactions/{quote(id)}"
    return Request("PUT", path, headers, body=msgspec.json.encode({"events": events}))


def hang_up(request: web.Request) -> web.StreamResponse:
    """Break the connection."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
