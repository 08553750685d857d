"""Who is waited for by one transfer, and since when nothing has come from him: a registry that says nothing is
waited for long, and its user should know for whom.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LINGERS = 10.0
"""Seconds for which a host that did not answer counts as waited for, if nobody else is: there is a pause before it
is asked again.
"""


class Silence:
    """Of the hosts of one transfer, whose requests tell it what they wait for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits: dict[str, int] = {}
        """How many wait for something of a host, if anybody does."""
        self._since: dict[str, float] = {}
        """When something came from it last, or was first asked for."""
        self._failed: dict[str, float] = {}
        """When one that nobody waits for failed."""

    def asked(self, host: str) -> None:
        """Somebody waits for something of ``host``."""
        self._waits[host] = self._waits.get(host, 0) + 1
        self._since.setdefault(host, self._clock())
        self._failed.pop(host, None)

    def heard(self, host: str) -> None:
        """Something came, or was taken, while somebody waits for more."""
        self._since[host] = self._clock()

    def over(self, host: str, *, came: bool) -> None:
        """One who waited does not any more; ``came``: as it came."""
        if came:
            self.heard(host)
        self._waits[host] -= 1
        if self._waits[host]:
            return
        del self._waits[host]
        if came:
            del self._since[host]
        else:
            self._failed[host] = self._clock()

    def longest(self) -> tuple[str, float]:
        """The host that has been silent longest, and for how many seconds; "" if nobody waits."""
        now = self._clock()
        hosts = self._waits or [host for host, at in self._failed.items() if now - at < LINGERS]
        host = min(hosts, key=self._since.__getitem__, default="")
        return host, now - self._since[host] if host else 0.0
