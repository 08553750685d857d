"""Mounts the layers of a root file system for a shim that does not mount them itself, as the mount manager of
containerd does (``services/oci/prepared.py``). They lie in the bundle, and go with it: no shim needs them once it has
mounted the root file system on them.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from services.kit import errors, mounting, threads, tracing
from services.kit.loop_devices import attached_image
from services.oci.mounts import Mount
from services.oci.prepared import PreparedError, filled, first, needed
from services.tasks.bundle import LAYERS, Bundle

_IMAGE = "erofs"
_FLAGS = {
    "ro": mounting.RDONLY,
    "rw": 0,
    "loop": 0,
    "direct-io": 0,
    "nosuid": mounting.NOSUID,
    "nodev": mounting.NODEV,
    "noexec": mounting.NOEXEC,
}


async def mounted(bundle: Bundle, rootfs: Sequence[Mount], allowed: frozenset[str]) -> Sequence[Mount]:
    """Mount layers in the bundle, which is there. Returns the mounts that are left for a shim that takes the
    ``allowed`` types. Unimplemented for what is no EROFS image, or is to be made first; FailedPrecondition if the
    kernel refuses one. The bundle's deletion unmounts them, also after an error.
    """
    if not needed(rootfs, allowed):
        return rootfs
    with tracing.span("tasks.layers", **{"splitd.layers": first(rootfs, allowed)}):
        return await threads.to_its_end(partial(_mounted, bundle.path / LAYERS, rootfs, first(rootfs, allowed)))


def _mounted(directory: Path, rootfs: Sequence[Mount], number: int) -> Sequence[Mount]:
    made: list[tuple[Mount, str]] = []
    try:
        directory.mkdir(0o700)
        for mount in rootfs[:number]:
            if mount.type != _IMAGE:
                raise errors.Unimplemented(f"the root file system stands on a mount of type {mount.type}")
            place = directory / str(len(made))
            place.mkdir(0o700)
            _mount(mount, place)
            made.append((mount, str(place)))
        if number == len(rootfs):
            return (Mount("bind", made[-1][1], ("ro", "rbind")),)
        return (filled(rootfs[number], made), *rootfs[number + 1 :])
    except PreparedError as error:
        raise errors.Unimplemented.verbatim(str(error)) from None
    except OSError as error:
        raise errors.of_system(error, "a layer of the root file system cannot be mounted") from None


def _mount(mount: Mount, place: Path) -> None:
    """From its files where the kernel can, else by loop devices."""
    if special := next((each for each in mount.options if each.startswith("X-containerd.")), ""):
        raise errors.Unimplemented(f"mount option {special}")
    flags = mounting.RDONLY
    for option in mount.options:
        flags |= _FLAGS.get(option, 0)
    options = [option for option in mount.options if option not in _FLAGS]
    try:
        mounting.mount(mount.source, place, _IMAGE, flags, ",".join(options))
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
        with attached_image(mount.source, options) as (device, of_devices):
            mounting.mount(device, place, _IMAGE, flags, ",".join(of_devices))
