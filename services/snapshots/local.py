"""The base of all snapshotters of this service: the tree's rules, and *things* that exist before and after their
records.

::

    ROOT/snapshots/NAME/          served by one process, which holds its lock
        metadata.db               the records (``tree``)
        store-id                  the metadata store that this snapshotter belongs to (``kit.stamp``)
        held                      why things without a record stay, until an operator removes this file

A *thing* is the data of one snapshot: a directory (``directories.py``), a subvolume, a disk image. Its name is the
snapshot's id, or ``new-ID`` while it is made. To make a snapshot, its thing is made, gets its final name, and the
snapshot is recorded. To remove a snapshot, its record is removed; its thing, now without a record, is removed in the
background. Several snapshots may share a thing (``sharing.py``), which goes with the last of them. Ids are never used
twice, so a thing without a record can be removed at any time by anybody, unless records were lost. In that case all
things without a record stay, since they may hold the only copy of what containers wrote.

A new snapshotter is a subclass. It says how its things are made, kept, measured, frozen, mounted and discarded (the
methods below *what a snapshotter decides*). The rules, the records, and what a crash leaves are handled here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from services.kit import damage, errors, filters, loops, tracing
from services.kit.faults import fault
from services.kit.files import sync_directory
from services.kit.slices import Lane
from services.oci.mounts import Mount
from services.snapshots import disk, kernel, rules
from services.snapshots.durable import FilesystemSync, Synced
from services.snapshots.sharing import Sharing
from services.snapshots.soundness import Server, Soundness
from services.snapshots.store import DIFFER, LASTING, REBASE, SHARES, TARGET, About, Info, Kind, Usage, kept_labels
from services.snapshots.tree import Row, Rows, Tree

log = logging.getLogger(__name__)

HELD = "held"
LONGEST_NAME = 9
"""The longest name of a snapshotter, in characters. The name is part of its socket's name, which ``splitd up`` must
know to fit below every STATE that it accepts.
"""
T = TypeVar("T")


@contextlib.contextmanager
def prefixed(words: str) -> Iterator[None]:
    """Prefix the errors of the block with ``words: ``, as containerd does; their class stays."""
    try:
        yield
    except errors.NodeError as error:
        raise type(error).verbatim(f"{words}: {error}", error.trailers) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """The settings of a snapshotter that has none of its own."""


class LocalSnapshotter(ABC):
    """A ``Snapshotter`` in ``root``, which its owner has locked (``kit.process.owned``). Use as ``async with``."""

    NAME: ClassVar[str]
    """The name that clients use: lower case letters and digits, at most :data:`LONGEST_NAME`."""
    PLATFORMS: ClassVar[tuple[str, ...]] = ()
    """The platforms that its files are for, each as ``os/architecture[/variant]``; none means this machine's."""
    FILESYSTEM: ClassVar[str] = ""
    """The only file system that its root may be on, by the kernel's name; "": any."""
    SHARES: ClassVar[bool] = False
    """A layer that was unpacked on one parent may be shared on others: :meth:`same` says which."""
    LASTING: ClassVar[bool] = False
    """Mounts of a snapshot stay the same, and nothing is to be done when they are asked for."""
    DIFFER: ClassVar[str] = ""
    """The name of the differ that containerd has for such a snapshotter; "": clients look for none."""
    Settings: ClassVar[type[Any]] = NoSettings
    """The dataclass of its settings, table [snapshots.NAME]."""

    def __init__(
        self, root: Path, settings: Any = None, *, sync_commit: bool = True, sync_remove: bool = False
    ) -> None:
        """``settings`` are of the class ``Settings``; None: all defaults. If ``sync_commit``, a snapshot counts as
        committed only once its files are durable. If ``sync_remove``, a removal returns only once the files are gone.

        DataLoss if its records are too damaged to begin with; any OSError is passed on.
        """
        self.root = root
        self.disk = kernel.disk_of(root)
        """The file system that ``root`` is on."""
        self.settings = self.Settings() if settings is None else settings
        self._sync_commit = sync_commit
        self._sync_remove = sync_remove
        self._held_in_memory = ""
        """Why things are held back, if that could not be written to the file ``held``."""
        self.soundness = Soundness(root / "metadata.db", self._hold)
        # written before a new database exists, after which this could not be noticed
        if _is_empty(root / "metadata.db") and any(map(_id_in, self.names())):
            self._hold(f"{root}/metadata.db is new, though there are snapshots")
        self._tree = Tree(root / "metadata.db", self.soundness.damaged)
        if self._tree.file.lost:
            self._hold(self._tree.file.lost)
            if not self._held_in_memory:
                self._tree.file.noted()
        try:
            for made in (root, root.parent):
                sync_directory(str(made))
            self._ids = itertools.count(max([self._tree.last_id(), *map(_id_in, self.names())]) + 1)
        except BaseException:
            self._tree.give_up()
            raise
        self._sync = FilesystemSync(str(root), self._writes_failed)
        self._suspect_below = 0
        """The highest id at a time when the kernel could not write some files to the disk: any snapshot up to this id
        may have lost files.
        """
        self._staged: set[str] = set()
        """Names of things that are being made, before their records are written."""
        self._pages_sound = False
        """All pages of the database are sound, as far as is known."""
        self._copying_from: Counter[int] = Counter()
        """Ids of the parents of staged copies: they have children that no record knows yet."""
        self._committing: dict[str, tuple[asyncio.Future[None], tracing.Span]] = {}
        """The snapshots that are being committed, by name; done once the record is queued. Records are written in queue
        order.
        """
        self._sharing = Sharing(self._tree, self._ids, self.same)
        self._lane = Lane()
        self._trash: set[str] = set()
        self._emptying: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Look at the machine, finish what a crash interrupted, and begin to remove what it left."""
        await self.start()
        if trouble := self._filesystem_trouble():
            log.info("snapshotter %s does not work here: %s", self.NAME, trouble)
        with contextlib.suppress(errors.NodeError):  # damaged records: the next reader gets the error
            await self._freeze_or_log(
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

    def report_to(self, *servers: Server) -> None:
        """Let the health of ``servers`` say from now on when its records are damaged."""
        self.soundness.report_to(*servers)

    async def about(self) -> About:
        """The snapshotter's announcement of itself."""
        exports = {"root": str(self.root)}
        exports |= {name: "true" for name, said in ((SHARES, self.SHARES), (LASTING, self.LASTING)) if said}
        if self.DIFFER:
            exports[DIFFER] = self.DIFFER
        return About(self.NAME, self.PLATFORMS, exports, tuple(self.capabilities()), await self.trouble())

    async def _check(self) -> None:
        if trouble := await self.trouble():
            raise errors.FailedPrecondition(f"snapshotter {self.NAME} does not work on this machine: {trouble}")

    # ---------------------------------------------------------------- what a snapshotter decides

    async def start(self) -> None:  # noqa: B027 - not every snapshotter has anything to find out
        """Find out what the machine can do."""

    async def trouble(self) -> str:
        """Why the snapshotter cannot work on this machine at present; "" if it can."""
        return self._filesystem_trouble()

    def _filesystem_trouble(self) -> str:
        if self.FILESYSTEM in ("", self.disk.type):
            return ""
        return (
            f"path {self.root} ({self.disk.type}) must be a {self.FILESYSTEM} filesystem to be used with the "
            f"{self.NAME} snapshotter"
        )

    def capabilities(self) -> Sequence[str]:
        """The capabilities that clients may rely on (:data:`store.REBASE`, :data:`store.REMAP_IDS`, ...), once
        started.
        """
        return ()

    @abstractmethod
    def names(self) -> Sequence[str]:
        """The names of all things, with a record or without: ``ID`` and ``new-ID``. It blocks. Other names belong to
        nothing, and are removed.
        """

    def copies(self, kind: Kind, parent: str) -> bool:
        """Whether a snapshot begins as a copy of its parent, which :meth:`stage` makes."""
        return False

    async def stage(self, name: str, base: int) -> None:
        """Make the thing ``name`` a durable copy of the thing of snapshot ``base``. NodeError if that fails; the
        remains are then discarded.
        """
        raise NotImplementedError

    @abstractmethod
    def make(self, name: str, kind: Kind, ancestors: Sequence[int], labels: Mapping[str, str]) -> bool:
        """Make the thing ``name`` of a snapshot that is no copy; False if it needs none. OSErrors are passed on; the
        remains are then discarded. It blocks, in the tree's thread.
        """

    @abstractmethod
    def keep(self, name: str, number: int, rows: Rows) -> None:
        """Make the thing ``name`` that of snapshot ``number``, durable once ``rows`` are. NodeError if that fails. It
        blocks, in the tree's thread.
        """

    @abstractmethod
    async def measure(self, row: Row) -> Usage:
        """Return the disk usage of an active snapshot's changes. A commit calls this before it writes the record, so a
        snapshotter may do its slow work here; if the commit fails, the snapshot stays as it is.
        """

    def told(self, rows: Rows, key: str, labels: Mapping[str, str]) -> Mapping[str, str]:
        """The labels of a snapshot that :meth:`make` is to know; all, if a snapshotter does not say otherwise. In the
        tree's thread.
        """
        return labels

    def same(self, thing: int, below: Sequence[int], others: Sequence[int]) -> bool:
        """Whether the layer in ``thing``, which was unpacked on the things ``below``, would be the same on the things
        ``others``; topmost first. OSErrors are passed on. It blocks, in a thread.
        """
        return False

    async def freeze(self, numbers: Sequence[int]) -> None:  # noqa: B027 - not every snapshotter can
        """Make committed snapshots unchangeable. Called once their records are written, before the commit is answered.
        Called again at the next start for all committed snapshots, since a crash may have come in between; it should
        then cost next to nothing. An OSError is logged, and the next start tries again.
        """

    @abstractmethod
    async def discard(self, names: Sequence[str]) -> Sequence[str]:
        """Remove things without a record; some may be gone already. Returns the names of those that could not be
        removed; the reasons are logged.
        """

    @abstractmethod
    def mounts_of(self, row: Row, ancestors: Sequence[int]) -> list[Mount]:
        """The mounts of an active snapshot or a view. It blocks no longer than a system call."""

    @abstractmethod
    def error_words(self, doing: str, key: str) -> str:
        """The words that containerd's snapshotter puts before the reason when ``doing`` (mount, commit, remove)
        fails.
        """

    def visible(self, row: Row) -> Info:
        """The description of a snapshot that clients see."""
        return row.info

    # ---------------------------------------------------------------- reading

    async def stat(self, key: str) -> Info:
        return self.visible(self._get(key))

    async def usage(self, key: str) -> Usage:
        row = self._get(key)
        if row.info.kind is Kind.ACTIVE:
            return await self.measure(row)
        return row.usage

    async def mounts(self, key: str) -> list[Mount]:
        def read(rows: Rows) -> tuple[Row, list[int]]:
            row = rules.mountable(rows, key)
            return row, rows.ancestors(row)

        with prefixed(self.error_words("mount", key)):
            return self.mounts_of(*self._tree.view(read))

    def _get(self, key: str) -> Row:
        return self._tree.view(lambda rows: rules.existing(rows, key))

    # ---------------------------------------------------------------- making

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        kept = kept_labels(labels or {})
        with prefixed("failed to create snapshot"):
            if self.SHARES and key and TARGET in kept and await self._sharing.made(key, parent, kept):
                raise errors.AlreadyExists(f"target snapshot {kept[TARGET]}")
        return await self._create(Kind.ACTIVE, key, parent, kept)

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
            base = rules.base(rows, key, parent)
            ancestors = [] if base is None else rows.stack(base.id)
            if staged or self._made(name, kind, ancestors, self.told(rows, key, labels), broken):
                fault("snapshots.before-rename")
                self.keep(name, number, rows)
            row = rules.new(number, base, kind, key, labels)
            rows.insert(row)
            return row, ancestors

        with tracing.span("snapshots.prepare", **{"splitd.key": key}), prefixed("failed to create snapshot"):
            staged = self.copies(kind, parent)
            try:
                async with self._staging(name, key, parent) if staged else contextlib.nullcontext():
                    made = await self._write(record)
            finally:
                self._discard(broken)
        return self.mounts_of(*made)

    @contextlib.asynccontextmanager
    async def _staging(self, name: str, key: str, parent: str) -> AsyncIterator[None]:
        """During the block the thing ``name`` is a copy of the parent's, and the parent cannot be removed.

        The caller may be cancelled while its record is being written. Records are written in order, so the record
        claims the parent before any later request looks for its children.
        """

        def reserve(rows: Rows) -> int:
            base = rules.base(rows, key, parent)
            assert base is not None
            self._staged.add(name)
            self._copying_from[base.id] += 1
            return base.id

        def release(_: object = None) -> None:
            if reserved.exception() is None:
                self._copying_from -= Counter([reserved.result()])
                self._staged.discard(name)

        reserved = loops.task("the reservation of a copy", self._tree.write(reserve))
        try:
            base = await asyncio.shield(reserved)
        except asyncio.CancelledError:
            reserved.add_done_callback(release)
            raise
        try:
            try:
                with tracing.span("snapshots.copy"):
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
        first = name not in self._committing
        try:
            with tracing.span("snapshots.commit", **{"splitd.key": key}) as span:
                if first:
                    self._committing[name] = written, span
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
        below: tuple[asyncio.Future[None], tracing.Span] | None,
        written: asyncio.Future[None],
    ) -> None:
        measured = self._get(key)
        usage = Usage()
        if measured.info.kind is Kind.ACTIVE:
            synced = self._sync.start() if self._sync_commit else None  # the sync runs while the files are measured
            with tracing.span("snapshots.measure"):
                usage = await self.measure(measured)
            if synced is not None:
                with tracing.span("snapshots.sync"), prefixed(self.error_words("commit", key)):
                    await self._made_durable(measured, synced)

        if below is not None and not below[0].done():
            with tracing.wait("parent", below[1].ref()):
                await asyncio.shield(below[0])
        with prefixed(self.error_words("commit", key)):
            written.set_result(None)
            await self._write(lambda rows: self.record_commit(rows, measured, name, labels, usage, parent))
        await self._freeze_or_log([measured.id])

    def record_commit(
        self, rows: Rows, active: Row, name: str, labels: Mapping[str, str], usage: Usage, parent: str
    ) -> None:
        """Record a commit, as :func:`.rules.commit` does. It may be refused here for the last time. In the tree's
        thread.
        """
        rules.commit(rows, active, name, labels, usage, parent)

    async def _freeze_or_log(self, numbers: Sequence[int]) -> None:
        try:
            await self.freeze(numbers)
        except OSError as error:
            log.error("snapshotter %s: committed snapshots can still be written to: %s", self.NAME, errors.words(error))

    async def _made_durable(self, row: Row, synced: Synced) -> None:
        """Return when the files of an active snapshot are on the disk; ``synced`` is a sync that began after they were
        written. Unknown or ResourceExhausted if any file could not be written since the snapshot was begun: it may be
        one of this snapshot's.
        """
        try:
            await synced()
        except OSError as error:
            raise disk.disk_error(error, "its files are not on the disk") from None
        if row.id < self._suspect_below:
            raise errors.Unknown(
                "its files may not be on the disk: some writes have failed since it was begun; make it anew"
            )

    def _writes_failed(self) -> None:
        """The kernel could not write some files, and reports that once: every snapshot that exists by now may have lost
        some.
        """
        self._suspect_below = next(self._ids)

    async def synced(self) -> None:
        """Return when everything that was written to the snapshots' filesystem is on the disk; OSError if some of it
        could not be.
        """
        await self._sync.start()()

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        return self.visible(await self._write(lambda rows: rules.update(rows, key, labels, paths)))

    async def _write(self, work: Callable[[Rows], T]) -> T:
        """As :meth:`Tree.write`. If the disk fails, what was made for the work is removed."""
        try:
            return await self._tree.write(work)
        except (errors.Unavailable, errors.ResourceExhausted):
            self._sweep()
            raise

    # ---------------------------------------------------------------- removing

    async def remove(self, key: str) -> None:
        with prefixed(self.error_words("remove", key)):
            left = await self._write(lambda rows: rules.remove(rows, key, self._copying_from))
        await self._discard_removed(left)

    async def remove_all(self, things: Sequence[tuple[str, str]]) -> Sequence[BaseException | None]:
        """Remove snapshots (pairs of kind, which is always the same here, and key), in this order and in one
        transaction. Returns the error of each, or None.
        """

        def record(rows: Rows) -> list[list[int] | errors.NodeError]:
            found: list[list[int] | errors.NodeError] = []
            for _, key in things:
                try:
                    with prefixed(self.error_words("remove", key)):
                        found.append(rules.remove(rows, key, self._copying_from))
                except errors.NodeError as error:
                    found.append(error)
            return found

        done = await self._write(record)
        await self._discard_removed([number for each in done if isinstance(each, list) for number in each])
        return [None if isinstance(each, list) else each for each in done]

    async def _discard_removed(self, numbers: Sequence[int]) -> None:
        """Remove things that no snapshot uses any more."""
        fault("snapshots.before-discard")
        names = [str(number) for number in numbers]
        if self._sync_remove:
            await self.discard(names)
        else:
            self._discard(names)

    def _hold(self, lost: str) -> None:
        """Hold back things without a record. The first reason stays."""
        if self._held():
            return
        log.error("%s; things without a record in %s stay; %s", lost, self.root, damage.WHAT_TO_DO)
        try:
            (self.root / HELD).write_text(f"{lost}\n")
            sync_directory(str(self.root))
        except OSError as error:
            log.error("%s: %s", self.root / HELD, error)
            self._held_in_memory = lost

    def _held(self) -> str:
        """Why things without a record stay; "" if they go."""
        try:
            return (self.root / HELD).read_text(errors="replace").strip() or "records were lost"
        except FileNotFoundError:
            return self._held_in_memory
        except OSError as error:
            return str(error)

    async def cleanup(self) -> None:
        if held := self._held():
            raise errors.FailedPrecondition(
                f"{held}: directories without a record are kept, until {self.root / HELD} is removed (splitd gc "
                "--release)"
            )
        if self._emptying is not None:  # otherwise the same things would be removed twice at the same time
            await asyncio.wait([self._emptying])
        left = await self.discard(await self._tree.write(self._unrecorded)) if await self._sound() else []
        if left:
            log.warning("%s: %d directories without a record could not be removed", self.root, len(left))

    def _unrecorded(self, rows: Rows) -> list[str]:
        """The names of all things without a record. In the tree's thread only staged things are incompletely
        recorded.
        """
        recorded = {str(number) for number in rows.things()} | self._staged
        return [name for name in self.names() if name not in recorded]

    def _sweep(self) -> None:
        """Begin to remove all things without a record."""
        self._sweeping = loops.aside("the sweep", self._swept())

    async def _sound(self) -> bool:
        """Whether the database can be trusted: all its pages are checked before anything that it does not know is
        removed. Damage that is met later is reported by the reader.
        """
        if not self._pages_sound:
            self._pages_sound = await self.soundness.checked()
        return self._pages_sound and not self._held()

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
        sources = list(sources)
        wanted = await filters.parsed(sources, self._lane)
        of = _PARENT.search(sources[0]) if len(sources) == 1 else None
        for number, columns in enumerate(self._tree.view(Rows.all if of is None else partial(_children, of.group(1)))):
            if number % 100 == 99:
                await asyncio.sleep(0)  # let other calls run
            row = self._tree.row(columns)
            if wanted.match(row.info.field):
                yield self.visible(row)


_PARENT = re.compile(r',parent=="([^"\\]+)"$')
"""The end of a filter that selects children of one parent, as the gateway's for a target: only these are read."""


def _children(parent: str, rows: Rows) -> list[tuple[Any, ...]]:
    return rows.children(parent)


def _is_empty(path: Path) -> bool:
    """Whether the file does not exist, or is empty."""
    try:
        return not path.stat().st_size
    except FileNotFoundError:
        return True


def _id_in(name: str) -> int:
    number = name.removeprefix("new-")
    return int(number) if number.isdigit() else 0
