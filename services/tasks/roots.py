"""The root file systems of containers, held so that nobody waits for the disk when they are unmounted.

The last unmount of an overlay writes out all that waits to be written to the file system below it, whoever wrote it
(the kernel does what syncfs(2) does). That takes milliseconds on an idle disk and seconds beside a pull. A shim
unmounts in its Delete, for which the client waits. So a second mount of the overlay, which has no place in the tree of
files, is held as long as there is the task, and let go of behind the answer. What the last unmount writes is still
written then. They are let go of one after the other: the first writes most of what the next would.

Until that is done the overlay's upper directory is in use. If it is mounted once more, the kernel says so in its log,
and refuses where overlays have an index. So only overlays without one are held, and the name of the task is taken until
they are let go of. Those that are not in our root are not held: they may be on a file system that does not answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from services.kit import loops, mounting, threads
from services.oci.mounts import Mount

log = logging.getLogger(__name__)

_HERE = -100
"""AT_FDCWD"""
_CLONE = 1
"""OPEN_TREE_CLONE: another mount of what is mounted there, without those below."""
_PATIENCE = 60.0
"""Seconds after which a disk that is still busy is not waited for any longer."""

_libc = ctypes.CDLL(None, use_errno=True)


def hold(directory: Path, mounts: Sequence[Mount], root: Path) -> int:
    """Hold the overlay that was mounted at ``directory`` with these ``mounts``, if it writes into ``root``. Returns a
    descriptor; -1 if it is no overlay whose unmount writes anything there, or if the kernel (before 5.2) has no such
    mounts.
    """
    if len(mounts) != 1 or mounts[0].type != "overlay":
        return -1
    options, upper = mounts[0].options, mounts[0].option("upperdir")
    if "index=off" not in options or "volatile" in options or not upper.startswith(f"{root}/") or "/../" in upper:
        return -1
    open_tree = getattr(_libc, "open_tree", None)
    if open_tree is None:
        return -1
    fd = int(open_tree(_HERE, os.fsencode(directory), _CLONE | os.O_CLOEXEC))
    if fd >= 0 and not _is_overlay(fd):  # its mount is elsewhere, or gone
        os.close(fd)
        return -1
    return fd


def _is_overlay(fd: int) -> bool:
    try:
        return mounting.type_of(fd) == mounting.OVERLAY
    except OSError:  # a file system that does not answer holds nothing that an unmount would write
        return False


class Roots:
    """Lets go of roots. ``close`` closes a descriptor, in a thread."""

    def __init__(self, *, seconds: float = _PATIENCE, close: Callable[[int], object] = os.close) -> None:
        self._seconds, self._close = seconds, close
        self._last: asyncio.Task[None] | None = None

    async def let_go(self, root: int) -> None:
        """Let go of it. Return when the kernel has written what it writes then, or after so many ``seconds``."""
        ours = self._last = loops.aside("letting go of a root file system", self._let_go(root, self._last))
        _, waiting = await asyncio.wait((ours,), timeout=self._seconds)
        if waiting:
            log.warning("a container's files wait to be written for more than %g s", self._seconds)

    async def _let_go(self, root: int, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        try:
            await threads.apart("letting go of a root file system", partial(self._close, root))
        except RuntimeError:  # no more threads
            self._close(root)
