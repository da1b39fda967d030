"""The registration file, which tells a homeserver of us; what its administrator does with it, and what may be wrong.

https://spec.matrix.org/v1.16/application-service-api/#registration
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from adapters.matrix.api import Homeserver
from adapters.matrix.events import localpart
from bot.adapter import Finding
from bot.errors import PlatformError, Refused, Unauthorized

STEPS = (
    "The registration file is written: {file}. It holds both tokens: let nobody but the homeserver read it. / "
    "已写入注册文件：{file}。其中含有两个令牌，只应让 homeserver 读取。",
    "Copy it to the homeserver. Synapse: name the copy in homeserver.yaml under app_service_config_files, and restart. "
    "Dendrite: app_service_api, config_files. Conduit and its kin: `register-appservice` in the admin room. / "
    "复制到 homeserver。Synapse：把副本路径写入 homeserver.yaml 的 app_service_config_files 并重启；"
    "Dendrite：app_service_api 的 config_files；Conduit 系：在管理房间用 `register-appservice`。",
    "The homeserver must reach {url}; start Magpie, then `magpie doctor {instance}` lets it try. / "
    "homeserver 必须能访问 {url}；启动 Magpie 后用 `magpie doctor {instance}` 检查。",
    "Invite {me} into a room without encryption, or write to it. / 邀请 {me} 进入未加密的房间，或直接给它发消息。",
)
WRONG: tuple[tuple[type[PlatformError], str], ...] = (
    (Unauthorized, "register again, give the homeserver the new file, and restart it"),
    (Refused, "the homeserver has the registration of another user: register again, and restart it"),
    (PlatformError, "check the homeserver's address and the network"),
)
UNREACHED = {  # https://spec.matrix.org/v1.16/application-service-api/#post_matrixclientv1appserviceappserviceidping
    "M_FORBIDDEN": "the homeserver has the registration of another instance: register again, and restart it",
    "M_URL_NOT_SET": "the registration has no url: register again, and restart the homeserver",
    "M_CONNECTION_FAILED": "the homeserver must be able to reach {url}; is Magpie running?",
    "M_CONNECTION_TIMEOUT": "the homeserver must be able to reach {url}; a firewall drops its calls",
    "M_BAD_STATUS": "its registration has another hs_token, or another url than {url}: register again, and restart it",
    "M_UNRECOGNIZED": "this homeserver cannot be asked: write to the bot to see",
}


def registration(id: str, url: str, as_token: str, hs_token: str, user: str) -> str:
    """Return the file's text: YAML, its strings in JSON's quotes."""
    fields = {"id": id, "url": url, "as_token": as_token, "hs_token": hs_token, "sender_localpart": localpart(user)}
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    lines += [
        "rate_limited: false",
        "namespaces:",
        "  users:",
        "    - exclusive: true",
        f"      regex: {json.dumps(f'^{re.escape(user)}$')}",
        "  aliases: []",
        "  rooms: []",
    ]
    return "\n".join(lines) + "\n"


def write(file: Path, text: str) -> None:
    """Write a file that only its owner may read. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)


def steps(file: Path, url: str, instance: str, me: str) -> list[Finding]:
    """Say what an administrator has to do."""
    values = {"file": file.absolute(), "url": url, "instance": instance, "me": me}
    return [Finding(True, f"{number}. {step.format(**values)}") for number, step in enumerate(STEPS, 1)]


async def known(homeserver: Homeserver) -> Finding:
    """Ask who we are: https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3accountwhoami"""
    try:
        await homeserver.call("GET", "v3", "account", "whoami")
    except PlatformError as error:
        advice = next(text for kind, text in WRONG if isinstance(error, kind))
        return Finding(False, f"the homeserver does not take us for {homeserver.me}: {error}", advice)
    return Finding(True, f"the homeserver knows us as {homeserver.me}")


async def reached(homeserver: Homeserver, service: str, url: str) -> Finding:
    """Let the homeserver call us."""
    try:
        await homeserver.ping(service)
    except PlatformError as error:
        advice = next((text for code, text in UNREACHED.items() if code in str(error)), "see the homeserver's log")
        return Finding(False, f"the homeserver does not reach us: {error}", advice.format(url=url))
    return Finding(True, f"the homeserver reaches us (its registration should say {url})")
