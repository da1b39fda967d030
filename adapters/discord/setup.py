"""Registering at Discord, and asking it how things are.

https://docs.discord.com/developers/resources/application
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from adapters.discord.gateway import REFUSED, REFUSED_KEY, Address
from adapters.discord.interactions import COMMANDS, menu
from adapters.discord.rest import Rest
from bot.adapter import Context, Finding
from bot.config import variable
from bot.errors import PlatformError, Refused, Unauthorized

PORTAL = "https://discord.com/developers/applications"
# View channels, send messages (in threads as well), read the history (needed to reply).
# https://docs.discord.com/developers/topics/permissions
PERMISSIONS = 1 << 10 | 1 << 11 | 1 << 38 | 1 << 16
FEW = 50  # sessions left today below which something must be wrong


class Identity(Protocol):
    """What the operator told us about the application."""

    @property
    def application_id(self) -> str: ...
    @property
    def public_key(self) -> str: ...


class Application(msgspec.Struct):
    """Our application. `verify_key` is its public key."""

    id: str
    name: str = ""
    verify_key: str = ""
    interactions_endpoint_url: str | None = None


class Command(msgspec.Struct):
    """A registered command."""

    name: str


class Setup:
    """The operator's half of the adapter."""

    def __init__(self, rest: Rest, identity: Identity, context: Context) -> None:
        self._rest = rest
        self._identity = identity
        self._context = context

    async def register(self, url: str) -> list[Finding]:
        """Register the commands, then the address, which Discord tries at once."""
        try:
            application = await self._application()
            if wrong := [finding for finding in self._same(application) if not finding.ok]:
                return wrong
            await self._rest.call("PUT", "/applications/{}/commands", application.id, json=menu())
            await self._rest.call("PATCH", "/applications/@me", json={"interactions_endpoint_url": url})
        except PlatformError as error:
            return [self._trouble(error)]
        return [
            Finding(True, f"the commands are registered: {', '.join(f'/{name}' for name in COMMANDS)}"),
            Finding(True, f"the interactions endpoint is {url}; Discord has tried it"),
            Finding(True, f"add the bot to a server here: {invitation(application.id)}"),
        ]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are, where commands go, and whether we may listen."""
        try:
            application = await self._application()
            if wrong := [finding for finding in self._same(application) if not finding.ok]:
                return wrong
            commands = (await self._rest.call("GET", "/applications/{}/commands", application.id)).json(list[Command])
            address = (await self._rest.call("GET", "/gateway/bot")).json(Address)
        except PlatformError as error:
            return [self._trouble(error)]
        left = address.session_start_limit.remaining
        return [
            Finding(True, f"the token is that of {application.name} ({application.id})"),
            self._points_here(application, url),
            self._registered(commands),
            Finding(
                left >= FEW, f"{left} gateway sessions may still be begun today", "the bot starts too often: see why"
            ),
            *await self._refused(),
        ]

    async def _application(self) -> Application:
        return (await self._rest.call("GET", "/applications/@me")).json(Application)

    def _same(self, application: Application) -> Iterator[Finding]:
        """Compare what the operator told us with what Discord says."""
        pairs = (("application_id", application.id), ("public_key", application.verify_key))
        for field, value in pairs:
            name = variable(self._context.instance, field)
            fine = value.lower() == getattr(self._identity, field).lower()
            yield Finding(fine, f"{name} is that of the token's application", f"it should be {value}")

    def _points_here(self, application: Application, url: str) -> Finding:
        at = application.interactions_endpoint_url
        if at == url or not (at or self._context.public_url):
            return Finding(True, f"commands come to {at}" if at else "commands come by the gateway: no address is set")
        found = f"the interactions endpoint is {at or 'not set'}, not {url}"
        advice = f"run: magpie register {self._context.instance} (Discord drops an address that fails its checks)"
        return Finding(False, found, advice)

    def _registered(self, commands: list[Command]) -> Finding:
        missing = COMMANDS.keys() - {command.name for command in commands}
        what = f"commands are missing: {', '.join(sorted(missing))}" if missing else "the commands are registered"
        return Finding(not missing, what, f"run: magpie register {self._context.instance}")

    async def _refused(self) -> list[Finding]:
        """Tell why the gateway was closed for good, if it was."""
        code = await self._context.state.get(REFUSED_KEY)
        if not code:
            return []
        what = f"the gateway refused us ({code}): {REFUSED[int(code)]}; direct messages and mentions are not heard"
        return [Finding(False, what, f"put it right at {PORTAL}, then restart the bot")]

    def _trouble(self, error: PlatformError) -> Finding:
        token, base = (variable(self._context.instance, field) for field in ("bot_token", "api_base"))
        if isinstance(error, Unauthorized):
            return Finding(False, f"the token is refused: {error}", f"copy {token} from {PORTAL}, page Bot")
        if not isinstance(error, Refused):
            return Finding(False, f"Discord does not serve us: {error}", f"wait; check {base} and the network")
        advice = "Discord tries the address at once: is the bot running, and does its public https address lead to it?"
        return Finding(False, f"refused: {error}", advice)


def invitation(application: str) -> str:
    """Return the page where people add the bot to their servers."""
    scopes = "bot+applications.commands"
    return f"https://discord.com/oauth2/authorize?client_id={application}&scope={scopes}&permissions={PERMISSIONS}"
