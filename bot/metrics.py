"""What /metrics shows. Names begin with `magpie_`; instances are a label, people and chats never are."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)

EVENTS = Counter("magpie_events", "Webhook requests by what became of them", ["instance", "result"], registry=REGISTRY)
OUTCOMES = Counter("magpie_messages", "Messages by outcome", ["instance", "outcome"], registry=REGISTRY)
ANSWER_SECONDS = Histogram(
    "magpie_answer_seconds", "From accepted to answered", ["instance"], buckets=SECONDS, registry=REGISTRY
)
MODEL_FAILURES = Counter("magpie_model_failures", "Answers the model did not complete", ["failure"], registry=REGISTRY)
TOKENS = Counter("magpie_tokens", "Tokens used", ["kind"], registry=REGISTRY)
PROMPT_TOKENS, COMPLETION_TOKENS = TOKENS.labels("prompt"), TOKENS.labels("completion")
WRITING = Gauge("magpie_conversations_busy", "Conversations being answered now", registry=REGISTRY)
INBOX = Gauge("magpie_inbox", "Messages in the inbox", ["state"], registry=REGISTRY)

# Looking a labelled child up costs more than counting: they are few, and kept.
_events = functools.cache(EVENTS.labels)
_outcomes = functools.cache(OUTCOMES.labels)
_seconds = functools.cache(ANSWER_SECONDS.labels)


def event(instance: str, result: str) -> None:
    """Count a webhook request: accepted, redelivered, ignored, refused, rejected, unstored."""
    _events(instance, result).inc()


def ended(instance: str, outcome: str, seconds: float) -> None:
    """Count a message by its outcome, and how long it took from being accepted."""
    _outcomes(instance, outcome).inc()
    _seconds(instance).observe(seconds)
