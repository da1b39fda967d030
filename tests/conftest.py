"""Fixtures that more than one module shares."""

from tests.postgres_server import database, postgres

__all__ = ["database", "postgres"]
