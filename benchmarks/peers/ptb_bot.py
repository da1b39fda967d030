"""A minimal bot as the pages of python-telegram-bot show it, with a memory and the openai SDK. Nothing on disk."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from typing import Any

from openai import AsyncOpenAI
from telegram import Update
from telegram.ext import Application, ContextTypes, MessageHandler, filters

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


async def answer(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    assert update.message is not None
    remembered = history[update.message.chat.id]
    remembered.append({"role": "user", "content": update.message.text})
    completion = await client.chat.completions.create(model="m", messages=list(remembered))
    text = completion.choices[0].message.content or ""
    remembered.append({"role": "assistant", "content": text})
    await update.message.reply_text(text)


application = (
    Application.builder()
    .token("1:AAbench_token")
    .base_url(os.environ["PLATFORM_URL"] + "/bot")
    .concurrent_updates(2000)
    .connection_pool_size(2000)
    .pool_timeout(60)
    .build()
)
application.add_handler(MessageHandler(filters.TEXT, answer))
application.run_webhook(
    listen="127.0.0.1",
    port=int(os.environ["PORT"]),
    url_path="webhooks/telegram",
    secret_token="bench-secret",
    webhook_url="https://bench.example/webhooks/telegram",
)
