"""The promises of a snapshotter about files: what its mounts show, and what they cost. Snapshots are really mounted, so
root is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from conform.rules import Broken, NotRun, Rule, collect, equal, holds
from conform.snapshots import INTERFACE, REBASE, ROOTED, TESTS, SnapshotCase
from conform.trees import Change, chown, delete, directories, files, link, mkdir, mounted, rename, write
from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots.store import GID_MAPPING, UID_MAPPING, Kind, Usage

RULES: list[Rule] = []
rule = collect(RULES)

RENAMES = "renames of a lower layer's directories"
USAGE = "exact usage"
REMAP = "remap-ids"
FORM = "containerd's form of mounts"
CLEANUP = "Cleanup"

ISSUES = "core/snapshots/testsuite/issues.go"
OVERLAY = "plugins/snapshots/overlay/overlay.go"


async def _same_as_flat(case: SnapshotCase, *layers: list[Change]) -> None:
    """Layers on top of each other show the same as the same changes in one directory; each layer is checked in a
    view.
    """
    flat = case.place / "flat"
    flat.mkdir(mode=0o755)
    parent = ""
    for number, changes in enumerate(layers):
        parent = await case.layer(f"{case.key}-{number}", parent, *changes)
        for change in changes:
            change(flat)
        view = await case.snapshotter.view(f"{parent}-view", parent, ROOTED)
        with mounted(view, case.place / "view") as top:
            _same_files(files(top), files(flat), f"layer {number}")
        await case.snapshotter.remove(f"{parent}-view")


def _same_files(came: dict[str, tuple[object, ...]], expected: dict[str, tuple[object, ...]], what: str) -> None:
    """Check that two trees are the same; what differs is named, since trees are long."""
    for name in sorted({*came, *expected}):
        equal(came.get(name, "nothing"), expected.get(name, "nothing"), f"{what}: {name}")


@rule(source=f"{INTERFACE}: Prepare, View, Commit; {TESTS}: checkSnapshotterBasic", mounts=True)
async def a_life(case: SnapshotCase) -> None:
    """A snapshot is prepared, mounted, changed, committed, used as a parent, viewed and removed; its files are those
    that were written.
    """
    snapshotter, place, key = case.snapshotter, case.place, case.key
    first = [write("foo", "foo\n", 0o777), mkdir("a"), mkdir("a/b"), mkdir("a/b/c")]
    second = [write("bar", "bar\n", 0o777), write("foo", "bar\n", 0o777), delete("a/b")]
    base = await case.layer(f"{key}-base", "", *first)
    info = await snapshotter.stat(base)
    equal((info.kind, info.parent, dict(info.labels)), (Kind.COMMITTED, "", ROOTED), "kind, parent and labels")
    with case.refused(errors.NotFound):
        await snapshotter.stat(f"{base}-making")

    with mounted(await snapshotter.prepare(f"{key}-next", base, ROOTED), place / "next") as top:
        equal(set(files(top)), {".", "foo", "a", "a/b", "a/b/c"}, "the files of a child")
        for change in second:
            change(top)
    equal((await snapshotter.stat(f"{key}-next")).parent, base, "the parent")
    await snapshotter.commit(f"{key}-top", f"{key}-next", ROOTED)
    found = [i async for i in snapshotter.list([f"name=={key}-top"])]
    equal(found, [await snapshotter.stat(f"{key}-top")], "what is listed")

    with mounted(await snapshotter.view(f"{key}-view", f"{key}-top", ROOTED), place / "view") as view:
        equal(set(files(view)), {".", "foo", "bar", "a"}, "the files of a view")
        equal((view / "foo").read_text(), "bar\n", "the file that was changed")
    await snapshotter.remove(f"{key}-view")
    with case.refused(errors.FailedPrecondition, "remove"):
        await snapshotter.remove(base)
    await snapshotter.remove(f"{key}-top")
    await snapshotter.remove(base)
    with case.refused(errors.NotFound):
        await snapshotter.stat(base)


FIRST = [
    mkdir("etc", 0o700),
    write("etc/hosts", "10.0.0.1"),
    write("etc/profile", "PATH=/usr/bin"),
    mkdir("lib", 0o700),
    write("lib/hidden", ""),
    mkdir("opt", 0o700),
    mkdir("opt/a", 0o700),
    write("opt/a/file", "hello"),
    mkdir("dir1", 0o700),
    mkdir("dir2", 0o700),
    mkdir("dir3", 0o700),
    mkdir("dir4", 0o700),
    write("dir4/f1", "..."),
    mkdir("dir5", 0o700),
    write("dir5/f1", "..."),
    chown("dir5", 1, 1),
    chown("dir2", 1, 1),
    mkdir("some", 0o700),
    write("some/f1", "was here first!"),
    write("some/f2", "nothing interesting"),
    write("gone", "x"),
]
SECOND = [
    write("etc/hosts", "10.0.0.2"),
    write("etc/profile", "PATH=/usr/bin", 0o666),
    mkdir("root", 0o700),
    write("root/.bashrc", "x"),
    delete("lib"),
    mkdir("lib", 0o700),
    write("lib/not-hidden", ""),
    chown("opt", 1, 1),
    chown("opt/a", 1, 1),
    chown("opt/a/file", 1, 1),
    chown("dir2", 0, 0),
    delete("dir3"),
    chown("dir4", 1, 1),
    chown("dir4/f1", 1, 1),
    delete("gone"),
    write("some/new", "new content 1"),
    rename("some/new", "some/f1"),
    rename("some/f2", "some/f3"),
]
THIRD = [
    write("lib/newfile", ""),
    mkdir("dir3", 0o700),
    chown("dir3", 1, 1),
    delete("dir5"),
    mkdir("dir5", 0o700),
    chown("dir5", 1, 1),
    mkdir("moved"),
    link("some/f3", "moved/f3"),
    delete("some/f3"),
    write("gone", "back"),
]


@rule(
    source=f"{ISSUES}: checkLayerFileUpdate, checkRemoveDirectoryInLowerLayer, checkChown, checkRename; "
    "docker issues 21555, 25244, 20240, 24913, 28391, 25409, 27298",
    mounts=True,
)
async def layers_show_the_same_as_one_directory(case: SnapshotCase) -> None:
    """A file is rewritten, a directory replaced, owners and modes change, files are removed, moved and linked: layer on
    layer, each checked in a view.
    """
    await _same_as_flat(case, FIRST, SECOND, THIRD, [])


@rule(
    source=f"{ISSUES}: checkRename; Linux's overlayfs answers EXDEV, and programs then copy",
    optional=RENAMES,
    mounts=True,
)
async def a_directory_of_a_lower_layer_is_renamed(case: SnapshotCase) -> None:
    """A directory that a lower layer made can be renamed."""
    try:
        await _same_as_flat(case, [mkdir("dir1", 0o700), write("dir1/f", "x")], [rename("dir1", "dir9")])
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise case.lacking(RENAMES, str(error)) from error


@rule(source=f"{TESTS}: check128LayersMount", mounts=True)
async def many_layers(case: SnapshotCase) -> None:
    """128 layers are mounted as one view, with the topmost in front."""
    snapshotter, place, key = case.snapshotter, case.place, case.key
    parent = await case.layer(
        f"{key}-0", "", write("bottom", "way at the bottom"), write("over", "0"), mkdir("only"), mkdir("add")
    )
    probe = await snapshotter.view(f"{key}-probe", parent, ROOTED)
    await snapshotter.prepare(f"{key}-probed", parent, ROOTED)
    copies = not any("overlay" in mount.type for mount in [*probe, *await snapshotter.mounts(f"{key}-probed")])
    count = 16 if copies else 128  # copying each is slow, and shows no more
    for number in range(1, count):
        parent = await case.layer(
            f"{key}-{number}",
            parent,
            write("over", str(number)),
            write(f"add/{number}", "same"),
            delete("only"),
            mkdir("only"),
            write(f"only/{number}", "me"),
        )
    with mounted(await snapshotter.view(f"{key}-view", parent, ROOTED), place / "view") as view:
        equal((view / "bottom").read_text(), "way at the bottom", "a file of the bottom layer")
        equal((view / "over").read_text(), str(count - 1), "a file that each layer changes")
        equal(len(list((view / "add").iterdir())), count - 1, "the files that the layers add")
        equal([p.name for p in (view / "only").iterdir()], [str(count - 1)], "the files of the topmost layer")


def _written(top: Path) -> str:
    """What comes of writing to a directory: the error, or OK."""
    try:
        (top / "new").write_text("x")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "OK"


@rule(source=f"{INTERFACE}: View; {TESTS}: checkSnapshotterViewReadonly", mounts=True)
async def a_view_is_read_only(case: SnapshotCase) -> None:
    """Nothing can be written to a view of nothing, of one layer or of two; its files do not change with its parent's
    children.
    """
    base = await case.layer(f"{case.key}-1", "", write("f", "1"))
    top = await case.layer(f"{case.key}-2", base, write("f", "2"))
    for number, parent in enumerate(["", base, top]):
        mounts = await case.snapshotter.view(f"{case.key}-v{number}", parent, ROOTED)
        with mounted(mounts, case.place / "view") as view:
            equal(_written(view), "EROFS", f"a write to a view of {number} layers")
            if parent:
                equal((view / "f").read_text(), str(number), "the file of a view")


@rule(source=f"{TESTS}: checkRootPermission; the root of a container is 0755", mounts=True)
async def the_root_directory(case: SnapshotCase) -> None:
    """A new root is 0755 whatever the umask, and has the owner of the parent's root."""
    snapshotter, place, key = case.snapshotter, case.place, case.key
    old = os.umask(0o077)
    try:
        mounts = await snapshotter.prepare(f"{key}-making", "", ROOTED)
    finally:
        os.umask(old)
    with mounted(mounts, place / "m") as top:
        equal(_root(top), (0o755, 0, 0), "mode, owner and group of a new root")
        os.chown(top, 11, 12)
    await snapshotter.commit(f"{key}-base", f"{key}-making", ROOTED)
    for make in (snapshotter.prepare, snapshotter.view):
        with mounted(await make(f"{key}-{make.__name__}", f"{key}-base", ROOTED), place / "m") as top:
            equal(_root(top), (0o755, 11, 12), f"mode, owner and group of the root by {make.__name__}")


def _root(top: Path) -> tuple[int, int, int]:
    status = top.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


@rule(source=f"{INTERFACE}: Prepare: the destination starts with the content of the parent; {TESTS}", mounts=True)
async def everything_in_a_parent_is_in_its_child(case: SnapshotCase) -> None:
    """A child has the modes, owners, times, xattrs, capabilities, devices, fifos, sockets, links, holes and odd names
    of its parent.
    """
    snapshotter, place, key = case.snapshotter, case.place, case.key

    def fill(top: Path) -> None:
        write("setuid", "s", 0o4755)(top)
        write("a b\nc\xff", "odd")(top)
        (top / os.fsdecode(b"not-utf8-\xff\xfe")).write_text("odder")
        chown("setuid", 5, 6)(top)
        os.chmod(top / "setuid", 0o4755)  # noqa: S103  # what is tested
        os.setxattr(top / "setuid", "user.note", b"hello\0there")
        os.setxattr(top / "setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        mkdir("sticky", 0o1777)(top)
        os.setxattr(top / "sticky", "trusted.note", b"t")
        link("setuid", "sticky/linked")(top)
        os.symlink("/absolute/nowhere", top / "dangling")
        os.lchown(top / "dangling", 7, 8)
        os.mknod(top / "null", 0o620 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(top / "loop", 0o660 | stat.S_IFBLK, os.makedev(7, 0))
        os.mkfifo(top / "fifo", 0o600)
        os.mknod(top / "socket", 0o777 | stat.S_IFSOCK)
        with (top / "sparse").open("wb") as sparse:
            sparse.seek(64 << 20)
            sparse.write(b"end")
        for name in ("setuid", "dangling", "fifo", "sticky", "sparse"):
            os.utime(top / name, ns=(1_000_000_000_123_456_789, 1_200_000_000_987_654_321), follow_symlinks=False)

    base = await case.layer(f"{key}-base", "", fill)
    with (
        mounted(await snapshotter.view(f"{key}-view", base, ROOTED), place / "view") as view,
        mounted(await snapshotter.prepare(f"{key}-child", base, ROOTED), place / "child") as child,
    ):
        wanted = files(view)
        holds("sticky/linked" in wanted, "sticky/linked in a view", sorted(wanted))
        equal(wanted["setuid"][4], 2, "hard links of a file in a view")
        _same_files(files(child), wanted, "a child")
        for name in ("setuid", "dangling", "fifo", "sparse", *(() if case.containerd else ("sticky",))):
            equal(os.lstat(child / name).st_mtime_ns, 1_200_000_000_987_654_321, f"the time of {name}")
    if not case.containerd:  # before 2.4 its native one fills holes
        with case.offered(USAGE):
            size = (await snapshotter.usage(f"{key}-child")).size
            holds(size < 1 << 20, "a usage of a child below 1 MiB: holes are kept", size)


@rule(source=f"plugins/snapshots/native/native.go; {OVERLAY}: mounts", optional=FORM)
async def mounts(case: SnapshotCase) -> None:
    """Each kind on no, one and two layers has the mounts of containerd's snapshotter of that name."""
    if case.name not in ("overlayfs", "native"):
        raise NotRun("only the mounts of overlayfs and native are known")
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-1", "")
    top = await case.layer(f"{key}-2", base)
    made: dict[str, list[Mount]] = {}
    for number, parent in enumerate(["", base, top]):
        made[f"p{number}"] = await snapshotter.prepare(f"{key}-p{number}", parent, ROOTED)
        made[f"v{number}"] = await snapshotter.view(f"{key}-v{number}", parent, ROOTED)
    with case.offered(FORM):
        for answered in made.values():
            equal((len(answered), answered[0].target), (1, ""), "the number of mounts, and the target")
        if case.name == "native":
            _native(made)
        else:
            _overlay(made, index_first=case.index_first)


def _native(made: dict[str, list[Mount]]) -> None:
    access = {"p": "rw", "v": "ro"}
    expected = {f"{kind}{n}": ("bind", ("rbind", access[kind])) for kind in "pv" for n in range(3)}
    equal({name: (m.type, m.options) for name, [m] in made.items()}, expected, "types and options")
    equal(len({m.source for [m] in made.values()}), 6, "directories: a view of one layer shows that layer")


def _overlay(made: dict[str, list[Mount]], *, index_first: bool) -> None:
    binds = {name: (m.type, m.options) for name, [m] in made.items() if m.type == "bind"}
    expected = {"p0": "rw", "v0": "ro", "v1": "ro"}
    equal(binds, {name: ("bind", (access, "rbind")) for name, access in expected.items()}, "types and options of binds")
    [lower1] = made["v1"]
    snapshots = Path(lower1.source).parent.parent
    [lower] = [o.removeprefix("lowerdir=") for o in made["v2"][0].options if o.startswith("lowerdir=")]
    equal(lower, f"{lower.split(':')[0]}:{lower1.source}", "the layers, of which the topmost comes first")
    index = ("index=off",) if os.path.exists("/sys/module/overlay/parameters/index") else ()

    def overlay(*options: str) -> Mount:
        return Mount("overlay", "overlay", (*index, *options) if index_first else (*options, *index))

    for name, lowerdir in (("p1", lower1.source), ("p2", lower)):
        [upper] = [o.removeprefix("upperdir=") for o in made[name][0].options if o.startswith("upperdir=")]
        own = Path(upper).parent
        equal(own.parent, snapshots, "the place of the directories")
        equal(made[name], [overlay(f"workdir={own}/work", f"upperdir={own}/fs", f"lowerdir={lowerdir}")])
    equal(made["v2"], [overlay(f"lowerdir={lower}")], "the mounts of a view of two layers")


@rule(
    source=f"{INTERFACE}: Usage, without the parents; containerd's continuity/fs: DiskUsage",
    optional=USAGE,
    mounts=True,
)
async def usage(case: SnapshotCase) -> None:
    """Usage counts allocated blocks and inodes, hard links once, without the parents; for a committed snapshot as of
    its commit.
    """
    snapshotter, place, key = case.snapshotter, case.place, case.key
    parent = await case.layer(f"{key}-base", "", write("lower", "x" * 100_000))
    made = await snapshotter.prepare(f"{key}-a", "", ROOTED)
    with case.offered(USAGE):
        empty = await snapshotter.usage(f"{key}-a")
        equal(empty.inodes, 1, "inodes of an empty snapshot")
        with mounted(made, place / "m") as top:
            write("big", "x" * 1_000_000)(top)
            os.sync()  # blocks are allocated when they are written
        full = await snapshotter.usage(f"{key}-a")
        equal(full.inodes, 2, "inodes of a snapshot with one file")
        grown = full.size - empty.size
        holds(1_000_000 <= grown < 1_100_000, "from 1,000,000 to 1,100,000 bytes for a file of 1,000,000", grown)
        with mounted(made, place / "m") as top:
            link("big", "again")(top)
            os.symlink("big", top / "symlink")
            with (top / "sparse").open("wb") as sparse:
                sparse.truncate(32 << 20)
        linked = await snapshotter.usage(f"{key}-a")
        equal(linked.inodes, 4, "inodes of two files, of which one has two names, and a symbolic link")
        holds(linked.size - full.size < 100_000, "less than 100,000 bytes more for links and holes", linked.size)
        await snapshotter.commit(f"{key}-c", f"{key}-a", ROOTED)
        equal(await snapshotter.usage(f"{key}-c"), linked, "the usage of a committed snapshot")
        await snapshotter.prepare(f"{key}-child", f"{key}-c", ROOTED)
        if not (case.containerd and case.name == "native"):
            child = await snapshotter.usage(f"{key}-child")
            small = (child.size, child.inodes) <= (empty.size, empty.inodes)
            copied = case.name == "native" or not case.strict
            holds(small or (copied and child == linked), "for a child what it has changed, or copied", child)
        await snapshotter.view(f"{key}-view", parent, ROOTED)
        equal(await snapshotter.usage(f"{key}-view"), Usage(), "the usage of a view")


@rule(source=f"docs/user-namespaces.md; {OVERLAY}: remap-ids; {INTERFACE}: LabelSnapshotUIDMapping", optional=REMAP)
async def mapped_ids(case: SnapshotCase) -> None:
    """Labels of a user namespace give the root directory to that namespace's root, and put the mapping into the
    mounts.
    """
    if case.name != "overlayfs" or case.index_first:
        raise NotRun("only containerd 2's overlayfs maps ids")
    snapshotter, key = case.snapshotter, case.key
    mapping = {**ROOTED, UID_MAPPING: "0:2000:65536", GID_MAPPING: "0:3000:65536"}
    options = ("uidmap=0:2000:65536", "gidmap=0:3000:65536")
    with case.offered(REMAP):
        [mount] = await snapshotter.prepare(f"{key}-a", "", mapping)
        equal((os.stat(mount.source).st_uid, os.stat(mount.source).st_gid), (2000, 3000), "the owner of the root")
        equal(mount.options, (*options, "rw", "rbind"), "the options")
        await snapshotter.commit(f"{key}-c", f"{key}-a", ROOTED)
        [mount] = await snapshotter.prepare(f"{key}-b", f"{key}-c", mapping)
        equal(mount.options[:2], options, "the options on a parent")
        for wrong in ("0:x:1", "1:2:3", "0:4294967295:1"):
            with case.refused(errors.NodeError, "map"):
                await snapshotter.prepare(f"{key}-bad", "", {**ROOTED, UID_MAPPING: wrong})
            with case.refused(errors.NotFound):
                await snapshotter.stat(f"{key}-bad")


@contextlib.contextmanager
def _rebasing(case: SnapshotCase) -> Iterator[None]:
    if case.containerd:
        raise NotRun("rebase is tried on snapshotters, not on containerd")
    try:
        yield
    except errors.Unimplemented as error:
        raise case.lacking(REBASE, str(error)) from error


async def _rebased(case: SnapshotCase, name: str, parent: str) -> None:
    """Check that a commit has set the parent. A service from before this capability ignores the field."""
    came = (await case.snapshotter.stat(name)).parent
    if not came and parent:
        raise case.lacking(REBASE, "the parent of a commit is ignored")
    equal(came, parent, "the parent that the commit has set")


@rule(source=f"{INTERFACE}: RebaseCap; api: CommitSnapshotRequest.parent", optional=REBASE, mounts=True)
async def rebase(case: SnapshotCase) -> None:
    """Layers that were made separately are put on top of each other when they are committed."""
    snapshotter, place, key = case.snapshotter, case.place, case.key
    with _rebasing(case):
        base = await case.layer(f"{key}-base", "", write("a", "1"), write("b", "1"))
        with mounted(await snapshotter.prepare(f"{key}-apart", "", ROOTED), place / "m") as top:
            write("b", "2")(top)
        await snapshotter.commit(f"{key}-top", f"{key}-apart", ROOTED, parent=base)
        await _rebased(case, f"{key}-top", base)
        with mounted(await snapshotter.view(f"{key}-view", f"{key}-top", ROOTED), place / "m") as view:
            equal({p.name: p.read_text() for p in view.iterdir()}, {"a": "1", "b": "2"}, "the files")
        await snapshotter.prepare(f"{key}-on-nothing", "", ROOTED)
        with case.refused(errors.NotFound):
            await snapshotter.commit(f"{key}-high", f"{key}-on-nothing", ROOTED, parent=f"{key}-nothing")
        await snapshotter.prepare(f"{key}-there", base, ROOTED)
        if not case.namespaced:  # metadata does not pass on what it will not do
            with case.refused(errors.InvalidArgument, "cannot change parent"):
                await snapshotter.commit(f"{key}-other", f"{key}-there", ROOTED, parent=f"{key}-top")
        await snapshotter.commit(f"{key}-other", f"{key}-there", ROOTED, parent=base)


@rule(source=f"{INTERFACE}: RebaseCap; containerd's client unpacks layers in parallel", optional=REBASE, mounts=True)
async def a_chain_is_rebased_at_once(case: SnapshotCase) -> None:
    """Commits that are requested in order, one on top of the other, need not wait for each other's answers. If one
    fails, all above it fail.
    """
    snapshotter, place, key = case.snapshotter, case.place, case.key
    with _rebasing(case):
        names = [f"{key}-{number}" for number in range(20)]
        for name in [*names, f"{key}-above"]:
            with mounted(await snapshotter.prepare(f"{name}-apart", "", ROOTED), place / "m") as top:
                write(name.rpartition("-")[2], "1")(top)
        await snapshotter.prepare(f"{key}-probe", "", ROOTED)
        base = await case.layer(f"{key}-base", "")
        await snapshotter.commit(f"{key}-probed", f"{key}-probe", ROOTED, parent=base)
        await _rebased(case, f"{key}-probed", base)
        ends = await asyncio.gather(
            *(
                snapshotter.commit(name, f"{name}-apart", ROOTED, parent=below)
                for name, below in zip(names, ["", *names], strict=False)
            ),
            return_exceptions=True,
        )
        if wrong := [end for end in ends if end is not None]:
            # other clients wait for each answer, so a snapshotter of somebody else need not do this
            raise case.lacking("rebase of a chain at once", str(wrong[0]))
        equal([(await snapshotter.stat(name)).parent for name in names], ["", *names[:-1]], "the parents")
        with mounted(await snapshotter.view(f"{key}-view", names[-1], ROOTED), place / "m") as view:
            equal({p.name for p in view.iterdir()}, {str(number) for number in range(20)}, "the files")
        failed = await asyncio.gather(
            snapshotter.commit(f"{key}-none", f"{key}-nothing", ROOTED, parent=names[-1]),
            snapshotter.commit(f"{key}-above", f"{key}-above-apart", ROOTED, parent=f"{key}-none"),
            return_exceptions=True,
        )
        equal([type(end) for end in failed], [errors.NotFound, errors.NotFound], "the ends of commits on nothing")
        equal((await snapshotter.stat(f"{key}-above-apart")).kind, Kind.ACTIVE, "the kind after a commit that failed")


# ------------------------------------------------------------------------------------------ what is left


@rule(source=f"{INTERFACE}: Remove, Cleaner.Cleanup", optional=CLEANUP, mounts=True)
async def removed_snapshots_leave_nothing(case: SnapshotCase) -> None:
    """After a cleanup removed snapshots cannot be mounted and their directories are gone, whether they were mounted or
    not, full or empty; all others are there.
    """
    if case.namespaced:
        raise NotRun("files go when the collector comes")
    snapshotter, place, key = case.snapshotter, case.place, case.key
    base = await case.layer(f"{key}-base", "", write("f", "x"), mkdir("d"), write("d/e", "x"))
    kept = await snapshotter.prepare(f"{key}-kept", base, ROOTED)
    unused = await snapshotter.prepare(f"{key}-unused", "", ROOTED)
    used = await snapshotter.prepare(f"{key}-used", base, ROOTED)
    with mounted(used, place / "m") as top:
        delete("d")(top)
        write("g", "x")(top)
    await snapshotter.remove(f"{key}-used")
    await snapshotter.remove(f"{key}-unused")
    try:
        await snapshotter.cleanup()
    except errors.Unimplemented as error:
        raise case.lacking(CLEANUP, str(error)) from error
    for gone in (unused, used):
        equal([path for path in directories(gone) if os.path.lexists(path)], [], "directories that are left")
        with contextlib.suppress(subprocess.CalledProcessError), mounted(gone, place / "m"):
            raise Broken("mounts of a removed snapshot that cannot be mounted", "they can")
    with mounted(kept, place / "m") as top:
        equal((top / "d" / "e").read_text(), "x", "a file of another snapshot")
