"""The snapshotter erofs: a committed snapshot is its layer's tar and an index of it, which the kernel mounts together.

::

    snapshots/ID/fs, work          an active snapshot's changes, as overlayfs has them; empty in a committed one
    snapshots/ID/erofs/data        the uncompressed layer
    snapshots/ID/erofs/index       its index
    snapshots/ID/erofs/written     both were made of what was in fs
    mounts/ID                      where a committed snapshot is mounted while active ones or views stand on it

Diff.Apply finds the directory ``erofs`` beside the upper directory that it is given, and puts the layer there: no file
of it is made. What was written by hand becomes a layer at its commit. Active snapshots are overlays over the mounted
layers, so clients need to know nothing of EROFS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.kit import errors, loops, tracing
from services.oci.mounts import Mount
from services.snapshots import disk, rules
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs import mounting, written
from services.snapshots.erofs.image import ImageError
from services.snapshots.erofs.mounting import Way
from services.snapshots.erofs.place import DATA, LAYER, WRITTEN, is_unpacked, used, write_index
from services.snapshots.local import prefixed
from services.snapshots.overlay import Overlayfs, OverlaySnapshotter
from services.snapshots.store import Kind, Usage
from services.snapshots.tree import Row, Rows

log = logging.getLogger(__name__)

IDLE = 30.0
"""Seconds for which a layer stays mounted after its last use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erofs(Overlayfs):
    """The snapshotter erofs. Its active snapshots are overlays."""

    loop: bool = False
    """Mount layers by loop devices, even where the kernel can mount files."""


class ErofsSnapshotter(OverlaySnapshotter):
    """A ``Snapshotter`` of layers that the kernel mounts."""

    NAME = "erofs"
    SHARES = False
    Settings = Erofs

    def __init__(
        self,
        root: Path,
        settings: Erofs | None = None,
        *,
        sync_commit: bool = True,
        sync_remove: bool = False,
        idle: float = IDLE,
    ) -> None:
        """``idle``: seconds for which a layer stays mounted after its last use."""
        super().__init__(root, settings, sync_commit=sync_commit, sync_remove=sync_remove)
        self._points = root / "mounts"
        self._points.mkdir(mode=0o700, exist_ok=True)
        self._loop = isinstance(self.settings, Erofs) and self.settings.loop
        self._way: Way | None = None
        self._idle = idle
        self._mounting = asyncio.Lock()
        self._needs: dict[int, Sequence[int]] = {}
        """The layers that each active snapshot and view stands on."""
        self._users: Counter[int] = Counter()
        """How many of them stand on a layer."""
        self._letting_go: asyncio.TimerHandle | None = None
        self._making: Counter[int] = Counter()
        self._made_layers = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        with contextlib.suppress(errors.NodeError):  # damaged records: the next reader gets the error
            for row in map(self._tree.row, self._tree.view(Rows.all)):
                if row.info.kind is not Kind.COMMITTED:
                    self._stands(row.id, self._tree.view(lambda rows, row=row: rows.ancestors(row)))  # type: ignore[misc]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._letting_go is not None:
            self._letting_go.cancel()
        await self._let_go()
        await super().__aexit__(*exc)

    async def start(self) -> None:
        found = await asyncio.to_thread(mounting.tried, self.root, force_loop=self._loop)
        if isinstance(found, str):
            self._failed(found)
            return
        self._way = found
        await super().start()
        if not any(option.startswith("xino=") for option in self._options):
            self._options = (*self._options, "xino=on")  # all files of a tree have one device number

    def capabilities(self) -> Sequence[str]:
        """None of overlayfs's: an index is made for the layers below it, and ids would have to be mapped there."""
        return ()

    # ---------------------------------------------------------------- making

    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        super().make(name, kind, ancestors, labels)
        if kind is Kind.ACTIVE:
            os.mkdir(f"{self.at(name)}/{LAYER}", 0o700)
        return True

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        made = await super()._create(kind, key, parent, labels)
        try:
            await self._mounted(key)
        except BaseException:
            with contextlib.suppress(errors.NodeError):
                await self.remove(key)
            raise
        return made

    async def mounts(self, key: str) -> list[Mount]:
        found = await super().mounts(key)
        await self._mounted(key)
        return found

    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        active = row.info.kind is Kind.ACTIVE
        if not ancestors:
            return [Mount("bind", self.changes(row.id), ("rw" if active else "ro", "rbind"))]
        if not active and len(ancestors) == 1:
            return [Mount("bind", self._point(ancestors[0]), ("ro", "rbind"))]
        writable = [f"workdir={self.path(row.id)}/work", f"upperdir={self.changes(row.id)}"] if active else []
        lower = "lowerdir=" + ":".join(map(self._point, ancestors))
        return [Mount("overlay", "overlay", (*writable, lower, *self._options))]

    # ---------------------------------------------------------------- committing

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        row = self._get(key)
        if row.info.kind is Kind.ACTIVE and name:
            async with self._alone(row.id):
                if self._get(key).info.kind is Kind.ACTIVE:
                    with prefixed(self.error_words("commit", key)), tracing.span("snapshots.layer"):
                        await asyncio.to_thread(_layered, Path(self.path(row.id)))
                await super().commit(name, key, labels, parent)
        else:
            await super().commit(name, key, labels, parent)
        self._released(row.id)

    @contextlib.asynccontextmanager
    async def _alone(self, number: int) -> AsyncIterator[None]:
        """One after the other, for each snapshot."""
        async with self._made_layers:
            await self._made_layers.wait_for(lambda: not self._making[number])
            self._making[number] = 1
        try:
            yield
        finally:
            del self._making[number]
            async with self._made_layers:
                self._made_layers.notify_all()

    async def measure(self, row: Row) -> Usage:
        layer = f"{self.path(row.id)}/{LAYER}"
        try:
            return Usage(*await asyncio.to_thread(used, layer)) if is_unpacked(layer) else await super().measure(row)
        except OSError as error:
            raise disk.disk_error(error, "failed to compute usage") from None

    async def freeze(self, numbers: Sequence[int]) -> None:
        """Remove the files that a layer was made of."""

        def left() -> list[str]:
            return [
                entry.path
                for number in numbers
                if os.path.isdir(self.changes(number))
                for entry in os.scandir(self.changes(number))
            ]

        await disk.remove(await asyncio.to_thread(left))

    # ---------------------------------------------------------------- mounts of layers

    def _point(self, number: int) -> str:
        return str(self._points / str(number))

    def _stands(self, number: int, ancestors: Sequence[int]) -> None:
        if number not in self._needs:
            self._needs[number] = ancestors
            self._users.update(ancestors)

    def _released(self, number: int) -> None:
        """A snapshot does not stand on layers any more. They are let go a little later: most often the next one comes
        at once.
        """
        ancestors = self._needs.pop(number, ())
        self._users.subtract(ancestors)
        self._users = +self._users
        if ancestors and self._letting_go is None:
            self._letting_go = asyncio.get_running_loop().call_later(
                self._idle, lambda: loops.aside("the end of layers' mounts", self._let_go())
            )

    async def _mounted(self, key: str) -> None:
        """Mount what an active snapshot or a view stands on."""

        def read(rows: Rows) -> tuple[int, list[int]]:
            row = rules.mountable(rows, key)
            return row.id, rows.ancestors(row)

        number, ancestors = self._tree.view(read)
        self._stands(number, ancestors)
        async with self._mounting:
            missing = [each for each in ancestors if not mounting.is_mounted(self._point(each))]
            if missing:
                with tracing.span("snapshots.mount", **{"splitd.layers": len(missing)}):
                    await asyncio.to_thread(self._mount, missing)

    def _mount(self, numbers: Sequence[int]) -> None:
        if self._way is None:
            raise errors.FailedPrecondition(f"snapshotter {self.NAME} does not work on this machine")
        for number in numbers:
            try:
                os.makedirs(self._point(number), mode=0o700, exist_ok=True)
                mounting.mount(self._way, Path(self.path(number), LAYER), Path(self._point(number)))
            except MountError as error:
                raise errors.FailedPrecondition(f"a layer cannot be mounted: {error}") from None
            except OSError as error:
                raise disk.disk_error(error, "a layer cannot be mounted") from None

    async def _let_go(self) -> None:
        """Unmount the layers that nothing stands on. One that somebody uses all the same stays."""
        self._letting_go = None
        async with self._mounting:
            needless = [name for name in os.listdir(self._points) if not (name.isdecimal() and self._users[int(name)])]
            await asyncio.to_thread(lambda: [_unmounted(str(self._points / name)) for name in needless])

    async def discard(self, names: Sequence[str]) -> Sequence[str]:
        for name in names:
            if name.isdecimal():
                self._released(int(name))
        async with self._mounting:
            used = await asyncio.to_thread(lambda: [name for name in names if not _unmounted(str(self._points / name))])
        if used:
            log.warning("layers that are mounted and in use stay: %s", ", ".join(used))
        return [*used, *await super().discard([name for name in names if name not in used])]


def _unmounted(point: str) -> bool:
    """Unmount a layer, and remove the directory; False if somebody uses it."""
    if mounting.is_mounted(point) and not mounting.unmount(point):
        return False
    with contextlib.suppress(OSError):
        os.rmdir(point)
    return True


def _layered(thing: Path) -> None:
    """Make the layer of an active snapshot, if it was not unpacked as one. It blocks."""
    layer, upper = thing / LAYER, thing / "fs"
    with os.scandir(upper) as entries:
        changed = next(entries, None) is not None
    try:
        if is_unpacked(str(layer)):
            if changed:
                raise errors.FailedPrecondition(
                    f"a layer was unpacked into {layer}, and files were written to {upper} as well: write them to a "
                    "snapshot of the committed layer"
                )
            return
        (layer / WRITTEN).touch()
        fd = os.open(layer / DATA, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            root, size = written.collect(str(upper), fd)
        finally:
            os.close(fd)
        write_index(root, str(layer), size)
    except (MountError, ImageError) as error:
        raise errors.Unknown(f"no layer can be made of {upper}: {error}") from None
    except OSError as error:
        raise disk.disk_error(error, f"no layer can be made of {upper}") from None
