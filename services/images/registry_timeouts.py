"""How long a registry is waited for, and how often it is asked again: every such number of the client, with its
reason.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long registries are waited for, counted from the last sign of life, so that a large layer may take as
    long as it takes.
    """

    connect: Seconds = 30.0
    """Name, connection and TLS together, where hosts.toml has no ``dial_timeout``: containerd's default, long
    enough for four lost SYNs.
    """

    mirror_connect: Seconds = 5.0
    """The same for a host after which another can be asked: two lost SYNs are forgiven, and a pull does not stand
    still for half a minute.
    """

    stall: Seconds = 30.0
    """Without a byte of an answer, or of an upload being taken: containerd's ResponseHeaderTimeout, here for bodies
    too.
    """

    mirror_stall: Seconds = 10.0
    """The same for a host after which another can be asked."""

    answer: Seconds = 300.0
    """From the last byte of an upload to its answer: registries copy or hash a whole layer in between."""

    token: Seconds = 30.0
    """For all of a token request: it is small, and every layer waits for it."""

    helper: Seconds = 60.0
    """For a credential helper program: some ask a cloud service."""

    idle: Seconds = 30.0
    """An idle connection is kept this long: shorter than the minute after which load balancers drop one silently."""

    slow_window: Seconds = 10.0
    """A mirror's throughput is judged after each so many seconds of waiting for it ..."""

    slow_floor: float = 100 * 1024.0
    """... and below so many bytes a second (100 MB in 17 minutes) another is asked, where there is one."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise ValueError(f"{each.name} must be more than nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and after what pause, the list of hosts is gone through again; what has been received counts as a
    fresh start.
    """

    rounds: int = 6
    """With the pauses below about 8 s of trouble are outlasted: the restart of a registry, a failover. One that takes
    connections and says nothing is waited for so many times ``timeouts.stall``, three minutes in all; the pull says
    meanwhile for whom it waits.
    """

    first: Seconds = 0.25
    """The first pause; each further one is twice as long."""

    longest: Seconds = 8.0
    """No pause is longer, unless the server asks for it."""

    longest_asked: Seconds = 60.0
    """A Retry-After is obeyed up to here."""

    hopeless: Seconds = 300.0
    """A server that asks for more than this is not waited for at all: its limit is counted in hours, and the user
    should know at once.
    """

    progress: int = 256 * 1024
    """Bytes of a body that count as a fresh start; fewer do not, or a server that sends one at a time would be
    asked for ever.
    """

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: {self.rounds} is less than one")
        for key in ("first", "longest", "longest_asked", "hopeless", "progress"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be less than nothing")

    def pause(self, rounds: int, asked: float | None) -> float:
        """Seconds before the next round, ``rounds`` having failed: half fixed and half random, so that many nodes
        do not come back at once.
        """
        backoff = min(self.first * 2.0 ** (rounds - 1), self.longest)
        jittered = backoff / 2 + random.random() * backoff / 2  # noqa: S311 (not for secrets)
        return jittered if asked is None else max(jittered, min(asked, self.longest_asked))
