"""What a request for a task must have before its shim sees it.

A shim is one process for all of a task (or of a pod): what makes it end, or wait for ever, takes the containers with
it. Debian's shims of runc (containerd 1.6, 1.7 and 2.1) do not look: one ends at an Exec without a spec, an Update
without resources, options of another type; a path of stdio that is not there leaves a create waiting, and runc's half
of the container behind. So these requests are refused here, as InvalidArgument that names the field.

Other runtimes' shims (kata's, gVisor's) have their own options, and their own schemes of stdio: of those nothing is
asked but that paths are there.
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
"""For looking at the paths of stdio, which a client chooses: one may be on a network file system that does not
answer.
"""
STATS = 32
"""Looks at once. One that gets no answer keeps its thread, which therefore is nobody else's, and does not hold up
the end of the process.
"""

_OPTIONS = "containerd.runc.v1.Options"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""What Go's url.Parse takes for the beginning of a URI."""


def of_runc(program: str) -> bool:
    """Whether this is the program of runc's shim, by its name as everywhere."""
    return Path(program).name.startswith("containerd-shim-runc-")


def payload(field: str, value: Opaque | None) -> None:
    """``value`` is there, and is more than a type."""
    if value is None or not value.value:
        raise errors.InvalidArgument(f"{field} is required")


def runtime_options(field: str, program: str, options: Opaque | None) -> None:
    """A shim of runc is given runc's options, or none."""
    if not of_runc(program) or options is None or not options.value:
        return
    name = options.type_url.rpartition("/")[2]
    if name != _OPTIONS:
        raise errors.InvalidArgument(
            f"{field}: {quoted(name)} is no option of {Path(program).name}, which takes {_OPTIONS}"
        )


async def mounts(program: str, rootfs: Sequence[Mount]) -> None:
    """The shim can make them. A mount with mapped ids, which one before containerd 2.0 would give to the kernel as
    it is ("invalid argument"), is a FailedPrecondition that says why.
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
    """Whatever is a path is that of a FIFO, a file or a device. Shims of runc want all outputs or none; a terminal has
    one, and a URI is both.

    ``are_there`` looks, for at most ``seconds`` of ours; ``free`` is for how many such looks there is room.
    """
    if of_runc(program) and not io.stdout and (io.stdin or io.stderr or io.terminal):
        raise errors.InvalidArgument("stdout is required where there is a terminal, stdin or stderr")
    if of_runc(program) and io.stdout and not io.stderr and not io.terminal and not _SCHEME.match(io.stdout):
        raise errors.InvalidArgument("stderr is required beside stdout, unless there is a terminal")
    paths = {
        field: path
        for field, path in (("stdin", io.stdin), ("stdout", io.stdout), ("stderr", io.stderr))
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
    except RuntimeError as error:  # no more threads: nobody looked
        free.release()
        raise errors.Unavailable(f"{named}: {error}") from None
