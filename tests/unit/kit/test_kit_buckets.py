"""kit.buckets: a burst is allowed at once, and a rate in the long run."""

from __future__ import annotations

import pytest

from services.kit import buckets as module
from services.kit.buckets import Bucket


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_bucket(clock: Clock) -> None:
    """A burst is allowed at once, and a rate per second. Tokens that are given count beyond the burst, up to a bound;
    time that is passed over brings none.
    """
    bucket = Bucket(3, 2, 5)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.4
    assert not bucket.take()
    clock.now += 0.1
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    bucket.give(2)
    bucket.give(20)
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]
    clock.now += 1
    bucket.pass_over(1)
    assert not bucket.take()


def test_an_old_bucket_has_no_more_than_its_burst(clock: Clock) -> None:
    """This holds however long ago the last request was."""
    bucket = Bucket(10, 5)
    clock.now += 1000
    assert [bucket.take() for _ in range(11)] == [True] * 10 + [False]
