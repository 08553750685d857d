"""Pairs of trees, before and after changes: input for a Diff service that makes layers."""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.suites.diff_layers import CAPABILITY
from tests.suites.diff_sides import Side

OLD = 1_500_000_000


def put(path: Path, data: bytes = b"data", *, mode: int = 0o644, when: float = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(int(when * 10**9), int(when * 10**9)))


def settle(root: Path) -> None:
    """Give directories a time of their own, so that both sides see the same."""
    for directory, _, _ in os.walk(root, topdown=False):
        os.utime(directory, (OLD, OLD))


def base(root: Path) -> None:
    for name in (
        "etc/passwd",
        "etc/group",
        "usr/bin/tool",
        "usr/lib/one.so",
        "usr/lib/two.so",
        "var/cache/a/b/c",
        "var/log/x",
        "zero/empty",
    ):
        put(root / name, name.encode() * 10)
    put(root / "usr/bin/suid", mode=0o4755)
    (root / "lib").symlink_to("usr/lib")
    os.mkfifo(root / "fifo")
    os.link(root / "etc/passwd", root / "etc/passwd-")
    os.link(root / "usr/lib/two.so", root / "var/two.so")
    os.link(root / "usr/lib/two.so", root / "a-two.so")
    settle(root)


def nothing(root: Path) -> None:
    pass


def many_changes(root: Path) -> None:
    # the same inode: its link changes too
    put(root / "etc/passwd", b"changed, so its link is another file", when=OLD + 1)
    put(root / "etc/new", b"n" * 5000)
    (root / "usr/bin/tool").chmod(0o755)
    os.chown(root / "usr/lib/one.so", 3, 4)
    shutil.rmtree(root / "var/cache")
    (root / "lib").unlink()
    put(root / "lib/real", b"a directory now")
    shutil.rmtree(root / "zero")
    (root / "zero").symlink_to("nowhere")
    (root / "fifo").unlink()
    os.mknod(root / "null", 0o600 | 0o020000, os.makedev(1, 3))
    os.mknod(root / "disk", 0o660 | 0o060000, os.makedev(259, 70000))
    put(root / "ping", b"elf", mode=0o755)
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    os.setxattr(root / "ping", "user.not", b"carried")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
    settle(root)


def odd_names(root: Path) -> None:
    for name in (
        "x" * 99,
        "x" * 100,
        "x" * 101,
        "x" * 255,
        "d" * 60 + "/" + "e" * 60,
        "p" * 150 + "/" + "f" * 100,
        "p" * 156 + "/f",
        "ünï/cödé",
        "日本" * 30,
        "q" * 99 + "/",
        "w" * 100 + "/",
        "new\nline",
        "a=b",
        "r" * 100 + "/ü",
    ):
        if name.endswith("/"):
            (root / name).mkdir()
        else:
            put(root / name)
    (root / "to-long").symlink_to("t" * 150)
    (root / "to-unicode").symlink_to("ü")
    put(Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")))
    os.link(root / ("x" * 255), root / "link-to-long")
    settle(root)


def odd_numbers(root: Path) -> None:
    for i, (uid, when, mode) in enumerate(
        (
            (2097151, OLD, 0o644),
            (2097152, OLD, 0o644),
            (4_000_000_000, OLD, 0o7777),
            (0, -5, 0o644),
            (0, OLD + 0.75, 0),
            (0, -1.25, 0o644),
            (0, 8_589_934_591, 0o600),
            (0, 8_589_934_592, 0o600),
        )
    ):
        put(root / f"n{i}", mode=mode, when=when)
        os.chown(root / f"n{i}", uid, uid)
        os.chmod(root / f"n{i}", mode)
        os.utime(root / f"n{i}", ns=(0, int(when * 10**9)))
    with (root / "sparse").open("wb") as file:
        file.truncate(3_000_000)
    os.utime(root / "sparse", (OLD, OLD))
    settle(root)


def linked(root: Path) -> None:
    """One of three links changes its metadata; a new link of an unchanged file sorts first, and another last."""
    os.chown(root / "usr/lib/two.so", 9, 9)
    os.link(root / "etc/group", root / "zz-group")
    os.link(root / "var/log/x", root / "aa-x")
    put(root / "m/1", b"new")
    os.link(root / "m/1", root / "m/2")
    os.link(root / "m/1", root / "a-first")
    settle(root)


def same_size_and_time(root: Path) -> None:
    """Changes that only the bytes show, where times are whole seconds; and one that a fraction of a second hides."""
    data = (root / "etc/group").read_bytes()
    put(root / "etc/group", data[::-1])
    (root / "lib").unlink()
    (root / "lib").symlink_to("usr/bin")
    put(root / "var/log/x", b"same")
    settle(root)


def touched(root: Path) -> None:
    os.utime(root / "etc/group", ns=(OLD, OLD * 10**9 + 5))
    os.utime(root / "var/log/x", (OLD + 1, OLD + 1))
    os.utime(root / "etc", (OLD + 2, OLD + 2))
    (root / "usr/lib").chmod(0o700)


def emptied(root: Path) -> None:
    for name in os.listdir(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def swapped(root: Path) -> None:
    """Directories become files, and files directories; names sort around a slash."""
    shutil.rmtree(root / "usr")
    put(root / "usr")
    (root / "etc/passwd").unlink()
    put(root / "etc/passwd/x")
    put(root / "var-x/y")
    put(root / "var.x")
    settle(root)


CHANGES = [nothing, many_changes, odd_names, odd_numbers, linked, same_size_and_time, touched, emptied, swapped]


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def trees(side: Side, change: Callable[[Path], None], before: Callable[[Path], None] = base) -> tuple[Path, Path]:
    """A tree before and after a change, as copies that share nothing."""
    left, right = side.directory("left"), side.directory("right")
    for root in (left, right):
        before(root)
        for path in (root / "lib", root / "fifo"):
            if os.path.lexists(path):
                os.utime(path, (OLD, OLD), follow_symlinks=False)
    change(right)
    for root in (left, right):
        for directory, directories, names in os.walk(os.fsencode(root)):
            for name in (*names, *directories):  # os.walk lists links to directories among the directories
                each = directory + b"/" + name
                if os.lstat(each).st_mtime > OLD + 100 and not os.lstat(each).st_mtime > 4 * 10**9:
                    os.utime(each, (OLD, OLD), follow_symlinks=False)
    return left, right
