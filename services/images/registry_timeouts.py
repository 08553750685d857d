"""Timeouts and retries of the registry client, each number with its reason."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from services.kit.settings import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long the client waits for registries. Times count from the last byte received, so that a large layer may take
    as long as it takes.
    """

    connect: Seconds = 30.0
    """For name, connection and TLS together, if hosts.toml has no ``dial_timeout``. This is containerd's default, long
    enough for four lost SYNs.
    """

    mirror_connect: Seconds = 5.0
    """As ``connect``, for a host after which another can be asked: it allows two lost SYNs, and does not stop a pull
    for half a minute.
    """

    stall: Seconds = 30.0
    """Without a byte of an answer, or of an upload being accepted: containerd's ResponseHeaderTimeout, applied to
    bodies too.
    """

    mirror_stall: Seconds = 10.0
    """As ``stall``, for a host after which another can be asked."""

    answer: Seconds = 300.0
    """From the last byte of an upload to its answer: registries copy or hash a whole layer in between."""

    token: Seconds = 30.0
    """For a whole token request: it is small, and every layer waits for it."""

    helper: Seconds = 60.0
    """For a credential helper program: some ask a cloud service."""

    idle: Seconds = 30.0
    """Time for which an idle connection is kept: shorter than the minute after which load balancers silently drop
    one.
    """

    slow_window: Seconds = 10.0
    """Seconds of waiting for a mirror after which its throughput is judged by ``slow_floor``."""

    slow_floor: float = 100 * 1024.0
    """Bytes a second (100 MB in 17 minutes). Below it another host is asked, if there is one."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise ValueError(f"{each.name} must be greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and after which pauses, the list of hosts is tried again. After progress the count starts anew."""

    rounds: int = 6
    """With the pauses below, six rounds outlast about 8 s of trouble: a registry's restart, a failover. A registry that
    accepts connections but sends nothing is waited for ``timeouts.stall`` in each round, three minutes in all;
    meanwhile the pull reports for whom it waits.
    """

    first: Seconds = 0.25
    """The first pause. Each further pause is twice as long."""

    longest: Seconds = 8.0
    """The longest pause, unless the server asks for a longer one."""

    longest_asked: Seconds = 60.0
    """The longest Retry-After that is obeyed."""

    hopeless: Seconds = 300.0
    """If a server asks for more than this, it is not waited for at all: its limit is counted in hours, and the user
    should know at once.
    """

    progress: int = 256 * 1024
    """Bytes of a body that count as progress. Fewer do not, otherwise a server that sends one byte at a time would be
    asked for ever.
    """

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: {self.rounds} is less than one")
        for key in ("first", "longest", "longest_asked", "hopeless", "progress"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative")

    def pause(self, rounds: int, asked: float | None) -> float:
        """Seconds before the next round, after ``rounds`` have failed: half fixed and half random, so that many nodes
        do not return at once.
        """
        backoff = min(self.first * 2.0 ** (rounds - 1), self.longest)
        jittered = backoff / 2 + random.random() * backoff / 2  # noqa: S311 (not for secrets)
        return jittered if asked is None else max(jittered, min(asked, self.longest_asked))
