"""The promises of a snapshotter, as tests. They run on the local snapshotters, on the served ones, through the gateway,
and on containerd itself.

A subclass has a fixture ``snapshotter``; it need not be fresh, since each test uses new keys. The subclass says which
snapshotter it is (``name``), and with ``namespaced`` whether metadata's records are involved: metadata then words some
errors, and files are removed when the collector runs. Snapshots are really mounted, so root is needed.

A third party's snapshotter can pass this suite too. A subclass declares what is optional: ``rebases`` if a commit may
set the parent, ``worded = False`` if its errors have containerd's classes but not its words. Any mounts are accepted;
for overlayfs and native the suite checks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots.store import GID_MAPPING, UID_MAPPING, Info, Kind, Snapshotter, Usage

ROOTED = {"containerd.io/gc.root": "suite"}
"""Labels that keep the collector away, if there is one."""

T = TypeVar("T", bound=Callable[..., object])
Change = Callable[[Path], None]
_numbers = itertools.count()


# ------------------------------------------------------------------------------------------ mounting


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
            subprocess.run(["umount", str(at)], check=True)


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
    subprocess.run(words, check=True, cwd=where)


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
    for place, directories, names in os.walk(top):
        for name in [".", *names, *(d for d in directories if os.path.islink(os.path.join(place, d)))]:
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


# ------------------------------------------------------------------------------------------ the suite


def of_records(test: T) -> T:
    """A test that mounts nothing."""
    test.of_records = True  # type: ignore[attr-defined]
    return test


class SnapshotterSuite:
    """Subclass it with a fixture ``snapshotter``."""

    name = "overlayfs"
    rebases = False
    """Whether it has the capability ``rebase``."""
    renames = True
    """Whether a directory of a lower layer can be renamed; overlayfs answers EXDEV, upon which programs copy it."""
    worded = True
    """Whether its errors have containerd's words."""
    mountable = True
    """Whether its mounts can be mounted: if it has no files, only the records are tested."""
    namespaced = False
    containerd = False
    """Whether this is containerd itself; it is not tested for promises where we do better."""
    index_first = False
    """containerd 1.6 has the option index=off before the directories, later versions behind them."""

    @pytest.fixture(autouse=True)
    def _mountable(self, request: pytest.FixtureRequest) -> None:
        if not self.mountable and not hasattr(request.function, "of_records"):
            pytest.skip("it has no files")

    @pytest.fixture
    def key(self) -> str:
        """Prefix of the keys and names of one test, new for each."""
        return f"{next(_numbers)}-{uuid.uuid4().hex[:8]}"

    def refused(
        self, kind: type[errors.NodeError] | tuple[type[errors.NodeError], ...], words: str
    ) -> AbstractContextManager[Any]:
        """As ``pytest.raises``; the words count only where they are promised."""
        return pytest.raises(kind, match=words if self.worded else None)

    async def layer(self, snapshotter: Snapshotter, work: Path, name: str, parent: str, *changes: Change) -> str:
        """A committed snapshot with ``changes`` made on top of ``parent``."""
        mounts = await snapshotter.prepare(f"{name}-making", parent, ROOTED)
        if changes:
            with mounted(mounts, work / "making") as top:
                for change in changes:
                    change(top)
        await snapshotter.commit(name, f"{name}-making", ROOTED)
        return name

    async def same_as_flat(self, snapshotter: Snapshotter, place: Path, key: str, *layers: list[Change]) -> None:
        """Layers on top of each other show the same as the same changes in one directory; each layer is checked in a
        view.
        """
        flat = place / "flat"
        flat.mkdir(mode=0o755)
        parent = ""
        for number, changes in enumerate(layers):
            parent = await self.layer(snapshotter, place, f"{key}-{number}", parent, *changes)
            for change in changes:
                change(flat)
            with mounted(await snapshotter.view(f"{parent}-view", parent, ROOTED), place / "view") as view:
                assert files(view) == files(flat), f"layer {number}"
            await snapshotter.remove(f"{parent}-view")

    async def listed(self, snapshotter: Snapshotter, *sources: str) -> list[str]:
        return [info.name async for info in snapshotter.list(sources)]

    # -------------------------------------------------------------- lifecycle

    async def test_a_life(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """A snapshot is prepared, mounted, changed, committed, used as a parent, viewed and removed; its files are
        those that were written.
        """
        first = [write("foo", "foo\n", 0o777), mkdir("a"), mkdir("a/b"), mkdir("a/b/c")]
        second = [write("bar", "bar\n", 0o777), write("foo", "bar\n", 0o777), delete("a/b")]
        base = await self.layer(snapshotter, place, f"{key}-base", "", *first)
        info = await snapshotter.stat(base)
        assert (info.kind, info.parent, dict(info.labels)) == (Kind.COMMITTED, "", ROOTED)
        with pytest.raises(errors.NotFound):
            await snapshotter.stat(f"{base}-making")

        with mounted(await snapshotter.prepare(f"{key}-next", base, ROOTED), place / "next") as top:
            assert set(files(top)) == {".", "foo", "a", "a/b", "a/b/c"}
            for change in second:
                change(top)
        assert (await snapshotter.stat(f"{key}-next")).parent == base
        await snapshotter.commit(f"{key}-top", f"{key}-next", ROOTED)
        assert [i async for i in snapshotter.list([f"name=={key}-top"])] == [await snapshotter.stat(f"{key}-top")]

        with mounted(await snapshotter.view(f"{key}-view", f"{key}-top", ROOTED), place / "view") as view:
            assert set(files(view)) == {".", "foo", "bar", "a"}
            assert (view / "foo").read_text() == "bar\n"
        await snapshotter.remove(f"{key}-view")
        with self.refused(errors.FailedPrecondition, "remove"):
            await snapshotter.remove(base)
        await snapshotter.remove(f"{key}-top")
        await snapshotter.remove(base)
        with pytest.raises(errors.NotFound):
            await snapshotter.stat(base)

    @of_records
    async def test_stat(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Kind, parent, labels and times are those of its making; a parent's parent is found by its name."""
        before = time.time_ns()
        await snapshotter.prepare(f"{key}-a", "", {**ROOTED, "one": "1", "none": ""})
        active = await snapshotter.stat(f"{key}-a")
        assert active == Info(f"{key}-a", Kind.ACTIVE, active.created_at, active.created_at, "", {**ROOTED, "one": "1"})
        assert before <= active.created_at <= time.time_ns()
        await snapshotter.commit(f"{key}-1", f"{key}-a", {**ROOTED, "two": "2"})
        committed = await snapshotter.stat(f"{key}-1")
        assert committed.labels == {**ROOTED, "two": "2"}, "a commit's labels are its own"
        assert active.created_at <= committed.created_at == committed.updated_at
        await self.layer(snapshotter, place, f"{key}-2", f"{key}-1")
        await snapshotter.view(f"{key}-v", f"{key}-2", ROOTED)
        view = await snapshotter.stat(f"{key}-v")
        assert (view.kind, view.parent) == (Kind.VIEW, f"{key}-2")
        assert (await snapshotter.stat(view.parent)).parent == f"{key}-1"

    @of_records
    async def test_a_key_is_taken_once(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Neither Prepare, View nor Commit takes a key or name that is in use, of whatever kind."""
        base = await self.layer(snapshotter, place, f"{key}-base", "")
        await snapshotter.prepare(f"{key}-active", base, ROOTED)
        await snapshotter.view(f"{key}-view", base, ROOTED)
        for taken in (base, f"{key}-active", f"{key}-view"):
            for make in (snapshotter.prepare, snapshotter.view):
                with self.refused(errors.AlreadyExists, f"snapshot .*{taken}.*: already exists$"):
                    await make(taken, base, ROOTED)
        for taken in (base, f"{key}-view", f"{key}-active"):
            with self.refused(errors.AlreadyExists, ": already exists$"):
                await snapshotter.commit(taken, f"{key}-active", ROOTED)
        assert (await snapshotter.stat(f"{key}-active")).kind is Kind.ACTIVE, "a commit that failed has changed nothing"

    @of_records
    async def test_of_many_at_once_one_gets_the_key(self, snapshotter: Snapshotter, key: str) -> None:
        """Twenty Prepares of one key at once make one snapshot; twenty of different keys make twenty."""
        outcomes = await asyncio.gather(
            *(snapshotter.prepare(f"{key}-same", "", ROOTED) for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(o, list) for o in outcomes) == 1
        assert sum(isinstance(o, errors.AlreadyExists) for o in outcomes) == 19
        made = await asyncio.gather(*(snapshotter.prepare(f"{key}-{n}", "", ROOTED) for n in range(20)))
        assert len({tuple(mounts) for mounts in made}) == 20
        await asyncio.gather(*(snapshotter.remove(f"{key}-{n}") for n in range(20)))
        assert not await self.listed(snapshotter, f"name~=^{key}-[0-9]+$")

    @of_records
    async def test_what_is_not_there(self, snapshotter: Snapshotter, key: str) -> None:
        """Every operation on an unknown key is NotFound, and so is one with an unknown parent."""
        for asked in (
            snapshotter.stat(key),
            snapshotter.mounts(key),
            snapshotter.usage(key),
            snapshotter.remove(key),
            snapshotter.update(key, {}),
            snapshotter.commit(f"{key}-name", key),
            snapshotter.prepare(f"{key}-a", key),
            snapshotter.view(f"{key}-v", key),
        ):
            with self.refused(errors.NotFound, "not found$"):
                await asked
        assert not await self.listed(snapshotter, f"name~=^{key}")

    @of_records
    async def test_operations_that_a_kind_does_not_allow(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Only committed snapshots can be parents, only active ones can be committed, and committed ones have no
        mounts.
        """
        base = await self.layer(snapshotter, place, f"{key}-base", "")
        await snapshotter.prepare(f"{key}-active", base, ROOTED)
        for number, parent in enumerate([None, base]):
            view = f"{key}-view-{number}"
            await snapshotter.view(view, parent or "", ROOTED)
            if not (self.containerd and parent):  # its native one looks for a directory that such a view does not have
                with self.refused(errors.FailedPrecondition, "is not active: failed precondition$"):
                    await snapshotter.commit(f"{key}-name", view, ROOTED)
            with self.refused(errors.InvalidArgument, "not committed snapshot: invalid argument$"):
                await snapshotter.prepare(f"{key}-child", view, ROOTED)
        with self.refused(errors.InvalidArgument, "not committed snapshot: invalid argument$"):
            await snapshotter.prepare(f"{key}-child", f"{key}-active", ROOTED)
        with self.refused(errors.FailedPrecondition, "not active or view: failed precondition$"):
            await snapshotter.mounts(base)
        with self.refused(errors.FailedPrecondition, "is not active: failed precondition$"):
            await snapshotter.commit(f"{key}-name", base, ROOTED)

    @of_records
    async def test_remove(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """A removed key is free at once; a parent cannot be removed while it has a child, be it active, a view or
        committed.
        """
        base = await self.layer(snapshotter, place, f"{key}-base", "")
        middle = await self.layer(snapshotter, place, f"{key}-middle", base)
        for make in (snapshotter.prepare, snapshotter.view):
            await make(f"{key}-top", middle, ROOTED)
            for parent in (base, middle):
                with self.refused(errors.FailedPrecondition, "cannot remove snapshot with child: failed precondition$"):
                    await snapshotter.remove(parent)
            await snapshotter.remove(f"{key}-top")
        await snapshotter.remove(middle)
        await snapshotter.prepare(middle, "", ROOTED)
        await snapshotter.remove(base)
        await snapshotter.commit(base, middle, ROOTED)
        assert (await snapshotter.stat(base)).parent == ""

    @of_records
    async def test_update(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Labels change as the mask says, for every kind; nothing else changes."""
        base = await self.layer(snapshotter, place, f"{key}-base", "")
        await snapshotter.prepare(f"{key}-active", base, ROOTED)
        await snapshotter.view(f"{key}-view", base, ROOTED)
        for name in (base, f"{key}-active", f"{key}-view"):
            before = await snapshotter.stat(name)
            replaced = await snapshotter.update(name, {**ROOTED, "l1": "v1", "l2": "v2", "l3": "v3"})
            assert replaced == Info(
                name,
                before.kind,
                before.created_at,
                replaced.updated_at,
                before.parent,
                {**ROOTED, "l1": "v1", "l2": "v2", "l3": "v3"},
            )
            assert replaced.updated_at > before.updated_at
            some = await snapshotter.update(name, {"l1": "new", "l4": "v4"}, ["labels.l1", "labels.l2"])
            assert some.labels == {**ROOTED, "l1": "new", "l3": "v3"}
            all_ = await snapshotter.update(
                name, {**ROOTED, "l4": "v4", "with.dots/and-slash": "x", "empty": ""}, ["labels"]
            )
            assert all_.labels == {**ROOTED, "l4": "v4", "with.dots/and-slash": "x"}
            dotted = await snapshotter.update(name, {"with.dots/and-slash": "y"}, ["labels.with.dots/and-slash"])
            assert dotted.labels == {**ROOTED, "l4": "v4", "with.dots/and-slash": "y"}
            with self.refused(
                errors.InvalidArgument, f'cannot update "parent" field on snapshot "{name}": invalid argument$'
            ):
                await snapshotter.update(name, {"l1": "x"}, ["labels.l1", "parent"])
            assert await snapshotter.stat(name) == dotted, "a failed update has changed nothing"

    @of_records
    async def test_list(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Filters select by kind, name, parent and labels; several are alternatives; results are ordered by name."""
        mine = {"containerd.io/gc.root": f"suite-{key}"}
        p, p_wl = f"{key}-p", f"{key}-p-wl"
        await snapshotter.prepare(f"{key}-a-np", "", mine)
        await snapshotter.prepare(f"{key}-tmp", "", mine)
        await snapshotter.commit(p, f"{key}-tmp", mine)
        await snapshotter.prepare(f"{key}-a", p, mine)
        await snapshotter.view(f"{key}-v", p, mine)
        await snapshotter.prepare(f"{key}-tmp", "", mine)
        await snapshotter.commit(p_wl, f"{key}-tmp", {**mine, "l": "1"})
        await snapshotter.prepare(f"{key}-a-wl", p_wl, {**mine, "l": "2"})
        await snapshotter.view(f"{key}-v-wl", p_wl, {**mine, "l": "3"})
        await snapshotter.prepare(f"{key}-a-np-wl", "", {**mine, "l": "2"})
        root = f'labels."containerd.io/gc.root"==suite-{key}'
        for sources, wanted in (
            ([root], ["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"]),
            ([f"kind==active,{root}"], ["a-np", "a", "a-wl", "a-np-wl"]),
            ([f"kind==view,{root}"], ["v", "v-wl"]),
            ([f"kind==committed,{root}"], ["p", "p-wl"]),
            ([f"name=={p}", f"name=={key}-a-np-wl"], ["p", "a-np-wl"]),
            ([f"name=={key}-a-wl,labels.l"], ["a-wl"]),
            ([f"parent=={p}"], ["a", "v"]),
            ([f'parent!="",{root}'], ["a", "v", "a-wl", "v-wl"]),
            ([f"labels.l,{root}"], ["p-wl", "a-wl", "v-wl", "a-np-wl"]),
            ([f"labels.l==2,{root}"], ["a-wl", "a-np-wl"]),
            ([f"name~=^{key}-v"], ["v", "v-wl"]),
        ):
            assert await self.listed(snapshotter, *sources) == sorted(f"{key}-{name}" for name in wanted), sources
        # containerd does not classify the error, and neither does the library that it has for snapshotters
        unclassified = (errors.Unknown,) if self.containerd or not self.worded else ()
        with self.refused((errors.InvalidArgument, *unclassified), "parse error"):
            await self.listed(snapshotter, "name=~x")

    @of_records
    async def test_calls_are_answered_during_a_list(self, snapshotter: Snapshotter, key: str) -> None:
        """A List of more than one message shows every snapshot as Stat does, and other calls are answered meanwhile."""
        await asyncio.gather(*(snapshotter.prepare(f"{key}-{n:03}", "", ROOTED) for n in range(130)))
        seen = []
        async for info in snapshotter.list([f"name~=^{key}-"]):
            assert info == await snapshotter.stat(info.name)
            seen.append(info.name)
        assert seen == [f"{key}-{n:03}" for n in range(130)]

    # -------------------------------------------------------------- what is mounted

    async def test_layers_show_the_same_as_one_directory(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """A file is rewritten, a directory replaced, owners and modes change, files are removed, moved and linked:
        layer on layer, each checked in a view.
        """
        # the kernel's overlay refuses to rename a lower layer's directory
        renames = [rename("dir1", "dir9")] if self.renames else []
        await self.same_as_flat(
            snapshotter,
            place,
            key,
            [
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
            ],
            [
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
                *renames,
                write("some/new", "new content 1"),
                rename("some/new", "some/f1"),
                rename("some/f2", "some/f3"),
            ],
            [
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
            ],
            [],
        )

    async def test_many_layers(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """128 layers are mounted as one view, with the topmost in front."""
        count = 128 if self.name == "overlayfs" else 16  # copying each is slow, and shows no more
        parent = await self.layer(
            snapshotter,
            place,
            f"{key}-0",
            "",
            write("bottom", "way at the bottom"),
            write("over", "0"),
            mkdir("only"),
            mkdir("add"),
        )
        for number in range(1, count):
            parent = await self.layer(
                snapshotter,
                place,
                f"{key}-{number}",
                parent,
                write("over", str(number)),
                write(f"add/{number}", "same"),
                delete("only"),
                mkdir("only"),
                write(f"only/{number}", "me"),
            )
        with mounted(await snapshotter.view(f"{key}-view", parent, ROOTED), place / "view") as view:
            assert (view / "bottom").read_text() == "way at the bottom"
            assert (view / "over").read_text() == str(count - 1)
            assert len(list((view / "add").iterdir())) == count - 1
            assert [p.name for p in (view / "only").iterdir()] == [str(count - 1)]

    async def test_a_view_is_read_only(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Nothing can be written to a view of nothing, of one layer or of two; its files do not change with its
        parent's children.
        """
        base = await self.layer(snapshotter, place, f"{key}-1", "", write("f", "1"))
        top = await self.layer(snapshotter, place, f"{key}-2", base, write("f", "2"))
        for number, parent in enumerate(["", base, top]):
            with mounted(await snapshotter.view(f"{key}-v{number}", parent, ROOTED), place / "view") as view:
                with pytest.raises(OSError, match="Read-only file system"):
                    (view / "new").write_text("x")
                assert not parent or (view / "f").read_text() == str(number)

    async def test_the_root_directory(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """A new root is 0755 whatever the umask, and has the owner of the parent's root."""
        old = os.umask(0o077)
        try:
            mounts = await snapshotter.prepare(f"{key}-making", "", ROOTED)
        finally:
            os.umask(old)
        with mounted(mounts, place / "m") as top:
            assert stat.S_IMODE(top.stat().st_mode) == 0o755
            assert (top.stat().st_uid, top.stat().st_gid) == (0, 0)
            os.chown(top, 11, 12)
        await snapshotter.commit(f"{key}-base", f"{key}-making", ROOTED)
        for make in (snapshotter.prepare, snapshotter.view):
            with mounted(await make(f"{key}-{make.__name__}", f"{key}-base", ROOTED), place / "m") as top:
                assert (top.stat().st_uid, top.stat().st_gid) == (11, 12)
                assert stat.S_IMODE(top.stat().st_mode) == 0o755

    async def test_everything_in_a_parent_is_in_its_child(
        self, snapshotter: Snapshotter, place: Path, key: str
    ) -> None:
        """A child has the modes, owners, times, xattrs, capabilities, devices, fifos, sockets, links, holes and odd
        names of its parent.
        """

        def fill(top: Path) -> None:
            write("setuid", "s", 0o4755)(top)
            write("a b\nc\xff", "odd")(top)
            (top / os.fsdecode(b"not-utf8-\xff\xfe")).write_text("odder")
            chown("setuid", 5, 6)(top)
            os.chmod(top / "setuid", 0o4755)
            os.setxattr(top / "setuid", "user.note", b"hello\0there")
            os.setxattr(
                top / "setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
            )
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

        base = await self.layer(snapshotter, place, f"{key}-base", "", fill)
        with (
            mounted(await snapshotter.view(f"{key}-view", base, ROOTED), place / "view") as view,
            mounted(await snapshotter.prepare(f"{key}-child", base, ROOTED), place / "child") as child,
        ):
            wanted = files(view)
            assert "sticky/linked" in wanted
            assert wanted["setuid"][4] == 2
            assert files(child) == wanted
            for name in ("setuid", "dangling", "fifo", "sparse", *(() if self.containerd else ("sticky",))):
                assert os.lstat(child / name).st_mtime_ns == 1_200_000_000_987_654_321, name
        if not self.containerd:  # before 2.4 its native one fills holes
            assert (await snapshotter.usage(f"{key}-child")).size < 1 << 20

    async def test_mounts(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Each kind on no, one and two layers has the mounts of containerd's snapshotter of that name, and Mounts
        repeats them.
        """
        base = await self.layer(snapshotter, place, f"{key}-1", "")
        top = await self.layer(snapshotter, place, f"{key}-2", base)
        made: dict[str, list[Mount]] = {}
        for number, parent in enumerate(["", base, top]):
            made[f"p{number}"] = await snapshotter.prepare(f"{key}-p{number}", parent, ROOTED)
            made[f"v{number}"] = await snapshotter.view(f"{key}-v{number}", parent, ROOTED)
        for name, mounts in made.items():
            assert await snapshotter.mounts(f"{key}-{name}") == mounts
        if self.name not in ("overlayfs", "native"):
            return
        assert all(len(mounts) == 1 and not mounts[0].target for mounts in made.values())
        if self.name == "native":
            assert {name: (m.type, m.options) for name, [m] in made.items()} == {
                f"{kind}{n}": ("bind", ("rbind", access))
                for kind, access in (("p", "rw"), ("v", "ro"))
                for n in range(3)
            }
            assert len({m.source for [m] in made.values()}) == 6, (
                "a view of one layer shows that layer, all else is its own"
            )
            return
        assert {name: (m.type, m.options) for name, [m] in made.items() if m.type == "bind"} == {
            "p0": ("bind", ("rw", "rbind")),
            "v0": ("bind", ("ro", "rbind")),
            "v1": ("bind", ("ro", "rbind")),
        }
        [lower1] = made["v1"]
        snapshots = Path(lower1.source).parent.parent
        [lower] = [o.removeprefix("lowerdir=") for o in made["v2"][0].options if o.startswith("lowerdir=")]
        lower2 = lower.split(":")[0]
        assert lower == f"{lower2}:{lower1.source}", "the topmost layer comes first"
        index = ("index=off",) if os.path.exists("/sys/module/overlay/parameters/index") else ()

        def overlay(*options: str) -> Mount:
            return Mount("overlay", "overlay", (*index, *options) if self.index_first else (*options, *index))

        for name, lowerdir in (("p1", lower1.source), ("p2", lower)):
            [upper] = [o.removeprefix("upperdir=") for o in made[name][0].options if o.startswith("upperdir=")]
            own = Path(upper).parent
            assert own.parent == snapshots
            assert made[name] == [overlay(f"workdir={own}/work", f"upperdir={own}/fs", f"lowerdir={lowerdir}")]
        assert made["v2"] == [overlay(f"lowerdir={lower}")]

    async def test_usage(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Usage counts allocated blocks and inodes, hard links once, without the parents; for a committed snapshot as
        of its commit.
        """
        parent = await self.layer(snapshotter, place, f"{key}-base", "", write("lower", "x" * 100_000))
        mounts = await snapshotter.prepare(f"{key}-a", "", ROOTED)
        empty = await snapshotter.usage(f"{key}-a")
        assert empty.inodes == 1
        with mounted(mounts, place / "m") as top:
            write("big", "x" * 1_000_000)(top)
            os.sync()  # blocks are allocated when they are written
        usage = await snapshotter.usage(f"{key}-a")
        assert usage.inodes == 2
        assert 1_000_000 <= usage.size - empty.size < 1_100_000
        with mounted(mounts, place / "m") as top:
            link("big", "again")(top)
            os.symlink("big", top / "symlink")
            with (top / "sparse").open("wb") as sparse:
                sparse.truncate(32 << 20)
        linked = await snapshotter.usage(f"{key}-a")
        assert linked.inodes == 4
        assert linked.size - usage.size < 100_000
        await snapshotter.commit(f"{key}-c", f"{key}-a", ROOTED)
        assert await snapshotter.usage(f"{key}-c") == linked
        await snapshotter.prepare(f"{key}-child", f"{key}-c", ROOTED)
        if not (self.containerd and self.name == "native"):
            usage = await snapshotter.usage(f"{key}-child")
            assert (
                usage == linked if self.name == "native" else (usage.size, usage.inodes) <= (empty.size, empty.inodes)
            ), "a child takes what it has changed, or copied"
        await snapshotter.view(f"{key}-view", parent, ROOTED)
        assert await snapshotter.usage(f"{key}-view") == Usage()

    async def test_mapped_ids(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Labels of a user namespace give the root directory to that namespace's root, and put the mapping into the
        mounts.
        """
        if self.name != "overlayfs" or self.index_first:
            pytest.skip("only containerd 2's overlayfs maps ids")
        labels = {**ROOTED, UID_MAPPING: "0:2000:65536", GID_MAPPING: "0:3000:65536"}
        [mount] = await snapshotter.prepare(f"{key}-a", "", labels)
        assert (os.stat(mount.source).st_uid, os.stat(mount.source).st_gid) == (2000, 3000)
        assert mount.options == ("uidmap=0:2000:65536", "gidmap=0:3000:65536", "rw", "rbind")
        await snapshotter.commit(f"{key}-c", f"{key}-a", ROOTED)
        [mount] = await snapshotter.prepare(f"{key}-b", f"{key}-c", labels)
        assert mount.options[:2] == ("uidmap=0:2000:65536", "gidmap=0:3000:65536")
        for mapping in ("0:x:1", "1:2:3", "0:4294967295:1"):
            with self.refused(errors.NodeError, "map"):
                await snapshotter.prepare(f"{key}-bad", "", {**ROOTED, UID_MAPPING: mapping})
            with pytest.raises(errors.NotFound):
                await snapshotter.stat(f"{key}-bad")

    async def test_a_chain_is_rebased_at_once(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Commits that are requested in order, one on top of the other, need not wait for each other's answers. If one
        fails, all above it fail.
        """
        if self.containerd or not self.rebases:
            pytest.skip("rebase is optional")
        names = [f"{key}-{number}" for number in range(20)]
        for name in [*names, f"{key}-above"]:
            with mounted(await snapshotter.prepare(f"{name}-apart", "", ROOTED), place / "m") as top:
                write(name.rpartition("-")[2], "1")(top)
        await asyncio.gather(
            *(
                snapshotter.commit(name, f"{name}-apart", ROOTED, parent=below)
                for name, below in zip(names, ["", *names], strict=False)
            )
        )
        assert [(await snapshotter.stat(name)).parent for name in names] == ["", *names[:-1]]
        with mounted(await snapshotter.view(f"{key}-view", names[-1], ROOTED), place / "m") as view:
            assert {p.name for p in view.iterdir()} == {str(number) for number in range(20)}
        ends = await asyncio.gather(
            snapshotter.commit(f"{key}-none", f"{key}-nothing", ROOTED, parent=names[-1]),
            snapshotter.commit(f"{key}-above", f"{key}-above-apart", ROOTED, parent=f"{key}-none"),
            return_exceptions=True,
        )
        assert [type(end) for end in ends] == [errors.NotFound, errors.NotFound]
        assert (await snapshotter.stat(f"{key}-above-apart")).kind is Kind.ACTIVE

    async def test_rebase(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """Layers that were made separately are put on top of each other when they are committed."""
        if self.containerd or not self.rebases:
            pytest.skip("rebase is optional")
        base = await self.layer(snapshotter, place, f"{key}-base", "", write("a", "1"), write("b", "1"))
        with mounted(await snapshotter.prepare(f"{key}-apart", "", ROOTED), place / "m") as top:
            write("b", "2")(top)
        with pytest.raises(errors.NotFound):
            await snapshotter.commit(f"{key}-top", f"{key}-apart", ROOTED, parent=f"{key}-nothing")
        await snapshotter.commit(f"{key}-top", f"{key}-apart", ROOTED, parent=base)
        assert (await snapshotter.stat(f"{key}-top")).parent == base
        with mounted(await snapshotter.view(f"{key}-view", f"{key}-top", ROOTED), place / "m") as view:
            assert {p.name: p.read_text() for p in view.iterdir()} == {"a": "1", "b": "2"}
        await snapshotter.prepare(f"{key}-there", base, ROOTED)
        if not self.namespaced:  # metadata does not pass on what it will not do
            with self.refused(errors.InvalidArgument, "cannot change parent"):
                await snapshotter.commit(f"{key}-other", f"{key}-there", ROOTED, parent=f"{key}-top")
        await snapshotter.commit(f"{key}-other", f"{key}-there", ROOTED, parent=base)

    # -------------------------------------------------------------- what is left

    async def test_removed_snapshots_leave_nothing(self, snapshotter: Snapshotter, place: Path, key: str) -> None:
        """After a cleanup removed snapshots cannot be mounted and their directories are gone, whether they were mounted
        or not, full or empty; all others are there.
        """
        if self.namespaced:
            pytest.skip("files go when the collector comes")
        base = await self.layer(snapshotter, place, f"{key}-base", "", write("f", "x"), mkdir("d"), write("d/e", "x"))
        kept = await snapshotter.prepare(f"{key}-kept", base, ROOTED)
        unused = await snapshotter.prepare(f"{key}-unused", "", ROOTED)
        used = await snapshotter.prepare(f"{key}-used", base, ROOTED)
        with mounted(used, place / "m") as top:
            delete("d")(top)
            write("g", "x")(top)
        await snapshotter.remove(f"{key}-used")
        await snapshotter.remove(f"{key}-unused")
        await snapshotter.cleanup()
        for gone in (unused, used):
            assert not [path for path in directories(gone) if os.path.lexists(path)]
            with pytest.raises(subprocess.CalledProcessError), mounted(gone, place / "m"):
                pass
        with mounted(kept, place / "m") as top:
            assert (top / "d" / "e").read_text() == "x"
