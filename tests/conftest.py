"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

from tests.postgres_server import database, postgres

__all__ = ["database", "postgres"]  # fixtures

settings.register_profile("magpie", deadline=None)  # a busy machine is no failure
settings.load_profile("magpie")
