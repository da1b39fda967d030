"""Discord, API version 10: https://docs.discord.com/developers/intro

Slash commands come as signed HTTP requests, direct messages and mentions by the Gateway. A command is answered in the
place of its "thinking...", a message by another message; both grow by edits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import msgspec
from pydantic import Field, StringConstraints

from adapters.discord.gateway import Gateway
from adapters.discord.interactions import TAKEN_AFTER, TOKEN_LIVES, Interaction, Ticket, asked
from adapters.discord.messages import Incoming, heard
from adapters.discord.rest import CANNOT_REPLY, POST_GONE, TOKEN_DEAD, Rest
from adapters.discord.setup import Setup
from adapters.discord.text import DISCORD
from bot import signing
from bot.adapter import (
    Accept,
    AdapterSettings,
    Attachment,
    Capabilities,
    Chat,
    Context,
    Finding,
    Inbound,
    Page,
    Post,
    Request,
    WebhookAdapter,
    decode,
)
from bot.config import HttpUrl, Secret
from bot.errors import PlatformError, Refused, Unavailable
from bot.markup import utf16

CDN = ("cdn.discordapp.com", "media.discordapp.net")
STALE = 900  # seconds; an interaction's token lives as long
CHANNEL_MESSAGES, CHANNEL_MESSAGE = "/channels/{}/messages", "/channels/{}/messages/{}"
TOKEN_MESSAGES, TOKEN_MESSAGE = "/webhooks/{}/{}", "/webhooks/{}/{}/messages/{}"
ORIGINAL = "@original"  # the message that said "thinking..."
SUPPRESS_EMBEDS = 1 << 2  # a message flag: no previews of links


class DiscordSettings(AdapterSettings):
    """Settings of one application."""

    application_id: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$")] = Field(
        description="Application ID, from the Developer Portal, page General Information"
    )
    public_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] = Field(
        description="Public Key, from the same page: 64 hexadecimal digits"
    )
    bot_token: Secret = Field(
        min_length=1, description="The bot's token, from the page Bot (Reset Token shows it once)"
    )
    api_base: HttpUrl = Field("https://discord.com/api/v10", min_length=1, description="The API server")


class Sent(msgspec.Struct):
    """A message of ours."""

    id: str
    content: str = ""


class DiscordAdapter(WebhookAdapter[DiscordSettings]):
    """A Discord bot."""

    name = "discord"
    title = "Discord"
    docs = "https://docs.discord.com/developers/intro"
    Settings = DiscordSettings
    # 2,000 "characters": UTF-16 units are never fewer than what is meant.
    can = Capabilities(max_length=2000, measure=utf16, dialect=DISCORD, edit_every=1.5, typing_every=8)

    def __init__(self, settings: DiscordSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._app = settings.application_id
        # Who does not introduce itself in this form is turned away: https://docs.discord.com/developers/reference#user-agent
        agent = f"DiscordBot ({context.public_url or 'https://localhost'}, 1)"
        self.rest = Rest(settings.api_base, settings.bot_token.get_secret_value(), agent)

    async def stop(self) -> None:
        """Close the connections."""
        await self.rest.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check Discord's signature.

        https://docs.discord.com/developers/interactions/overview#validating-security-request-headers
        """
        timestamp = request.header("x-signature-timestamp")
        signed = timestamp.encode(errors="surrogatepass") + request.body
        signing.ed25519(self.settings.public_key, request.header("x-signature-ed25519"), signed, "X-Signature-Ed25519")
        signing.fresh(timestamp, STALE, "X-Signature-Timestamp")

    def parse(self, request: Request) -> Inbound:
        """Translate one interaction."""
        return asked(request.json(Interaction))

    async def listen(self, accept: Accept) -> None:
        """Receive direct messages and mentions (and, where no address is registered, commands) by the Gateway."""
        token = self.settings.bot_token.get_secret_value()
        await Gateway(self.rest, token, self.context.state, partial(self._hear, accept)).run()

    async def _hear(self, accept: Accept, event: str, data: bytes, me: str) -> None:
        """Take one event of the Gateway. Raises Malformed."""
        if event == "MESSAGE_CREATE":
            if messages := [message for message in heard(decode(data, Incoming), me).messages if message.addressed]:
                await accept(messages)
        elif event == "INTERACTION_CREATE":
            interaction = decode(data, Interaction)
            inbound = asked(interaction)
            await accept(inbound.messages)
            with suppress(PlatformError):  # too late, or done before: then the answer becomes an ordinary message
                ids, answer = (interaction.id, interaction.token), msgspec.Raw(inbound.response.body)
                await self.rest.call("POST", "/interactions/{}/{}/callback", *ids, json=answer)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Answer the interaction, or post a message."""
        return await self._by_token(chat, partial(self._respond, chat, page)) or await self._post(chat, page)

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Edit a message: https://docs.discord.com/developers/resources/message#edit-message"""
        try:
            by_token = partial(self._edit_by_token, post.id, page)
            return await self._by_token(chat, by_token) or await self._edit(chat, post.id, page)
        except Refused as error:
            if error.code not in POST_GONE:
                raise
        # With its old key the page would be taken for the post that is gone.
        return await self._post(chat, msgspec.structs.replace(page, key=f"{page.key}/{post.id}"))

    async def _by_token(self, chat: Chat, act: Callable[[Ticket], Awaitable[str]]) -> str:
        """Do something by the interaction's token; "" when there is none, or none that works any more.

        Raises Unavailable while Discord may not have read our acknowledgement yet: before that the token is no good.
        """
        ticket = Ticket.read(chat.ticket)
        if ticket is None:
            return ""
        try:
            return await act(ticket)
        except Refused as error:
            if error.code not in TOKEN_DEAD:
                raise
            if ticket.age < TAKEN_AFTER:
                raise Unavailable(f"the interaction is not open yet: {error}") from None
            return ""

    async def _respond(self, chat: Chat, page: Page, ticket: Ticket) -> str:
        """Fill in the original response, or follow up when another page has it.

        https://docs.discord.com/developers/interactions/receiving-and-responding#followup-messages
        """
        if await self._takes_original(chat, page, ticket):
            return await self._edit_by_token(ORIGINAL, page, ticket)
        reply = await self.rest.call("POST", TOKEN_MESSAGES, self._app, ticket.token, json=shown(page.text))
        return reply.json(Sent).id

    async def _takes_original(self, chat: Chat, page: Page, ticket: Ticket) -> bool:
        """Whether the original response is this page's: it belongs to the first one that asks, in every attempt."""
        if await self.context.state.swap(original(ticket), None, page.key, TOKEN_LIVES):
            return True
        return await self.context.state.get(original(ticket)) == page.key

    async def _edit_by_token(self, id: str, page: Page, ticket: Ticket) -> str:
        route = (TOKEN_MESSAGE, self._app, ticket.token, id)
        return (await self.rest.call("PATCH", *route, json=shown(page.text))).json(Sent).id

    async def _edit(self, chat: Chat, id: str, page: Page) -> str:
        return (await self.rest.call("PATCH", CHANNEL_MESSAGE, chat.id, id, json=shown(page.text))).json(Sent).id

    async def _post(self, chat: Chat, page: Page) -> str:
        """Post a message: https://docs.discord.com/developers/resources/message#create-message"""
        body = shown(page.text)
        if page.key:
            body |= {"nonce": digest(page.key), "enforce_nonce": True}
        if chat.kind == "group" and page.reply_to and not chat.ticket:
            body["message_reference"] = {"message_id": page.reply_to, "fail_if_not_exists": False}
        sent = await self._create(chat, body)
        if sent.content.strip() != page.text.strip():
            # The nonce found an earlier attempt, which showed less of the page.
            await self._edit(chat, sent.id, page)
        return sent.id

    async def _create(self, chat: Chat, body: dict[str, Any]) -> Sent:
        try:
            return (await self.rest.call("POST", CHANNEL_MESSAGES, chat.id, json=body)).json(Sent)
        except Refused as error:
            if error.code != CANNOT_REPLY or "message_reference" not in body:
                raise
        del body["message_reference"]
        return (await self.rest.call("POST", CHANNEL_MESSAGES, chat.id, json=body)).json(Sent)

    async def typing(self, chat: Chat) -> None:
        """Show that we are typing, for ten seconds; a command shows "thinking..." by itself."""
        if not Ticket.read(chat.ticket):
            await self.rest.call("POST", "/channels/{}/typing", chat.id)

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file. Its address is signed and needs no token."""
        return await self.rest.client.download(attachment.ref, limit=limit, hosts=CDN)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """Register the commands and the address they are sent to."""
        return await Setup(self.rest, self.settings, self.context).register(url)

    async def check(self, url: str) -> list[Finding]:
        """Ask Discord who we are, where commands go, and whether we may listen."""
        return await Setup(self.rest, self.settings, self.context).check(url)


def shown(text: str) -> dict[str, Any]:
    """Return the fields of a message that shows a text and notifies nobody, whatever is written in it."""
    return {"content": text, "allowed_mentions": {"parse": [], "replied_user": False}, "flags": SUPPRESS_EMBEDS}


def digest(text: str) -> str:
    """Return 25 characters that stand for a text: a nonce may be no longer."""
    return hashlib.sha256(text.encode()).hexdigest()[:25]


def original(ticket: Ticket) -> str:
    """Name the place in the shared state that tells which page has an interaction's original response."""
    return f"original/{digest(ticket.token)}"
