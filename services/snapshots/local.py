"""What the snapshotters of this service share: the tree's rules, and *things* that come before their records and go
after them.

::

    ROOT/snapshots/NAME/          served by one process, which holds its lock
        metadata.db               the records (``tree``)
        store-id                  whose store this is (``kit.stamp``)
        held                      why things without a record stay, until an operator removes this file

A thing is what a snapshot consists of: a directory (``directories.py``), a subvolume, an image of a disk. It is called
by the snapshot's id, and ``new-ID`` while it is made. A snapshot's thing is made, gets its lasting name, and the
snapshot is recorded. A removal takes the record; the thing then is one without a record, and goes in the background.
Ids are never used twice, so whatever has no record can be removed at any time, by whoever finds it: unless records were
lost. What containers wrote is nowhere else, so then all that is without a record stays.

A new snapshotter is a subclass that says how its things are made, kept, measured, frozen, mounted and discarded (the
methods below *what a snapshotter decides*); the rules, the records and what a crash leaves are cared for here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from services.kit import damage, errors, filters, loops, tracing
from services.kit.faults import fault
from services.kit.slices import Lane
from services.oci.mounts import Mount
from services.snapshots import disk, kernel
from services.snapshots.durable import FilesystemSync, Synced
from services.snapshots.soundness import Server, Soundness
from services.snapshots.store import REBASE, About, Info, Kind, Usage, kept_labels, updated_labels
from services.snapshots.tree import Row, Rows, Tree

log = logging.getLogger(__name__)

HELD = "held"
LONGEST_NAME = 9
"""Characters of a snapshotter's name: a part of its socket's, of which ``splitd up`` must know that it fits below
any STATE that it takes.
"""
T = TypeVar("T")


@contextlib.contextmanager
def failing_to(words: str) -> Iterator[None]:
    """Errors from inside as containerd wraps them: ``words: ...``, of the same class."""
    try:
        yield
    except errors.NodeError as error:
        raise type(error).verbatim(f"{words}: {error}", error.trailers) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """Of a snapshotter that has none of its own."""


class LocalSnapshotter(ABC):
    """A ``Snapshotter`` in ``root``, which its owner has locked (``kit.process.owned``). Use as ``async with``."""

    NAME: ClassVar[str]
    """What clients call it: lower case letters and digits, :data:`LONGEST_NAME` at most."""
    PLATFORMS: ClassVar[tuple[str, ...]] = ()
    """What its files are for, as ``os/architecture[/variant]``; none: this machine."""
    FILESYSTEM: ClassVar[str] = ""
    """The only file system that its root may be on, as the kernel calls it; "": any."""
    Settings: ClassVar[type[Any]] = NoSettings
    """The dataclass of its settings, table [snapshots.NAME]."""

    def __init__(
        self, root: Path, settings: Any = None, *, sync_commit: bool = True, sync_remove: bool = False
    ) -> None:
        """``settings`` are of the class ``Settings``; None: all defaults. ``sync_commit``: a snapshot is committed when
        its files are durable. ``sync_remove``: a removal returns when they are gone.

        DataLoss if its records are damaged so that it cannot begin with them, OSError as it comes.
        """
        self.root = root
        self.disk = kernel.disk_of(root)
        """The file system that ``root`` is on."""
        self.settings = self.Settings() if settings is None else settings
        self._sync_commit = sync_commit
        self._sync_remove = sync_remove
        self._unnoted = ""
        """Why things are held back, where that could not be noted."""
        self.soundness = Soundness(root / "metadata.db", self._hold)
        # noted before there is one, which tells nothing of that
        if _is_empty(root / "metadata.db") and any(map(_id_in, self.names())):
            self._hold(f"{root}/metadata.db is new, though there are snapshots")
        self._tree = Tree(root / "metadata.db", self.soundness.damaged)
        if self._tree.file.lost:
            self._hold(self._tree.file.lost)
            if not self._unnoted:
                self._tree.file.noted()
        try:
            for made in (root, root.parent):
                disk.sync_directory(str(made))
            self._ids = itertools.count(max([self._tree.last_id(), *map(_id_in, self.names())]) + 1)
        except BaseException:
            self._tree.give_up()
            raise
        self._sync = FilesystemSync(str(root), self._doubt)
        self._doubtful = 0
        """The highest id there was when files could not be written to the disk: whose they were is not known."""
        self._staged: set[str] = set()
        """Names of what is being made before its record is asked for."""
        self._believed = False
        """All pages of the database are what they were, as far as is known."""
        self._copied: Counter[int] = Counter()
        """Ids of parents of those: they have children that no record knows yet."""
        self._committing: dict[str, asyncio.Future[None]] = {}
        """By their names, snapshots that are being committed; done when their records are on their way, in the
        order of which they are written.
        """
        self._lane = Lane()
        self._trash: set[str] = set()
        self._emptying: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Look at the machine, finish what a crash interrupted, and begin to remove what it left behind."""
        await self.start()
        if trouble := self._elsewhere():
            log.info("snapshotter %s does not work here: %s", self.NAME, trouble)
        with contextlib.suppress(errors.NodeError):  # damaged records: whoever reads them next is told
            await self._frozen(
                [row.id for row in map(self._tree.row, self._tree.view(Rows.all)) if row.info.kind is Kind.COMMITTED]
            )
        self._sweep()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.soundness.aclose()
        await self._tree.close()
        if self._sweeping is not None:
            await self._sweeping
        if self._emptying is not None:
            self._emptying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._emptying
        await self._sync.aclose()

    def told_by(self, *servers: Server) -> None:
        """From here on the health of ``servers`` says when its records are damaged."""
        self.soundness.told_by(*servers)

    async def about(self) -> About:
        """What it says of itself."""
        return About(
            self.NAME, self.PLATFORMS, {"root": str(self.root)}, tuple(self.capabilities()), await self.trouble()
        )

    async def _check(self) -> None:
        if trouble := await self.trouble():
            raise errors.FailedPrecondition(f"snapshotter {self.NAME} does not work on this machine: {trouble}")

    # ---------------------------------------------------------------- what a snapshotter decides

    async def start(self) -> None:  # noqa: B027 - not every one has anything to find out
        """Find out what the machine can do."""

    async def trouble(self) -> str:
        """Why it cannot work on this machine as it is now; an empty string where it can."""
        return self._elsewhere()

    def _elsewhere(self) -> str:
        if self.FILESYSTEM in ("", self.disk.type):
            return ""
        return (
            f"path {self.root} ({self.disk.type}) must be a {self.FILESYSTEM} filesystem to be used with the "
            f"{self.NAME} snapshotter"
        )

    def capabilities(self) -> Sequence[str]:
        """What clients may ask of it (:data:`store.REBASE`, :data:`store.REMAP_IDS`, ...), once it was started."""
        return ()

    @abstractmethod
    def names(self) -> Sequence[str]:
        """All things that there are, with a record or without: ``ID`` and ``new-ID``. It blocks; other names are
        nobody's, and are removed.
        """

    def copies(self, kind: Kind, parent: str) -> bool:
        """Whether a snapshot begins as a copy of its parent, made by :meth:`stage`."""
        return False

    async def stage(self, name: str, base: int) -> None:
        """Make the thing ``name`` a copy of that of the snapshot ``base``, durably. NodeError if it cannot be; what
        there is of it then is discarded.
        """
        raise NotImplementedError

    @abstractmethod
    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        """Make the thing ``name`` of a snapshot that is no copy; False if it needs none. OSError as it comes; what
        there is of it then is discarded. It blocks, in the tree's thread.
        """

    @abstractmethod
    def keep(self, name: str, number: int, rows: Rows) -> None:
        """The thing ``name`` is that of the snapshot ``number`` from now on, and durable when ``rows`` are.
        NodeError if it cannot be. It blocks, in the tree's thread.
        """

    @abstractmethod
    async def measure(self, row: Row) -> Usage:
        """What an active snapshot has changed takes now. A commit asks before it writes the record, so what takes
        long there may be done here: the snapshot stays as it is if the commit fails.
        """

    async def freeze(self, numbers: Sequence[int]) -> None:  # noqa: B027 - not every one can
        """Let nothing change committed snapshots any more. Called when their records are written, before the commit is
        answered; and at the next start for all that are committed, since a crash may have come in between: where it was
        done, it costs next to nothing. OSError as it comes: the log tells, and the next start tries again.
        """

    @abstractmethod
    async def discard(self, names: Sequence[str]) -> Sequence[str]:
        """Remove things without a record, some of which may be gone already. Those that could not be removed, which
        the log explains.
        """

    @abstractmethod
    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        """How to mount an active snapshot or a view. It blocks for no longer than a system call takes."""

    @abstractmethod
    def words(self, doing: str, key: str) -> str:
        """What containerd's snapshotter says before the reason when ``doing`` (mount, commit, remove) fails."""

    def shown(self, row: Row) -> Info:
        """A snapshot as clients see it."""
        return row.info

    # ---------------------------------------------------------------- reading

    async def stat(self, key: str) -> Info:
        return self.shown(self._get(key))

    async def usage(self, key: str) -> Usage:
        row = self._get(key)
        if row.info.kind is Kind.ACTIVE:
            return await self.measure(row)
        return row.usage

    async def mounts(self, key: str) -> list[Mount]:
        def read(rows: Rows) -> tuple[Row, list[int]]:
            row = _existing(rows, key)
            if row.info.kind is Kind.COMMITTED:
                raise errors.FailedPrecondition(f"requested snapshot {key} not active or view")
            return row, rows.ancestors(row)

        with failing_to(self.words("mount", key)):
            return self.mounts_of(*self._tree.view(read))

    def _get(self, key: str) -> Row:
        return self._tree.view(lambda rows: _existing(rows, key))

    # ---------------------------------------------------------------- making

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create(Kind.ACTIVE, key, parent, kept_labels(labels or {}))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._create(Kind.VIEW, key, parent, kept_labels(labels or {}))

    async def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        if not key:
            raise errors.InvalidArgument("snapshot key must not be empty")
        await self._check()
        number = next(self._ids)
        name = f"new-{number}"
        broken: list[str] = []

        def record(rows: Rows) -> tuple[Row, list[int]]:
            base = _base(rows, key, parent)
            ancestors = [] if base is None else [base.id, *rows.ancestors(base)]
            if staged or self._made(name, kind, ancestors, labels, broken):
                fault("snapshots.before-rename")
                self.keep(name, number, rows)
            now = time.time_ns()
            row = Row(number, base.id if base else None, Info(key, kind, now, now, parent, labels), Usage())
            rows.insert(row)
            return row, ancestors

        with failing_to("failed to create snapshot"):
            staged = self.copies(kind, parent)
            try:
                async with self._staging(name, key, parent) if staged else contextlib.nullcontext():
                    made = await self._write(record)
            finally:
                self._discard(broken)
        return self.mounts_of(*made)

    @contextlib.asynccontextmanager
    async def _staging(self, name: str, key: str, parent: str) -> AsyncIterator[None]:
        """Within, the thing ``name`` is a copy of the parent's, which cannot be removed meanwhile.

        Whoever leaves may be cancelled while its record is being written: since all such work is done in order, the
        parent is then taken by the record before anything asked for later looks for children.
        """

        def reserve(rows: Rows) -> int:
            base = _base(rows, key, parent)
            assert base is not None
            self._staged.add(name)
            self._copied[base.id] += 1
            return base.id

        def release(_: object = None) -> None:
            if reserved.exception() is None:
                self._copied -= Counter([reserved.result()])
                self._staged.discard(name)

        reserved = loops.task("the reservation of a copy", self._tree.write(reserve))
        try:
            base = await asyncio.shield(reserved)
        except asyncio.CancelledError:
            reserved.add_done_callback(release)
            raise
        try:
            try:
                with tracing.span("snapshots.copy", parent=parent):
                    await self.stage(name, base)
                fault("snapshots.after-copy")
            except BaseException:
                self._discard([name])
                raise
            yield
        finally:
            release()

    def _made(
        self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str], broken: list[str]
    ) -> bool:
        try:
            return self.make(name, kind, ancestors, labels)
        except OSError as error:
            broken.append(name)
            raise disk.disk_error(error, "failed to create prepare snapshot dir") from None

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        if not name:
            raise errors.InvalidArgument("snapshot name must not be empty")
        if parent and REBASE not in self.capabilities():
            raise errors.Unimplemented(f"rebase of snapshot {key} by snapshotter {self.NAME}")
        below = self._committing.get(parent)
        written = asyncio.get_running_loop().create_future()
        first = self._committing.setdefault(name, written) is written
        try:
            await self._commit(name, key, labels or {}, parent, below, written)
        finally:
            if first:
                del self._committing[name]
            if not written.done():
                written.set_result(None)

    async def _commit(
        self,
        name: str,
        key: str,
        labels: Mapping[str, str],
        parent: str,
        below: asyncio.Future[None] | None,
        written: asyncio.Future[None],
    ) -> None:
        measured = self._get(key)
        usage = Usage()
        if measured.info.kind is Kind.ACTIVE:
            synced = self._sync.begun() if self._sync_commit else None  # while they are measured
            with tracing.span("snapshots.measure", key=key):
                usage = await self.measure(measured)
            if synced is not None:
                with tracing.span("snapshots.sync", key=key), failing_to(self.words("commit", key)):
                    await self._made_durable(measured, synced)

        def record(rows: Rows) -> None:
            if rows.get(name) is not None:
                raise errors.AlreadyExists(f"committed snapshot {name}")
            row = rows.get(key)
            if row is None or row.id != measured.id:
                raise errors.NotFound(f'failed to get active snapshot "{key}"')
            if row.info.kind is not Kind.ACTIVE:
                raise errors.FailedPrecondition(f'snapshot "{key}" is not active')
            base = _rebased(rows, row, parent)
            now = time.time_ns()
            info = Info(name, Kind.COMMITTED, now, now, labels=kept_labels(labels))
            rows.replace(Row(row.id, base, info, usage))

        if below is not None:
            await asyncio.shield(below)
        with failing_to(self.words("commit", key)):
            written.set_result(None)
            await self._write(record)
        await self._frozen([measured.id])

    async def _frozen(self, numbers: Sequence[int]) -> None:
        try:
            await self.freeze(numbers)
        except OSError as error:
            log.error("snapshotter %s: committed snapshots can still be written to: %s", self.NAME, errors.words(error))

    async def _made_durable(self, row: Row, synced: Synced) -> None:
        """Returns when the files of an active snapshot are on the disk, by a sync that was begun after they were
        written. Unknown or ResourceExhausted if some file could not be written since it was begun: it may be one of
        this snapshot's.
        """
        try:
            await synced()
        except OSError as error:
            raise disk.disk_error(error, "its files are not on the disk") from None
        if row.id < self._doubtful:
            raise errors.Unknown(
                "its files may not be on the disk, which refused some since it was begun: make it anew"
            )

    def _doubt(self) -> None:
        """Somebody's files were not written, and the kernel says so once: whoever had begun by now may have lost
        some.
        """
        self._doubtful = next(self._ids)

    async def synced(self) -> None:
        """Returns when all that was written to the snapshots' filesystem is on the disk; OSError if some could not
        be.
        """
        await self._sync.begun()()

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        def record(rows: Rows) -> Row:
            row = _existing(rows, key)
            old = row.info
            changed = Info(
                key,
                old.kind,
                old.created_at,
                time.time_ns(),
                old.parent,
                updated_labels(key, old.labels, labels, paths),
            )
            rows.replace(row := row._replace(info=changed))
            return row

        return self.shown(await self._write(record))

    async def _write(self, work: Callable[[Rows], T]) -> T:
        """As :meth:`Tree.write`; where the disk failed, what was made for it goes."""
        try:
            with tracing.span("snapshots.record"):
                return await self._tree.write(work)
        except (errors.Unavailable, errors.ResourceExhausted):
            self._sweep()
            raise

    # ---------------------------------------------------------------- removing

    async def remove(self, key: str) -> None:
        with failing_to(self.words("remove", key)):
            number = await self._write(lambda rows: self._unrecord(rows, key))
        await self._gone([number])

    async def remove_all(self, things: Sequence[tuple[str, str]]) -> Sequence[BaseException | None]:
        """Snapshots (by their kind, which is the only one here, and keys), in this order and in one transaction:
        what became of each.
        """

        def record(rows: Rows) -> list[int | errors.NodeError]:
            found: list[int | errors.NodeError] = []
            for _, key in things:
                try:
                    with failing_to(self.words("remove", key)):
                        found.append(self._unrecord(rows, key))
                except errors.NodeError as error:
                    found.append(error)
            return found

        done = await self._write(record)
        await self._gone([number for number in done if isinstance(number, int)])
        return [None if isinstance(each, int) else each for each in done]

    def _unrecord(self, rows: Rows, key: str) -> int:
        """Remove the record of a snapshot; its number. If it raises, nothing has changed."""
        row = rows.get(key)
        if row is None:
            raise errors.NotFound(f"snapshot {key}")
        if self._copied[row.id] or rows.has_children(row):
            raise errors.FailedPrecondition("cannot remove snapshot with child")
        rows.delete(row)
        return row.id

    async def _gone(self, numbers: Sequence[int]) -> None:
        """Remove the things of what has no record any more."""
        fault("snapshots.before-discard")
        names = [str(number) for number in numbers]
        if self._sync_remove:
            await self.discard(names)
        else:
            self._discard(names)

    def _hold(self, lost: str) -> None:
        """The first reason stays."""
        if self._held():
            return
        log.error("%s; what is in %s without a record stays; %s", lost, self.root, damage.WHAT_TO_DO)
        try:
            (self.root / HELD).write_text(f"{lost}\n")
            disk.sync_directory(str(self.root))
        except OSError as error:
            log.error("%s: %s", self.root / HELD, error)
            self._unnoted = lost

    def _held(self) -> str:
        """Why directories without a record stay; "" where they go."""
        try:
            return (self.root / HELD).read_text(errors="replace").strip() or "records were lost"
        except FileNotFoundError:
            return self._unnoted
        except OSError as error:
            return str(error)

    async def cleanup(self) -> None:
        if held := self._held():
            raise errors.FailedPrecondition(
                f"{held}: directories without a record are kept, until {self.root / HELD} is removed (splitd gc "
                "--release)"
            )
        left = await self.discard(await self._tree.write(self._unrecorded)) if await self._sound() else []
        if left:
            log.warning("%s: %d directories without a record could not be removed", self.root, len(left))

    def _unrecorded(self, rows: Rows) -> list[str]:
        """What there is without a record. In the tree's thread nothing is half recorded but what is staged."""
        recorded = {str(number) for number in rows.ids()} | self._staged
        return [name for name in self.names() if name not in recorded]

    def _sweep(self) -> None:
        """Begin to remove all that has no record."""
        self._sweeping = loops.aside("the sweep", self._swept())

    async def _sound(self) -> bool:
        """Whether the database can be believed: all its pages are looked at before what it does not know is
        removed; what is met with later is told by whoever reads it.
        """
        if not self._believed:
            self._believed = await self.soundness.checked()
        return self._believed and not self._held()

    async def _swept(self) -> None:
        if self._held() or not await self._sound():
            return
        try:
            self._discard(await self._tree.write(self._unrecorded))
        except (errors.NodeError, OSError) as error:
            log.error("%s cannot be swept: %s", self.root, error)

    def _discard(self, names: Iterable[str]) -> None:
        """Remove things without a record in the background."""
        self._trash.update(names)
        if self._trash and (self._emptying is None or self._emptying.done()):
            self._emptying = loops.aside("the removal of directories", self._empty())

    async def _empty(self) -> None:
        while self._trash:
            names, self._trash = self._trash, set()
            await self.discard([*names])

    # ---------------------------------------------------------------- last, since its name hides the type's

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        wanted = await filters.parsed(sources, self._lane)
        for number, columns in enumerate(self._tree.view(Rows.all)):
            if number % 100 == 99:
                await asyncio.sleep(0)  # other calls have their turn
            row = self._tree.row(columns)
            if wanted.match(row.info.field):
                yield self.shown(row)


def _existing(rows: Rows, key: str) -> Row:
    row = rows.get(key)
    if row is None:
        raise errors.NotFound("snapshot does not exist")
    return row


def _base(rows: Rows, key: str, parent: str) -> Row | None:
    """The parent of a snapshot to be made under ``key``, which is free."""
    base = rows.get(parent) if parent else None
    if parent and base is None:
        raise errors.NotFound(f'missing parent "{parent}" bucket')
    if base is not None and base.info.kind is not Kind.COMMITTED:
        raise errors.InvalidArgument(f'parent "{parent}" is not committed snapshot')
    if rows.get(key) is not None:
        raise errors.AlreadyExists(f"snapshot {key}")
    return base


def _rebased(rows: Rows, row: Row, parent: str) -> int | None:
    """The id of the parent that a commit gives a snapshot: its own, or ``parent`` where it has none."""
    if not parent or parent == row.info.parent:
        return row.parent
    if row.info.parent:
        raise errors.InvalidArgument(f'cannot change parent of active snapshot "{row.info.name}" on commit')
    base = rows.get(parent)
    if base is None or base.id == row.id:
        raise errors.NotFound(f'missing parent "{parent}" of snapshot "{row.info.name}"')
    if base.info.kind is not Kind.COMMITTED:
        raise errors.FailedPrecondition(f'parent "{parent}" is not committed')
    return base.id


def _is_empty(path: Path) -> bool:
    """Whether there is no such file, or nothing in it."""
    try:
        return not path.stat().st_size
    except FileNotFoundError:
        return True


def _id_in(name: str) -> int:
    number = name.removeprefix("new-")
    return int(number) if number.isdigit() else 0
