"""Refusals that the page can read and say in the visitor's language: {"error": {"code", "message"}}."""

from __future__ import annotations

import math
from typing import TypeVar

from adapters.webchat.limits import Rate
from adapters.webchat.site import PRIVATE
from bot.adapter import Request, Response
from bot.errors import Malformed, Rejected, TooMany, Unverified

T = TypeVar("T")


class Forbidden(Unverified):
    """The request comes from a site that may not use the chat."""

    status = 403
    code = "forbidden"


def refusal(kind: type[Rejected], reason: str, code: str = "", wait: int = 0) -> Rejected:
    """Build an error of a kind. `code` is one of static/texts.js; `wait` in seconds."""
    headers = {**PRIVATE, **({"Retry-After": str(wait)} if wait else {})}
    error = {"code": code or kind.code, "message": reason}
    return kind(reason, response=Response.json({"error": error}, kind.status, headers))


def json(request: Request, kind: type[T]) -> T:
    """Decode a body. Raises Malformed."""
    try:
        return request.json(kind)
    except Malformed as error:
        raise refusal(Malformed, str(error)) from None


def count(rate: Rate, key: str, code: str) -> None:
    """Count one more for `key`. Raises TooMany beyond the limit."""
    if wait := math.ceil(rate.take(key)):
        raise refusal(TooMany, f"too many requests, wait {wait} seconds", code, wait)
