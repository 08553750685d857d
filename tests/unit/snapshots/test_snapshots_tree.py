"""The records of a snapshotter and the directories beside them, under failures and concurrent calls."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from services.kit import errors, tracing
from services.snapshots import disk
from services.snapshots.broken import started
from services.snapshots.native import NativeSnapshotter
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.store import Info, Kind, Usage
from services.snapshots.tree import Row, Rows, Tree
from tests.spans import attribute, recorded
from tests.support import eventually_async


@pytest.fixture
async def tree(place: Path) -> AsyncIterator[Tree]:
    tree = Tree(place / "metadata.db")
    yield tree
    await tree.close()


def row(number: int, key: str, parent: int | None = None) -> Row:
    return Row(number, parent, Info(key, Kind.ACTIVE, 1, 2, labels={"a": "ü\U0001f600"}), Usage())


async def test_work_that_fails_changes_nothing_of_others(tree: Tree) -> None:
    """The changes of a failed piece of work in a batch are undone, and the rest of the batch is committed."""

    def fails(rows: Rows) -> None:
        rows.insert(row(2, "b"))
        raise errors.AlreadyExists("b")

    outcomes = await asyncio.gather(
        tree.write(lambda rows: rows.insert(row(1, "a"))),
        tree.write(fails),
        tree.write(lambda rows: rows.insert(row(3, "c"))),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), errors.AlreadyExists, type(None)]
    assert tree.view(lambda rows: rows.things()) == {1, 3}
    found = tree.view(lambda rows: rows.get("a"))
    assert found is not None
    assert found.info.labels == {"a": "ü\U0001f600"}


async def test_who_waits_for_earlier_records_says_so(tree: Tree) -> None:
    """The wait links to the first of those that were written before."""
    go, begun = threading.Event(), threading.Event()

    def slow(rows: Rows) -> None:
        begun.set()
        go.wait(10)
        rows.insert(row(1, "a"))

    async def write(name: str) -> None:
        with tracing.span(name):
            await tree.write(slow if name == "first" else lambda rows: rows.insert(row(2, "b")))

    with recorded() as spans:
        first = asyncio.ensure_future(write("first"))
        await eventually_async(lambda: asyncio.sleep(0, begun.is_set()))
        second = asyncio.ensure_future(write("second"))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, second)
        (wait,) = (each for each in spans.named("wait.lock") if each.parent and spans.parent(each).name == "second")
        assert [each.name for each in spans.linked(wait)] == ["first"]
        (written,) = (each for each in spans.named("snapshots.record") if spans.parent(each).name == "second")
        assert float(str(attribute(written, "splitd.time.disk_ms"))) > 0


async def test_requests_made_together_are_committed_together(tree: Tree) -> None:
    """Work that comes while a commit is under way is gathered: a hundred changes need a few commits."""
    commits = 0
    go = threading.Event()

    def trace(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    tree._writer.set_trace_callback(trace)
    first = asyncio.ensure_future(tree.write(lambda _: go.wait(10)))
    rest = [asyncio.ensure_future(tree.write(lambda rows, n=n: rows.insert(row(n, str(n))))) for n in range(1, 101)]  # type: ignore[misc]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *rest)
    assert len(tree.view(lambda rows: rows.things())) == 100
    assert 1 <= commits <= 3


async def test_ids_are_never_used_twice(place: Path) -> None:
    """The id of a removed snapshot is not given out again, even if it was the last, nor that of a directory that still
    exists.
    """
    for expected in (1, 2, 3):
        async with OverlaySnapshotter(place / "o") as snapshotter:
            [mount] = await snapshotter.prepare("a")
            assert mount.source == f"{place}/o/snapshots/{expected}/fs"
            await snapshotter.remove("a")
    (place / "o" / "snapshots" / "9").mkdir(parents=True)
    (place / "o" / "snapshots" / "new-11").mkdir()
    async with OverlaySnapshotter(place / "o") as snapshotter:
        [mount] = await snapshotter.prepare("a")
        assert mount.source == f"{place}/o/snapshots/12/fs"
        await eventually_async(lambda: _listed(place / "o", {"12"}), "what has no record goes after the start")


async def _listed(root: Path, names: set[str]) -> bool:
    return set(os.listdir(root / "snapshots")) == names


async def test_a_full_disk(place: Path) -> None:
    """A Prepare on a full disk is ResourceExhausted and leaves nothing. Existing snapshots can still be seen and
    removed, and then there is room.
    """
    root = place / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(root)], check=True)
    async with OverlaySnapshotter(root / "o") as snapshotter:
        made = 0
        with pytest.raises(errors.ResourceExhausted):
            for made in range(100):
                await snapshotter.prepare(f"k{made}")
        there = [info.name async for info in snapshotter.list()]
        assert len(there) == made > 5
        await snapshotter.cleanup()
        assert len(os.listdir(root / "o" / "snapshots")) == made
        await snapshotter.remove("k0")
        await snapshotter.cleanup()

        async def prepared() -> bool:
            try:
                await snapshotter.prepare("again")
            except errors.ResourceExhausted:  # who removes a directory too, behind the call, has it open for a moment
                return False
            return True

        await eventually_async(prepared, "there is no room")


async def test_a_database_that_is_none(place: Path) -> None:
    """A bolt file of containerd's, or a database of a newer layout, is left alone with a reason."""
    bolt = b"\0" * 16 + b"\xed\xda\x0c\xed" + b"\0" * 8000
    (place / "metadata.db").write_bytes(bolt)
    with pytest.raises(errors.DataLoss, match=r"metadata.db cannot be used: file is not a database"):
        Tree(place / "metadata.db")
    assert (place / "metadata.db").read_bytes() == bolt
    newer = sqlite3.connect(place / "newer.db")
    newer.execute("PRAGMA user_version = 3")
    newer.close()
    with pytest.raises(errors.FailedPrecondition, match="layout 3"):
        Tree(place / "newer.db")


async def test_damaged_pages(place: Path) -> None:
    """They are found before anything without a record is removed. Then nothing is removed, even if an operator releases
    it; calls that meet such a page get an error that says so, and health reports it.
    """
    async with OverlaySnapshotter(place / "running") as snapshotter:
        for number in range(30):
            await snapshotter.prepare(f"k{number}", labels={"filler": "x" * 3000})
        snapshotter._tree._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copytree(place / "running", place / "o")
    database, held = place / "o" / "metadata.db", place / "o" / "held"
    data = bytearray(database.read_bytes())
    for page in range(8, 20):
        data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    database.write_bytes(data)
    said = list[str]()

    class Server:
        def ail(self, trouble: str = "") -> None:
            said.append(trouble)

    async with OverlaySnapshotter(place / "o") as snapshotter:
        await eventually_async(lambda: asyncio.sleep(0, held.exists()), "nothing is held back")
        snapshotter.soundness.report_to(Server())
        assert [f"{database} is damaged" in trouble and "docs/damaged-database.md" in trouble for trouble in said] == [
            True
        ]
        with pytest.raises(errors.DataLoss, match="metadata.db is damaged: .* docs/damaged-database.md"):
            [info async for info in snapshotter.list()]
        with pytest.raises(errors.DataLoss, match="metadata.db is damaged"):
            for number in range(30):
                await snapshotter.update(f"k{number}", {"a": "b"}, ["labels.a"])
        held.unlink()
        await snapshotter.cleanup()
        assert len(os.listdir(place / "o" / "snapshots")) == 30


@pytest.mark.parametrize("column", ["labels = '{\"a\": '", "kind = 9", "labels = cast(x'ff' AS TEXT)"])
@pytest.mark.parametrize("how", ["stat", "list", "update"])
async def test_a_damaged_record(place: Path, column: str, how: str) -> None:
    """To SQLite its page is whole. The calls that read it get an error; health, and calls that would remove things
    without a record, report it too.
    """
    said = list[str]()

    class Server:
        def ail(self, trouble: str = "") -> None:
            said.append(trouble)

    async with OverlaySnapshotter(place / "o") as snapshotter:
        snapshotter.soundness.report_to(Server())
        await snapshotter.prepare("other")
        await snapshotter.prepare("k")
        # Not by the tree's own connection: what is looked for at the start may have a transaction open there, and roll
        # it back.
        with contextlib.closing(
            sqlite3.connect(place / "o" / "metadata.db", isolation_level=None, timeout=20)
        ) as another:
            another.execute(f"UPDATE snapshots SET {column} WHERE key = 'k'")
        for _ in range(2):
            with pytest.raises(errors.DataLoss, match="docs/damaged-database.md"):
                if how == "stat":
                    await snapshotter.stat("k")
                elif how == "list":
                    [info async for info in snapshotter.list()]
                else:
                    await snapshotter.update("k", {})
        assert len(said) == 1
        assert (place / "o" / "held").read_text().strip() == said[0]
        assert (await snapshotter.stat("other")).name == "other"


async def test_a_disk_that_gives_nothing_back(place: Path) -> None:
    """A snapshotter whose start fails on a disk error is out of use, and the process goes on. A failure that may pass,
    such as a full disk, ends the process, which is started again.
    """

    def failing(code: int) -> OverlaySnapshotter:
        raise OSError(code, os.strerror(code), str(place))

    async with contextlib.AsyncExitStack() as stack:
        broken = await started("overlayfs", lambda _: failing(errno.EIO), place, stack)
        with pytest.raises(
            errors.DataLoss,
            match=f"snapshotter overlayfs is out of use: {place}: input/output error: see docs/damaged-database.md",
        ):
            await broken.stat("k")
        with pytest.raises(OSError, match="No space left"):
            await started("overlayfs", lambda _: failing(errno.ENOSPC), place, stack)


async def test_a_failed_start_closes_its_files(place: Path) -> None:
    """The page with the last number may be the damaged one: no file is left open, and no thread runs."""
    async with OverlaySnapshotter(place / "o") as snapshotter:
        await snapshotter.prepare("k")
        connection = snapshotter._tree._writer
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone()
        # or the check of the pages, which may still have the file open, keeps the log from going into it at the end
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((place / "o" / "metadata.db").read_bytes())
    data[(page - 1) * 4096 : (page - 1) * 4096 + 100] = b"\xff" * 100
    (place / "o" / "metadata.db").write_bytes(data)
    with pytest.raises(errors.DataLoss, match="metadata.db is damaged: .* docs/damaged-database.md"):
        OverlaySnapshotter(place / "o")
    assert not [
        name
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}").startswith(f"{place}/o")
    ]


async def test_where_overlay_does_not_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New snapshots are refused with the reason; existing ones can be listed and removed, and once overlay works again,
    all calls work.
    """
    from services.snapshots import kernel

    async with OverlaySnapshotter(place / "o") as snapshotter:
        await snapshotter.prepare("a")

    async def trouble(_: Path) -> str:
        return "no such device"

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "overlay_trouble", trouble)
        async with OverlaySnapshotter(place / "o", ask_again=0.0) as snapshotter:
            for make in (snapshotter.prepare, snapshotter.view):
                with pytest.raises(
                    errors.FailedPrecondition, match="overlayfs does not work on this machine: no such device"
                ):
                    await make("b")
            assert [info.name async for info in snapshotter.list()] == ["a"]
            await snapshotter.remove("a")
            patch.undo()
            await snapshotter.prepare("b")


class SlowCopy:
    """Copies that wait to be continued."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        copy = disk.copy

        async def slow(source: str, target: str) -> None:
            self.begun.set()
            await self.go.wait()
            await copy(source, target)

        monkeypatch.setattr(disk, "copy", slow)


async def test_a_parent_stays_while_it_is_copied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-made snapshot already counts as a child: its parent cannot be removed, a cleanup leaves it alone, and
    other calls go on meanwhile.
    """
    async with NativeSnapshotter(place / "n") as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.commit("base", "a")
        slow = SlowCopy(monkeypatch)
        copying = asyncio.ensure_future(snapshotter.prepare("child", "base"))
        await slow.begun.wait()
        with pytest.raises(errors.FailedPrecondition, match="cannot remove snapshot with child"):
            await snapshotter.remove("base")
        await snapshotter.cleanup()
        before = time.monotonic()
        await snapshotter.prepare("other")
        with pytest.raises(errors.NotFound):
            await snapshotter.stat("child")
        assert time.monotonic() - before < 5
        slow.go.set()
        await copying
        await snapshotter.remove("child")
        await snapshotter.remove("base")


async def test_a_cancelled_copy_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Prepare whose caller goes away during the copy makes nothing, keeps nothing, and frees its parent."""
    async with NativeSnapshotter(place / "n") as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.commit("base", "a")
        slow = SlowCopy(monkeypatch)
        copying = asyncio.ensure_future(snapshotter.prepare("child", "base"))
        await slow.begun.wait()
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        await eventually_async(lambda: _listed(place / "n", {"1"}), "the copy goes")
        await snapshotter.remove("base")


async def test_cancelled_at_any_moment_of_a_copy(place: Path) -> None:
    """Wherever a Prepare is cancelled, it has happened or not; either way no missing snapshot holds its parent."""
    async with NativeSnapshotter(place / "n") as snapshotter:
        await snapshotter.prepare("a")
        await snapshotter.commit("base", "a")
        for number in range(40):
            making = asyncio.ensure_future(snapshotter.prepare(f"k{number}", "base"))
            await asyncio.wait([making], timeout=number * 0.0005)
            making.cancel()
            await asyncio.wait([making])
        for info in [info async for info in snapshotter.list(["kind==active"])]:
            await snapshotter.remove(info.name)
        await snapshotter.cleanup()
        await eventually_async(lambda: _listed(place / "n", {"1"}))
        await snapshotter.remove("base")


async def test_a_cleanup_waits_for_what_is_being_removed(place: Path) -> None:
    """It does not remove the same directories, too, at the same time."""
    asked, going = list[list[str]](), asyncio.Event()

    class Slow(OverlaySnapshotter):
        async def discard(self, names: Sequence[str]) -> Sequence[str]:
            asked.append(list(names))
            if names:
                await going.wait()
            return await super().discard(names)

    async with Slow(place / "o") as snapshotter:
        await snapshotter.cleanup()  # now it is known that the records are sound
        await snapshotter.prepare("other")
        await snapshotter.prepare("a")
        await snapshotter.remove("a")
        cleaning = asyncio.ensure_future(snapshotter.cleanup())
        for _ in range(3):  # it would have looked for directories by then
            await snapshotter.update("other", {})
        assert asked == [[], ["2"]]
        going.set()
        await cleaning
        assert asked == [[], ["2"], []]
        assert os.listdir(place / "o" / "snapshots") == ["1"]


async def test_cleaned_up_while_others_are_made(place: Path) -> None:
    """Cleanups remove nothing of snapshots that are being made at the same time."""
    async with OverlaySnapshotter(place / "o") as snapshotter:

        async def make(number: int) -> None:
            await snapshotter.prepare(str(number))
            if number % 2:
                await snapshotter.remove(str(number))

        await asyncio.gather(*(make(number) for number in range(100)), *(snapshotter.cleanup() for _ in range(20)))
        await snapshotter.cleanup()
        mounts = [(await snapshotter.mounts(str(number)))[0] for number in range(0, 100, 2)]
        assert all(os.path.isdir(mount.source) for mount in mounts)
        assert len(os.listdir(place / "o" / "snapshots")) == 50
