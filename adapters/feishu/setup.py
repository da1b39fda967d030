"""What a person does in the console: https://open.feishu.cn/document/develop-an-echo-bot/development-steps"""

from __future__ import annotations

from collections.abc import Iterator

from adapters.feishu.events import MESSAGE

LARK = "https://open.larksuite.com"
SCOPES = (
    "im:message.p2p_msg:readonly",
    "im:message.group_at_msg:readonly",
    "im:message:send_as_bot",
    "im:resource",
    "cardkit:card:write",
)
STEPS = (
    "Open {console}, your app; Features: add the bot. / 打开 {console}，进入应用，在「添加应用能力」中添加机器人。",
    "Permissions / 「权限管理」：" + " ".join(SCOPES),
    "Events & callbacks, encryption strategy: set an Encrypt Key; copy it to {key}, the Verification Token to {token}; "
    "start the bot. / 「事件与回调」→「加密策略」：设置 Encrypt Key，填入 {key}，把 Verification Token 填入 {token}，"
    "启动机器人。",
    "Event configuration, subscription mode: send events to the developer's server, {url} / "
    "「事件配置」→「订阅方式」选择「将事件发送至开发者服务器」：{url}",
    "Add the event " + MESSAGE + " / 添加事件「接收消息」：" + MESSAGE,
    "Create a version and publish it; nothing works before. / 创建版本并发布，发布之前什么都不会生效。",
)


def steps(api_base: str, url: str, token: str, key: str) -> Iterator[str]:
    """Yield the steps; `token` and `key` are the names of the variables."""
    console = f"{LARK if api_base == LARK else 'https://open.feishu.cn'}/app"
    for number, step in enumerate(STEPS, 1):
        yield f"{number}. {step.format(console=console, url=url, token=token, key=key)}"
