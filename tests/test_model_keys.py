"""Keys in turn and the circuit breaker, on a clock of our own."""

from __future__ import annotations

import pytest

from bot.model.breaker import FAILURES, PAUSE, Breaker
from bot.model.keys import LONGEST_REST, REFUSED_REST, KeyRing


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(clock: Clock) -> KeyRing:
    return KeyRing(("a", "b", "c"), clock)


def picked(ring: KeyRing, times: int, model: str = "m") -> str:
    return "".join(ring.pick(model)[0] for _ in range(times))


def test_in_turn(ring: KeyRing) -> None:
    assert picked(ring, 5) == "abcab"


def test_without_keys() -> None:
    assert KeyRing(()).pick("m") == ("", 0.0)


def test_a_refused_key_is_left_out_for_some_minutes(ring: KeyRing, clock: Clock) -> None:
    ring.refuse("b")
    assert "b" not in picked(ring, 6)
    clock.now += REFUSED_REST + 1
    assert "b" in picked(ring, 3)


def test_some_key_is_always_returned(ring: KeyRing) -> None:
    for key in "abc":
        ring.refuse(key)
    assert set(picked(ring, 6)) == set("abc")
    assert ring.pick("m")[1] == 0


def test_a_cooling_key_waits_for_its_model_only(ring: KeyRing, clock: Clock) -> None:
    ring.cool("a", "m", 5)
    assert "a" not in picked(ring, 6)
    assert "a" in picked(ring, 3, "other")
    for key in "bc":
        ring.cool(key, "m", 20)
    assert ring.pick("m") == ("a", 5)
    clock.now += 6
    assert ring.pick("m") == ("a", 0)


def test_a_cooling_key_is_better_than_a_refused_one(ring: KeyRing) -> None:
    ring.refuse("a")
    ring.refuse("b")
    ring.cool("c", "m", 3)
    assert ring.pick("m") == ("c", 3)


def test_no_key_rests_for_ever(clock: Clock) -> None:
    ring = KeyRing(("a",), clock)
    ring.cool("a", "m", 86400)
    assert ring.pick("m") == ("a", LONGEST_REST)


def test_a_key_that_works_is_in_again(ring: KeyRing) -> None:
    ring.refuse("a")
    ring.cool("a", "m", 60)
    ring.works("a", "m")
    assert "a" in picked(ring, 3)


def test_the_breaker_opens_after_failures_in_a_row_and_closes_by_itself(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(FAILURES - 1):
        breaker.failed()
    breaker.worked()
    for _ in range(FAILURES):
        assert not breaker.open
        breaker.failed()
    assert breaker.open
    clock.now += PAUSE + 0.1
    assert not breaker.open
    breaker.failed()  # the one question that tried
    assert breaker.open
    clock.now += PAUSE + 0.1
    breaker.worked()
    breaker.failed()
    assert not breaker.open
