"""The model: a conversation goes in, text comes out as it is written, every failure is a ModelError.

contract.py     what the rest of the bot sees
client.py       a model behind an OpenAI-compatible server: its keys, its formats, its habits
answer.py       one answer: tries, keys, fallbacks
stream.py       one response being read
chat.py, responses.py, completions.py       the three APIs, on wire.py
parameters.py   what a server refuses is left out the next time
failures.py     what a server says when it fails -> ModelError
keys.py, breaker.py     which key and which model to ask now
transport.py    HTTP by the openai SDK
demo.py         the model that needs no server
"""

from __future__ import annotations

from bot.config import ModelSettings
from bot.model.client import OpenAIModel
from bot.model.contract import Completion, Model, Picture, Usage, estimate_tokens
from bot.model.demo import DemoModel

__all__ = ["Completion", "Model", "Picture", "Usage", "create", "estimate_tokens"]


def create(settings: ModelSettings) -> Model:
    """Return the model of the settings; without a key and a server the demo model."""
    return DemoModel() if settings.demo else OpenAIModel(settings)
