"""Mounting snapshots as a client does, changing the files in them, and looking at them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from services.oci.mounts import Mount

Change = Callable[[Path], None]

SECONDS = 60
"""The longest that one mount or umount may take."""


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], at: Path) -> Iterator[Path]:
    """``at``, created if needed, with a snapshot mounted on it as a client does it."""
    at.mkdir(parents=True, exist_ok=True)
    done = 0
    try:
        for mount in mounts:
            _mount(mount, at / mount.target)
            done += 1
        yield at
    finally:
        for _ in range(done):
            _run(["umount", str(at)])


def _mount(mount: Mount, at: Path) -> None:
    options, where = list(mount.options), None
    lowers = next((o for o in options if o.startswith("lowerdir=")), "")
    # mount(2) takes only a page of options: name the layers relative to their directory, as containerd does
    if len(lowers) > 2000:
        where = os.path.dirname(os.path.commonpath(lowers.removeprefix("lowerdir=").split(":")) + "/")
        options[options.index(lowers)] = lowers.replace(f"{where}/", "")
    helper, _, kind = mount.type.partition(".")
    if helper in ("fuse", "fuse3") and kind:  # containerd starts the program of that name, with what is behind the dot
        words = [f"mount.{helper}", mount.source, str(at), "-o", ",".join(options), "-t", kind]
    else:
        words = ["mount", *([] if mount.type == "bind" else ["-t", mount.type]), "-o", ",".join(options)]
        words += [mount.source, str(at)]
    _run(words, where)


def _run(words: Sequence[str], where: str | None = None) -> None:
    """Run a program in a session of its own: a Ctrl-C is for us, and must not stop an umount half way. A
    CalledProcessError has its words.
    """
    subprocess.run(
        words, check=True, cwd=where, start_new_session=True, timeout=SECONDS, stderr=subprocess.PIPE, text=True
    )


def unmounted(below: Path) -> list[str]:
    """Unmount everything below a directory, the deepest first; returns what could not be."""
    for point in _points(below):
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(
                ["umount", "-l", point], check=False, stderr=subprocess.DEVNULL, start_new_session=True, timeout=SECONDS
            )
    return _points(below)


def _points(below: Path) -> list[str]:
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(below) or point.startswith(f"{below}/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def directories(mounts: Sequence[Mount]) -> list[str]:
    """The directories that a snapshot's overlay or bind is made of."""
    found = [
        o.split("=")[1]
        for mount in mounts
        for o in mount.options
        if mount.type == "overlay" and o.startswith(("upperdir=", "workdir="))
    ]
    return found + [mount.source for mount in mounts if mount.type in ("bind", "rbind")]


def files(top: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below ``top``: its path, and its type and mode, owner, contents, hard links (not of directories), and
    xattrs.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for place, folders, names in os.walk(top):
        for name in [".", *names, *(d for d in folders if os.path.islink(os.path.join(place, d)))]:
            path = os.path.join(place, name)
            status = os.lstat(path)
            contents: Any = None
            if stat.S_ISLNK(status.st_mode):
                contents = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                contents = Path(path).read_bytes()
            elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
                contents = status.st_rdev
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False) for x in os.listxattr(path, follow_symlinks=False)}
            found[os.path.relpath(path, top)] = (status.st_mode, status.st_uid, status.st_gid, contents, links, xattrs)
    return found


def write(name: str, text: str, mode: int = 0o644) -> Change:
    def change(top: Path) -> None:
        (top / name).write_text(text)
        (top / name).chmod(mode)

    return change


def mkdir(name: str, mode: int = 0o755) -> Change:
    def change(top: Path) -> None:
        (top / name).mkdir()
        (top / name).chmod(mode)

    return change


def chown(name: str, uid: int, gid: int) -> Change:
    return lambda top: os.chown(top / name, uid, gid)


def delete(name: str) -> Change:
    def change(top: Path) -> None:
        path = top / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return change


def rename(old: str, new: str) -> Change:
    return lambda top: os.rename(top / old, top / new)


def link(old: str, new: str) -> Change:
    return lambda top: os.link(top / old, top / new)
