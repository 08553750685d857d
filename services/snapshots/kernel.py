"""Finds out what this machine's kernel, and the filesystem below a snapshotter, can do.

The answers become mount options and capabilities, by containerd's own rules, and the reason why overlayfs cannot be
used, if it cannot.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from services.kit import errors, mounting

_TRIAL = ".overlay-trial-"
_ALL_IDS = 4294967295

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = _libc.closedir.argtypes = [ctypes.c_void_p]


def version() -> tuple[int, int]:
    """The kernel's version, as far as features depend on it."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def in_user_namespace(uid_map: Path = Path("/proc/self/uid_map")) -> bool:
    """Whether this process runs in a user namespace other than the machine's first."""
    try:
        lines = uid_map.read_text().split("\n")
    except FileNotFoundError:  # a kernel without user namespaces
        return False
    return lines[0].split() != ["0", "0", str(_ALL_IDS)]


def supports_index() -> bool:
    """Whether overlayfs knows the option ``index``. It does not show before the module is loaded."""
    return os.path.exists("/sys/module/overlay/parameters/index")


def supports_idmapped_overlay() -> bool:
    """Whether layers of an overlay may be ID-mapped mounts. Older kernels than 5.19 with a backport are not
    recognized.
    """
    return version() >= (5, 19)


def supports_d_type(directory: Path) -> bool:
    """Whether directory entries have a type (d_type): overlayfs needs it to show whiteouts as deletions."""
    with tempfile.TemporaryDirectory(prefix=_TRIAL, dir=directory) as place:
        Path(place, "entry").touch()
        handle = _libc.opendir(os.fsencode(place))
        if not handle:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)
        try:
            while entry := _libc.readdir(handle):
                if ctypes.string_at(entry + 18, 1) == b"\0":  # struct dirent: d_ino, d_off, d_reclen, then d_type
                    return False
        finally:
            _libc.closedir(handle)
    return True


class Disk(NamedTuple):
    """A mounted file system: its type, and its source, such as a device."""

    type: str
    source: str


def disk_of(directory: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> Disk:
    """The file system that ``directory``, which exists, is on: of the mounts at or above it the deepest, and of several
    there the last.
    """
    place = os.path.realpath(directory)
    found, depth = Disk("", ""), -1
    for line in mountinfo.read_bytes().splitlines():
        fields, _, more = line.partition(b" - ")
        point = _unescaped(fields.split(b" ")[4])
        inside = point in ("/", place) or place.startswith(f"{point}/")
        if inside and len(point) >= depth:
            kind, source = more.split(b" ")[:2]
            found, depth = Disk(_unescaped(kind), _unescaped(source)), len(point)
    return found


def _unescaped(word: bytes) -> str:
    """A word of mountinfo, decoded: blanks, line ends and backslashes are octal there."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), word))


def on_tmpfs(directory: Path) -> bool:
    """Whether ``directory`` is on a tmpfs."""
    return mounting.type_of(directory) == mounting.TMPFS


async def needs_userxattr(directory: Path) -> bool:
    """Whether an overlay must be mounted with ``userxattr``: in a user namespace, from Linux 5.11 on, but not on tmpfs,
    which refuses it.
    """
    if not in_user_namespace() or on_tmpfs(directory):
        return False
    return version() >= (5, 11) or not await _trial_mount(directory, "userxattr")


async def overlay_trouble(directory: Path) -> str:
    """Why overlayfs cannot be used below ``directory``, which exists; "" if it can."""
    try:
        for stale in directory.glob(f"{_TRIAL}*"):
            shutil.rmtree(stale, ignore_errors=True)
        if not supports_d_type(directory):
            return (
                f"{directory} does not support d_type. If the backing filesystem is xfs, please reformat with "
                "ftype=1 to enable d_type support"
            )
        return await _trial_mount(directory)
    except OSError as error:
        # A full disk says nothing about overlayfs; whoever makes a snapshot there gets that error.
        return "" if errors.is_full(error) else errors.words_of_path(error)


async def _trial_mount(directory: Path, *options: str) -> str:
    """Mount an overlay with two lower layers, in a mount namespace that ends with the program that made it. Returns why
    it failed, or "".
    """
    with tempfile.TemporaryDirectory(prefix=_TRIAL, dir=directory) as place:
        at = {part: f"{place}/{part}" for part in ("lower1", "lower2", "upper", "work", "merged")}
        for path in at.values():
            os.mkdir(path)
        data = ",".join(
            (f"lowerdir={at['lower2']}:{at['lower1']}", f"upperdir={at['upper']}", f"workdir={at['work']}", *options)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                "unshare",
                "--mount",
                "mount",
                "-t",
                "overlay",
                "overlay",
                "-o",
                data,
                at["merged"],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return f"failed to mount overlay: {errors.words_of_path(error)}"
        _, err = await process.communicate()
        if process.returncode:
            why = " ".join(err.decode(errors="replace").replace(place, str(directory)).split())
            return f"failed to mount overlay: {why or process.returncode}"
    return ""
