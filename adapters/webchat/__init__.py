"""Web chat: the bot's own page, for anonymous visitors, also inside other sites. `docs/webchat.md`

POST ""             one message, {"id", "text", "locale"}: the webhook, stored and answered by the core
POST /session       a visitor's token: HttpOnly cookie, or in the answer for a page inside another site
GET  /session       does the browser send the cookie?
GET  /events        server-sent events: answers while they are written (frames.py)
GET  /history       the last turns of the visitor's conversation
GET  /embed         may the asking site show the page? (for widget.js)
GET  /page, /app.js, ...   the page and its files (site.py); /home is the page at /
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field

from adapters.webchat import site
from adapters.webchat.frames import Frame, common, cut, whole_due
from adapters.webchat.limits import Rate, Seat, Seats, address
from adapters.webchat.refusals import Forbidden, count, json, refusal
from adapters.webchat.site import PRIVATE
from adapters.webchat.visitors import TOKEN_LIVES, Visitors, holder
from bot.adapter import (
    AdapterSettings,
    Capabilities,
    Chat,
    Context,
    Finding,
    Handler,
    Inbound,
    Message,
    Page,
    Post,
    Request,
    Response,
    Subscription,
    WebhookAdapter,
)
from bot.config import Words
from bot.errors import Malformed, TooLarge, TooMany, Unverified
from bot.markup import MARKDOWN

MAX_CHARACTERS = 8_000  # of one message
MAX_BODY = 65_536  # bytes
TURNS = 100  # of history the page shows
KEEP_ALIVE = 20.0  # seconds; proxies close a silent stream after 30 or 60


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", value):
            raise ValueError(
                f"{value!r} is not an origin such as https://www.example.com (no path, no slash at the end)"
            )
    return tuple(value.lower() for value in values)


Origins = Annotated[Words, AfterValidator(_origins)]
Count = Annotated[int, Field(ge=0)]


class WebchatSettings(AdapterSettings):
    """Variables WEBCHAT_*; none is required."""

    title: str = Field("Magpie", max_length=60, description="Name at the top of the page")
    greeting: str = Field("", max_length=300, description="First sentence of an empty page; empty: a friendly one")
    allowed_origins: Origins = Field(
        (), description="Sites that may embed the chat, such as https://www.example.com (comma-separated)"
    )
    messages_per_minute: Count = Field(20, description="Messages a visitor may send in a minute; 0: no limit")
    messages_per_minute_per_address: Count = Field(
        60, description="Messages that may come from one address in a minute; 0: no limit"
    )
    visitors_per_hour_per_address: Count = Field(
        60, description="New visitors that may come from one address in an hour; 0: no limit"
    )
    streams_per_visitor: Count = Field(10, description="Tabs a visitor may have open at once; 0: no limit")
    streams_per_address: Count = Field(200, description="Tabs open at once from one address; 0: no limit")
    trusted_proxies: Count = Field(
        0, description="Proxies of your own in front of the bot, whose X-Forwarded-For is believed; 0: ignore it"
    )


class Posted(msgspec.Struct, frozen=True):
    """A message as the page posts it. `id` is made by the page; sent again after a failure, it is the same."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    text: str
    locale: Annotated[str, msgspec.Meta(max_length=35)] = ""


class Entering(msgspec.Struct, frozen=True):
    """What the page asks a session with."""

    embed: bool = False


class WebchatAdapter(WebhookAdapter[WebchatSettings]):
    """The bot's own page."""

    name = "webchat"
    title = "Web chat"
    docs = "https://developer.mozilla.org/en-US/docs/Web/API/Server-sent_events"
    Settings = WebchatSettings
    also_at = {"/": "/home"}  # noqa: RUF012
    can = Capabilities(max_length=100_000, dialect=MARKDOWN, edit_every=0.05, typing_every=5, pages_per_second=20)

    def __init__(self, settings: WebchatSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._visitors = Visitors(context.state)
        self._messages = Rate(settings.messages_per_minute, 60)
        self._messages_from = Rate(settings.messages_per_minute_per_address, 60)
        self._visitors_from = Rate(settings.visitors_per_hour_per_address, 3600)
        self._streams = Seats(settings.streams_per_visitor)
        self._streams_from = Seats(settings.streams_per_address)
        self._origins = {*settings.allowed_origins, "/".join(context.public_url.lower().split("/")[:3])} - {""}
        self._cookie_name = f"{context.instance}_visitor"

    # -- a message comes in

    async def verify(self, request: Request) -> None:
        """Raise unless a page of ours sent this for a known visitor who keeps to the limits."""
        self._check_origin(request)
        visitor = await self._visitor(request)
        self._check_json(request)
        count(self._messages, visitor, "too_many_messages")
        count(self._messages_from, self._address(request), "too_many_messages")

    def parse(self, request: Request) -> Inbound:
        """Translate a posted message."""
        visitor = holder(self._token(request))
        posted = json(request, Posted)
        if len(posted.text) > MAX_CHARACTERS:
            raise refusal(TooLarge, f"a message has at most {MAX_CHARACTERS} characters", "message_too_long")
        if not visitor or not posted.text.strip():
            raise refusal(Malformed, "the message is empty")
        message = Message(f"{visitor}:{posted.id}", Chat(visitor), visitor, posted.text, locale=posted.locale)
        return Inbound((message,), Response.json({"id": posted.id}))

    async def acknowledge(self, message: Message) -> None:
        """Show the message in the visitor's other tabs."""
        question = Frame("question", message.id.partition(":")[2], text=message.text)
        await self._publish(message.chat, cut(question))

    # -- an answer goes out

    async def send(self, chat: Chat, page: Page) -> str:
        """Publish a finished page."""
        post = Post(page.key or secrets.token_hex(8))
        return await self.edit(chat, post, page, last=True)

    async def begin(self, chat: Chat, page: Page) -> str:
        """Publish the beginning of a page."""
        post = Post(page.key or secrets.token_hex(8))
        return await self.edit(chat, post, page, last=False)

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Publish what changed; now and then, and at last, the whole page."""
        whole = last or whole_due(post.edits, len(page.text))
        at = 0 if whole else common(post.shown, page.text)
        question = page.reply_to.partition(":")[2]
        frame = Frame("answer", post.id, at, page.text[at:], last=last, to=question, failure=page.failure)
        await self._publish(chat, cut(frame))
        return post.id

    async def typing(self, chat: Chat) -> None:
        """Let the dots dance."""
        await self._publish(chat, cut(Frame("typing")))

    async def _publish(self, chat: Chat, frames: Iterable[str]) -> None:
        for frame in frames:
            await self.context.state.publish(chat.id, frame)

    # -- the page

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Serve what the page needs."""
        return {
            **site.files(),
            ("GET", "/home"): self._page_with(f"webhooks/{self.context.instance}/"),
            ("GET", "/page"): self._page_with(""),
            ("POST", "/session"): self._session,
            ("GET", "/session"): self._known_session,
            ("GET", "/events"): self._events,
            ("GET", "/history"): self._history,
            ("GET", "/embed"): self._embed,
        }

    def _page_with(self, base: str) -> Handler:
        values = {
            "title": self.settings.title,
            "greeting": self.settings.greeting,
            "instance": self.context.instance,
            "max": str(MAX_CHARACTERS),
        }
        answer = site.page(base, values, self.settings.allowed_origins)

        async def serve(request: Request) -> Response:
            self._check_frame(request)
            return answer

        return serve

    async def _session(self, request: Request) -> Response:
        """Give a token: a fresh one to a known visitor, a new one to others.

        Inside another site the browser may withhold our cookie, so that page is told the token as well; it falls back
        to the Authorization header.
        """
        self._check_origin(request)
        self._check_json(request)
        embed = json(request, Entering).embed
        visitor = await self._known(request)
        if not visitor:
            count(self._visitors_from, self._address(request), "too_many_visitors")
        token = await self._visitors.token(visitor)
        answer = {"new": not visitor, **({"token": token} if embed else {})}
        return Response.json(answer, headers={**PRIVATE, "Set-Cookie": self._cookie(request, token, embed)})

    async def _known_session(self, request: Request) -> Response:
        """Tell a page whether the browser sends us the cookie."""
        return Response.json({"known": bool(await self._known(request))}, headers=PRIVATE)

    def _cookie(self, request: Request, token: str, embed: bool) -> str:
        secure = request.header("origin").startswith("https://")  # the browser's view, whatever proxies are between
        scope = "SameSite=None; Secure; Partitioned" if embed and secure else "SameSite=Lax" + "; Secure" * secure
        return f"{self._cookie_name}={token}; Path=/; Max-Age={TOKEN_LIVES}; HttpOnly; {scope}"

    async def _history(self, request: Request) -> Response:
        """Return the visitor's last turns, oldest first."""
        visitor = await self._visitor(request)
        turns = await self.context.history(Chat(visitor), TURNS) if self.context.history else []
        said = [{"role": turn.role, "text": turn.content} for turn in turns if turn.role != "system"]
        return Response.json({"turns": said}, headers=PRIVATE)

    async def _events(self, request: Request) -> Response:
        """Stream what is published for the visitor."""
        visitor = await self._visitor(request)
        caller = self._address(request)
        if self._streams.full(visitor) or self._streams_from.full(caller):
            raise refusal(TooMany, "too many open pages", "too_many_streams")
        seats = self._streams.take(visitor), self._streams_from.take(caller)
        headers = {**PRIVATE, "X-Accel-Buffering": "no"}
        return Response(b"", 200, "text/event-stream", headers, self._listen(visitor, seats))

    async def _listen(self, visitor: str, seats: tuple[Seat, Seat]) -> AsyncGenerator[bytes, None]:
        """Yield events until the page leaves; the first one says that nothing is missed from now on."""
        with seats[0], seats[1]:
            async with self.context.state.subscribe(visitor) as frames:
                yield b'data: {"type":"hello"}\n\n'
                while True:
                    yield await _event(frames)

    async def _embed(self, request: Request) -> Response:
        """Tell widget.js on another site whether it may show the page there."""
        origin = request.header("origin").lower()
        if origin not in self._origins:
            raise refusal(Forbidden, "this site is not in the list of allowed origins", "origin_not_allowed")
        headers = {**PRIVATE, "Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return Response.json({"title": self.settings.title}, headers=headers)

    # -- who asks

    def _check_origin(self, request: Request) -> None:
        """Raise Forbidden unless the page that asks is ours. Browsers send Origin with every POST."""
        origin, host = request.header("origin").lower(), request.header("host").lower()
        same = bool(host) and origin.partition("://")[2] == host
        if not same and origin not in self._origins:
            raise refusal(Forbidden, "the Origin header does not name this site", "origin_not_allowed")

    def _check_frame(self, request: Request) -> None:
        """Raise Forbidden when a site that is not allowed shows the page in a frame. frame-ancestors says the same."""
        above = "/".join(request.header("referer").lower().split("/")[:3])
        ours = {*self._origins, f"http://{request.header('host')}", f"https://{request.header('host')}"}
        if request.header("sec-fetch-dest") in ("iframe", "frame") and above and above not in ours:
            raise refusal(Forbidden, "this site is not in the list of allowed origins", "origin_not_allowed")

    def _check_json(self, request: Request) -> None:
        """Raise unless the body is JSON of a decent size; a form of another site cannot send this type."""
        if len(request.body) > MAX_BODY:
            raise refusal(TooLarge, f"a request has at most {MAX_BODY} bytes")
        if request.header("content-type").partition(";")[0].strip().lower() != "application/json":
            raise refusal(Malformed, "the content type is not application/json")

    async def _visitor(self, request: Request) -> str:
        """Return whose request it is. Raises Unverified, or Forbidden when another site's page made the browser ask."""
        if request.header("sec-fetch-site") in ("cross-site", "same-site"):
            raise refusal(Forbidden, "another site asks", "origin_not_allowed")
        if visitor := await self._known(request):
            return visitor
        raise refusal(Unverified, "no valid visitor's token")

    async def _known(self, request: Request) -> str:
        """Return whose request it is, "" when the token is absent or not valid."""
        try:
            return await self._visitors.check(self._token(request))
        except Unverified:
            return ""

    def _token(self, request: Request) -> str:
        scheme, _, token = request.header("authorization").partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
        cookies = (part.strip().partition("=") for part in request.header("cookie").split(";"))
        return next((value for name, _, value in cookies if name == self._cookie_name), "")

    def _address(self, request: Request) -> str:
        return address(request, self.settings.trusted_proxies)

    # -- for the operator

    async def register(self, url: str) -> list[Finding]:
        """Say that there is nothing to register."""
        return [Finding(True, f"nothing to register: the page is at {self.context.public_url}/")]

    async def check(self, url: str) -> list[Finding]:
        """Say which sites may embed the page, and whether browsers would let them."""
        sites = self.settings.allowed_origins
        shown = not sites or self.context.public_url.startswith("https://")
        advice = "" if shown else "set BOT_PUBLIC_URL to an https:// address: a site on https cannot embed an http page"
        return [Finding(shown, f"sites that may embed the page: {', '.join(sites) or 'none'}", advice)]


async def _event(frames: Subscription) -> bytes:
    """Return the next frame as an event, a comment when there is none for a while."""
    try:
        return f"data: {await asyncio.wait_for(anext(frames), KEEP_ALIVE)}\n\n".encode()
    except TimeoutError:
        return b": still here\n\n"
