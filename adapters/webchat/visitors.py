"""Anonymous visitors: an id of our making in a signed token, so that nobody can read another one's conversation."""

from __future__ import annotations

import secrets
import time

from bot import signing
from bot.adapter import State
from bot.errors import Unverified

TOKEN_LIVES = 180 * 86_400  # seconds; renewed whenever the page is opened
SECRET_LIVES = 10 * 365 * 86_400


class Visitors:
    """Signs and checks tokens. The secret is made once and shared by all replicas."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._secret = ""

    async def token(self, visitor: str = "") -> str:
        """Return a fresh token of a visitor, of a new one by default."""
        claim = f"{visitor or secrets.token_urlsafe(16)}.{int(time.time()) + TOKEN_LIVES}"
        return f"{claim}.{await self._sign(claim)}"

    async def check(self, token: str) -> str:
        """Return whose token it is. Raises Unverified when it is absent, forged or has run out."""
        claim, _, signature = token.rpartition(".")
        signing.equal(signature, await self._sign(claim), "the visitor's token")
        visitor, _, expires = claim.partition(".")
        if int(expires) < time.time():
            raise Unverified("the visitor's token has expired")
        return visitor

    async def _sign(self, claim: str) -> str:
        self._secret = self._secret or await self._shared_secret()
        return signing.digest(self._secret, claim.encode(errors="surrogatepass"))

    async def _shared_secret(self) -> str:
        await self._state.swap("secret", None, secrets.token_urlsafe(32), SECRET_LIVES)
        secret = await self._state.get("secret")
        assert secret is not None
        await self._state.set("secret", secret, SECRET_LIVES)
        return secret


def holder(token: str) -> str:
    """Return whose token it claims to be. Only for tokens that were checked."""
    return token.partition(".")[0]
