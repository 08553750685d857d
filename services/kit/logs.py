"""What a process says on standard error, which its supervisor writes to its log file: how much, and a line for each
call that fails.

SPLITD_LOG is the level of what is ours. Libraries stay at INFO: at DEBUG one of them alone writes a thousand lines for
each of ours.
"""

from __future__ import annotations

import logging
import os
import sys

from services.kit import errors
from services.kit.buckets import Bucket

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
OURS = ("services", "gateway", "deploy", "client", "__main__")
"""The loggers of this project's packages, and of the module that a process is started by."""

log = logging.getLogger(__name__)


def level() -> tuple[str, str]:
    """The level that SPLITD_LOG names, INFO without one, and what is wrong with its value ("" if nothing)."""
    value = os.environ.get("SPLITD_LOG", "").strip()
    name = value.upper() or "INFO"
    if name in LEVELS:
        return name, ""
    return "INFO", f"SPLITD_LOG={shown(value, 80)} is no level ({', '.join(LEVELS)}): INFO is used"


def configure() -> None:
    """Begin to log, at the level that SPLITD_LOG names; a name that is none is told and stops nobody."""
    name, trouble = level()
    wanted = logging.getLevelNamesMapping()[name]
    logging.basicConfig(
        stream=sys.stderr,
        level=max(wanted, logging.INFO),
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    for ours in OURS:
        logging.getLogger(ours).setLevel(wanted)
    if trouble:
        log.warning("%s", trouble)


def shown(text: str, most: int = 2000) -> str:
    """Text of a client's or a stranger's as part of one line: what is not printable escaped, no more than ``most``
    characters of it.
    """
    cut = text[:most]
    line = (
        cut
        if cut.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
    )
    return line if len(text) <= most else f"{line}... ({len(text)} characters)"


# ---------------------------------------------------------------------------------------------- calls that fail

_EXPECTED = frozenset({errors.Cancelled.code, errors.NotFound.code, errors.AlreadyExists.code})
"""Answers by which clients find out what is there, and the end of a call that its client ended: told at DEBUG."""
_OF_THE_CALLER = frozenset(
    {
        errors.InvalidArgument.code,
        errors.PermissionDenied.code,
        errors.FailedPrecondition.code,
        errors.Aborted.code,
        errors.OutOfRange.code,
        errors.Unimplemented.code,
        errors.Unauthenticated.code,
    }
)
"""Told at INFO: the caller asked for what cannot be. All else is a WARNING."""


class _Lines:
    """How many lines of a kind may be written: clients choose how many calls of theirs fail."""

    def __init__(self, burst: int, rate: float) -> None:
        """``burst`` lines at once, ``rate`` in a second for long."""
        self._bucket = Bucket(burst, rate)
        self._withheld = 0

    def take(self) -> int | None:
        """Whether one more may be written: None if not, else how many were not since the last one."""
        if not self._bucket.take():
            self._withheld += 1
            return None
        withheld, self._withheld = self._withheld, 0
        return withheld


_lines = _Lines(100, 5.0)


def failed(method: str, namespace: str, error: errors.NodeError) -> None:
    """A line about a call that was answered with ``error``; not one for each if hundreds fail at once, but their
    number.
    """
    if error.told:
        return
    code = error.code
    severity = logging.DEBUG if code in _EXPECTED else logging.INFO if code in _OF_THE_CALLER else logging.WARNING
    if not log.isEnabledFor(severity):
        return
    withheld = _lines.take()
    if withheld is None:
        return
    if withheld:
        log.warning("%d more calls failed, of which nothing is told: they were too many", withheld)
    log.log(
        severity,
        "%s%s failed: %s (%s)",
        shown(method, 200),
        f" in namespace {shown(namespace, 80)}" if namespace else "",
        shown(str(error)),
        errors.name(code),
    )
