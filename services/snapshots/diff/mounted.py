"""The mounts that a worker makes, with containerd's rules for options. ``fuse.py`` makes mounts of types ``fuse.NAME``;
it is imported only for these.
"""

from __future__ import annotations

import errno
import os

from services.kit.mounting import (
    BIND,
    DIRSYNC,
    MANDLOCK,
    NOATIME,
    NODEV,
    NODIRATIME,
    NOEXEC,
    NOSUID,
    OPTIONS_LIMIT,
    RDONLY,
    REC,
    RELATIME,
    REMOUNT,
    STRICTATIME,
    SYNCHRONOUS,
)
from services.oci.mounts import Mount
from services.snapshots.diff.mounts import MountError, mount, unmount_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from services.snapshots.diff.fuse import Keeper

_FLAGS: dict[str, tuple[bool, int]] = {
    "async": (False, SYNCHRONOUS),
    "atime": (False, NOATIME),
    "bind": (True, BIND),
    "dev": (False, NODEV),
    "diratime": (False, NODIRATIME),
    "dirsync": (True, DIRSYNC),
    "exec": (False, NOEXEC),
    "mand": (True, MANDLOCK),
    "noatime": (True, NOATIME),
    "nodev": (True, NODEV),
    "nodiratime": (True, NODIRATIME),
    "noexec": (True, NOEXEC),
    "nomand": (False, MANDLOCK),
    "norelatime": (False, RELATIME),
    "nostrictatime": (False, STRICTATIME),
    "nosuid": (True, NOSUID),
    "rbind": (True, BIND | REC),
    "relatime": (True, RELATIME),
    "remount": (True, REMOUNT),
    "ro": (True, RDONLY),
    "rw": (False, RDONLY),
    "strictatime": (True, STRICTATIME),
    "suid": (False, NOSUID),
    "sync": (True, SYNCHRONOUS),
}
"""The options of fstab that are flags of mount(2): whether each sets or clears, and which flag."""

_ROOM = 512
"""Lower directories are given relative to their common path if the options come closer than this many bytes to the
limit, as in containerd.
"""


class Mounted:
    """Mounts on ``directory``, made in order, each on its target below it. Those that a program serves last as long as
    this object.
    """

    def __init__(self, mounts: Sequence[Mount], directory: str) -> None:
        self._root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # the root directory in this namespace
        self._directory = directory
        self._keeper: Keeper | None = None
        self._prepared = Prepared(mounts, directory)
        for m in self._prepared.left:
            self._mount(m, _target(m, directory))

    def _mount(self, m: Mount, target: str) -> None:
        if m.type == "erofs":
            _mount_image(m, target)
            return
        if "loop" in m.options:
            from services.kit.loop_devices import attached

            options = [o for o in m.options if o not in ("loop", "direct-io")]
            with attached(m.source, read_only=read_only_option(options), direct="direct-io" in m.options) as device:
                _mount_one(Mount(m.type, device, tuple(options), m.target), target)
            return
        if not m.type.startswith(("fuse.", "fuse3.")):
            _mount_one(m, target)
            return
        if self._keeper is None:
            from services.snapshots.diff.fuse import Keeper

            self._keeper = Keeper()
        self._keeper.mount(m, target)

    @property
    def served(self) -> bool:
        """Whether a program serves any of the mounts: then :meth:`end` is needed for all data to reach its
        destination.
        """
        return self._keeper is not None

    def end(self) -> None:
        """Unmount all, and wait for the programs that served them. The caller must have nothing open there. The root
        directory is then again that of the constructor's caller.
        """
        os.fchdir(self._root)
        os.chroot(".")
        unmount_all(self._directory)
        if self._keeper is not None:
            self._keeper.end()


class Prepared:
    """What is ``left`` of mounts once those that others stand on are made (``oci/prepared.py``), each on a directory of
    a file system that lies on ``directory``, below what is mounted there next. Most mounts are left as they are. What
    programs serve of the others lasts as long as this object.
    """

    def __init__(self, mounts: Sequence[Mount], directory: str) -> None:
        self.left: Sequence[Mount] = mounts
        self._made: list[Mounted] = []
        if not any("/" in m.type for m in mounts):
            return
        from services.oci.prepared import PreparedError, filled, type_of

        last = max((at for at, m in enumerate(mounts) if type_of(m) != m.type), default=None)
        if last is None:
            return
        made: list[tuple[Mount, str]] = []
        try:
            if last:
                mount("splitd", directory, "tmpfs", NOSUID | NODEV, "mode=0700")
            for at, m in enumerate(mounts[:last]):
                place = f"{directory}/{at}"
                os.mkdir(place)
                one = filled(m, made)
                self._made.append(Mounted([one], place))
                made.append((one, place))
            self.left = [filled(mounts[last], made), *mounts[last + 1 :]]
        except PreparedError as error:
            raise MountError(str(error)) from None


def _mount_image(m: Mount, target: str) -> None:
    """Mount an EROFS image: from its files where the kernel can, else by loop devices."""
    plain = m._replace(options=tuple(o for o in m.options if o not in ("loop", "direct-io")))
    try:
        _mount_one(plain, target)
        return
    except MountError as error:
        if error.errno != errno.ENOTBLK:
            raise
    from services.kit.loop_devices import attached_image

    with attached_image(m.source, plain.options, direct="direct-io" in m.options) as (device, options):
        _mount_one(Mount(m.type, device, options, m.target), target)


def _target(m: Mount, directory: str) -> str:
    if not m.target:
        return directory
    from services.snapshots.diff.paths import Resolver

    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return directory + os.fsdecode(Resolver(fd).resolve(os.fsencode(m.target)))
    finally:
        os.close(fd)


def read_only_option(options: Iterable[str]) -> bool:
    """Whether options ask for a read-only mount: the last of ``ro`` and ``rw`` counts."""
    return next((o == "ro" for o in reversed(list(options)) if o in ("ro", "rw")), False)


def _mount_one(m: Mount, target: str) -> None:
    flags, data = 0, []
    options = (
        [o for o in m.options if o not in ("volatile", "fsync=volatile")] if m.type == "overlay" else list(m.options)
    )
    cwd = ""
    if m.type == "overlay" and sum(len(os.fsencode(o)) for o in options) > OPTIONS_LIMIT - _ROOM:
        cwd, options = _compact(options)
    for o in options:
        if o.startswith("X-containerd."):
            raise MountError(f'internal mount option "{o}" was not consumed by the mount manager')
        if o.startswith(("uidmap=", "gidmap=")):
            raise MountError(f"mount option {o}: not implemented")
        if o in _FLAGS:
            sets, flag = _FLAGS[o]
            flags = flags | flag if sets else flags & ~flag
        else:
            data.append(o)
    back = os.open(".", os.O_PATH | os.O_DIRECTORY) if cwd else -1
    try:
        if cwd:
            os.chdir(cwd)
        mount(m.source, target, m.type, flags, ",".join(data))
        if flags & (BIND | RDONLY) == BIND | RDONLY:
            mount("", target, "", flags | REMOUNT, "")  # a bind mount takes flags only by a remount
    finally:
        if cwd:
            os.fchdir(back)
            os.close(back)


def _compact(options: list[str]) -> tuple[str, list[str]]:
    """Make many lower directories relative to their common path, which is returned first: the mount must run with it as
    its working directory.
    """
    at = next((i for i, o in enumerate(options) if o.startswith("lowerdir=")), -1)
    lowers = options[at][9:].split(":") if at >= 0 else []
    common = os.path.commonpath(lowers) if len(lowers) > 1 and all(lower.startswith("/") for lower in lowers) else ""
    # as text, not resolved
    if common in ("", "/") or any(
        len(lower) <= len(common) + 1 or not lower.startswith(f"{common}/") for lower in lowers
    ):
        return "", options
    short = ":".join(lower[len(common) + 1 :] for lower in lowers)
    return common, [*options[:at], *options[at + 1 :], f"lowerdir={short}"]
