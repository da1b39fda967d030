"""Signed and encrypted callbacks: https://open.feishu.cn/document/server-docs/event-subscription-guide/overview"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from bot.errors import Unverified

BLOCK = 16  # bytes
# One reason for everything that is wrong with an unsigned body: what was wrong exactly would help to forge one.
FORGED = "the signature or the verification token does not match"


def signature(encrypt_key: str, timestamp: str, nonce: str, body: bytes) -> str:
    """Return the signature of a body as it is sent, still encrypted."""
    head = f"{timestamp}{nonce}{encrypt_key}".encode(errors="surrogatepass")
    return hashlib.sha256(head + body).hexdigest()


def matches(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())


def decrypt(encrypt_key: str, encrypt: str) -> bytes:
    """Open the `encrypt` field of a body: AES-256-CBC, the vector in front. Raises Unverified."""
    try:
        raw = base64.b64decode(encrypt, validate=True)
        cipher = _cipher(encrypt_key, raw[:BLOCK]).decryptor()
        unpadder = PKCS7(BLOCK * 8).unpadder()
        return unpadder.update(cipher.update(raw[BLOCK:]) + cipher.finalize()) + unpadder.finalize()
    except ValueError:
        raise Unverified(FORGED) from None


def encrypt(encrypt_key: str, plain: bytes) -> str:
    """Write the `encrypt` field of a body."""
    vector, padder = os.urandom(BLOCK), PKCS7(BLOCK * 8).padder()
    cipher = _cipher(encrypt_key, vector).encryptor()
    padded = padder.update(plain) + padder.finalize()
    return base64.b64encode(vector + cipher.update(padded) + cipher.finalize()).decode()


def _cipher(encrypt_key: str, vector: bytes) -> Cipher[modes.CBC]:
    return Cipher(algorithms.AES(hashlib.sha256(encrypt_key.encode()).digest()), modes.CBC(vector))
