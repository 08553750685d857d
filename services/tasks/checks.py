"""Checks of requests before they reach a shim.

A shim is one process for a task, or for a pod: a request that makes it end, or wait for ever, takes the containers with
it. Debian's shims of runc (containerd 1.6, 1.7 and 2.1) do not check their requests. They end at an Exec without a
spec, an Update without resources, and options of another type. A path of stdio that does not exist leaves a create
waiting, and runc's half of the container behind. So such requests are refused here, as InvalidArgument that names the
field.

The shims of other runtimes (kata, gVisor) have their own options and their own URIs for stdio. For them it is only
checked that paths exist.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from services.kit import errors, shims, threads
from services.kit.identifiers import quoted
from services.oci.mounts import Mount
from services.oci.opaque import Opaque
from services.tasks.store import IO

STAT_SECONDS = 5.0
"""Time for looking at the paths of stdio. Clients choose them, so they may be on a network file system that does not
answer.
"""
STATS = 32
"""Requests whose paths are looked at at the same time. Each look has a thread of its own, since it may never return.
The thread does not delay the end of the process.
"""

_OPTIONS = "containerd.runc.v1.Options"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""The beginning of a URI, for Go's url.Parse."""


def of_runc(program: str) -> bool:
    """Return whether this is the program of runc's shim, by its name."""
    return Path(program).name.startswith("containerd-shim-runc-")


def payload(field: str, value: Opaque | None) -> None:
    """Refuse a message that is absent, or has only a type."""
    if value is None or not value.value:
        raise errors.InvalidArgument(f"{field} is required")


def runtime_options(field: str, program: str, options: Opaque | None) -> None:
    """Refuse options for a shim of runc that are not runc's."""
    if not of_runc(program) or options is None or not options.value:
        return
    name = options.type_url.rpartition("/")[2]
    if name != _OPTIONS:
        raise errors.InvalidArgument(
            f"{field}: {quoted(name)} is no option of {Path(program).name}, which takes {_OPTIONS}"
        )


async def mounts(program: str, rootfs: Sequence[Mount]) -> None:
    """Refuse mounts that the shim cannot make. A shim before containerd 2.0 passes a mount with mapped ids to the
    kernel as it is, which says "invalid argument": that is a FailedPrecondition with the reason.
    """
    mapped = next(
        (mount for mount in rootfs if any(option.startswith(("uidmap=", "gidmap=")) for option in mount.options)), None
    )
    if of_runc(program) and mapped is not None and (trouble := await shims.id_mapping_trouble(program)):
        raise errors.FailedPrecondition(f"the root file system's {mapped.type} mount has ids mapped: {trouble}")


def _are_there(paths: dict[str, str]) -> None:
    for field, path in paths.items():
        if not path.startswith("/"):
            raise errors.InvalidArgument(f"{field} {quoted(path)}: not an absolute path")
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            why = errors.words(error) if isinstance(error, OSError) else str(error)
            raise errors.InvalidArgument(f"{field} {quoted(path)}: {why}") from None
        if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            raise errors.InvalidArgument(f"{field} {quoted(path)}: not a FIFO, file or device")


_free = threading.BoundedSemaphore(STATS)


async def stdio(
    program: str,
    io: IO,
    *,
    seconds: float = STAT_SECONDS,
    free: threading.BoundedSemaphore = _free,
    are_there: Callable[[dict[str, str]], object] = _are_there,
) -> None:
    """Refuse paths of stdio that are no FIFO, file or device. A shim of runc also needs all outputs or none; a terminal
    has one, and a URI is both.

    ``are_there`` looks at the paths, for at most ``seconds``; ``free`` limits how many looks there are at once.
    """
    if of_runc(program) and not io.stdout and (io.stdin or io.stderr or io.terminal):
        raise errors.InvalidArgument("stdout is required where there is a terminal, stdin or stderr")
    if of_runc(program) and io.stdout and not io.stderr and not io.terminal and not _SCHEME.match(io.stdout):
        raise errors.InvalidArgument("stderr is required beside stdout, unless there is a terminal")
    # A terminal has one output. containerd's Go client also names a FIFO for stderr, which it does not make, and shims
    # do not open it.
    stderr = "" if io.terminal else io.stderr
    paths = {
        field: path
        for field, path in (("stdin", io.stdin), ("stdout", io.stdout), ("stderr", stderr))
        if path and ((field == "stdin" and of_runc(program)) or not _SCHEME.match(path))
    }
    if not paths:
        return
    named = ", ".join(f"{field} {quoted(path)}" for field, path in paths.items())
    if not free.acquire(blocking=False):
        raise errors.Unavailable(
            f"{named}: {STATS} looks at other paths have had no answer from their file systems yet"
        )

    def look() -> None:
        try:
            are_there(paths)
        finally:
            free.release()

    try:
        async with asyncio.timeout(seconds):
            await threads.apart("stdio", look)
    except TimeoutError:
        raise errors.DeadlineExceeded(f"{named}: no answer from the file system") from None
    except RuntimeError as error:  # no more threads
        free.release()
        raise errors.Unavailable(f"{named}: {error}") from None
