"""The host for which a transfer waits, and the time since its last bytes."""

from __future__ import annotations

import asyncio

from services.images.distribution.progress import reporting_silence
from services.images.registry.silence import LINGERS, Silence
from services.images.transfer import SILENT, Progress
from tests.support import eventually_async


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_host_that_has_been_silent_longest() -> None:
    """The time counts from the last bytes. A host with several requests is not silent as long as one of them gets
    bytes; a host without requests is not silent.
    """
    clock = Clock()
    silence = Silence(clock)
    assert silence.longest() == ("", 0.0)
    silence.asked("a")
    clock.now += 2
    silence.asked("a")
    silence.asked("b")
    clock.now += 3
    assert silence.longest() == ("a", 5.0)
    silence.over("a", came=True)
    assert silence.longest() == ("b", 3.0)
    silence.heard("b")
    clock.now += 1
    assert silence.longest()[1] == 1.0
    silence.over("a", came=True)
    silence.over("b", came=True)
    clock.now += 100
    assert silence.longest() == ("", 0.0)
    silence.asked("a")
    assert silence.longest() == ("a", 0.0)


def test_attempts_in_vain_are_one_silence() -> None:
    """The pauses between the attempts count too. Once another host is asked, the failed one is not reported any
    more.
    """
    clock = Clock()
    silence = Silence(clock)
    for _ in range(3):
        silence.asked("a")
        clock.now += 30
        silence.over("a", came=False)
        clock.now += LINGERS / 2
        assert silence.longest()[0] == "a"
    assert silence.longest() == ("a", 3 * (30 + LINGERS / 2))
    silence.asked("b")
    assert silence.longest() == ("b", 0.0)
    silence.over("b", came=True)
    clock.now += LINGERS
    assert silence.longest() == ("", 0.0)


async def test_it_is_told_as_long_as_it_lasts() -> None:
    """Afterwards the last status is sent again, since clients show a status until the next one."""
    told: list[Progress] = []
    silence = Silence()
    async with reporting_silence(silence, told.append, after=0.01, interval=0.002) as report:
        report(Progress("Pulling from a"))
        report(Progress("waiting", "layer-sha256:aa"))
        silence.asked("a")
        await eventually_async(lambda: asyncio.sleep(0, len(told) > 4), "nothing is told")
        silence.over("a", came=True)
        await eventually_async(lambda: asyncio.sleep(0, not told[-1].event.startswith(SILENT)), "it is told for ever")
    assert [each for each in told if each.name] == [Progress("waiting", "layer-sha256:aa")]
    assert (told[0], told[-1]) == (Progress("Pulling from a"), Progress("Pulling from a"))
    assert {(each.event.partition(",")[0], each.parents) for each in told[2:-1]} == {("waiting for a", ("a",))}
