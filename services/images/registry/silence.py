"""The host that one transfer waits for, and since when it has sent nothing: a silent registry is waited for long, and
the user should know which one it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LINGERS = 10.0
"""Seconds for which a host that failed still counts as waited for, if no other is: there is a pause before it is asked
again.
"""


class Silence:
    """The silence of the hosts of one transfer, whose requests report what they wait for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits: dict[str, int] = {}
        """How many requests wait for each host, if any."""
        self._since: dict[str, float] = {}
        """When a host last sent something, or was first asked."""
        self._failed: dict[str, float] = {}
        """When a host that no request waits for failed."""

    def asked(self, host: str) -> None:
        """A request waits for ``host``."""
        self._waits[host] = self._waits.get(host, 0) + 1
        self._since.setdefault(host, self._clock())
        self._failed.pop(host, None)

    def heard(self, host: str) -> None:
        """The host sent or accepted something, while the request waits for more."""
        self._since[host] = self._clock()

    def over(self, host: str, *, came: bool) -> None:
        """A request no longer waits; ``came``: because something came."""
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
        """The host that has been silent longest, and for how many seconds; "" if no request waits."""
        now = self._clock()
        hosts = self._waits or [host for host, at in self._failed.items() if now - at < LINGERS]
        host = min(hosts, key=self._since.__getitem__, default="")
        return host, now - self._since[host] if host else 0.0
