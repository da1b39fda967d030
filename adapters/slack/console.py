"""What a person does in Slack's console, and the manifest that does most of it.

https://docs.slack.dev/reference/app-manifest
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bot.adapter import Finding

EVENTS = ("app_mention", "message.im", "message.mpim")
SCOPES = (
    "app_mentions:read",
    "assistant:write",
    "chat:write",
    "commands",
    "files:read",
    "im:history",
    "mpim:history",
)
CONSOLE = "https://api.slack.com/apps"
STEPS = (
    f"Open {CONSOLE}, your app (or Create New App, From a manifest), App Manifest. / "
    f"打开 {CONSOLE}，进入你的应用（或用 From a manifest 新建），选择 App Manifest。",
    "Paste this as JSON and save / 以 JSON 格式粘贴并保存：{manifest}",
    "Where Slack says that the URL is not verified, press the link to verify it: {url} / "
    "如果提示 URL 未验证，点击验证：{url}",
    "Install App: install it to the workspace, again after every change of scopes. / "
    "Install App：安装到工作区；权限有变化时要重新安装。",
    "Copy the Bot User OAuth Token into {token}, and Basic Information, Signing Secret into {secret}. / "
    "把 Bot User OAuth Token 填入 {token}，把 Basic Information 里的 Signing Secret 填入 {secret}。",
    "Write to the app, or /invite it into a channel and mention it. / 给应用发消息，或在频道里 /invite 它再 @ 它。",
)


def manifest(url: str) -> dict[str, Any]:
    """Return the app's manifest with `url` as the only address that Slack calls."""
    return {
        "display_information": {"name": "Magpie", "description": "An assistant that answers. / 会回答的助手。"},
        "features": {
            "agent_view": {"agent_description": "Ask me anything. / 有问题尽管问。"},
            "app_home": {"messages_tab_enabled": True, "messages_tab_read_only_enabled": False},
            "bot_user": {"display_name": "Magpie", "always_online": True},
            "slash_commands": [
                {
                    "command": "/magpie",
                    "url": url,
                    "description": "Ask a question; only you see the answer. / 提问，回答只有你能看到。",
                    "usage_hint": "question | reset | stop | retry | usage | help",
                }
            ],
        },
        "oauth_config": {"scopes": {"bot": list(SCOPES)}},
        "settings": {
            "event_subscriptions": {"request_url": url, "bot_events": list(EVENTS)},
            "interactivity": {"is_enabled": True, "request_url": url},
            "token_rotation_enabled": False,
        },
    }


def scopes(granted: str) -> Iterator[Finding]:
    """Yield what is wrong with the scopes that Slack names in a header of its answers."""
    missing = sorted(set(SCOPES) - set(granted.replace(" ", "").split(",")))
    if granted and missing:
        advice = f"add them under OAuth & Permissions at {CONSOLE} and install the app again"
        yield Finding(False, f"the token lacks scopes: {', '.join(missing)}", advice)
