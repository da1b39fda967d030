"""What WeCom and WeChat callbacks share: signature and envelope. https://developer.work.weixin.qq.com/document/path/90968

An envelope is AES-256-CBC around 16 random bytes, the length of the message (4 bytes, big endian), the message and the
id of its receiver, padded to blocks of 32 bytes. The signature covers the envelope, so it is checked first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pydantic import AfterValidator

from bot import signing
from bot.config import Secret
from bot.errors import Unverified

BLOCK = 32  # bytes of padding at most; AES' own blocks are half as long
HEAD = 20  # random bytes and length
WINDOW = 86400.0  # seconds a request counts as fresh. For longer than that the inbox knows every message's id.


def _encoding_aes_key(value: Secret) -> Secret:
    if not re.fullmatch(r"[A-Za-z0-9+/]{43}", value.get_secret_value()):
        raise ValueError("must be the 43 letters and digits of the EncodingAESKey")
    return value


EncodingAESKey: TypeAlias = Annotated[Secret, AfterValidator(_encoding_aes_key)]


class Sealed(msgspec.Struct, frozen=True):
    """A message on its way to the platform."""

    encrypt: str
    signature: str
    timestamp: str  # seconds since 1970
    nonce: str


class Envelope:
    """Opens and seals envelopes. `receiver` is what the platform writes into those for us: corp id, app id or ""."""

    def __init__(self, token: Secret, encoding_aes_key: Secret, receiver: str) -> None:
        self.token = token.get_secret_value()
        self.key = aes_key(encoding_aes_key.get_secret_value())
        self.receiver = receiver.encode()

    def open(self, query: Mapping[str, str], encrypt: str) -> bytes:
        """Return the message in an envelope that the platform signed for us. Raises Unverified."""
        timestamp, nonce = query.get("timestamp", ""), query.get("nonce", "")
        expected = signature(self.token, timestamp, nonce, encrypt)
        signing.equal(query.get("msg_signature", ""), expected, "msg_signature")
        signing.fresh(timestamp, WINDOW, "timestamp")
        return unwrap(decrypt(self.key, _base64(encrypt)), self.receiver)

    def seal(self, message: bytes, nonce: str = "") -> Sealed:
        """Wrap, encrypt and sign a message. `nonce` is the callback's, where the platform wants it repeated."""
        nonce, timestamp = nonce or secrets.token_hex(8), str(int(time.time()))
        encrypt = base64.b64encode(self.wrap(message, os.urandom(16))).decode()
        return Sealed(encrypt, signature(self.token, timestamp, nonce, encrypt), timestamp, nonce)

    def wrap(self, message: bytes, random: bytes) -> bytes:
        """Encrypt a message with its head of 16 `random` bytes."""
        plain = random + len(message).to_bytes(4, "big") + message + self.receiver
        fill = BLOCK - len(plain) % BLOCK
        return _aes(self.key, plain + bytes([fill]) * fill, encrypt=True)


def signature(*parts: str) -> str:
    """Return the SHA-1 of the sorted parts: https://developer.work.weixin.qq.com/document/path/90968"""
    text = "".join(sorted(parts)).encode(errors="surrogatepass")
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()  # the vendor's choice


def aes_key(encoding_aes_key: str) -> bytes:
    """Return the 32 bytes of an EncodingAESKey, whose base64 lacks its last character."""
    return base64.b64decode(encoding_aes_key + "=")


def decrypt(key: bytes, data: bytes) -> bytes:
    """Decrypt and take off the padding. Raises Unverified: what does not decrypt is not from the platform."""
    if not data or len(data) % 16:
        raise Unverified("the body does not decrypt: incomplete")
    plain = _aes(key, data, encrypt=False)
    fill = plain[-1]
    if not 1 <= fill <= BLOCK or plain[-fill:] != bytes([fill]) * fill:
        raise Unverified("the body does not decrypt: check the EncodingAESKey")
    return plain[:-fill]


def unwrap(plain: bytes, receiver: bytes) -> bytes:
    """Return the message of an opened envelope. Raises Unverified when it is not for `receiver`."""
    end = HEAD + int.from_bytes(plain[16:HEAD], "big")
    if not HEAD <= end <= len(plain):
        raise Unverified("the body does not decrypt: wrong length")
    if not secrets.compare_digest(plain[end:], receiver):
        raise Unverified("the message is for another receiver: check the corp id or app id")
    return plain[HEAD:end]


def _aes(key: bytes, data: bytes, *, encrypt: bool) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CBC(key[:16]))
    context = cipher.encryptor() if encrypt else cipher.decryptor()
    return context.update(data) + context.finalize()


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unverified("the body does not decrypt: not base64") from None
