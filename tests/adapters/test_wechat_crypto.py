"""The envelope of the WeChat family: the vendors' own samples, what is refused, and XML that is not XML."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wechatpy.crypto import WeChatCrypto  # type: ignore[import-untyped]
from wechatpy.enterprise.crypto import WeChatCrypto as WecomCrypto  # type: ignore[import-untyped]

from adapters.wechat_crypto import Envelope, aes_key, decrypt, signature, unwrap
from adapters.wechat_xml import document, envelope_of, fields
from bot.config import Secret
from bot.errors import Malformed, Unverified

TOKEN, KEY, CORP = "QDG6eK", "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C", "wx5823bf96d3bd56c7"
HELLO = (
    "RypEvHKD8QQKFhvQ6QleEB4J58tiPdvo+rtK1I9qca6aM/wvqnLSV5zEPeusUiX5L5X/0lWfrf0QADHHhGd3QczcdCUpj911L3vg3W/sYYvuJTs3T"
    "UUkSUXxaccAS0qhxchrRYt66wiSpGLYL42aM6A8dTT+6k4aSknmPj48kzJs8qLjvd4Xgpue06DOdnLxAUHzM6+kDZ+HMZfJYuR+LtwGc2hgf5gsi"
    "jff0ekUNXZiqATP7PF5mZxZ3Izoun1s4zG4LUMnvw2r+KqCKIw+3IQH03v+BCA9nMELNqbSf6tiWSrXJB3LAVGUcallcrw8V2t9EL4EhzJWrQUax5"
    "wLVMNS0+rUPA3k22Ncx4XXZS9o0MBH27Bo6BpNelZpS+/uh9KsNlY6bHCmJU9p8g7m3fVKn28H3KDYA5Pl/T8Z1ptDAVe0lXdQ2YoyyH2uyPIGHB"
    "ZZIs2pDBS8R07+qN+E7Q=="
)
ECHO = "P9nAzCzyDtyTWESHep1vC5X9xho/qYX3Zpb4yKa9SKld1DsH3Iyt3tP3zNdtp+4RPcs8TgAE7OaBO+FZXvnaqQ=="
# name: token, key, receiver, timestamp, nonce, signature, envelope, what it holds
VECTORS = {
    "wecom echo": (
        *(TOKEN, KEY, CORP, "1409659589", "263014780", "5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3"),
        *(ECHO, b"1616140317555161061"),
    ),
    "wecom second echo": (
        *("hJqcu3uJ9Tn2gXPmxx2w9kkCkCE2EPYo", "6qkdMrq68nTKduznJYO1A37W2oEgpkMUvkttRToqhUt", "ww1436e0e65a779aee"),
        *("1476416373", "47744683", "012bc692d0a58dd4b10f8dfe5c4ac00ae211ebeb"),
        "fsi1xnbH4yQh0+PJxcOdhhK6TDXkjMyhEPA7xB2TGz6b+g7xyAbEkRxN/3cNXW9qdqjnoVzEtpbhnFyq6SVHyA==",
        b"1288432023552776189",
    ),
    "wecom_aibot": (
        *(TOKEN, KEY, "", "1731000000", "1372623149", "901b2148199e2df0a169486eeb224462cc0cffcc"),
        "sKqRbbiSUnDhFHOvPjtUMW7fpoARR5u88vMLVkhS/x/0aDfcbd1CsB9CWq2WvSbzbms5zAE1dYqBhSPcMRsgqj4L0pP88LQ4JIEOQ68z7j5U/"
        "HpVWEOYCTeKK9PTVOntjWvhfjKGitV2bpuDYg9dw1W49ZJyJLE91ijXZ0Ndd2owVq28wqf5BU1zEQlNLjW0H1AiqnTtEkur8UG015Ro/g==",
        b'{"msgid":"CAIQ16HMjQYY","aibotid":"AIBOTID","chattype":"single","from":{"userid":"zhangsan"},"msgtype":"text",'
        b'"text":{"content":"hello"}}',
    ),
    "wechat": (
        *("AAAAA", "A" * 43, "wxba5fad812f8e6fb9", "1714112445", "415670741"),
        "046e02f8204d34f8ba5fa3b1db94908f3df2e9b3",
        "+qdx1OKCy+5JPCBFWw70tm0fJGb2Jmeia4FCB7kao+/Q5c/ohsOzQHi8khUOb05JCpj0JB4RvQMkUyus8TPxLKJGQqcvZqzDpVzazhZv6JsXUn"
        "nR8XGT740XgXZUXQ7vJVnAG+tE8NUd4yFyjPy7GgiaviNrlCTj+l5kdfMuFUPpRSrfMZuMcp3Fn2Pede2IuQrKEYwKSqFIZoNqJ4M8EajAsjLY2"
        "km32IIjdf8YL/P50F7mStwntrA2cPDrM1kb6mOcfBgRtWygb3VIYnSeOBrebufAlr7F9mFUPAJGj04=",
        b'{"ToUserName":"gh_97417a04a28d","FromUserName":"o9AgO5Kd5ggOC-bXrbNODIiE3bGY","CreateTime":1714112445,'
        b'"MsgType":"event","Event":"debug_demo","debug_str":"hello world"}',
    ),
}


def at(monkeypatch: pytest.MonkeyPatch, timestamp: str) -> None:
    """Let it be another time."""
    monkeypatch.setattr("bot.signing.time", SimpleNamespace(time=lambda: float(timestamp)))


def envelope(receiver: str = CORP, token: str = TOKEN, key: str = KEY) -> Envelope:
    return Envelope(Secret(token), Secret(key), receiver)


def query(message: bytes = b"hello", receiver: str = CORP) -> tuple[dict[str, str], str]:
    """Return the query and the envelope of a request signed now."""
    sealed = envelope(receiver).seal(message)
    return {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}, sealed.encrypt


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_the_vendors_samples_open(
    vector: tuple[str, str, str, str, str, str, str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key, receiver, timestamp, nonce, signed, encrypt, plain = vector
    at(monkeypatch, timestamp)
    asked = {"msg_signature": signed, "timestamp": timestamp, "nonce": nonce}
    assert envelope(receiver, token, key).open(asked, encrypt) == plain


def test_the_vendors_sample_message(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "1409659813")
    signed = "477715d11cdb4164915debcba66cb864d751f3e6"
    asked = {"msg_signature": signed, "timestamp": "1409659813", "nonce": "1372623149"}
    it = fields(envelope().open(asked, HELLO))
    assert (it["FromUserName"], it["Content"]) == ("mycreate", "hello")
    assert (it["MsgId"], it["AgentID"]) == ("4561255354251345929", "218")


@pytest.mark.parametrize(
    ("receiver", "key", "plain", "random", "expected"),
    [
        (
            "wxba5fad812f8e6fb9",
            "A" * 43,
            b'{"demo_resp":"good luck"}',
            b"707722b803182950",
            "ELGduP2YcVatjqIS+eZbp80MNLoAUWvzzyJxgGzxZO/5sAvd070Bs6qrLARC9nVHm48Y4hyRbtzve1L32tmxSQ==",
        ),
        (
            "",
            KEY,
            b'{"msgtype":"stream","stream":{"id":"s1","finish":true,"content":"hi"}}',
            b"fedcba9876543210",
            "P9TP8OO8ZpJE35Ha/87+5P9BcdAKCNrUP0UM+gHoWx9rEMCnGBdBQeHW9upQPOReguG+xcLUjAm0uu07vx5oqneGUdxNXvEjwdb2Fr5k4Dzv"
            "1CxLoA6RapWcPHpG+ZCc",
        ),
    ],
    ids=["wechat", "wecom_aibot"],
)
def test_sealing_gives_the_sample_replies(receiver: str, key: str, plain: bytes, random: bytes, expected: str) -> None:
    assert base64.b64encode(envelope(receiver, key=key).wrap(plain, random)).decode() == expected


def test_signatures_of_the_sample_replies() -> None:
    encrypt = "ELGduP2YcVatjqIS+eZbp80MNLoAUWvzzyJxgGzxZO/5sAvd070Bs6qrLARC9nVHm48Y4hyRbtzve1L32tmxSQ=="
    assert signature("AAAAA", "1713424427", "415670741", encrypt) == "1b9339964ed2e271e7c7b6ff2b0ef902fc94dea1"
    assert signature("AAAAA", "1714036504", "1514711492") == "f464b24fc39322e44b38aa78f5edd27bd1441696"


def test_a_sample_file_decrypts() -> None:
    data = bytes.fromhex("4e50a6633ca7cbd79f2e42b04a93817f9e5813fe0036beb0ae78393630809e84")
    assert decrypt(aes_key(KEY), data) == b"hello media"


@pytest.mark.parametrize("oracle", [WeChatCrypto, WecomCrypto])
@pytest.mark.parametrize("text", ["hello", "你好 🐦 ]]> <b>", "x" * 5000, "字" * 11])
def test_the_sdk_opens_what_we_seal_and_we_what_it_seals(oracle: type, text: str) -> None:
    sdk = oracle(TOKEN, KEY, CORP)
    sealed = envelope().seal(text.encode(), "nonce1")
    opened = sdk.decrypt_message(document(Encrypt=sealed.encrypt), sealed.signature, sealed.timestamp, sealed.nonce)
    assert opened == text
    theirs = fields(sdk.encrypt_message(text, "nonce2", sealed.timestamp).encode())
    asked = {"msg_signature": theirs["MsgSignature"], "timestamp": theirs["TimeStamp"], "nonce": "nonce2"}
    assert envelope().open(asked, theirs["Encrypt"]) == text.encode()


@given(st.binary(max_size=200), st.text(max_size=40))
def test_every_message_and_receiver_survives(message: bytes, receiver: str) -> None:
    asked, encrypt = query(message, receiver.encode(errors="ignore").decode())
    assert envelope(receiver.encode(errors="ignore").decode()).open(asked, encrypt) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"msg_signature": ""},
        {"msg_signature": "0" * 40},
        {"msg_signature": "é\udce9"},
        {"timestamp": "1409659813"},
        {"nonce": "another"},
        {"timestamp": ""},
    ],
    ids=str,
)
def test_a_changed_query_is_refused(changes: dict[str, str]) -> None:
    asked, encrypt = query()
    asked |= changes
    with pytest.raises(Unverified):
        envelope().open(asked, encrypt)


def test_a_stale_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, encrypt = query()
    at(monkeypatch, str(int(asked["timestamp"]) + 2 * 86400))
    with pytest.raises(Unverified, match="stale"):
        envelope().open(asked, encrypt)


@pytest.mark.parametrize("receiver", ["", "wx5823bf96d3bd56c", CORP + "x", "ww1436e0e65a779aee"])
def test_a_message_for_another_receiver_is_refused(receiver: str) -> None:
    asked, encrypt = query(receiver=receiver)
    with pytest.raises(Unverified, match="another receiver"):
        envelope().open(asked, encrypt)


@pytest.mark.parametrize(
    "encrypt",
    ["", "x", "====", "é", "AAAA", base64.b64encode(b"x" * 32).decode(), base64.b64encode(b"x" * 33).decode()],
)
def test_a_signed_envelope_that_does_not_open_is_refused(encrypt: str) -> None:
    asked, _ = query()
    asked["msg_signature"] = signature(TOKEN, asked["timestamp"], asked["nonce"], encrypt)
    with pytest.raises(Unverified):
        envelope().open(asked, encrypt)


@pytest.mark.parametrize("plain", [b"", b"short", b"x" * 19, b"x" * 16 + b"\0\0\3\xe8hello", b"x" * 16 + b"\xff" * 4])
def test_a_length_beyond_the_message_is_refused(plain: bytes) -> None:
    with pytest.raises(Unverified, match="wrong length"):
        unwrap(plain, b"hello")


# -- XML


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<xml>",
        b"\xff\xfe",
        b"<a/><b/>",
        b"<xml><a>&unknown;</a></xml>",
        b'<!DOCTYPE xml [<!ENTITY a "b">]><xml><Encrypt>&a;</Encrypt></xml>',
        b'<!DOCTYPE xml SYSTEM "file:///etc/passwd"><xml/>',
        b"<xml>" * 10_000,
        "<xml>\ud800</xml>".encode(errors="surrogatepass"),
    ],
)
def test_what_is_no_xml_is_malformed_and_as_an_envelope_unverified(body: bytes) -> None:
    with pytest.raises(Malformed):
        fields(body)
    with pytest.raises(Unverified):
        envelope_of(body)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "nonsense"])
def test_the_declared_encoding_does_not_matter(encoding: str) -> None:
    body = f'<?xml version="1.0" encoding="{encoding}"?><xml><a>字</a></xml>'
    assert fields(body.encode()) == {"a": "字"}


@given(st.text())
def test_any_text_survives_a_document(text: str) -> None:
    written = document(Content=text, N=7)
    read = ElementTree.fromstring(written)
    expected = "".join(c for c in text if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff"))
    assert (read.findtext("Content") or "") == expected.replace("\r\n", "\n").replace("\r", "\n")
    assert fields(written)["N"] == "7"
