"""What the bot itself says to people, in English and Chinese, and which of the two it chooses."""

from __future__ import annotations

import re

_HAN = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[A-Za-z]")

TEXTS: dict[str, tuple[str, str]] = {
    # -- commands
    "help": (
        "Hello! Write to me as you would to a person; I remember our conversation.\n\n"
        "- `/reset` forget the conversation\n- `/stop` stop the answer being written\n"
        "- `/retry` answer the last question again\n- `/usage` what you have used today\n- `/help` this list",
        "你好！像和朋友聊天一样给我发消息就行，我会记住我们的对话。\n\n"
        "- `/重置` 忘掉之前的对话\n- `/停止` 停止正在写的回答\n- `/重试` 重新回答上一个问题\n"
        "- `/用量` 查看今天的用量\n- `/帮助` 显示这份说明",
    ),
    "reset": ("Done: I start afresh. What would you like to talk about?", "好的，之前的对话已忘掉。我们聊点什么？"),
    "stopped": ("Stopped.", "已停止。"),
    "nothing_to_stop": ("I am not writing anything at the moment.", "现在没有正在写的回答。"),
    "nothing_to_retry": (
        "There is no question to answer again yet. Just ask me something.",
        "还没有可以重新回答的问题，直接问我吧。",
    ),
    "usage": (
        "Today you have sent {messages} messages and used {tokens} tokens ({cached} of them from the cache){limit}.",
        "今天你发了 {messages} 条消息，用了 {tokens} 个 token（其中缓存 {cached} 个）{limit}。",
    ),
    "usage_limit": (", of {limit} a day", "，每天上限 {limit} 个"),
    # -- limits
    "rate_limited": (
        "You are writing faster than I may answer. Please wait a minute.",
        "消息太快啦，请过一分钟再发。",
    ),
    "user_quota": (
        "You have reached today's limit. It starts again at 00:00 UTC.",
        "你今天的用量已达上限，明天（世界时零点）恢复。",
    ),
    "total_quota": (
        "This bot has reached its limit for today. Please come back tomorrow.",
        "机器人今天的总用量已达上限，请明天再来。",
    ),
    "not_allowed": (
        "Sorry, this bot is private. Ask its operator to let you in (your id here is {user}).",
        "抱歉，这个机器人不对外开放。请联系管理员开通（你的 ID 是 {user}）。",
    ),
    "no_text": (
        "I can read text and pictures, but not this kind of message yet.",
        "我能看文字和图片，暂时还看不了这种消息。",
    ),
    # -- the model's failures, by ModelError.code
    "model_error": (
        "Something went wrong while I was answering. Please try again.",
        "回答时出了点问题，请再试一次。",
    ),
    "model_bad_key": (
        "I am not set up correctly and cannot answer now. The operator has been told in the log.",
        "我的配置有误，暂时无法回答，日志里已提醒管理员。",
    ),
    "model_bad_request": (
        "The model did not accept this question. Try to put it differently, or /reset.",
        "模型没有接受这个问题。换个说法试试，或者发送 /重置。",
    ),
    "model_too_long": (
        "This is too long for me. Please shorten it, or /reset to begin afresh.",
        "内容太长了，我处理不了。请缩短一些，或发送 /重置 重新开始。",
    ),
    "model_no_pictures": ("I cannot look at pictures, only read text.", "我看不了图片，只能读文字。"),
    "model_not_found": (
        "I am not set up correctly and cannot answer now. The operator has been told in the log.",
        "我的配置有误，暂时无法回答，日志里已提醒管理员。",
    ),
    "model_rate_limited": (
        "I am being asked too much at the moment. Please try again in a minute.",
        "现在问我的人太多，请过一分钟再试。",
    ),
    "model_quota_spent": (
        "My account with the model's provider is used up, so I cannot answer now.",
        "我的模型账户额度已用完，暂时无法回答。",
    ),
    "model_unavailable": (
        "The model cannot be reached at the moment. Please try again in a little while.",
        "暂时连不上模型，请稍后再试。",
    ),
    "model_timeout": (
        "The model took too long to answer. Please try again.",
        "模型响应超时，请再试一次。",
    ),
    "content_refused": (
        "The model declined to answer this. Try to put it differently.",
        "模型拒绝回答这个问题，换个说法试试。",
    ),
    "model_interrupted": (
        "The answer was interrupted. Send /retry to have it again.",
        "回答中断了。发送 /重试 可以重新回答。",
    ),
    "turn_timeout": (
        "This answer took too long, so I gave up. Please try again.",
        "这个回答花的时间太长，我先停下了，请再试一次。",
    ),
    # -- marks under an answer
    "cut_by_length": (
        "(The answer reached its length limit. Write “continue” for the rest.)",
        "（回答达到了长度上限，发送“继续”看后面的内容。）",
    ),
    "continued_above": ("(see above)", "（见上文）"),
}


def say(key: str, language: str, **values: object) -> str:
    """Return the bot's sentence `key` in a language ("zh", anything else is English)."""
    text = TEXTS[key][1 if language == "zh" else 0]
    return text.format(**values) if values else text


def language_of(text: str, locale: str = "", preferred: str = "auto") -> str:
    """Choose "zh" or "en": what the operator fixed, else the text itself, else the platform's locale."""
    if preferred != "auto":
        return preferred
    if _HAN.search(text):
        return "zh"
    if _LETTER.search(text) and not text.startswith("/"):
        return "en"
    return "zh" if locale.lower().startswith("zh") else "en"
