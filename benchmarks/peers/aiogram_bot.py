"""A minimal bot as the pages of aiogram show it, with a memory and the openai SDK. Nothing on disk."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from typing import Any

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web
from openai import AsyncOpenAI

HISTORY = int(os.environ["HISTORY"])
client = AsyncOpenAI(base_url=os.environ["MODEL_URL"], api_key="k", max_retries=0)
history: defaultdict[int, deque[Any]] = defaultdict(
    lambda: deque(
        (
            {"role": ("user", "assistant")[n % 2], "content": f"remembered message number {n} of this talk"}
            for n in range(HISTORY)
        ),
        maxlen=HISTORY or 20,
    )
)
dispatcher = Dispatcher()


@dispatcher.message()
async def answer(message: Message) -> None:
    remembered = history[message.chat.id]
    remembered.append({"role": "user", "content": message.text})
    if os.environ.get("STREAM"):
        await stream(message, list(remembered))
        return
    completion = await client.chat.completions.create(model="m", messages=list(remembered))
    text = completion.choices[0].message.content or ""
    remembered.append({"role": "assistant", "content": text})
    await message.answer(text)


async def stream(message: Message, messages: list[Any]) -> None:
    """Show the answer as it grows: post once, then edit every 1.2 seconds."""
    import time

    text, sent, shown_at = "", None, 0.0
    async for chunk in await client.chat.completions.create(model="m", messages=messages, stream=True):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if sent is None:
            sent, shown_at = await message.answer(text), time.monotonic()
        elif time.monotonic() - shown_at > 1.2:
            await sent.edit_text(text)
            shown_at = time.monotonic()
    if sent is not None:
        await sent.edit_text(text)


session = AiohttpSession(api=TelegramAPIServer.from_base(os.environ["PLATFORM_URL"]), limit=2000)
bot = Bot(token="1:AAbench_token", session=session)
app = web.Application()
SimpleRequestHandler(dispatcher, bot, secret_token="bench-secret").register(app, path="/webhooks/telegram")
setup_application(app, dispatcher, bot=bot)
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)
