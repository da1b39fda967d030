"""Who calls us: the tokens with which the Bot Connector signs its requests, and the keys to check them.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-authentication#connector-to-bot
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec

from bot.adapter import Response, decode
from bot.client import Client
from bot.errors import Malformed, PlatformError, Unavailable, Unverified

PUBLIC = "https://api.botframework.com"
CLOUDS = {  # by the host of the OpenID document: who issues the tokens there, and whom we ask for ours
    "login.botframework.azure.us": "https://api.botframework.us",
    "login.botframework.azure.cn": "https://api.botframework.azure.cn",
}
LEEWAY = 300.0  # seconds two clocks may differ
KEYS_LIVE = 86400.0  # seconds
UNKNOWN_EVERY = 60.0  # seconds between two fetches for a key that we do not have
DOWN_FOR = 5.0  # seconds until keys that could not be fetched are asked for again, when we have none
LARGEST = 1024 * 1024  # bytes of the list of keys
NOT_A_TOKEN = (jwt.PyJWTError, ValueError, RecursionError)  # what PyJWT raises, whatever it is given
UNENDORSED = Response.json({"error": {"code": "forbidden", "message": "no endorsement for this channel"}}, 403)
NO_KEYS = Response.json(
    {"error": {"code": "unavailable", "message": "the signing keys cannot be fetched now"}}, 503, {"Retry-After": "5"}
)


def issuer(openid_url: str) -> str:
    """Return who issues the tokens of a cloud."""
    return CLOUDS.get(urlsplit(openid_url).hostname or "", PUBLIC)


class OpenId(msgspec.Struct):
    """The OpenID document."""

    jwks_uri: str


class Jwk(msgspec.Struct, frozen=True):
    """A public key, and the channels it may speak for."""

    kid: str = ""
    kty: str = ""
    n: str = ""
    e: str = ""
    endorsements: tuple[str, ...] = ()


class Jwks(msgspec.Struct):
    """A list of keys."""

    keys: list[Jwk]


class Key(msgspec.Struct, frozen=True):
    """A key that is ready for use."""

    public: jwt.PyJWK
    endorsements: tuple[str, ...]


class KeyRing:
    """The signing keys: fetched once a day, and, at most once a minute, for an id that is not among them.

    The Connector waits 15 seconds for us, so a fetch takes 10 at most.
    """

    def __init__(self, openid_url: str) -> None:
        self._url = openid_url
        self._keys: dict[str, Key] = {}
        self._fresh_until = 0.0  # time.monotonic()
        self._unknown_from = 0.0  # time.monotonic() from which an unknown id is worth a fetch
        self._failure: PlatformError | None = None
        self._lock = asyncio.Lock()

    async def find(self, id: str) -> Key | None:
        """Return a key, None when there is none of this id. Raises PlatformError while that cannot be told."""
        async with self._lock:
            now = time.monotonic()
            if now >= self._fresh_until:
                await self._refresh(now)
            elif id not in self._keys and now >= self._unknown_from:
                await self._refresh(now)
                self._unknown_from = now + UNKNOWN_EVERY
        if id not in self._keys and self._failure:
            raise self._failure
        return self._keys.get(id)

    async def _refresh(self, now: float) -> None:
        """Fetch the keys; when that fails those we have go on serving."""
        try:
            self._keys = await self.fetch()
        except PlatformError as error:
            self._failure = error
            self._fresh_until = self._unknown_from = now + (UNKNOWN_EVERY if self._keys else DOWN_FOR)
        else:
            self._failure = None
            self._fresh_until = now + KEYS_LIVE

    async def fetch(self) -> dict[str, Key]:
        """Ask for the keys. Raises PlatformError."""
        client = Client(self._url, timeout=5)  # for once: nobody asks again before tomorrow
        try:
            url = (await client.call("GET", "")).json(OpenId).jwks_uri
            data = await client.download(url, limit=LARGEST, hosts=(_host(url),))
        finally:
            await client.close()
        try:
            return dict(_usable(decode(data, Jwks)))
        except Malformed:
            raise Unavailable("the list of signing keys is unreadable") from None


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _usable(found: Jwks) -> Iterator[tuple[str, Key]]:
    for jwk in found.keys:
        with contextlib.suppress(jwt.PyJWTError, ValueError):
            if jwk.kid and jwk.kty == "RSA":
                parts = {"kty": jwk.kty, "n": jwk.n, "e": jwk.e, "alg": "RS256"}
                yield jwk.kid, Key(jwt.PyJWK(parts), jwk.endorsements)


class Caller(msgspec.Struct, frozen=True):
    """What a token says: whose service it vouches for, and the channels its key may speak for."""

    service: str
    channels: tuple[str, ...]

    def vouch(self, service: str, channel: str) -> None:
        """Raise Unverified unless the token vouches for this service, and its key for this channel."""
        if not service or self.service.rstrip("/") != service.rstrip("/"):
            raise Unverified("the token was made for another service URL")
        if channel not in self.channels:
            raise Unverified("the token's key is not endorsed for this channel", UNENDORSED)


async def caller(authorization: str, keys: KeyRing, audience: str, issuer: str) -> Caller:
    """Check a bearer token in full: key, RS256 signature, issuer, audience, time. Raises Unverified."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unverified("Authorization is not a bearer token")
    try:
        key = await keys.find(_key_id(token))
    except PlatformError as error:
        raise Unverified(f"the signing keys cannot be fetched: {error}", NO_KEYS) from None
    if key is None:
        raise Unverified("the token's key is unknown")
    return Caller(str(_claims(token, key, audience, issuer).get("serviceurl", "")), key.endorsements)


def _key_id(token: str) -> str:
    """Return the id of the key; only for a token that may hold, so that others do not make us fetch keys."""
    try:
        header = jwt.get_unverified_header(token)
    except NOT_A_TOKEN:
        raise Unverified("Authorization is not a token") from None
    if header.get("alg") != "RS256" or not header.get("kid"):
        raise Unverified("the token is not signed by RS256 with a named key")
    return str(header["kid"])


def _claims(token: str, key: Key, audience: str, issuer: str) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            key.public,
            algorithms=["RS256"],
            audience=audience,
            issuer=issuer,
            leeway=LEEWAY,
            options={"require": ["exp", "nbf", "iss", "aud"], "strict_aud": True},
        )
    except NOT_A_TOKEN as error:
        raise Unverified(f"the token does not hold ({type(error).__name__})") from None
