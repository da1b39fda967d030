"""A strict Messenger Platform on loopback: it refuses what Messenger refuses, and writes down what people would see.

    async with MessengerServer() as messenger:
        ada = messenger.person("Ada")
        await messenger.say(ada, "hello")  # calls the webhook, once the app is subscribed
        messenger.shown(ada)

Error codes: https://developers.facebook.com/documentation/business-messaging/messenger-platform/error-codes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.adapters.graph_server import APP, Fields, GraphServer, Refusal, bad, units

PAGE = "108824017345866"
LONGEST = 2000
ACTIONS = ("mark_seen", "typing_on", "typing_off")
OUTSIDE = "(#10) This message is sent outside of allowed window. Learn more: https://example.com"


@dataclass
class Person:
    """Somebody with Messenger, by the id they have for this page."""

    name: str
    id: str
    in_window: bool = False  # wrote within 24 hours
    shown: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)

    @property
    def dots(self) -> bool:
        """Whether the person sees the dots move: a message of the page alone does not surely stop them."""
        return next((action == "typing_on" for action in reversed(self.actions) if action != "mark_seen"), False)


@dataclass
class MessengerServer(GraphServer):
    """One page."""

    about = "page"
    scopes: list[str] = field(default_factory=lambda: ["pages_messaging", "pages_manage_metadata", "public_profile"])
    people: dict[str, Person] = field(default_factory=dict)
    subscribed: dict[str, list[str]] = field(default_factory=dict)
    profile: Fields = field(default_factory=dict)

    # -- the people's side

    def person(self, name: str) -> Person:
        """Let somebody open a chat with the page."""
        person = Person(name, f"72340000{len(self.people) + 1:04d}")
        self.people[person.id] = person
        return person

    def shown(self, person: Person) -> list[str]:
        """Return what a person got from the bot."""
        return person.shown

    def event(self, person: Person, **content: Any) -> Fields:
        """Return an event of a person's chat."""
        person.in_window = True
        return {
            "sender": {"id": person.id},
            "recipient": {"id": PAGE},
            "timestamp": 1_790_000_000_000 + next(self._ids),
            **content,
        }

    def message(self, person: Person, text: str = "", **content: Any) -> Fields:
        """Let a person write; return the event."""
        return self.event(person, message={"mid": self.next_id("m_"), **({"text": text} if text else {}), **content})

    def notification(self, *events: Fields, page: str = PAGE) -> Fields:
        """Return a webhook's body about events."""
        return {"object": "page", "entry": [{"id": page, "time": 1_790_000_000_000, "messaging": list(events)}]}

    async def say(self, person: Person, text: str) -> Fields:
        """Let a person write and deliver it; return the webhook's body."""
        notification = self.notification(self.message(person, text))
        assert await self.deliver(notification) == 200
        return notification

    # -- the bot's side

    def find(self, method: str, path: str) -> Callable[[Fields], object] | None:
        """Return what serves an edge; "me" is the page."""
        edges: dict[tuple[str, str], Callable[[Fields], object]] = {
            ("GET", "me"): lambda fields: {"id": PAGE, "name": "Jasper's Market"},
            ("POST", "me/messages"): self._messages,
            ("GET", "me/subscribed_apps"): self._apps,
            ("POST", "me/subscribed_apps"): self._subscribe_app,
            ("POST", "me/messenger_profile"): self._profile,
        }
        return edges.get((method, path))

    def _messages(self, fields: Fields) -> Fields:
        person = self.people.get(fields.get("recipient", {}).get("id", ""))
        if person is None:
            raise bad("No matching user found", 2018001)
        if "sender_action" in fields:
            return self._action(person, fields)
        if fields.keys() != {"recipient", "messaging_type", "message"} or fields["messaging_type"] != "RESPONSE":
            raise bad("Invalid keys or messaging_type")
        text = fields["message"].get("text")
        if not isinstance(text, str) or not text.strip():
            raise bad("Message cannot be empty, must provide valid attachment or text", 2018034)
        if units(text) > LONGEST:
            raise bad(f"Length of param message[text] must be less than or equal to {LONGEST}")
        if not person.in_window:
            raise Refusal(400, 10, OUTSIDE, 2018278)
        person.shown.append(text)
        return {"recipient_id": person.id, "message_id": self.next_id("m_out")}

    def _action(self, person: Person, fields: Fields) -> Fields:
        if fields.keys() != {"recipient", "sender_action"} or fields["sender_action"] not in ACTIONS:
            raise bad("Param sender_action must be alone and one of its values")
        person.actions.append(fields["sender_action"])
        return {"recipient_id": person.id}

    def _apps(self, fields: Fields) -> Fields:
        return {"data": [{"id": id, "subscribed_fields": names} for id, names in self.subscribed.items()]}

    def _subscribe_app(self, fields: Fields) -> Fields:
        if not fields.get("subscribed_fields"):
            raise bad("Param subscribed_fields must be non-empty")
        self.subscribed[APP] = fields["subscribed_fields"].split(",")
        return {"success": True}

    def _profile(self, fields: Fields) -> Fields:
        menus = fields.get("persistent_menu", [])
        if menus and "get_started" not in fields | self.profile:
            raise bad("You must set a Get Started button if you also wish to use persistent menu", 2018145)
        if menus and "default" not in [menu["locale"] for menu in menus]:
            raise bad("A default locale is required")
        for item in (item for menu in menus for item in menu["call_to_actions"]):
            if item["type"] != "postback" or not 1 <= len(item["title"]) <= 30 or len(item["payload"]) > 1000:
                raise bad("Invalid menu item")
        self.profile |= fields
        return {"result": "success"}
