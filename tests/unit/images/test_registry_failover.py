"""Several hosts, several times, by a clock that moves only in pauses: who is asked, and what each pause says."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from services.images.registry.endpoint import Headers
from services.images.registry.failover import Failover
from services.images.registry.failure import Blame, Failure
from services.images.registry.host_memory import HostMemory
from services.images.registry.transport import Answer
from services.images.registry_timeouts import Retry
from services.kit import errors
from services.oci.descriptors import Descriptor
from services.oci.references import Reference
from tests.spans import attribute, recorded

RETRY = Retry(rounds=3, first=1.0, longest=1.0, longest_asked=10.0, hopeless=60.0)


@dataclass(eq=False)
class Place:
    """A host that fails in these ways, and then works."""

    name: str
    failures: list[Failure] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"https://{self.name}"

    async def get(self, reference: Reference, descriptor: Descriptor, headers: Headers) -> Answer:
        raise NotImplementedError


class Time:
    """``early`` seconds are missing from each pause, as from a timer that ends before its time."""

    def __init__(self, early: float = 0.0) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._early = early

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds - self._early


def limited(name: str, wait: float, status: int = 429) -> Failure:
    return Failure(name, f"{status} refused", transient=True, blame=Blame.TROUBLE, status=status, wait=wait)


async def asked(places: list[Place], time: Time, retry: Retry = RETRY) -> list[str]:
    """The hosts that were asked, in turn, until one worked."""
    order = []

    async def act(place: Place) -> None:
        order.append(place.name)
        if place.failures:
            raise place.failures.pop(0)

    await Failover("it", places, HostMemory(time), retry, clock=time, sleep=time.sleep).run(act)
    return order


@pytest.mark.parametrize("early", [0.0, 0.001])
async def test_each_pause_is_as_long_as_asked_and_followed_by_an_attempt(early: float) -> None:
    """Also if the timer ends a little early: a host that asked for the pause is then asked."""
    time = Time(early)
    assert await asked([Place("r.test", [limited("r.test", 3.0), limited("r.test", 3.0)])], time) == ["r.test"] * 3
    assert time.slept == [3.0, 3.0]


async def test_what_a_pause_says() -> None:
    """Who asked for it, why, and after which round; its own pauses are retries."""
    lost = Failure("b.test", "connection lost", transient=True, blame=Blame.TROUBLE, named="lost")
    with recorded() as spans:
        await asked([Place("a.test", [limited("a.test", 3.0)])], Time())
        await asked([Place("a.test", [limited("a.test", 2.0, 503)])], Time())
        await asked([Place("b.test", [lost])], Time())
    pauses = spans.named("wait.pause")
    assert [
        (attribute(each, "server.address"), attribute(each, "splitd.pause.reason"), attribute(each, "error.type"))
        for each in pauses
    ] == [("a.test", "429", "429"), ("a.test", "Retry-After", "503"), ("b.test", "retry", "lost")]
    assert [attribute(each, "splitd.pause.ms") for each in pauses[:2]] == [3000.0, 2000.0]
    assert 500.0 <= float(str(attribute(pauses[2], "splitd.pause.ms"))) <= 1000.0
    assert [str(attribute(each, "splitd.wait.for")).partition(": ")[2] for each in pauses[:2]] == [
        "asked to wait 3 s (429)",
        "asked to wait 2 s (503)",
    ]


async def test_the_pause_is_for_the_host_that_is_asked_first() -> None:
    """The others still rest after it, and are asked when their time is over."""
    time = Time()
    places = [Place("a.test", [limited("a.test", 9.0)]), Place("b.test", [limited("b.test", 2.0)])]
    with recorded() as spans:
        assert await asked(places, time) == ["a.test", "b.test", "b.test"]
    assert attribute(spans.one("wait.pause"), "server.address") == "b.test"
    assert time.slept == [2.0]


async def test_a_host_that_asks_for_hours_is_not_waited_for() -> None:
    """The user learns it at once."""
    time = Time()
    with pytest.raises(errors.Unavailable, match="429 refused"):
        await asked([Place("a.test", [limited("a.test", 3600.0)])], time)
    assert not time.slept
