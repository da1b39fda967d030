"""What the Cloud API takes and answers: https://developers.facebook.com/documentation/business-messaging/whatsapp/reference"""

from __future__ import annotations

import re

import msgspec

from adapters.meta import Codes, Meaning, Object
from bot.adapter import Chat
from bot.errors import Refused, Throttled, Unauthorized, Unavailable

USER_ID = re.compile(r"[A-Z]{2}\.(ENT\.)?[A-Za-z0-9]{1,128}")

# https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes
CODES: Codes = {
    33: Meaning(Refused, "the business number is gone"),
    80007: Meaning(Throttled, "the business account calls too often", 60),
    130429: Meaning(Throttled, "too many messages a second", 5),
    130472: Meaning(Refused, "WhatsApp holds messages to this person back"),
    130497: Meaning(Refused, "this business may not write to people in that country"),
    131000: Meaning(Unavailable, "something went wrong at WhatsApp"),
    131005: Meaning(Unauthorized, "a permission is missing"),
    131016: Meaning(Unavailable, "WhatsApp is down for a moment"),
    131021: Meaning(Refused, "the business number cannot write to itself"),
    131026: Meaning(Refused, "this person cannot get the message"),
    131031: Meaning(Refused, "the business account is locked"),
    131042: Meaning(Refused, "the business account has an open payment"),
    131047: Meaning(Refused, "the person last wrote over 24 hours ago; only a template could reach them now"),
    131048: Meaning(Throttled, "held back, because people blocked or reported this number", 600),
    131049: Meaning(Refused, "WhatsApp holds messages to this person back"),
    131051: Meaning(Refused, "this type of message is not supported"),
    131056: Meaning(Throttled, "too many messages to the same person", 10),
    131057: Meaning(Unavailable, "the business account is in maintenance"),
    131062: Meaning(Refused, "this message needs a phone number, and the person hides theirs"),
    133010: Meaning(Refused, "the number is not registered with the Cloud API"),
}


class Sent(msgspec.Struct):
    """The answer to a message of ours."""

    messages: list[Object]


class Located(msgspec.Struct):
    """Where a file lies, for some minutes."""

    url: str


class Overrides(msgspec.Struct):
    """Addresses that go before the app's own."""

    phone_number: str | None = None
    whatsapp_business_account: str | None = None


class Number(msgspec.Struct):
    """A business number."""

    display_phone_number: str = ""
    verified_name: str = ""
    webhook_configuration: Overrides = msgspec.field(default_factory=Overrides)


class Subscriber(msgspec.Struct):
    """An app that gets an account's messages."""

    whatsapp_business_api_data: Object


def recipient(chat: Chat) -> dict[str, str]:
    """Address a person by phone number where we know it, else by the id they have for this business."""
    phone = chat.ticket.partition(" ")[2]
    return {"recipient": chat.id} if USER_ID.fullmatch(chat.id) and not phone else {"to": phone or chat.id}
