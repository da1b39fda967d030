"""What /metrics shows. Names begin with `magpie_`; instances are a label, people and chats never are."""

from __future__ import annotations

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
WRITING = Gauge("magpie_conversations_busy", "Conversations being answered now", registry=REGISTRY)
INBOX = Gauge("magpie_inbox", "Messages in the inbox", ["state"], registry=REGISTRY)
