"""The client's memory of hosts, so that a dead or slow mirror costs its timeout once and not for every blob.

A host is *good* until it turns out *dead* (no connection, or trouble three times in a row), *slow*, or *busy* (it asks
for fewer requests, 429, three times in a row). Such a state lasts for some time, longer each time. Then one request may
find out whether the host is good again, while the others still avoid it. Dead hosts are asked after all others; so are
slow and busy ones. No host is excluded for ever, since a bad host is better than none.

All pulls of a process share one memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

GOOD, SLOW, BUSY, DEAD = "good", "slow", "busy", "dead"

FIRST_REST = 30.0
"""Seconds for which a host is avoided after its first failure: a pull of many layers takes about as long."""
LONGEST_REST = 600.0
"""The limit up to which that time doubles: a repaired mirror is used again within ten minutes."""
PROBE = 10.0
"""After that time, one request may try the host; others wait this long for its result."""
TROUBLES = 3
"""Bad moments in a row that make a host dead, or refusals of further requests that make it busy."""
HOSTS = 1000
"""Hosts that are remembered; images may name other hosts in their layers."""
RANGES_REST = 3600.0
"""Seconds for which a host that refused a request for a part is asked for whole blobs only. Registries change rarely,
and each refusal costs a request for each large layer.
"""
WEIGHT = 0.3
"""Weight of the newest measurement in the throughput."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """A host as remembered. ``since`` is in seconds since the epoch; ``failures`` counts those in a row; ``throughput``
    is in bytes a second (0: not measured).
    """

    host: str
    state: str
    since: float
    failures: int
    last_error: str
    throughput: float
    rests_until: float
    ranges_refused: str = ""
    """Its answer to a request for a part of a blob; "" while it is not known to refuse these."""
    ranges_refused_until: float = 0.0


@dataclass(slots=True)
class _Host:
    state: str = GOOD
    since: float = 0.0
    failures: int = 0
    limits: int = 0
    """Those of the failures that ask for fewer requests."""
    last_error: str = ""
    throughput: float = 0.0
    rest: float = 0.0
    until: float = 0.0
    ranges_refused: str = ""
    ranges_refused_until: float = 0.0


class HostMemory:
    """Hosts by their ``scheme://host``."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._hosts: dict[str, _Host] = {}

    def state(self, key: str) -> str:
        """GOOD, SLOW, BUSY or DEAD; GOOD for an unknown host."""
        host = self._hosts.get(key)
        return host.state if host is not None else GOOD

    def is_avoided(self, key: str) -> bool:
        """Whether other hosts should be asked instead at the moment. Once the host's time is over, the first caller
        gets False.
        """
        host = self._hosts.get(key)
        if host is None or host.state == GOOD:
            return False
        now = self._clock()
        if now < host.until:
            return True
        host.until = now + PROBE
        return False

    def worked(self, key: str) -> None:
        """Note that the host has answered a request properly: it is good now."""
        host = self._host(key)
        self._become(host, GOOD)
        host.failures = host.limits = 0
        host.rest = 0.0

    def failed(self, key: str, error: str, *, dead: bool = False, limited: bool = False) -> None:
        """It had a bad moment. ``dead``: it cannot be talked to. ``limited``: it works, and asks for fewer requests."""
        host = self._host(key)
        host.failures += 1
        host.limits += limited
        host.last_error = error
        if dead or host.failures - host.limits >= TROUBLES:
            self._rest(host, DEAD)
        elif host.limits >= TROUBLES:
            self._rest(host, BUSY)

    def was_slow(self, key: str, error: str) -> None:
        """It was so slow that another host was asked instead."""
        host = self._host(key)
        host.failures += 1
        host.last_error = error
        self._rest(host, SLOW)

    def measured(self, key: str, size: int, seconds: float) -> None:
        """``size`` bytes came within ``seconds`` of waiting for them."""
        host = self._host(key)
        rate = size / max(seconds, 1e-3)
        host.throughput = rate if not host.throughput else (1 - WEIGHT) * host.throughput + WEIGHT * rate

    def refused_range(self, key: str, answer: str) -> None:
        """It served a blob, but refused to serve a part of it, with this answer."""
        host = self._host(key)
        host.ranges_refused, host.ranges_refused_until = answer, self._clock() + RANGES_REST

    def refuses_ranges(self, key: str) -> bool:
        """Whether it is asked for whole blobs only at the moment."""
        host = self._hosts.get(key)
        return host is not None and self._clock() < host.ranges_refused_until

    def explanation(self, key: str) -> str:
        """Why a host is not asked: ``dead for 12 s: connection refused``."""
        host = self._host(key)
        return f"{host.state} for {self._clock() - host.since:.0f} s: {host.last_error}"

    def snapshot(self) -> list[HostState]:
        """All hosts, for people to look at."""
        return [
            HostState(
                host=key,
                state=host.state,
                since=host.since,
                failures=host.failures,
                last_error=host.last_error,
                throughput=round(host.throughput, 1),
                rests_until=host.until if host.state != GOOD else 0.0,
                ranges_refused=host.ranges_refused if self.refuses_ranges(key) else "",
                ranges_refused_until=host.ranges_refused_until if self.refuses_ranges(key) else 0.0,
            )
            for key, host in sorted(self._hosts.items())
        ]

    def _host(self, key: str) -> _Host:
        if key not in self._hosts:
            if len(self._hosts) >= HOSTS:
                del self._hosts[next(iter(self._hosts))]
            self._hosts[key] = _Host(since=self._clock())
        return self._hosts[key]

    def _become(self, host: _Host, state: str) -> None:
        if host.state != state:
            host.state, host.since = state, self._clock()

    def _rest(self, host: _Host, state: str) -> None:
        now = self._clock()
        # only once for all requests that were active
        if host.state == GOOD or now >= host.until - PROBE:
            host.rest = min(max(2 * host.rest, FIRST_REST), LONGEST_REST)
        self._become(host, state)
        host.until = max(host.until, now + host.rest)
