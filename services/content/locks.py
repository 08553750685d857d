"""One writer of a ref at a time.

The next writer waits a moment for one that is leaving. A containerd that has this store as its proxy plugin closes a
writer's stream without waiting for its end (its core/content/proxy), and may open the next one at once; its own store
waited as long until 1.7.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
import time
from collections.abc import Iterator

from services.kit import errors

_PAUSES = tuple(0.001 * 2**n for n in range(8))
"""Seconds between the tries for a ref that has a writer: a quarter of a second in all."""


class RefLocks:
    """Which refs have a writer. Any thread may use it."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, ref: str) -> None:
        """Whoever calls this is the writer of ``ref`` from now on. Unavailable, in containerd's words, if it has one;
        InvalidArgument for an empty ref.
        """
        if not ref:
            raise errors.InvalidArgument("ref must not be empty")
        now = time.time_ns()
        with self._lock:
            since = self._since.get(ref)
            if since is None:
                self._since[ref] = now
                return
        raise errors.Unavailable(f"ref {ref} locked for {_duration(now - since)} (since {_time(since)})")

    async def take_next(self, ref: str) -> None:
        """As :meth:`take`, after a moment's wait for a writer that is leaving."""
        for pause in _PAUSES:
            if not ref or ref not in self._since:
                break
            await asyncio.sleep(pause)
        self.take(ref)

    @contextlib.contextmanager
    def taking(self, ref: str) -> Iterator[None]:
        """As :meth:`take_next`, for a thread that may wait; the ref is free again if the block fails."""
        for pause in _PAUSES:
            if not ref or ref not in self._since:
                break
            time.sleep(pause)
        self.take(ref)
        try:
            yield
        except BaseException:
            self.free(ref)
            raise

    def free(self, ref: str) -> None:
        """The ref has no writer any more."""
        with self._lock:
            del self._since[ref]


def _duration(nanoseconds: int) -> str:
    """As Go prints a time.Duration: ``1m2.5s``, ``15ms``, ``80µs``."""
    for unit, name in ((10**9, "s"), (10**6, "ms"), (10**3, "µs")):
        if nanoseconds >= unit:
            whole, rest = divmod(nanoseconds, unit)
            fraction = f".{rest:0{len(str(unit)) - 1}d}".rstrip("0").rstrip(".")
            if unit < 10**9 or whole < 60:
                return f"{whole}{fraction}{name}"
            minutes, seconds = divmod(whole, 60)
            hours, minutes = divmod(minutes, 60)
            return (f"{hours}h" if hours else "") + f"{minutes}m{seconds}{fraction}s"
    return f"{nanoseconds}ns"


def _time(nanoseconds: int) -> str:
    """As Go prints a time.Time in UTC."""
    seconds, rest = divmod(nanoseconds, 10**9)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{rest:09d}".rstrip("0") if rest else "") + " +0000 UTC"
