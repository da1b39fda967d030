"""The HTTP API: what a web or mobile app calls, so that the key of the model never leaves the server.

    POST /api/chat    Authorization: Bearer API_TOKEN
    {"user": "u1", "message": "hi", "conversation": "default", "id": "optional, for retries"}

The answer is {"id", "conversation", "reply"}; with `Accept: text/event-stream` it comes as it is written. The request
is held until the answer is there. When it is lost on the way, the same `id` fetches it again and pays for nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Annotated

import msgspec
from pydantic import Field

from bot import signing
from bot.adapter import (
    AdapterSettings,
    Answer,
    Capabilities,
    Chat,
    Inbound,
    Message,
    Page,
    Reply,
    Request,
    Response,
    WebhookAdapter,
)
from bot.config import Secret
from bot.errors import Malformed, TooLarge

LONGEST = 100_000  # characters of one message
WITHIN = 300.0  # seconds a request is held; after that the same id may ask again

LIMITS = {"rate_limited", "user_quota", "total_quota", "model_rate_limited"}  # these are 429, other failures 503
REFUSALS = {"no_text": 400, "not_allowed": 401, "content_refused": 400, "model_too_long": 413}

Identity = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Question(msgspec.Struct):
    """The body of a request."""

    user: Identity
    message: str
    conversation: Identity = "default"
    id: Annotated[str, msgspec.Meta(max_length=200)] = ""


class ApiSettings(AdapterSettings):
    """Variables API_*."""

    token: Secret = Field(description="Long random text that your app's server sends as a bearer token")


class ApiAdapter(WebhookAdapter[ApiSettings]):
    """`POST /api/chat`."""

    name = "api"
    title = "HTTP API"
    docs = "docs/api.md"
    Settings = ApiSettings
    also_at = {"/api/chat": ""}  # noqa: RUF012
    can = Capabilities(max_length=10_000_000, answer_within=WITHIN, pages_per_second=1000)

    async def verify(self, request: Request) -> None:
        """Compare the bearer token."""
        scheme, _, token = request.header("authorization").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else ""
        signing.equal(given, self.settings.token.get_secret_value(), "Authorization: Bearer API_TOKEN")

    def parse(self, request: Request) -> Inbound:
        """Read one question. A missing `id` is made up, so such a request cannot be repeated safely."""
        if request.method != "POST":
            raise Malformed("not a POST", problem(405, "method_not_allowed", "use POST"))
        question = request.json(Question)
        if len(question.message) > LONGEST:
            raise TooLarge(f"message: at most {LONGEST} characters")
        if not question.message.strip():
            raise Malformed("message: is empty")
        message = Message(
            id=question.id or secrets.token_hex(12),
            chat=Chat(question.user, thread=question.conversation),
            user=question.user,
            text=question.message,
            locale=request.header("accept-language")[:20],
        )
        return Inbound((message,))

    async def respond(self, request: Request, inbound: Inbound, answer: Answer) -> Response:
        """Answer with the reply: whole, or as it is written."""
        message = inbound.messages[0]
        if "text/event-stream" in request.header("accept"):
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return Response(content_type="text/event-stream", headers=headers, stream=_events(message, answer))
        reply = await answer.wait(WITHIN)
        if reply is None:
            return problem(503, "timeout", f'no answer yet; ask again with "id": "{message.id}"')
        if reply.failure:
            return problem(_status(reply), reply.failure, reply.text)
        return Response.json({"id": message.id, "conversation": message.chat.thread, "reply": reply.text})

    async def send(self, chat: Chat, page: Page) -> str:
        """Nobody holds the request any more: the reply stays in the store, where the same id finds it."""
        return ""


async def _events(message: Message, answer: Answer) -> AsyncGenerator[bytes, None]:
    """Server-sent events: {"delta"}..., then {"done": true, "reply"} or {"error"}."""
    async for delta in answer.deltas():
        yield _event({"delta": delta})
    reply = await answer.wait(0.001)
    if reply is None:
        yield _event({"error": {"code": "timeout", "message": "no answer; ask again with the same id"}})
    elif reply.failure:
        yield _event({"error": {"code": reply.failure, "message": reply.text}, "id": message.id})
    else:
        yield _event({"done": True, "reply": reply.text, "id": message.id, "conversation": message.chat.thread})


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _status(reply: Reply) -> int:
    return 429 if reply.failure in LIMITS else REFUSALS.get(reply.failure, 503)


def problem(status: int, code: str, text: str) -> Response:
    """Build an error body."""
    return Response.json({"error": {"code": code, "message": text}}, status)
