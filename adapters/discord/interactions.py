"""Slash commands: https://docs.discord.com/developers/interactions/receiving-and-responding

Discord waits three seconds for a first answer, which is "thinking...", and then takes others with the interaction's
token for fifteen minutes.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from adapters.discord.messages import File, Member, User, attachment, name
from bot.adapter import Chat, Inbound, Message, Response
from bot.errors import Malformed

PING, COMMAND = 1, 2
PRIVATE_CHANNEL = 2  # the context of a conversation between people, where somebody uses the bot
DEFERRED: dict[str, Any] = {"type": 5}
# What other types of interaction hear: PING, a component, autocomplete, a modal. We send none of the last three.
ANSWERS: dict[int, dict[str, Any]] = {PING: {"type": 1}, 4: {"type": 8, "data": {"choices": []}}}
NOTHING: dict[str, Any] = {"type": 6}
UNKNOWN = {  # shown to the person alone
    "type": 4,
    "data": {
        "content": "I do not know this command. 我不认识这个命令。",
        "flags": 64,
        "allowed_mentions": {"parse": []},
    },
}

TOKEN_LIVES = 14 * 60  # seconds of the fifteen minutes that we count on
TAKEN_AFTER = 10  # seconds after which Discord has certainly seen that we answered "thinking..."

CHAT, QUESTION, FILE = "chat", "message", "file"
COMMANDS = {
    CHAT: ("Ask me something", "向我提问"),
    "help": ("What I can do", "使用说明"),
    "reset": ("Forget our conversation", "忘掉之前的对话"),
    "stop": ("Stop the answer being written", "停止正在写的回答"),
    "retry": ("Answer the last question again", "重新回答上一个问题"),
    "usage": ("What you have used today", "查看今天的用量"),
}
# Options of /chat: (name, type, required, description): string is 3, attachment 11
OPTIONS = (
    (QUESTION, 3, True, ("Your question", "你的问题")),
    (FILE, 11, False, ("A picture or a text file", "图片或文本文件")),
)


class Option(msgspec.Struct):
    """A value that a person filled in."""

    name: str
    value: str | int | float | bool | None = None


class Resolved(msgspec.Struct):
    """The files that options name by their ids."""

    attachments: dict[str, File] = {}


class Data(msgspec.Struct):
    """The command."""

    name: str = ""
    options: list[Option] = []
    resolved: Resolved = msgspec.field(default_factory=Resolved)


class Interaction(msgspec.Struct):
    """Something a person did with us. In a server `member` says who, elsewhere `user`."""

    type: int
    id: str = ""
    token: str = ""
    channel_id: str | None = None
    guild_id: str | None = None
    context: int | None = None
    member: Member | None = None
    user: User | None = None
    data: Data | None = None
    locale: str = ""


class Ticket(NamedTuple):
    """The right to answer an interaction, kept in `Chat.ticket`. `received` in seconds since 1970, by our own clock."""

    received: int
    user: str
    token: str

    @classmethod
    def read(cls, text: str) -> Ticket | None:
        """Return the ticket that a text holds, None for one that is used up, or when there is none."""
        received, _, rest = text.partition(":")
        user, _, token = rest.partition(":")
        ticket = cls(int(received or 0), user, token)
        return ticket if ticket.age < TOKEN_LIVES else None

    @property
    def age(self) -> float:
        """Seconds since we received the interaction."""
        return time.time() - self.received

    def __str__(self) -> str:
        return f"{self.received}:{self.user}:{self.token}"


def asked(interaction: Interaction) -> Inbound:
    """Translate an interaction, with what Discord wants to hear at once. Raises Malformed."""
    if interaction.type != COMMAND:
        answer = ANSWERS.get(interaction.type, NOTHING)
        return Inbound(response=Response.json(answer), ignored=f"interaction of type {interaction.type}")
    data = interaction.data
    if data is None or data.name not in COMMANDS:
        return Inbound(response=Response.json(UNKNOWN), ignored="command of somebody else")
    return Inbound((question(interaction, data),), Response.json(DEFERRED))


def question(interaction: Interaction, data: Data) -> Message:
    """Return the message that a command stands for. Raises Malformed."""
    user = interaction.member.user if interaction.member else interaction.user
    if user is None or not (interaction.id and interaction.token and interaction.channel_id):
        raise Malformed("a command without a person, a place or a token")
    options = {option.name: str(option.value) for option in data.options}
    file = data.resolved.attachments.get(options.get(FILE, ""))
    ticket = Ticket(int(time.time()), user.id, interaction.token)
    return Message(
        id=interaction.id,
        chat=Chat(interaction.channel_id, kind(interaction), ticket=str(ticket)),
        user=user.id,
        user_name=name(user, interaction.member),
        text=options.get(QUESTION, "") if data.name == CHAT else f"/{data.name}",
        attachments=(attachment(file),) if file else (),
        locale=interaction.locale,
        awaited=True,  # "thinking..." is shown until it is answered
    )


def kind(interaction: Interaction) -> Any:
    """Return whether a command came from a group or a direct chat with us."""
    return "group" if interaction.guild_id or interaction.context == PRIVATE_CHANNEL else "direct"


def menu() -> list[dict[str, Any]]:
    """Return the commands as Discord registers them.

    https://docs.discord.com/developers/interactions/application-commands#application-command-object
    """
    options = [
        {"name": name, "type": type, "required": required, **said(what)} for name, type, required, what in OPTIONS
    ]
    commands: list[dict[str, Any]] = [{"name": name, "type": 1, **said(what)} for name, what in COMMANDS.items()]
    return [{**command, "options": options} if command["name"] == CHAT else command for command in commands]


def said(description: tuple[str, str]) -> dict[str, Any]:
    """Return a description in English and Chinese."""
    return {"description": description[0], "description_localizations": {"zh-CN": description[1]}}
