"""Unpacks the layers of an image that a client will ask for next, while it waits for one below.

Clients that unpack by themselves (ctr 1.6, nerdctl) prepare, apply and commit one layer after the other, and leave all
processors but one idle. The manifest's labels say which layers follow (containerd.io/gc.ref.content.l.N, which the
client has set). So when the lowest of the layers that are missing is applied to one of our overlayfs snapshots, the
next ones are unpacked *alone*, as for a pull by the node (``images/layers/unpacker.py``), each into a directory of its
own::

    ROOT/snapshots/diff/ahead/layers/NUMBER/fs      the files of a layer
    ROOT/snapshots/diff/ahead/layers/NUMBER/layer   its note (``note.py``)
    ROOT/snapshots/diff/ahead/notes                 workers are to write that

When the client asks for one, its files are moved to their place, and directories that the layer does not name get their
attributes from the layers below. What cannot be moved, or is not begun yet, is unpacked as ever: nothing depends on
what is done ahead.

What is unpacked belongs to the first call that asks for it, and goes with that call. What nobody asks for goes when a
call for the image fails, or some time after the last one. What a process left is removed by the next one, beside its
other work: the names of its own directories are new. Nothing is begun on a disk that is nearly full.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from services.content import blobs_remote
from services.kit import errors, loops, rpc, threads, tracing
from services.kit.faults import fault
from services.oci.mounts import Mount
from services.snapshots import disk
from services.snapshots.diff import note
from services.snapshots.diff.inherit import LONG, DefaultAclError, Unnamed, inherit, lookups
from services.snapshots.diff.media import UNCOMPRESSED
from services.snapshots.diff.mounts import MountError, syncfs
from services.snapshots.diff.workers import Applied, Appliers

log = logging.getLogger(__name__)

Taken = Callable[[], Awaitable[Applied | None]]
"""Moves a layer that was unpacked ahead to its place. None if it was not, or cannot be moved: then nothing of it is
there.
"""

_LAYER = "containerd.io/gc.ref.content.l."
"""The label of a manifest with the digest of a layer, and the layer's number from the lowest (0) on."""
_OPTION = re.compile("(lowerdir|upperdir|workdir|index|xino|metacopy|redirect_dir)=.*|volatile|rw")
"""Options of an overlay on which a layer is what it would be on any other."""
_BINDING = frozenset(("bind", "rbind", "rw"))
"""Options of a mount that only binds."""
_MOST = 500
"""Layers of an image that are unpacked ahead."""
_UNNAMED = 4096
"""Directories that a layer does not name: they are kept in memory. A layer that has more is not unpacked ahead."""
_IMAGES = 4
"""Images whose layers are unpacked ahead at once. Of others, no layer is."""
_WAIT = 60.0
"""Seconds within which a client asks for the next layer, or it is taken to have given up."""
_GROWS = 10
"""Bytes that are free for each byte of a blob when its unpacking begins. Most layers take three."""
_FREE = 4 << 30
"""Bytes that stay free, or a tenth of the file system if that is less; and a twentieth of its inodes."""
_LOOK = 1.0
"""Seconds between looks at what is free."""
_AGAIN = 60.0
"""Seconds between attempts to remove a directory, at most."""


def has_room(directory: int, size: int) -> bool:
    """Whether the file system of an open directory has room for what a blob of ``size`` bytes becomes."""
    found = os.fstatvfs(directory)
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return free >= _GROWS * size + min(_FREE, whole // 10) and found.f_favail >= found.f_files // 20


@dataclass(slots=True)
class _Layer:
    """A layer that is unpacked ahead, or was. The result of ``work`` is None if it could not be."""

    directory: Path
    work: asyncio.Task[Applied | None]


@dataclass(slots=True, eq=False)
class _Image:
    """The layers of an image that its client will ask for."""

    manifest: str
    """Its digest."""
    headers: blobs_remote.Headers
    """Of the first call."""
    disk: int
    """A directory that was opened before anything was written: a sync of it tells whether a write has failed since."""
    left: list[str]
    """Their digests, from the lowest on; those that are not begun yet."""
    begun: dict[str, _Layer] = field(default_factory=dict)
    """Others that nobody has asked for yet."""
    calls: int = 0
    """Calls for its layers that are under way."""
    pauses: bool = False
    """The next layer is not there yet. It is looked for at the next call."""
    lost: bool = False
    """A write has failed. The kernel says that once; nothing that was written since the image was met is trusted."""
    syncing: asyncio.Lock = field(default_factory=asyncio.Lock)
    ends: asyncio.TimerHandle | None = None


class Ahead:
    """Layers that ``appliers`` unpack before they are asked for, in ``directory``. ``together``: so many at once.
    ``wait``: seconds that a client may take between two layers. ``room`` is :func:`has_room`.
    """

    def __init__(
        self,
        appliers: Appliers,
        blobs: blobs_remote.Blobs,
        directory: Path,
        *,
        together: int | None = None,
        wait: float = _WAIT,
        look: float = _LOOK,
        sync: bool = True,
        room: Callable[[int, int], bool] = has_room,
    ) -> None:
        """``sync``: a layer is moved only once its files are on the disk. They were written before its snapshot was
        begun, and who commits that looks for writes that failed since then. ``look``: seconds between looks at what is
        free.
        """
        self._directory = directory / "layers"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.want(directory)
        left = os.listdir(self._directory)
        self._numbers = itertools.count(max((int(name) for name in left if name.isdecimal()), default=0) + 1)
        self._appliers = appliers
        self._blobs = blobs
        self._room = together or max(1, min(4, (os.cpu_count() or 2) - 1))
        self._wait = wait
        self._look = look
        self._sync = sync
        self._has_room = room
        self._images: list[_Image] = []
        self._unpacking = loops.Tasks()
        self._removing = loops.Tasks()
        self._closed = False
        if left:
            self._remove([self._directory / name for name in left])

    async def aclose(self) -> None:
        """End what is under way. Directories stay; the next process removes them."""
        self._closed = True
        for image in [*self._images]:
            self._end(image)
        await self._unpacking.cancel()
        await self._removing.cancel()

    @contextlib.asynccontextmanager
    async def around(
        self, digest: str, target: Sequence[Mount], headers: blobs_remote.Headers, *, detect: bool = True
    ) -> AsyncIterator[Taken]:
        """A call that unpacks a layer, as :meth:`Appliers.apply`. While it is under way, those above are unpacked."""
        image = self._of(digest, headers)
        if image is None and (height := self._height(target)) is not None:
            image = await self._expected(digest, height, headers)
        if image is None:
            yield _nothing
            return
        image.calls += 1
        if image.ends is not None:
            image.ends.cancel()
        if digest in image.left:  # whoever asks for it does the work
            image.left.remove(digest)
        layer = image.begun.pop(digest, None)
        image.pauses = False
        self._go_on()
        try:
            yield _nothing if layer is None else partial(self._taken, image, digest, layer, target, detect)
        except BaseException:  # its client has gone, or will not go on
            self._end(image)
            raise
        finally:
            if layer is not None:
                self._drop(layer)
            image.calls -= 1
            if not image.calls:
                self._left(image)

    def _left(self, image: _Image) -> None:
        """No call for an image is under way."""
        if image not in self._images:
            os.close(image.disk)
        elif image.left or image.begun:
            image.ends = asyncio.get_running_loop().call_later(self._wait, self._end, image)
        else:
            self._end(image)

    async def _taken(
        self, image: _Image, digest: str, layer: _Layer, target: Sequence[Mount], detect: bool
    ) -> Applied | None:
        with tracing.wait("worker", "", **{"splitd.wait.for": "a layer that is unpacked ahead"}):
            await asyncio.wait((layer.work,))
            applied = _result(layer.work)
        # without detect, it is not to be inflated, and was not if it has its blob's digest
        if applied is None or not (detect or applied.diff_id == digest):
            return None
        if not _takes(target):
            self._end(image)  # the target of the next will be like this one
            return None
        if self._sync and not await self._is_on_disk(image):
            self._end(image)
            return None
        # a caller that is cancelled may use the target as soon as this ends
        moved = await threads.to_its_end(partial(_moved, layer.directory, target[0], applied.unnamed))
        return applied if moved else None

    async def _is_on_disk(self, image: _Image) -> bool:
        """Return once all that was written is on the disk. False if some of it is not."""
        async with image.syncing:
            if not image.lost:
                image.lost = not await threads.to_its_end(partial(_synced, image.disk))
            return not image.lost

    def _of(self, digest: str, headers: blobs_remote.Headers) -> _Image | None:
        namespace = headers.get(rpc.NAMESPACE)
        for image in self._images:
            if image.headers.get(rpc.NAMESPACE) == namespace and (digest in image.begun or digest in image.left):
                return image
        return None

    def _height(self, target: Sequence[Mount]) -> int | None:
        """The number of layers below a target. None if others of its image could not be moved to their places."""
        if len(target) != 1:
            return None
        (mount,) = target
        if mount.type == "overlay":
            upper, height = mount.option("upperdir"), mount.option("lowerdir").count(":") + 1
            fits = _takes(target)
        else:
            upper, height = mount.source, 0
            fits = mount.type == "bind" and {*mount.options} <= _BINDING and _is_ours(upper)
        try:
            return height if fits and os.stat(upper).st_dev == os.stat(self._directory).st_dev else None
        except OSError:
            return None

    async def _expected(self, digest: str, height: int, headers: blobs_remote.Headers) -> _Image | None:
        """The image that has a layer at this height: of several, the newest."""
        try:
            found = await self._blobs.labelled(f"{_LAYER}{height}", digest, headers)
        except errors.NodeError as error:
            log.info("no layer is unpacked ahead: %s", error)
            return None
        if not found:
            return None
        newest = max(found, key=lambda info: info.created_at.ToNanoseconds())
        namespace = headers.get(rpc.NAMESPACE)
        for image in self._images:  # of another client, or of one that has begun again
            if image.manifest == newest.digest and image.headers.get(rpc.NAMESPACE) == namespace:
                return image
        left: list[str] = []
        while (above := newest.labels.get(f"{_LAYER}{height + len(left) + 1}")) and len(left) < _MOST:
            left.append(above)
        left = [each for each in dict.fromkeys(left) if left.count(each) == 1 and each != digest]
        if not left or len(self._images) >= _IMAGES or self._closed:
            return None
        try:
            opened = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            log.warning("no layer is unpacked ahead: %s", error)
            return None
        image = _Image(newest.digest, headers, opened, left)
        self._images.append(image)
        return image

    def _go_on(self) -> None:
        """Begin to unpack further layers, as far as there is room."""
        for image in self._images:
            while self._room and image.left and not image.pauses:
                self._room -= 1
                digest, directory = image.left.pop(0), self._directory / str(next(self._numbers))
                work = self._unpacking.start("a layer that is unpacked ahead", self._unpacked(image, digest, directory))
                work.add_done_callback(partial(self._ended, directory))
                image.begun[digest] = _Layer(directory, work)

    def _ended(self, directory: Path, work: asyncio.Task[Applied | None]) -> None:
        """The work on a layer has ended, in whatever way."""
        self._room += 1
        if _result(work) is None:
            self._remove([directory])  # at once: perhaps the disk is full
        self._go_on()

    async def _unpacked(self, image: _Image, digest: str, directory: Path) -> Applied | None:
        rpc.on_own_behalf()
        try:
            with tracing.background("diff.ahead", **{"oci.layer.digest": digest}):
                info = await self._blobs.info(digest, image.headers)
                if UNCOMPRESSED in info.labels:  # it was unpacked before, so the client may find it there
                    return None
                async with self._blobs.reading(digest, image.headers) as blob:
                    self._check_room(image, info.size)
                    upper = directory / "fs"
                    directory.mkdir(mode=0o700)
                    upper.mkdir()
                    upper.chmod(0o755)
                    target = [Mount("bind", str(upper), ("rw", "rbind"))]
                    applied = await self._while_room(image, self._appliers.apply(target, blob, detect=True, alone=True))
        except errors.NotFound:  # its client may be fetching it
            if image.begun.pop(digest, None) is not None:
                image.left.insert(0, digest)
                image.pauses = True
            return None
        except (errors.NodeError, OSError) as error:
            log.info("layer %s is not unpacked ahead: %s", digest, error)
            return None
        fault("diff.ahead-unpacked")
        return applied if len(applied.unnamed) <= _UNNAMED else None

    def _check_room(self, image: _Image, size: int) -> None:
        if not self._has_room(image.disk, size):
            raise errors.ResourceExhausted(f"{self._directory}: the disk is nearly full")

    async def _while_room(self, image: _Image, work: Coroutine[Any, Any, Applied]) -> Applied:
        """The result of ``work``, which is cancelled if the disk gets nearly full."""
        working = loops.task("the unpacking of a layer ahead", work)
        try:
            while not (await asyncio.wait((working,), timeout=self._look))[0]:
                self._check_room(image, 0)
            return working.result()
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait((working,))

    def _end(self, image: _Image) -> None:
        """Nobody asks for the rest."""
        if image not in self._images:
            return
        self._images.remove(image)
        if image.ends is not None:
            image.ends.cancel()
        image.left.clear()
        for layer in image.begun.values():
            self._drop(layer)
        image.begun.clear()
        if not image.calls:
            os.close(image.disk)

    def _drop(self, layer: _Layer) -> None:
        """What is there of a layer goes."""
        if not layer.work.done():
            layer.work.cancel()  # once it has ended, the directory goes
        elif _result(layer.work) is not None:
            self._remove([layer.directory])

    def _remove(self, directories: Collection[Path]) -> None:
        if not self._closed:
            self._removing.start("the removal of layers that were unpacked ahead", self._removed(directories))

    async def _removed(self, directories: Collection[Path]) -> None:
        """Remove directories. In some, a worker may still write: a slow disk keeps it from ending, though it was
        killed.
        """
        left, pause = [*map(str, directories)], 1.0
        while True:
            try:
                left = await disk.remove(left)
            except errors.NodeError as error:
                log.warning("layers that were unpacked ahead are not removed yet: %s", error)
            if not left:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _AGAIN)


def _result(work: asyncio.Task[Applied | None]) -> Applied | None:
    """What came of the work on a layer; None if it failed. A failure that nobody thought of is in the log."""
    return None if work.cancelled() or work.exception() is not None else work.result()


async def _nothing() -> None:
    """A layer that was not unpacked ahead."""


def _synced(fd: int) -> bool:
    try:
        syncfs(fd)
    except MountError as error:
        log.error("what was unpacked ahead is unpacked again: %s", error)
        return False
    return True


def _is_ours(upper: str) -> bool:
    """Whether a directory is one of our overlayfs's snapshots."""
    return os.path.basename(upper) == "fs" and (Path(upper).parent.parent.parent / note.WANTED).exists()


def _takes(target: Sequence[Mount]) -> bool:
    """Whether a layer that was unpacked alone can be moved to an overlay's upper directory."""
    return (
        len(target) == 1
        and target[0].type == "overlay"
        and all(_OPTION.fullmatch(option) for option in target[0].options)
        and _is_ours(target[0].option("upperdir"))
    )


def _moved(directory: Path, overlay: Mount, unnamed: Sequence[Unnamed]) -> bool:
    """Move the files of a layer to an upper directory, which is empty. False if that cannot be; nothing is left there
    then. Unknown, if it is. It blocks.
    """
    source, upper = str(directory / "fs"), overlay.option("upperdir")
    lowers = overlay.option("lowerdir").split(":")
    moved = []
    try:
        if os.listdir(upper) or lookups(unnamed, len(lowers)) > LONG:
            return False
        for name in os.listdir(source):
            os.rename(f"{source}/{name}", f"{upper}/{name}")
            moved.append(name)
            fault("diff.ahead-moving")
        inherit(upper, lowers, unnamed)
        for key in os.listxattr(source):
            if key.startswith("trusted.overlay."):
                os.setxattr(upper, key, os.getxattr(source, key))
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{directory}/{note.NAME}", f"{os.path.dirname(upper)}/{note.NAME}")
    except (OSError, DefaultAclError) as error:  # as on another file system: whoever unpacks it there gets the error
        log.info("%s cannot be moved to %s: %s", source, upper, error)
        try:
            for name in moved:
                with contextlib.suppress(FileNotFoundError):  # somebody removes the snapshot
                    os.rename(f"{upper}/{name}", f"{source}/{name}")
        except OSError as left:
            raise disk.disk_error(left, f"{upper} has a part of a layer") from None
        return False
    return True
