"""Limits that keep strangers from using up the bot. Counted in memory, each replica for itself."""

from __future__ import annotations

import ipaddress
import time
import weakref
from collections import Counter

from bot.adapter import Request


def address(request: Request, proxies: int) -> str:
    """Return whom to count a request for: the caller's IPv4 address, or the /64 network of an IPv6 one.

    Behind `proxies` proxies of our own it is what the outermost of them wrote into X-Forwarded-For; with 0 anybody
    could have written that header, so it is ignored.
    """
    hops = _forwarded(request) if proxies else []
    return _network(hops[-min(proxies, len(hops))] if hops else request.remote)


def _forwarded(request: Request) -> list[str]:
    """Return the addresses in X-Forwarded-For; some proxies add a line of their own instead of a word to the last."""
    lines = [value for name, value in request.headers.items() if name.lower() == "x-forwarded-for"]
    return [hop.strip() for hop in ",".join(lines).split(",") if hop.strip()]


def _network(text: str) -> str:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return text[:64]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


class Rate:
    """At most `limit` events in any `period` seconds for a key; 0: no limit.

    Counts this period and the one before, which is weighted by how much of it the window still covers.
    """

    def __init__(self, limit: int, period: float) -> None:
        self.limit = limit
        self.period = period
        self._now: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._since = time.monotonic()

    def take(self, key: str) -> float:
        """Count an event and return 0; beyond the limit count nothing and return the seconds to wait."""
        passed = self._turn()
        used = self._now[key] + self._before[key] * (1 - passed / self.period)
        if self.limit and used + 1 > self.limit:
            return max(1.0, self.period - passed)
        self._now[key] += 1
        return 0

    def _turn(self) -> float:
        """Begin a new period when the old one is over; return the seconds that the present one lasts."""
        passed = time.monotonic() - self._since
        if passed >= self.period:
            self._before = self._now if passed < 2 * self.period else Counter()
            self._now = Counter()
            self._since += passed // self.period * self.period
        return time.monotonic() - self._since


class Seat:
    """A place that is taken until its `with` ends, or until nobody holds the seat that never began one."""

    def __init__(self, seats: Seats, key: str) -> None:
        self._leave = weakref.finalize(self, seats.free, key)

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None:
        self._leave()


class Seats:
    """At most `limit` places taken at the same time for a key; 0: no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: Counter[str] = Counter()

    def full(self, key: str) -> bool:
        """Return whether nobody else can sit down."""
        return bool(self.limit) and self._taken[key] >= self.limit

    def take(self, key: str) -> Seat:
        """Take a place."""
        self._taken[key] += 1
        return Seat(self, key)

    def free(self, key: str) -> None:
        """Give a place back."""
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]
