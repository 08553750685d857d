"""The snapshotters' work on directories, and what they ask the kernel."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit import errors, tracing
from services.snapshots import disk, kernel
from services.snapshots.overlay import mapped_root, mount_options
from services.snapshots.store import GID_MAPPING, UID_MAPPING
from tests.spans import attribute, milliseconds, recorded


def some_tree(top: Path, count: int) -> None:
    """Make ``count`` small files in directories of 50, with some hard links and some symbolic ones."""
    for number in range(count):
        directory = top / str(number // 50)
        directory.mkdir(exist_ok=True)
        (directory / str(number)).write_bytes(b"x" * (number % 9000))
        if number % 10 == 0:
            os.link(directory / str(number), directory / f"{number}-linked")
            os.symlink("nowhere", directory / f"{number}-symbolic")


async def test_usage_equals_dus(place: Path) -> None:
    """Walked here or by find, a tree's usage is that of du: allocated blocks and inodes, hard links once."""
    top = place / "t"
    top.mkdir()
    some_tree(top, 300)
    os.sync()
    said = {
        flag: int(subprocess.run(["du", "-s", flag, str(top)], capture_output=True, check=True).stdout.split()[0])
        for flag in ("--inodes", "-B512")
    }
    walked, found = await disk.usage(str(top)), await disk.usage(str(top), small=10)
    assert walked == found
    assert (walked.inodes, walked.size) == (said["--inodes"], said["-B512"] * 512)
    assert walked.inodes == 1 + 6 + 300 + 30


async def test_a_walk_says_what_its_time_went_for(place: Path) -> None:
    """In the span that measures a snapshot."""
    some_tree(place, 500)
    with recorded() as spans:
        with tracing.span("snapshots.measure"):
            await disk.usage(str(place))
        span = spans.one("snapshots.measure")
    assert 0 < float(str(attribute(span, "splitd.time.cpu_ms"))) <= milliseconds(span)


async def test_usage_while_files_vanish(place: Path) -> None:
    """A tree that loses files while it is measured still has a usage."""
    top = place / "t"
    top.mkdir()
    some_tree(top, 2000)
    usages, _ = await asyncio.gather(
        asyncio.gather(*(disk.usage(str(top), small=small) for small in (10, 10_000) * 3)),
        asyncio.to_thread(subprocess.run, ["find", str(top), "-mindepth", "2", "-delete"], check=True),
    )
    assert all(usage.inodes >= 1 for usage in usages)


async def test_usage_of_a_missing_directory(place: Path) -> None:
    """A directory that is not there has no usage, and the answer names it."""
    with pytest.raises(errors.Unknown, match=f"{place}/none: no such file or directory"):
        await disk.usage(f"{place}/none")


async def test_a_copy_that_fails_says_why(place: Path) -> None:
    """The error has cp's reason."""
    with pytest.raises(errors.Unknown, match=r"copying of parent failed: .*none/\.': No such file or directory"):
        await disk.copy(f"{place}/none", f"{place}/new")
    full = place / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    source = place / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(1 << 20))
    with pytest.raises(errors.ResourceExhausted, match="No space left on device"):
        await disk.copy(str(source), f"{full}/new")


async def test_a_cancelled_copy_ends(place: Path) -> None:
    """The copying program is killed when its caller is cancelled."""
    source = place / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")  # not read by an archive copy, so the copy is of many files
    some_tree(source, 3000)
    copying = asyncio.ensure_future(disk.copy(str(source), f"{place}/new"))
    while not os.path.exists(f"{place}/new"):
        await asyncio.sleep(0.001)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert len(list((place / "new").rglob("*"))) < len(list(source.rglob("*")))


async def test_remove(place: Path) -> None:
    """Empty and full trees are removed, and so are trees that are gone already; an entry that cannot be removed is
    named.
    """
    for name in ("empty", "full", "busy"):
        (place / name / "fs").mkdir(parents=True)
        (place / name / "work" / "work").mkdir(parents=True)
    some_tree(place / "full" / "fs", 60)
    (place / "full" / "work" / "work").chmod(0)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place / "busy" / "fs")], check=True)
    (place / "busy" / "fs" / "precious").write_text("x")
    left = await disk.remove(f"{place}/{name}" for name in ("empty", "full", "gone", "busy"))
    assert left == [f"{place}/busy"]
    assert os.listdir(place) == ["busy"]
    assert (place / "busy" / "fs" / "precious").read_text() == "x", "nothing on another filesystem is touched"


def test_small_trees_are_removed_without_a_program(place: Path) -> None:
    """Files, links (not their targets), devices and directories in directories are removed here; larger trees are left
    for a program.
    """
    (place / "outside").write_text("x")
    tree = place / "7"
    (tree / "fs" / "etc" / "deep").mkdir(parents=True)
    (tree / "work" / "work").mkdir(parents=True)
    (tree / "fs" / "etc" / "deep" / "f").write_text("x")
    (tree / "fs" / "file-link").symlink_to(place / "outside")
    (tree / "fs" / "directory-link").symlink_to(place)
    os.mkfifo(tree / "fs" / "fifo")
    assert disk.remove_small(f"{tree}")
    assert os.listdir(place) == ["outside"]
    assert disk.remove_small(f"{tree}"), "it is gone already"
    tree.mkdir()
    some_tree(tree, 60)
    before = len(list(tree.rglob("*")))
    assert not disk.remove_small(f"{tree}", limit=1)
    assert len(list(tree.rglob("*"))) == before


def test_two_concurrent_removals_leave_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that finds an entry gone in the middle does not take the whole tree for removed."""
    tree = place / "7"
    tree.mkdir()
    some_tree(tree, 10)
    unlink = os.unlink

    def late(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)  # the other one
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", late)
    assert not disk.remove_small(f"{tree}")


async def test_overlay_works_here(place: Path) -> None:
    """The trial leaves nothing behind: no mount, no directory, not even that of a trial that was killed."""
    (place / ".overlay-trial-old" / "merged").mkdir(parents=True)
    assert await kernel.overlay_trouble(place) == ""
    assert os.listdir(place) == []
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


async def test_why_overlay_does_not_work(place: Path) -> None:
    """The error names a filesystem that cannot hold an upper directory, with the kernel's reason."""
    lower, merged = place / "lower", place / "merged"
    for directory in (lower, place / "upper", place / "work", merged, place / "second"):
        directory.mkdir()
    # an overlay on an overlay that has no upper directory: read-only
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}:{place / 'second'}", str(merged)], check=True
    )
    assert "read-only file system" in await kernel.overlay_trouble(merged)
    assert await kernel.overlay_trouble(place / "none") != ""


def test_user_namespace(place: Path) -> None:
    """Only a map of all ids onto themselves is no user namespace."""
    for text, expected in (
        ("         0          0 4294967295\n", False),
        ("0 1000 1\n", True),
        ("0 100000 65536\n", True),
        ("", True),
    ):
        (place / "map").write_text(text)
        assert kernel.in_user_namespace(place / "map") is expected, text
    assert not kernel.in_user_namespace(place / "none")
    inside = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "python3",
            "-c",
            "from services.snapshots import kernel; print(kernel.in_user_namespace(), kernel.version() >= (5, 11))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert inside[0] == "True"


async def test_userxattr_in_a_user_namespace(place: Path, tmp_path: Path) -> None:
    """In a user namespace an overlay gets userxattr, except on tmpfs; outside of one it never does."""
    tmpfs = place / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmpfs)], check=True)
    assert kernel.on_tmpfs(tmpfs)
    assert not kernel.on_tmpfs(tmp_path)
    assert "userxattr" not in await mount_options(tmp_path)
    program = (
        "import asyncio, sys; from pathlib import Path; from services.snapshots import overlay\n"
        "for place in sys.argv[1:]: print(*asyncio.run(overlay.mount_options(Path(place))))"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", program, str(tmp_path), str(tmpfs)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    index = "index=off" if kernel.supports_index() else ""
    assert [line.strip() for line in done] == [f"userxattr {index}".strip(), index]


async def test_configured_options_come_once(place: Path) -> None:
    """A configured option stays in front and is not repeated, with a value or without."""
    assert await mount_options(place, ["index=on", "nfs_export=on"]) == ("index=on", "nfs_export=on")
    assert (await mount_options(place, ["volatile"]))[0] == "volatile"


@pytest.mark.parametrize(
    ("uid", "gid", "root"),
    [
        ("0:1000:1", "0:2000:1", (1000, 2000)),
        ("1:5:10,0:7:1", "0:8:65536", (7, 8)),
        ("0:1000:1", None, (1000, 0)),
        (None, None, None),
    ],
)
def test_root_of_a_user_namespace(uid: str | None, gid: str | None, root: tuple[int, int] | None) -> None:
    """The mapping of 0 may be in any part of the map; an absent map is the identity."""
    labels = {label: value for label, value in ((UID_MAPPING, uid), (GID_MAPPING, gid)) if value is not None}
    assert mapped_root(labels) == root


def test_the_disk_of_a_directory_is_the_deepest_mount_above_it(tmp_path: Path) -> None:
    """Of several mounts at one place the last counts; blanks in its name are octal escapes."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a b")
    mountinfo = tmp_path / "mountinfo"
    escaped = str(tmp_path).replace(" ", "\\040")
    mountinfo.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:30 / {escaped}/a\\040b rw,nosuid shared:2 - xfs /dev/sdb rw\n"
        f"3 1 0:31 /sub {escaped}/a\\040b rw master:1 - btrfs /dev/mapper/x\\040y rw,subvolid=5\n4 1 0:32 / "
        f"{escaped}/a rw - tmpfs none rw\n"
    )
    for place in (tmp_path / "a b", tmp_path / "link"):
        assert kernel.disk_of(place, mountinfo) == ("btrfs", "/dev/mapper/x y")
    assert kernel.disk_of(tmp_path, mountinfo) == ("ext4", "/dev/sda1")
