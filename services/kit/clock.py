"""The clock of spans: one for all processes of a node.

A process that asked the realtime clock for each span would bend a trace whenever that clock is stepped. So the realtime
clock is asked once, when the node starts (:func:`anchor`), and ``splitd up`` hands the difference to all processes in
the variable :data:`VARIABLE`, also to those that are started again later, and they hand it to their workers. From then
on CLOCK_BOOTTIME counts, which is never stepped, and goes on while the machine is suspended.

So the times of a node whose realtime clock is corrected after its start stay as wrong as it was then, until the node is
started again.
"""

from __future__ import annotations

import os
import time

VARIABLE = "SPLITD_CLOCK"
"""Nanoseconds from the boot of the machine to the epoch, as the node saw them when it started."""

_BOOT = time.CLOCK_BOOTTIME
_read = time.clock_gettime_ns


def anchor() -> int:
    """The value of :data:`VARIABLE` for a node that starts now."""
    return time.time_ns() - _read(_BOOT)


def _given(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


_given_anchor = _given(os.environ.get(VARIABLE, ""))
ANCHOR = anchor() if _given_anchor is None else _given_anchor
"""That of this process: its node's, or its own if it was started alone."""


def now() -> int:
    """Nanoseconds since the epoch."""
    return ANCHOR + _read(_BOOT)
