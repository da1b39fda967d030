"""What Slack sends: https://docs.slack.dev/apis/events-api/"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from adapters.slack.text import spoken
from bot.adapter import Attachment, decode
from bot.errors import Malformed


class Authorization(msgspec.Struct):
    """An installation that sees the event. With a bot token `user_id` is the bot's own."""

    user_id: str | None = None
    is_bot: bool = False


class Kind(msgspec.Struct):
    """Tells events apart, before the rest is read: in other events "channel" and "user" may be objects."""

    type: str
    subtype: str | None = None


class Envelope(msgspec.Struct):
    """A delivery of the Events API."""

    type: str
    challenge: str = ""
    team_id: str | None = None
    event: msgspec.Raw = msgspec.Raw(b"{}")
    authorizations: list[Authorization] = []


class Profile(msgspec.Struct):
    """How a person is called."""

    display_name: str | None = None
    real_name: str | None = None


class File(msgspec.Struct):
    """A file of a message. A stub (`file_access`) has no URL yet."""

    id: str
    name: str | None = None
    mimetype: str | None = None
    size: int = 0
    mode: str | None = None
    url_private_download: str | None = None


class Shared(msgspec.Struct):
    """A message that is forwarded with this one, or a preview of a link."""

    text: str | None = None
    is_share: bool = False
    is_msg_unfurl: bool = False


class Event(msgspec.Struct):
    """A message, or a mention of us. A thread is named by the timestamp of its first message."""

    type: str
    channel: str
    ts: str
    channel_type: str | None = None
    thread_ts: str | None = None
    parent_user_id: str | None = None
    user: str | None = None
    user_team: str | None = None
    team: str | None = None
    bot_id: str | None = None
    text: str | None = None
    user_profile: Profile | None = None
    files: list[File] | None = None
    attachments: list[Shared] | None = None


class Slash(msgspec.Struct):
    """A slash command, made of the fields of a form."""

    command: str
    channel_id: str
    user_id: str
    trigger_id: str
    text: str = ""
    user_name: str = ""
    team_id: str = ""
    response_url: str = ""


class Named(msgspec.Struct):
    """Somebody, or something with an id."""

    id: str
    name: str | None = None
    team_id: str | None = None


class Label(msgspec.Struct):
    """A text on a button or in a menu."""

    text: str = ""


class Option(msgspec.Struct):
    """What was chosen in a menu."""

    value: str | None = None
    text: Label | None = None


class Action(msgspec.Struct):
    """What was pressed, chosen or typed."""

    value: str | None = None
    text: Label | None = None
    selected_option: Option | None = None
    url: str | None = None


class Touched(msgspec.Struct):
    """The message that carries a button or that a shortcut is about."""

    ts: str = ""
    thread_ts: str | None = None
    text: str | None = None
    files: list[File] | None = None


class Interaction(msgspec.Struct):
    """A button, a menu, a shortcut: https://docs.slack.dev/reference/interaction-payloads/"""

    type: str
    trigger_id: str = ""
    response_url: str = ""
    user: Named | None = None
    team: Named | None = None
    channel: Named | None = None
    message: Touched | None = None
    actions: list[Action] = []


class Ticket(msgspec.Struct, omit_defaults=True):
    """`Chat.ticket` as JSON: the thread to answer in, who asked, and where a slash command is answered."""

    thread: str = ""
    user: str = ""
    team: str = ""
    reply: str = ""


class FileRef(msgspec.Struct, omit_defaults=True):
    """`Attachment.ref` as JSON."""

    id: str
    url: str = ""


SUBTYPES = (None, "file_share", "thread_broadcast", "me_message")  # those that are words of a person
SYSTEM = ("USLACKBOT", "USLACK")
HOSTED = (None, "", "hosted", "snippet")  # modes of files that lie at Slack
MEDIA: dict[str, Literal["image", "audio", "video", "file"]] = {"image": "image", "audio": "audio", "video": "video"}
HOOKS = ("https://hooks.slack.com/", "https://hooks.slack-gov.com/")
COMMANDS = ("help", "reset", "stop", "retry", "usage")  # each may follow a slash command, or be one


def as_json(value: object) -> str:
    """Write JSON as UTF-8 without escapes."""
    return msgspec.json.encode(value).decode()


def is_direct(channel: str, channel_type: str | None = None) -> bool:
    """Whether a conversation is between one person and us; a mention comes without a `channel_type`."""
    return channel_type == "im" or channel.startswith("D")


def mine(envelope: Envelope) -> set[str]:
    """Return our own user ids."""
    return {entry.user_id for entry in envelope.authorizations if entry.is_bot and entry.user_id}


def no_question(event: Event, own: Collection[str]) -> str:
    """Return why nobody asks us anything with this message, "" when somebody may."""
    if event.bot_id or event.user in own:
        return "message of a bot"
    if not event.user or event.user in SYSTEM:
        return "message of Slack"
    if not event.text and not event.files and not quoted(event):
        return "empty message"
    return ""


def quoted(event: Event) -> str:
    """Return the forwarded messages."""
    shared = [entry for entry in event.attachments or () if entry.is_share or entry.is_msg_unfurl]
    return "\n".join(spoken(entry.text, ()) for entry in shared if entry.text)


def called(profile: Profile | None) -> str:
    """Return how a person wants to be called."""
    return (profile.display_name or profile.real_name or "") if profile else ""


def attached(files: Sequence[File] | None) -> Iterator[Attachment]:
    """Yield the files that lie at Slack."""
    for file in files or ():
        if file.mode in HOSTED:
            mime = file.mimetype or ""
            kind = MEDIA.get(mime.partition("/")[0], "file")
            ref = as_json(FileRef(file.id, file.url_private_download or ""))
            yield Attachment(kind, ref, mime, file.name or "", file.size)


def asked(slash: Slash) -> str:
    """Return what a slash command says: "/magpie reset" and "/reset" are commands, "/magpie" alone asks for help."""
    text = spoken(slash.text, ())
    word = slash.command.removeprefix("/").lower()
    if word in COMMANDS:
        return f"/{word}"
    if text.lower() in COMMANDS:
        return f"/{text.lower()}"
    return text or "/help"


def pressed(interaction: Interaction) -> str:
    """Return what a button, a menu or a shortcut says; a button that opens a link says nothing."""
    if interaction.type == "message_action" and interaction.message:
        return spoken(interaction.message.text or "", ())
    for action in interaction.actions:
        option = action.selected_option or Option()
        label = option.text or action.text or Label()
        if said := option.value or action.value or ("" if action.url else label.text):
            return said
    return ""


def form(fields: dict[str, str]) -> Slash | Interaction:
    """Read a form: a slash command, or an interaction inside of `payload`. Raises Malformed."""
    if "payload" in fields:
        return decode(fields["payload"], Interaction)
    if "command" not in fields:
        raise Malformed("form: neither a command nor a payload")
    return decode(msgspec.json.encode(fields), Slash)


def is_trusted(url: str, base: str) -> bool:
    """Whether an address that Slack gave us lies at Slack, or at the server that stands in for it."""
    origin = "/".join(base.split("/", 3)[:3])
    return url.startswith((*HOOKS, f"{origin}/"))
