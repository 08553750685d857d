"""Unpacks the layers of an image that a client will ask for next, while it waits for one below.

Clients that unpack by themselves (ctr 1.6, nerdctl) prepare, apply and commit one layer after the other, and leave all
processors but one idle. The manifest's labels say which layers follow (containerd.io/gc.ref.content.l.N, which the
client has set). So when the lowest layer of an image is applied to one of our overlayfs snapshots, the next ones are
unpacked *alone*, as for a pull by the node (``images/layers/unpacker.py``), each into a directory of its own::

    ROOT/snapshots/diff/ahead/layers/NUMBER/fs      the files of a layer; all is emptied at each start
    ROOT/snapshots/diff/ahead/layers/NUMBER/layer   its note (``note.py``)
    ROOT/snapshots/diff/ahead/notes                 workers are to write that

When the client asks for one, its files are moved to their place, and directories that the layer does not name get their
attributes from the layers below. What cannot be moved, or is not begun yet, is unpacked as ever: nothing depends on
what is done ahead. What nobody asks for in a while goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.content import blobs_remote
from services.kit import errors, loops, rpc, tracing
from services.oci.mounts import Mount
from services.snapshots.diff import note
from services.snapshots.diff.inherit import DefaultAclError, Unnamed, inherit
from services.snapshots.diff.mounts import MountError, syncfs
from services.snapshots.diff.workers import Applied, Appliers

log = logging.getLogger(__name__)

_LAYER = "containerd.io/gc.ref.content.l."
"""The label of a manifest with the digest of a layer, and the layer's number from the lowest (0) on."""
_OPTION = re.compile("(lowerdir|upperdir|workdir|index|xino|metacopy|redirect_dir)=.*|volatile|rw")
"""Options of an overlay on which a layer is what it would be on any other."""
_MOST = 500
"""Layers of an image that are unpacked ahead."""
_IMAGES = 4
"""Images whose layers are unpacked ahead at once. Of others, no layer is."""
_WAIT = 60.0
"""Seconds within which a client asks for the next layer, or it is taken to have given up."""


@dataclass(slots=True, eq=False)
class _Image:
    """The layers of an image that its client will ask for."""

    headers: blobs_remote.Headers
    """Of the call for its lowest layer."""
    disk: int
    """A directory that was opened before anything was written: a sync of it tells whether a write has failed since."""
    left: list[str]
    """Their digests, from the lowest on; those that are not begun yet."""
    begun: dict[str, tuple[Path, asyncio.Task[Applied | None]]] = field(default_factory=dict)
    """The directories of others, and the work on them. Its result is None if the layer could not be unpacked."""
    calls: int = 0
    """Calls for its layers that are under way."""
    ends: asyncio.TimerHandle | None = None


class Ahead:
    """Layers that ``appliers`` unpack before they are asked for, in ``directory``. ``together``: so many at once.
    ``wait``: seconds that a client may take between two layers.
    """

    def __init__(
        self,
        appliers: Appliers,
        blobs: blobs_remote.Blobs,
        directory: Path,
        *,
        together: int | None = None,
        wait: float = _WAIT,
        sync: bool = True,
    ) -> None:
        """``sync``: a layer is moved only once its files are on the disk. They were written before its snapshot was
        begun, and who commits that looks for writes that failed since then.
        """
        shutil.rmtree(directory, ignore_errors=True)
        self._directory = directory / "layers"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # some of it may not have gone
        (directory / note.WANTED).touch()
        self._appliers = appliers
        self._blobs = blobs
        self._room = together or max(1, min(4, (os.cpu_count() or 2) - 1))
        self._wait = wait
        self._sync = sync
        self._images: list[_Image] = []
        self._number = 0
        self._ending = loops.Tasks()

    async def aclose(self) -> None:
        """End what is under way."""
        for image in [*self._images]:
            self._end(image)
        if tasks := [*self._ending]:
            await asyncio.wait(tasks)

    @contextlib.asynccontextmanager
    async def around(self, digest: str, target: Sequence[Mount], headers: blobs_remote.Headers) -> AsyncIterator[None]:
        """A call that unpacks a layer. While it is under way, those above are unpacked."""
        image = self._of(digest, headers)
        if image is None and _is_lowest(target) and len(self._images) < _IMAGES:
            image = await self._expected(digest, headers)
        if image is None:
            yield
            return
        image.calls += 1
        if image.ends is not None:
            image.ends.cancel()
        self._go_on()
        try:
            yield
        finally:
            image.calls -= 1
            if not image.calls:
                if image.left or image.begun:
                    image.ends = asyncio.get_running_loop().call_later(self._wait, self._end, image)
                else:
                    self._end(image)

    async def taken(self, digest: str, target: Sequence[Mount], headers: blobs_remote.Headers) -> Applied | None:
        """Move a layer that was unpacked ahead to its place. None if it was not, or cannot be moved: then nothing of it
        is there.
        """
        image = self._of(digest, headers)
        if image is None:
            return None
        if digest in image.left:  # whoever asks for it does the work
            image.left.remove(digest)
            return None
        directory, work = image.begun[digest]
        try:
            with tracing.wait("worker", "", **{"splitd.wait.for": "a layer that is unpacked ahead"}):
                applied = await asyncio.shield(work)
            if applied is None or not _takes(target):
                return None
            if self._sync and not await asyncio.to_thread(_synced, image.disk):
                self._end(image)
                return None
            return applied if await asyncio.to_thread(_moved, directory, target[0], applied.unnamed) else None
        finally:
            image.begun.pop(digest, None)
            self._dropped(directory, work)

    def _of(self, digest: str, headers: blobs_remote.Headers) -> _Image | None:
        namespace = headers.get(rpc.NAMESPACE)
        for image in self._images:
            if image.headers.get(rpc.NAMESPACE) == namespace and (digest in image.begun or digest in image.left):
                return image
        return None

    async def _expected(self, digest: str, headers: blobs_remote.Headers) -> _Image | None:
        """The image whose lowest layer is asked for: of several that have it, the newest."""
        try:
            found = await self._blobs.labelled(f"{_LAYER}0", digest, headers)
        except errors.NodeError as error:
            log.info("no layer is unpacked ahead: %s", error)
            return None
        if not found:
            return None
        labels = max(found, key=lambda info: info.created_at.ToNanoseconds()).labels
        left: list[str] = []
        while (above := labels.get(f"{_LAYER}{len(left) + 1}")) and len(left) < _MOST:
            left.append(above)
        left = [each for each in dict.fromkeys(left) if left.count(each) == 1 and each != digest]
        if not left:
            return None
        image = _Image(headers, os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), left)
        self._images.append(image)
        return image

    def _go_on(self) -> None:
        """Begin to unpack further layers, as far as there is room."""
        for image in self._images:
            while self._room and image.left:
                self._room -= 1
                self._number += 1
                digest, directory = image.left.pop(0), self._directory / str(self._number)
                work = self._unpacked(digest, directory, image.headers)
                image.begun[digest] = directory, self._ending.start("a layer that is unpacked ahead", work)

    async def _unpacked(self, digest: str, directory: Path, headers: blobs_remote.Headers) -> Applied | None:
        try:
            with tracing.background("diff.ahead", **{"oci.layer.digest": digest}):
                upper = directory / "fs"
                directory.mkdir(mode=0o700)
                upper.mkdir()
                upper.chmod(0o755)
                async with self._blobs.reading(digest, headers) as blob:
                    return await self._appliers.apply(
                        [Mount("bind", str(upper), ("rw", "rbind"))], blob, detect=True, alone=True
                    )
        except (errors.NodeError, OSError) as error:
            log.info("layer %s is not unpacked ahead: %s", digest, error)
            return None
        finally:
            self._room += 1
            self._go_on()

    def _end(self, image: _Image) -> None:
        """The client does not ask for the rest."""
        if image not in self._images:
            return
        self._images.remove(image)
        os.close(image.disk)
        if image.ends is not None:
            image.ends.cancel()
        image.left.clear()
        for directory, work in image.begun.values():
            self._dropped(directory, work)
        image.begun.clear()

    def _dropped(self, directory: Path, work: asyncio.Task[Applied | None]) -> None:
        async def gone() -> None:
            work.cancel()
            await asyncio.wait((work,))
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

        self._ending.start("the removal of a layer that was unpacked ahead", gone())


def _synced(disk: int) -> bool:
    """Return once all that was written is on the disk. False if some of it is not."""
    try:
        syncfs(disk)
    except MountError as error:
        log.error("what was unpacked ahead is unpacked again: %s", error)
        return False
    return True


def _is_ours(upper: str) -> bool:
    """Whether a directory is one of our overlayfs's snapshots."""
    return os.path.basename(upper) == "fs" and (Path(upper).parent.parent.parent / note.WANTED).exists()


def _is_lowest(target: Sequence[Mount]) -> bool:
    return len(target) == 1 and target[0].type == "bind" and _is_ours(target[0].source)


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
    then.
    """
    source, upper = str(directory / "fs"), overlay.option("upperdir")
    if os.listdir(upper):
        return False
    moved = []
    try:
        for name in os.listdir(source):
            os.rename(f"{source}/{name}", f"{upper}/{name}")
            moved.append(name)
        inherit(upper, overlay.option("lowerdir").split(":"), unnamed)
        for key in os.listxattr(source):
            if key.startswith("trusted.overlay."):
                os.setxattr(upper, key, os.getxattr(source, key))
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{directory}/{note.NAME}", f"{os.path.dirname(upper)}/{note.NAME}")
    except (OSError, DefaultAclError) as error:  # as on another file system: whoever unpacks it there gets the error
        log.info("%s cannot be moved to %s: %s", source, upper, error)
        for name in moved:
            os.rename(f"{upper}/{name}", f"{source}/{name}")
        return False
    return True
