"""Serves in place of a snapshotter that cannot start, for example because its database cannot be read: it refuses all
calls with the reason.

The other snapshotters of the process serve as usual. Nothing of the broken one is removed: the collector first asks for
its stamp, and that is refused too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from services.kit import damage, errors
from services.oci.mounts import Mount
from services.snapshots.local import LocalSnapshotter
from services.snapshots.soundness import Server
from services.snapshots.store import About, Info, Usage

log = logging.getLogger(__name__)


class BrokenSnapshotter:
    """A ``Snapshotter`` that does nothing: each of its methods raises DataLoss with :attr:`words`."""

    def __init__(self, name: str, why: errors.DataLoss | OSError) -> None:
        """``why`` is the error that its start raised."""
        self.name = name
        words = str(why) if isinstance(why, errors.DataLoss) else f"{errors.words_of_path(why)}: {damage.WHAT_TO_DO}"
        self.words = f"snapshotter {name} is out of use: {words.removesuffix(f': {errors.DataLoss.suffix}')}"
        """Why it cannot be used, and what to do."""

    def report_to(self, *servers: Server) -> None:
        """Let the health of ``servers`` say so."""
        for server in servers:
            server.ail(self.words)

    async def about(self) -> About:
        """Its name, and why it cannot work."""
        return About(self.name, trouble=self.words, broken=True)

    async def stat(self, key: str) -> Info:
        self._refuse()

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        self._refuse()

    async def usage(self, key: str) -> Usage:
        self._refuse()

    async def mounts(self, key: str) -> list[Mount]:
        self._refuse()

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self._refuse()

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self._refuse()

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        self._refuse()

    async def remove(self, key: str) -> None:
        self._refuse()

    async def remove_all(self, things: Sequence[tuple[str, str]]) -> Sequence[BaseException | None]:
        self._refuse()

    async def cleanup(self) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise errors.DataLoss(self.words)

    # last, since its name hides the type ``list``

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        self._refuse()
        yield  # makes this a generator, as in the others


async def started(
    name: str, kind: Callable[[Path], LocalSnapshotter], root: Path, stack: contextlib.AsyncExitStack
) -> LocalSnapshotter | BrokenSnapshotter:
    """The snapshotter in ``root``, which ``stack`` closes. If its data on disk cannot be read, a BrokenSnapshotter.
    Errors that may pass are raised, so that the process is started again.
    """
    try:
        return await stack.enter_async_context(kind(root))
    except errors.DataLoss as error:
        broken = BrokenSnapshotter(name, error)
    except OSError as error:
        if not damage.is_disk(error):
            raise
        broken = BrokenSnapshotter(name, error)
    log.error("%s", broken.words)
    return broken
