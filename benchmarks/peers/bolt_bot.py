"""A minimal bot as the pages of Bolt for Python show it, with a memory and the openai SDK. Nothing on disk."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from typing import Any

from openai import AsyncOpenAI
from slack_bolt.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

HISTORY = int(os.environ["HISTORY"])
client = AsyncOpenAI(base_url=os.environ["MODEL_URL"], api_key="k", max_retries=0)
history: defaultdict[str, deque[Any]] = defaultdict(
    lambda: deque(
        (
            {"role": ("user", "assistant")[n % 2], "content": f"remembered message number {n} of this talk"}
            for n in range(HISTORY)
        ),
        maxlen=HISTORY or 20,
    )
)
app = AsyncApp(
    client=AsyncWebClient(token="xoxb-bench", base_url=os.environ["PLATFORM_URL"] + "/api/"),
    signing_secret="bench-secret",
)


@app.message()
async def answer(message: dict[str, Any], say: Any) -> None:
    remembered = history[message["channel"]]
    remembered.append({"role": "user", "content": message["text"]})
    completion = await client.chat.completions.create(model="m", messages=list(remembered))
    text = completion.choices[0].message.content or ""
    remembered.append({"role": "assistant", "content": text})
    await say(text)


app.start(port=int(os.environ["PORT"]), path="/slack/events")
