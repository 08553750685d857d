"""A process makes its socket again if the socket was removed, for instance by a cleaner of temporary files. Otherwise
the process would keep running, and no client could reach it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.kit import errors, loops

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds from one look to the next."""


def check_path(address: Path) -> None:
    """Refuse a socket path that the kernel would cut (sun_path has 107 bytes)."""
    if len(os.fsencode(address)) > 107:
        raise errors.InvalidArgument(
            f"socket path {address} is longer than 107 bytes: choose a shorter state directory"
        )


def watching(path: Path, again: Callable[[], Awaitable[None]], look: float = LOOK) -> asyncio.Task[None]:
    """Look at ``path`` each ``look`` seconds until this task is cancelled. If nothing is there, call ``again``, which
    listens anew.

    If something is there that is not our socket, it is left alone and reported, since only its owner may remove it.
    """
    return loops.start(f"the watch of {path}", functools.partial(_watch, path, again, look, identity(path)))


async def _watch(path: Path, again: Callable[[], Awaitable[None]], look: float, ours: tuple[int, int] | None) -> None:
    said = ""
    while True:
        await asyncio.sleep(look)
        trouble = ""
        try:
            now = identity(path)
            if now is None:
                await again()
                ours = identity(path)
                log.warning("the socket %s was removed, and is made again", path)
            elif now != ours:
                trouble = f"what is at {path} is not the socket of this process: remove it, and it is made again"
        except OSError as error:
            trouble = f"the socket {path} was removed, and cannot be made again: {error}"
        if trouble and trouble != said:
            log.error("%s", trouble)
        said = trouble


def identity(path: Path | str) -> tuple[int, int] | None:
    """Device and inode of what is at ``path``; None if there is nothing."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
