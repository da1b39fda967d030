"""A strict WhatsApp Cloud API on loopback: it refuses what WhatsApp refuses, and writes down what people would see.

    async with WhatsAppServer() as whatsapp:
        ada = whatsapp.person("Ada")
        await whatsapp.say(ada, "hello")  # calls the webhook, once the app is subscribed
        whatsapp.shown(ada)

Error codes: https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.adapters.graph_server import APP, Fields, GraphServer, Refusal, bad, units

NUMBER = "106540352242922"
ACCOUNT = "102290129340398"
LONGEST = 4096
USER_ID = re.compile(r"[A-Z]{2}\.(ENT\.)?[A-Za-z0-9]{1,128}")


@dataclass
class Person:
    """Somebody with WhatsApp. One who hides the number has a user id only."""

    name: str
    phone: str
    user_id: str
    hides_phone: bool = False
    reachable: bool = True
    in_window: bool = False  # wrote within 24 hours
    shown: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)  # ids of messages with blue ticks
    typing: int = 0  # times "typing..." was shown


@dataclass
class WhatsAppServer(GraphServer):
    """One business number in one account."""

    about = "whatsapp_business_account"
    scopes: list[str] = field(
        default_factory=lambda: ["whatsapp_business_management", "whatsapp_business_messaging", "public_profile"]
    )
    granular_scopes: list[Fields] = field(
        default_factory=lambda: [
            {"scope": "whatsapp_business_management", "target_ids": ["999", ACCOUNT]},
            {"scope": "whatsapp_business_messaging"},
        ]
    )
    people: list[Person] = field(default_factory=list)
    written_ids: dict[str, Person] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    file_host: str = ""  # "" for our own
    subscribed: set[str] = field(default_factory=set)
    overrides: Fields = field(default_factory=dict)
    commands: list[Fields] = field(default_factory=list)

    # -- the people's side

    def person(self, name: str, **more: Any) -> Person:
        """Let somebody have WhatsApp."""
        number = len(self.people) + 1
        person = Person(name, f"1555000{number:04d}", f"US.1349120865530{number}", **more)
        self.people.append(person)
        return person

    def shown(self, person: Person) -> list[str]:
        """Return what a person got from the bot."""
        return person.shown

    def message(self, person: Person, type: str = "text", **content: Any) -> Fields:
        """Let a person write; return the message as WhatsApp describes it."""
        id = self.next_id("wamid.HBgL")
        self.written_ids[id] = person
        person.in_window = True
        sender = {"from_user_id": person.user_id} | ({} if person.hides_phone else {"from": person.phone})
        return {**sender, "id": id, "timestamp": "1790000000", "type": type, **content}

    def notification(self, *messages: Fields, number: str = NUMBER, **value: Any) -> Fields:
        """Return a webhook's body about messages."""
        return {"object": self.about, "entry": [{"id": ACCOUNT, "changes": [self.change(*messages, number=number)]}]}

    def change(self, *messages: Fields, number: str = NUMBER) -> Fields:
        """Return one change about messages."""
        people = [self.written_ids[message["id"]] for message in messages]
        value = {
            "messaging_product": "whatsapp",
            "metadata": {"display_phone_number": "15550783881", "phone_number_id": number},
            "contacts": [contact(person) for person in people],
            "messages": list(messages),
        }
        return {"field": "messages", "value": value}

    async def say(self, person: Person, text: str) -> Fields:
        """Let a person write and deliver it; return the webhook's body."""
        notification = self.notification(self.message(person, text={"body": text}))
        assert await self.deliver(notification) == 200
        return notification

    # -- the bot's side

    def find(self, method: str, path: str) -> Callable[[Fields], object] | None:
        """Return what serves an edge."""
        if method == "GET" and path in self.files:
            return lambda fields: self._located(path, fields)
        if method == "GET" and path.startswith("files/"):
            return lambda fields: web.Response(body=self.files[path.removeprefix("files/")])
        edges: dict[tuple[str, str], Callable[[Fields], object]] = {
            ("POST", f"{NUMBER}/messages"): self._messages,
            ("GET", NUMBER): self._number,
            ("POST", f"{NUMBER}/conversational_automation"): self._automation,
            ("GET", f"{ACCOUNT}/phone_numbers"): lambda fields: {"data": [{"id": "1"}, {"id": NUMBER}]},
            ("GET", f"{ACCOUNT}/subscribed_apps"): self._apps,
            ("POST", f"{ACCOUNT}/subscribed_apps"): self._subscribe_app,
        }
        return edges.get((method, path))

    def _located(self, id: str, fields: Fields) -> Fields:
        if fields.get("phone_number_id", NUMBER) != NUMBER:
            raise bad(f"Unsupported get request. Object with ID '{id}' does not exist", 33)
        url = f"{self.file_host or self.base}/files/{id}"
        return {"url": url, "mime_type": "image/jpeg", "file_size": len(self.files[id]), "id": id}

    def _messages(self, fields: Fields) -> Fields:
        if fields.get("messaging_product") != "whatsapp":
            raise bad("The parameter messaging_product is required.")
        if "status" in fields:
            return self._read(fields)
        person = self._recipient(fields)
        body = self._text(fields)
        if not person.reachable:
            raise Refusal(400, 131026, "(#131026) Message undeliverable", details="Message Undeliverable.")
        if not person.in_window:
            raise Refusal(400, 131047, "(#131047) Re-engagement message", details="More than 24 hours have passed")
        person.shown.append(body)
        contacts = [{"input": person.phone, "wa_id": person.phone}]
        return {
            "messaging_product": "whatsapp",
            "contacts": contacts,
            "messages": [{"id": self.next_id("wamid.HBgM")}],
        }

    def _read(self, fields: Fields) -> Fields:
        person = self.written_ids.get(fields.get("message_id", ""))
        if fields["status"] != "read" or person is None:
            raise Refusal(400, 131009, "(#131009) Parameter value is not valid")
        if fields.keys() - {"messaging_product", "status", "message_id", "typing_indicator"}:
            raise bad("Unexpected key")
        if "typing_indicator" in fields:
            if fields["typing_indicator"] != {"type": "text"}:
                raise bad("Param typing_indicator is not valid")
            person.typing += 1
        person.read.append(fields["message_id"])
        return {"success": True}

    def _recipient(self, fields: Fields) -> Person:
        if fields.get("recipient_type", "individual") != "individual":
            raise bad("Param recipient_type must be one of {individual}")
        to, id = fields.get("to"), fields.get("recipient")
        if to is None and id is None:
            raise Refusal(400, 131008, "(#131008) Required parameter is missing", details="to or recipient")
        if (to is not None and not re.fullmatch(r"\+?\d+", to)) or (id is not None and not USER_ID.fullmatch(id)):
            raise Refusal(400, 131009, "(#131009) Parameter value is not valid")
        found = (one for one in self.people if (one.phone == to if to else one.user_id == id))
        person = next(found, None)
        if person is None or (to and person.hides_phone):
            raise Refusal(400, 131026, "(#131026) Message undeliverable", details="Message Undeliverable.")
        return person

    def _text(self, fields: Fields) -> str:
        known = {"messaging_product", "recipient_type", "to", "recipient", "type", "text", "context"}
        if fields.keys() - known or fields.get("type") != "text":
            raise bad("Unexpected key or type")
        text = fields.get("text")
        if not isinstance(text, dict) or text.keys() - {"body", "preview_url"} or not isinstance(text["body"], str):
            raise bad("Param text must be a JSON object.")
        if not isinstance(text.get("preview_url", False), bool):
            raise bad("Param text['preview_url'] must be a boolean.")
        if not text["body"].strip():
            raise bad("The parameter text['body'] is required.")
        if units(text["body"]) > LONGEST:
            raise bad("Invalid parameter", details=f"Param text['body'] must be at most {LONGEST} characters long.")
        return text["body"]

    def _number(self, fields: Fields) -> Fields:
        told = {"id": NUMBER, "display_phone_number": "+1 555-078-3881", "verified_name": "Jasper's Market"}
        return told | {"webhook_configuration": self.overrides}

    def _automation(self, fields: Fields) -> Fields:
        commands = fields["commands"]
        commands = json.loads(commands) if isinstance(commands, str) else commands
        for command in commands:
            if not 1 <= len(command["command_name"]) <= 32 or not 1 <= len(command["command_description"]) <= 256:
                raise bad("Invalid parameter")
        self.commands = commands
        return {"success": True}

    def _apps(self, fields: Fields) -> Fields:
        return {"data": [{"whatsapp_business_api_data": {"id": id, "name": "App"}} for id in self.subscribed]}

    def _subscribe_app(self, fields: Fields) -> Fields:
        self.subscribed.add(APP)
        return {"success": True}


def contact(person: Person) -> Fields:
    """Return what WhatsApp tells about a person."""
    phone = {} if person.hides_phone else {"wa_id": person.phone}
    return {"profile": {"name": person.name}, "user_id": person.user_id} | phone
