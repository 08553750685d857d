"""The snapshotter erofs: a committed snapshot is its layer's tar and an index of it, which the kernel mounts together.

::

    snapshots/ID/fs, work          an active snapshot's changes, as overlayfs has them; empty in a committed one
    snapshots/ID/erofs/data        the uncompressed layer
    snapshots/ID/erofs/index       its index; or the layer itself, if that is an EROFS image
    snapshots/ID/erofs/about       what was unpacked; place.py has the files that say how the index was made
    snapshots/ID/erofs/written     data and index were made of what was in fs
    layers/DIFFID                  the same files, once for all snapshots that have the layer (shelf.py)
    mounts/ID                      where a committed snapshot is mounted while active ones or views stand on it

Diff.Apply finds the directory ``erofs`` beside the upper directory that it is given, and puts the layer there: no file
of it is made. What was written by hand becomes a layer at its commit. Active snapshots are overlays over the mounted
layers, so clients need to know nothing of EROFS.

Layers are unpacked side by side, each on no parent. What an index has from the layers below, it gets when the snapshot
is committed on its parent (chaining.py). A client that names a layer's diff id when it prepares a snapshot, in the
label of containerd's unpacker, gets read-only mounts if the layer is here: the snapshot has it, and is committed as it
is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

from services.kit import errors, loops, threads, tracing
from services.kit.faults import fault
from services.oci.mounts import Mount
from services.snapshots import disk, rules
from services.snapshots.diff import workers
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs import chaining, mounting, place, written
from services.snapshots.erofs.image import ImageError
from services.snapshots.erofs.mounting import Way
from services.snapshots.erofs.place import (
    ABOUT,
    DATA,
    INDEX,
    LAYER,
    STAGED,
    WRITTEN,
    is_taken,
    is_unpacked,
    used,
    write_index,
)
from services.snapshots.erofs.shelf import Shelf
from services.snapshots.local import prefixed
from services.snapshots.overlay import Overlayfs, OverlaySnapshotter, mapped_root
from services.snapshots.sharing import space_of
from services.snapshots.store import DIFF_ID, REBASE, Kind, Usage
from services.snapshots.tree import Layer, Row, Rows

log = logging.getLogger(__name__)

IDLE = 30.0
"""Seconds for which a layer stays mounted after its last use."""
FEW, SMALL = 1000, 8 << 20
"""Files, and bytes of their data, up to which a layer is made of what was written by hand in a thread of this process:
some 30 ms of a core, as much as it takes to start a program.
"""
_TRIES = 3


class _ParentReplacedError(errors.FailedPrecondition):
    """The parent of a commit is another snapshot than the one whose layers were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erofs(Overlayfs):
    """The snapshotter erofs. Its active snapshots are overlays."""

    loop: bool = False
    """Mount layers by loop devices, even where the kernel can mount files."""
    mounts: Literal["overlays", "images"] = "overlays"
    """What clients mount: overlays on layers that this node has mounted, which any client can; or the images of the
    layers, and an overlay that is to be filled in, as containerd's erofs snapshotter answers from 2.2 on. That is for
    shims that mount images themselves, for virtual machines.
    """


class ErofsSnapshotter(OverlaySnapshotter):
    """A ``Snapshotter`` of layers that the kernel mounts."""

    NAME = "erofs"
    SHARES = False  # by records; shelf.py shares files
    LASTING = False  # somebody may unmount a layer, and its empty directory would be taken for it
    DIFFER = "erofs"
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
        self._answers_images = isinstance(self.settings, Erofs) and self.settings.mounts == "images"
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
        self._shelf = Shelf(root / "layers")
        self._final: dict[str, asyncio.Future[list[int] | None]] = {}
        """By the names of snapshots that are being committed: done once the index is right, with the ids of the
        snapshot and its ancestors; None if it will not be.
        """
        self._chained_to: dict[int, list[int]] = {}
        """The ids of the ancestors for which a snapshot's index was made, while it is being committed."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await asyncio.to_thread(self._tidied)
        with contextlib.suppress(errors.NodeError):  # damaged records: the next reader gets the error
            for row in map(self._tree.row, self._tree.view(Rows.all)):
                if row.info.kind is not Kind.COMMITTED and not self._answers_images:
                    self._stands(row.id, self._tree.view(lambda rows, row=row: rows.ancestors(row)))  # type: ignore[misc]
        if os.listdir(self._points):  # a killed process may have left more than are needed
            self._let_go_later()
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
        """Of overlayfs's the one: ids cannot be mapped, since the layers below an overlay would have to be."""
        return (REBASE,)

    # ---------------------------------------------------------------- making

    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        _check_owner(mapped_root(labels), self.changes(ancestors[0]) if ancestors else "")
        super().make(name, kind, ancestors, labels)
        if kind is Kind.ACTIVE:
            os.mkdir(layer := f"{self.at(name)}/{LAYER}", 0o700)
            self._shelf.take(labels.get(DIFF_ID, ""), layer)
        return True

    def told(self, rows: Rows, key: str, labels: Mapping[str, str]) -> Mapping[str, str]:
        """A diff id only if the namespace has that layer: an image's config may name any, and whoever runs the image
        would see the files of others.
        """
        if (diff_id := labels.get(DIFF_ID)) and not _has_layer(rows, key, diff_id):
            return {label: value for label, value in labels.items() if label != DIFF_ID}
        return labels

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        made = await super()._create(kind, key, parent, labels)
        try:
            if not self._is_staged(self._get(key)):
                await self._mounted(key)
        except BaseException:
            with contextlib.suppress(errors.NodeError):
                await self.remove(key)
            raise
        return made

    async def mounts(self, key: str) -> list[Mount]:
        found = await super().mounts(key)
        if not self._is_staged(self._get(key)):
            await self._mounted(key)
        return found

    def _is_staged(self, row: Row) -> bool:
        """Whether a snapshot that is not committed has a layer already."""
        return row.info.kind is Kind.ACTIVE and place.is_marked(f"{self.path(row.id)}/{LAYER}", STAGED)

    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        active = row.info.kind is Kind.ACTIVE
        if self._is_staged(row):
            return [Mount("bind", self.changes(row.id), ("ro", "rbind"))]
        if not ancestors:
            return [Mount("bind", self.changes(row.id), ("rw" if active else "ro", "rbind"))]
        images = [self._image(number) for number in ancestors] if self._answers_images else []
        if not active and len(ancestors) == 1:
            return images or [Mount("bind", self._point(ancestors[0]), ("ro", "rbind"))]
        writable = [f"workdir={self.path(row.id)}/work", f"upperdir={self.changes(row.id)}"] if active else []
        if not images:
            lower = "lowerdir=" + ":".join(map(self._point, ancestors))
            return [Mount("overlay", "overlay", (*writable, lower, *self._options))]
        lower = "lowerdir={{ mount 0 }}" if len(images) == 1 else f"lowerdir={{{{ overlay 0 {len(images) - 1} }}}}"
        return [*images, Mount("format/mkdir/overlay", "overlay", (*writable, lower, *self._options))]

    def _image(self, number: int) -> Mount:
        """The mount of a layer, for those who make it themselves."""
        layer = f"{self.path(number)}/{LAYER}"
        data = () if place.is_image(layer) else (f"device={layer}/{DATA}",)
        return Mount("erofs", f"{layer}/{INDEX}", ("ro", "loop", *data))

    async def give(self, number: int, diff_id: str, *, image: bool) -> int | None:
        async with self._alone(number):
            row = self._tree.view(lambda rows: rows.by_id(number))
            if row is None or row.info.kind is not Kind.ACTIVE:
                return None
            key = row.info.name
            if not self._tree.view(lambda rows: _has_layer(rows, key, diff_id)):
                return None
            try:
                return await threads.to_its_end(partial(self._taken, number, diff_id, image=image))
            except OSError as error:
                log.warning("layer %s is unpacked once more: %s", diff_id, errors.words_of_path(error))
                return None

    def _taken(self, number: int, diff_id: str, *, image: bool) -> int | None:
        layer = f"{self.path(number)}/{LAYER}"
        if is_unpacked(layer) or is_taken(layer) or os.listdir(self.changes(number)):
            return None  # whoever unpacks it there gets the error
        place.emptied(layer)
        if not self._shelf.take(diff_id, layer, without=True):
            return None
        known = place.about(layer)
        if known is None or place.is_image(layer) is not image:
            place.emptied(layer)
            return None
        return known.size

    # ---------------------------------------------------------------- committing

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        row = self._get(key)
        if row.info.kind is not Kind.ACTIVE or not name:
            await super().commit(name, key, labels, parent)
            return
        # both before anything is waited for: so no two commits can wait for each other
        below = self._final.get(parent)
        mine: asyncio.Future[list[int] | None] = asyncio.get_running_loop().create_future()
        if first := name not in self._final:
            self._final[name] = mine
        try:
            async with self._alone(row.id):
                for left in reversed(range(_TRIES)):
                    with prefixed(self.error_words("commit", key)):
                        ancestors = await self._ancestors(row, parent, below)
                        if self._get(key).info.kind is Kind.ACTIVE:
                            await self._made_final(row, ancestors)
                    self._chained_to[row.id] = ancestors
                    if not mine.done():
                        mine.set_result([row.id, *ancestors])  # whoever waits for it finds this commit under way
                    try:
                        await super().commit(name, key, labels, parent)
                        break
                    except _ParentReplacedError:
                        if not left:
                            raise
                        below = None
        finally:
            self._chained_to.pop(row.id, None)
            if first:
                del self._final[name]
            if not mine.done():
                mine.set_result(None)
        self._released(row.id)

    async def _ancestors(self, row: Row, parent: str, below: asyncio.Future[list[int] | None] | None) -> list[int]:
        """The ids of the snapshots on which one will be once it is committed. ``below``: the commit of the parent is
        under way.
        """
        if row.parent is None and parent and below is not None and (found := await asyncio.shield(below)) is not None:
            return found

        def read(rows: Rows) -> list[int]:
            number = rules.rebased(rows, row, parent)
            return [] if number is None else rows.ancestors(row._replace(parent=number))

        return self._tree.view(read)

    async def _made_final(self, row: Row, ancestors: Sequence[int]) -> None:
        """Make the layer of an active snapshot right on top of these layers. What was not unpacked as one becomes one
        first.
        """
        layer = Path(self.path(row.id), LAYER)
        with tracing.span("snapshots.layer"):
            if not await threads.to_its_end(partial(_layered, layer)):
                upper = self.changes(row.id)
                with (layer / DATA).open("r+b") as data, prefixed(f"no layer can be made of {upper}"):
                    await workers.run("reindex", "written", str(layer), upper, file=data.fileno(), started=_nothing)
            images = await asyncio.to_thread(
                lambda: [each for each in (row.id, *ancestors) if place.is_image(f"{self.path(each)}/{LAYER}")]
            )
            if row.id in images:
                async with self._kept_mounted([row.id]):
                    return  # the kernel takes it
            lowers = [
                self._point(number) if number in images else f"{self.path(number)}/{LAYER}/{INDEX}"
                for number in ancestors
            ]
            async with self._kept_mounted(images):
                try:
                    right = await asyncio.to_thread(chaining.chained, str(layer), lowers, fixed=row.parent is not None)
                except OSError as error:
                    raise disk.disk_error(error, f"the index of {layer} cannot be made") from None
                if not right:
                    with (layer / DATA).open("rb") as data:
                        upper = self.changes(row.id)
                        await workers.run(
                            "reindex", "again", str(layer), upper, *lowers, file=data.fileno(), started=_nothing
                        )
        fault("snapshots.after-index")

    def record_commit(
        self, rows: Rows, active: Row, name: str, labels: Mapping[str, str], usage: Usage, parent: str
    ) -> None:
        super().record_commit(rows, active, name, labels, usage, parent)
        if (known := place.about(f"{self.path(active.id)}/{LAYER}", made=False)) is not None:
            rows.add_layer(Layer(active.id, known.diff_id, active.id))
        right = self._chained_to.get(active.id)
        if right is not None and rows.ancestors(rules.existing(rows, name)) != right:
            raise _ParentReplacedError(f'parent "{parent}" of snapshot "{name}" is another one than a moment ago')

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
        """Remove the files that a layer was made of. Keep equal layers once, if what is committed is durable."""

        def frozen() -> list[str]:
            for number in numbers if self._sync_commit else ():
                try:
                    self._shelf.put(f"{self.path(number)}/{LAYER}")
                except FileNotFoundError:  # it was removed meanwhile
                    continue
                except OSError as error:
                    log.error("a layer is not shared: %s", errors.words_of_path(error))
            return [
                entry.path
                for number in numbers
                if os.path.isdir(self.changes(number))
                for entry in os.scandir(self.changes(number))
            ]

        await disk.remove(await asyncio.to_thread(frozen))

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
        self._left(self._needs.pop(number, ()))

    def _left(self, ancestors: Sequence[int]) -> None:
        """As :meth:`_released`, of these layers."""
        self._users.subtract(ancestors)
        self._users = +self._users
        if ancestors:
            self._let_go_later()

    def _let_go_later(self) -> None:
        if self._letting_go is None:
            self._letting_go = asyncio.get_running_loop().call_later(
                self._idle, lambda: loops.aside("the end of layers' mounts", self._let_go())
            )

    async def _mounted(self, key: str) -> None:
        """Mount what an active snapshot or a view stands on, unless its client does that."""
        if self._answers_images:
            return

        def read(rows: Rows) -> tuple[int, list[int]]:
            row = rules.mountable(rows, key)
            return row.id, rows.ancestors(row)

        number, ancestors = self._tree.view(read)
        self._stands(number, ancestors)
        await self._all_mounted(ancestors)

    @contextlib.asynccontextmanager
    async def _kept_mounted(self, numbers: Sequence[int]) -> AsyncIterator[None]:
        """These layers are mounted during the block. FailedPrecondition if one cannot be."""
        self._users.update(numbers)
        try:
            await self._all_mounted(numbers)
            yield
        finally:
            self._left(numbers)

    async def _all_mounted(self, ancestors: Sequence[int]) -> None:
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
        diff_ids = await asyncio.to_thread(lambda: {*map(self._diff_id, names)} - {""})
        left = await super().discard([name for name in names if name not in used])
        await asyncio.to_thread(self._tidied, diff_ids)
        return [*used, *left]

    def _diff_id(self, name: str) -> str:
        """The diff id of the layer that a thing has; "" if there is none."""
        try:
            known = place.about(f"{self.at(name)}/{LAYER}", made=False)
        except OSError:
            return ""
        return known.diff_id if known is not None else ""

    def _tidied(self, diff_ids: Iterable[str] | None = None) -> None:
        try:
            self._shelf.tidy(diff_ids)
        except OSError as error:
            log.error("layers that no snapshot has stay: %s", errors.words_of_path(error))


def _has_layer(rows: Rows, key: str, diff_id: str) -> bool:
    """Whether the namespace of the snapshot ``key`` has this layer."""
    space = space_of(key)
    return any(space_of(row.info.name) == space for row, _ in rows.layers(diff_id))


def _unmounted(point: str) -> bool:
    """Unmount a layer, and remove the directory; False if somebody uses it."""
    if mounting.is_mounted(point) and not mounting.unmount(point):
        return False
    with contextlib.suppress(OSError):
        os.rmdir(point)
    return True


def _check_owner(root: tuple[int, int] | None, below: str) -> None:
    """FailedPrecondition if a client wants ids mapped, and has not made a copy of the image for them: it would see all
    files as nobody's. ``root`` is the owner of root in its user namespace; ``below`` the directory below the new one.
    """
    if root is None or not below:
        return
    info = os.stat(below)
    if (info.st_uid, info.st_gid) != root:
        raise errors.FailedPrecondition(
            f"snapshotter erofs maps no ids: the files below belong to root {info.st_uid}:{info.st_gid}, not to "
            f"{root[0]}:{root[1]}; a copy of the image for these ids is needed (ctr makes it without --remap-labels)"
        )


def _layered(layer: Path) -> bool:
    """Make the layer of an active snapshot, if it was not unpacked as one. False if that is left to a program, since
    much was written. It blocks.
    """
    upper = layer.parent / "fs"
    with os.scandir(upper) as entries:
        changed = next(entries, None) is not None
    try:
        if is_unpacked(str(layer)) or (layer / ABOUT).exists():
            if changed:
                raise errors.FailedPrecondition(
                    f"a layer was unpacked into {layer}, and files were written to {upper} as well: write them to a "
                    "snapshot of the committed layer"
                )
            return True
        place.emptied(str(layer))
        place.mark(str(layer), WRITTEN)
        fd = os.open(layer / DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            root, size = written.collect(str(upper), fd, entries=FEW, size=SMALL)
        except written.LargeError:
            return False
        finally:
            os.close(fd)
        write_index(root, str(layer), size)
        return True
    except (MountError, ImageError) as error:
        raise errors.Unknown(f"no layer can be made of {upper}: {error}") from None
    except OSError as error:
        raise disk.disk_error(error, f"no layer can be made of {upper}") from None


def _nothing() -> None:
    """Called when a worker has its file."""
