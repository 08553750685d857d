"""Decides which process hangs, and what to do about it. This module knows no clock, process or socket;
:mod:`deploy.inside.beats` provides them.

A process gives signs of life while its loop turns. The watchdog adds up the time since the last one. It leaves out

- time in which the watchdog itself was late: after a suspend, a pause of the virtual machine or a stop of supervisord,
  only the watchdog is late;
- time in which the process was stopped (state T, or t under a debugger): its time starts anew when it continues;
- time in which supervisord was stopping it: that has a limit of its own (``stopwaitsecs``).

When too much time has passed, the process is asked for its stacks (SIGUSR1). :data:`WRITING` seconds later it is killed
(SIGKILL), unless it shows life, and supervisord starts it again. A process that waits in the kernel (state D) cannot be
killed: it is reported, and looked at again. The process is a child of this one, which has not waited for it yet. So its
pid cannot belong to another process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

ON_TIME = 2.0
"""Seconds from one look to the next that still count. supervisord's loop turns at least every second."""
WRITING = 2.0
"""Seconds that a process gets to write its stacks before it is killed."""

_BEYOND = ("D", "Z", "X")
"""States of a process in which a signal changes nothing. A process in state Z has a dead main thread; if another of its
threads cannot die yet, supervisord learns of the death only when that thread is gone, too.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: those of the settings ([watchdog]), and the time between two beats."""

    silence: float
    start: float
    beat: float


class Kernel(Protocol):
    """The watchdog's access to processes."""

    def state(self, pid: int) -> str:
        """The state of its main thread as in /proc/PID/stat: R, S, D, T, t, Z; "" if there is no such process."""
        ...

    def waits_in(self, pid: int) -> str:
        """The function of the kernel in which its main thread waits, or ""."""
        ...

    def signal(self, pid: int, number: int) -> None:
        """Send a signal; no error if the process is gone."""
        ...


@dataclass(frozen=True, slots=True)
class Child:
    """A process as its supervisor knows it."""

    name: str
    pid: int
    stopping: bool


@dataclass(slots=True)
class Watched:
    """The state of one process. ``quiet`` counts the seconds since its last sign of life."""

    pid: int
    serving: bool = False
    quiet: float = 0.0
    asked: float | None = None
    """The value of ``quiet`` when the process was asked for its stacks."""
    reported: bool = False


@dataclass(slots=True)
class Kills:
    """How many processes of one name were killed, and why and when the last one was (seconds since the epoch)."""

    count: int = 0
    why: str = ""
    at: float = 0.0


@dataclass(slots=True)
class Watchdog:
    """Is told of each sign of life, and must be asked to :meth:`look` once a second. ``say`` gets its actions, for the
    logs: the name of the process, and a sentence.
    """

    limits: Limits
    kernel: Kernel
    say: Callable[[str, str], None]
    watched: dict[str, Watched] = field(default_factory=dict)
    kills: dict[str, Kills] = field(default_factory=dict)
    _looked: float | None = None

    def heard(self, pid: int, *, serving: bool) -> None:
        """A sign of life has come. ``serving`` is false if the process was told to stop."""
        for name, one in self.watched.items():
            if one.pid == pid:
                if one.asked is not None or one.reported:
                    self.say(name, f"pid {pid} answers again after {one.quiet:.0f} s")
                one.serving, one.quiet, one.asked, one.reported = serving, 0.0, None, False

    def look(self, now: float, wall: float, children: Iterable[Child]) -> None:
        """Judge all existing processes. ``now`` is the time on a monotonic clock, ``wall`` in seconds since the
        epoch.
        """
        passed = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        there = {child.name: child for child in children}
        for gone in self.watched.keys() - there.keys():
            del self.watched[gone]
        for name, child in there.items():
            one = self.watched.get(name)
            if one is None or one.pid != child.pid:
                self.watched[name] = Watched(child.pid)
            elif child.stopping:
                one.quiet, one.asked = 0.0, None
            elif passed <= ON_TIME:
                self._judge(name, one, passed, wall)

    def late(self, name: str) -> float:
        """Seconds for which a process has been silent, if that is longer than usual; else 0.0."""
        one = self.watched.get(name)
        return one.quiet if one is not None and one.quiet > self._allowed(one) / 3 else 0.0

    def _allowed(self, one: Watched) -> float:
        """Seconds of silence that are allowed. The process may have hung right after its last beat, or right before the
        next.
        """
        return self.limits.silence + self.limits.beat if one.serving else self.limits.start

    def _judge(self, name: str, one: Watched, passed: float, wall: float) -> None:
        one.quiet += passed
        allowed = self._allowed(one)
        if one.quiet <= allowed / 3:
            return  # nothing unusual: not worth asking the kernel
        state = self.kernel.state(one.pid)
        if state in ("T", "t"):
            one.quiet, one.asked = 0.0, None
        elif one.quiet < allowed:
            return
        elif state in _BEYOND:
            if not one.reported:
                one.reported = True
                where = (
                    f"waits in the kernel ({self.kernel.waits_in(one.pid) or 'state D'}), where nothing can end "
                    "it: not killed"
                )
                self.say(
                    name,
                    (
                        f"pid {one.pid} has not answered for {one.quiet:.0f} s and "
                        f"{where if state == 'D' else 'is dead, but a thread of it still waits in the kernel'}"
                    ),
                )
        elif one.asked is None:
            one.asked = one.quiet
            self.say(
                name,
                (
                    f"pid {one.pid} has not {'answered' if one.serving else 'begun to serve, nor ended,'} for "
                    f"{one.quiet:.0f} s: its stacks follow in its log, then it is killed"
                ),
            )
            self.kernel.signal(one.pid, signal.SIGUSR1)
        elif one.quiet >= one.asked + WRITING:
            known = self.kills.setdefault(name, Kills())
            known.count, known.at = known.count + 1, wall
            known.why = (
                f"no answer for {one.quiet:.0f} s"
                if one.serving
                else f"did not serve, or end, within {one.quiet:.0f} s"
            )
            self.say(name, f"pid {one.pid} is killed: {known.why}")
            self.kernel.signal(one.pid, signal.SIGKILL)
            one.quiet, one.asked = 0.0, None
