"""The XML of WeCom and WeChat: flat documents, and what the messages in them say.

https://developer.work.weixin.qq.com/document/path/90239
https://developers.weixin.qq.com/doc/service/guide/product/message/Receiving_standard_messages.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree

from bot.adapter import Attachment
from bot.errors import Malformed, Unverified

# By MsgType: the fields that hold words (`Recognition` is what a voice message says, where the platform tells), and
# the kind of file.
WORDS: Mapping[str, tuple[str, ...]] = {
    "text": ("Content",),
    "voice": ("Recognition",),
    "link": ("Title", "Description", "Url"),
}
FILES: Mapping[str, tuple[Literal["image", "audio", "video"], str]] = {
    "image": ("image", "image/jpeg"),
    "voice": ("audio", "audio/amr"),
    "video": ("video", "video/mp4"),
    "shortvideo": ("video", "video/mp4"),
}


def fields(body: bytes) -> dict[str, str]:
    """Read a flat XML document: the text of each element below the root. Raises Malformed."""
    try:
        root = ElementTree.fromstring(body.decode(), forbid_dtd=True)
    except (ParseError, DefusedXmlException, UnicodeDecodeError, ValueError) as error:
        raise Malformed(f"body: no XML ({type(error).__name__})") from None
    return {element.tag: (element.text or "").strip() for element in root}


def envelope_of(body: bytes) -> str:
    """Return the `Encrypt` of an XML body, "" when there is none: nobody has verified it yet. Raises Unverified."""
    try:
        return fields(body).get("Encrypt", "")
    except Malformed as error:
        raise Unverified(str(error)) from None


def document(**values: str | int) -> bytes:
    """Write a flat XML document; texts as CDATA, numbers as they are."""
    parts = (f"<{name}>{value if isinstance(value, int) else cdata(value)}</{name}>" for name, value in values.items())
    return f"<xml>{''.join(parts)}</xml>".encode()


def cdata(text: str) -> str:
    """Quote a text for XML. Characters that XML cannot hold at all are left out."""
    text = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
    return f"<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>"


def said(it: Mapping[str, str]) -> str:
    """Put a message into words."""
    if it["MsgType"] == "location":
        point = f"({it.get('Location_X', '')}, {it.get('Location_Y', '')})"
        return f"Location / 位置: {it.get('Label', '')} {point}"
    return "\n".join(filter(None, (it.get(name, "") for name in WORDS.get(it["MsgType"], ()))))


def attachments(it: Mapping[str, str], ref: str) -> tuple[Attachment, ...]:
    """Return the file of a message, which `download` finds by `ref`."""
    if it["MsgType"] not in FILES or not ref:
        return ()
    kind, mime = FILES[it["MsgType"]]
    return (Attachment(kind, ref, mime=mime),)
