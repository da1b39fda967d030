"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests.postgres_server import database, postgres

__all__ = ["database", "postgres"]  # fixtures

settings.register_profile("magpie", deadline=None)  # a busy machine is no failure
settings.load_profile("magpie")


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """Undo what a command that ran within the test made of the log."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
