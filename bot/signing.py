"""Small functions that raise Unverified. Everything is compared as bytes, in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bot.errors import Unverified


def equal(given: str | bytes, expected: str | bytes, what: str) -> None:
    """Raise Unverified unless both are the same and not empty. `what` names the header, never its value."""
    left = given.encode(errors="surrogatepass") if isinstance(given, str) else given
    right = expected.encode() if isinstance(expected, str) else expected
    if not left:
        raise Unverified(f"{what} is missing")
    if not right or not hmac.compare_digest(left, right):
        raise Unverified(f"{what} does not match")


def fresh(timestamp: str, window: float, what: str, unit: float = 1) -> None:
    """Raise Unverified unless `timestamp` (a decimal, `unit` seconds each) is within `window` seconds of now."""
    try:
        age = abs(time.time() - int(timestamp) * unit)
    except (ValueError, OverflowError):
        raise Unverified(f"{what} is missing or not a number") from None
    if age > window:
        raise Unverified(f"{what} is stale")


def digest(
    key: str | bytes,
    message: bytes,
    algorithm: Literal["sha1", "sha256"] = "sha256",
    encoding: Literal["hex", "base64"] = "hex",
) -> str:
    """Return the HMAC of a message as text."""
    secret = key.encode() if isinstance(key, str) else key
    raw = hmac.new(secret, message, getattr(hashlib, algorithm)).digest()
    return raw.hex() if encoding == "hex" else base64.b64encode(raw).decode()


def ed25519(public_key: str, signature: str, message: bytes, what: str) -> None:
    """Raise Unverified unless `signature` (hex) of `message` was made by the owner of `public_key` (hex)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError, binascii.Error):
        raise Unverified(f"{what} does not match") from None
