"""What a process logs on standard error, which its supervisor writes to its log file: the level, and a line for each
call that fails.

SPLITD_LOG is the level of our own code. Libraries stay at INFO: at DEBUG one of them alone writes a thousand lines for
each of ours.
"""

from __future__ import annotations

import logging
import os
import sys

from services.kit import errors
from services.kit.buckets import Bucket

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
OURS = ("services", "gateway", "deploy", "client", "splitd", "__main__")
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
    """Begin to log, at the level that SPLITD_LOG names. An invalid name is reported and stops no process."""
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
    """Text from a client or from outside, as part of one line: characters that are not printable are escaped, and at
    most ``most`` characters are kept.
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
"""Answers by which clients find out what exists, and the end of a call that its client ended: logged at DEBUG."""
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
"""Logged at INFO: the caller asked for something impossible. Everything else is a WARNING."""


class _Lines:
    """Limits the number of lines of a kind, since clients choose how many of their calls fail."""

    def __init__(self, burst: int, rate: float) -> None:
        """``burst`` lines at once, ``rate`` in a second in the long run."""
        self._bucket = Bucket(burst, rate)
        self._withheld = 0

    def take(self) -> int | None:
        """Ask for one more line. None if it may not be written; else the number of lines that were withheld since the
        last one.
        """
        if not self._bucket.take():
            self._withheld += 1
            return None
        withheld, self._withheld = self._withheld, 0
        return withheld


_lines = _Lines(100, 5.0)


def failed(method: str, namespace: str, error: errors.NodeError) -> None:
    """Log a call that was answered with ``error``. If hundreds fail at once, only their number is logged."""
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
        log.warning("%d more calls failed; they were too many to log each", withheld)
    log.log(
        severity,
        "%s%s failed: %s (%s)",
        shown(method, 200),
        f" in namespace {shown(namespace, 80)}" if namespace else "",
        shown(str(error)),
        errors.name(code),
    )
