"""The promises of a snapshotter (:class:`services.snapshots.store.Snapshotter`) that are about its records. What its
mounts show is in snapshots_mounted.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conform.rules import ORDER, Case, Rule, collect, equal, holds
from conform.trees import Change, mounted
from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots.store import Info, Kind, Snapshotter, Usage

RULES: list[Rule] = []
rule = collect(RULES)

ROOTED = {"containerd.io/gc.root": "suite"}
"""Labels that keep the collector away, if there is one."""

REBASE = "rebase"
LATE = "an InvalidArgument for a filter that cannot be read"

# Where promises come from. Paths are those of containerd 2's repository.
INTERFACE = "core/snapshots/snapshotter.go"
TESTS = "core/snapshots/testsuite/testsuite.go"
BOLT = "core/snapshots/storage/bolt.go"
SERVICE = "plugins/services/snapshots/service.go"


class Remembering:
    """A snapshotter that remembers every key and name that it was asked to make, in that order."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._inner = snapshotter
        self.made: dict[str, None] = {}

    async def stat(self, key: str) -> Info:
        return await self._inner.stat(key)

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        return await self._inner.update(key, labels, paths)

    async def usage(self, key: str) -> Usage:
        return await self._inner.usage(key)

    async def mounts(self, key: str) -> list[Mount]:
        return await self._inner.mounts(key)

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self.made[key] = None
        return await self._inner.prepare(key, parent, labels)

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        self.made[key] = None
        return await self._inner.view(key, parent, labels)

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        self.made[name] = None
        await self._inner.commit(name, key, labels, parent)

    async def remove(self, key: str) -> None:
        await self._inner.remove(key)

    def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        return self._inner.list(sources)

    async def cleanup(self) -> None:
        await self._inner.cleanup()


@dataclass(kw_only=True)
class SnapshotCase(Case):
    """A snapshotter under test. Its keys and names begin with ``key``; it need not be empty."""

    snapshotter: Snapshotter
    place: Path = Path()
    """A directory in which snapshots may be mounted."""
    name: str = ""
    """The snapshotter's name, if it is known. The mounts of overlayfs and native are those of containerd's."""
    index_first: bool = False
    """containerd 1.6 has the option index=off before the directories, later versions behind them."""
    made: dict[str, None] = field(init=False)

    def __post_init__(self) -> None:
        remembering = Remembering(self.snapshotter)
        self.snapshotter, self.made = remembering, remembering.made

    @property
    def key(self) -> str:
        """What the keys and names of this case begin with."""
        return self.prefix

    async def layer(self, name: str, parent: str, *changes: Change) -> str:
        """A committed snapshot with ``changes`` made on top of ``parent``."""
        mounts = await self.snapshotter.prepare(f"{name}-making", parent, ROOTED)
        if changes:
            with mounted(mounts, self.place / "making") as top:
                for change in changes:
                    change(top)
        await self.snapshotter.commit(name, f"{name}-making", ROOTED)
        return name

    async def listed(self, *sources: str) -> list[str]:
        return [info.name async for info in self.snapshotter.list(sources)]


# ------------------------------------------------------------------------------------------ records


@rule(source=f"{INTERFACE}: Prepare, View, Commit, Stat; {BOLT}: CommitActive")
async def a_life_of_records(case: SnapshotCase) -> None:
    """A snapshot is prepared, committed, used as a parent, viewed and removed. After a commit the key is gone, and the
    name has the key's parent.
    """
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-base", "")
    info = await snapshotter.stat(base)
    equal((info.name, info.kind, info.parent, dict(info.labels)), (base, Kind.COMMITTED, "", ROOTED))
    with case.refused(errors.NotFound):
        await snapshotter.stat(f"{base}-making")
    await snapshotter.prepare(f"{key}-next", base, ROOTED)
    equal((await snapshotter.stat(f"{key}-next")).parent, base, "the parent of an active snapshot")
    await snapshotter.commit(f"{key}-top", f"{key}-next", ROOTED)
    equal((await snapshotter.stat(f"{key}-top")).parent, base, "the parent of a committed snapshot")
    await snapshotter.view(f"{key}-view", f"{key}-top", ROOTED)
    for gone in (f"{key}-view", f"{key}-top", base):
        await snapshotter.remove(gone)
        with case.refused(errors.NotFound):
            await snapshotter.stat(gone)


@rule(source=f"{INTERFACE}: Stat, Info; {TESTS}: checkSnapshotterStatActive, StatCommitted; {BOLT}: readSnapshot")
async def stat(case: SnapshotCase) -> None:
    """Kind, parent, labels and times are those of its making; a parent's parent is found by its name."""
    snapshotter, key = case.snapshotter, case.key
    before = time.time_ns()
    await snapshotter.prepare(f"{key}-a", "", {**ROOTED, "one": "1", "none": ""})
    active = await snapshotter.stat(f"{key}-a")
    equal(active, Info(f"{key}-a", Kind.ACTIVE, active.created_at, active.created_at, "", {**ROOTED, "one": "1"}))
    case.within(active.created_at, before, time.time_ns(), "the time of the creation")
    await snapshotter.commit(f"{key}-1", f"{key}-a", {**ROOTED, "two": "2"})
    committed = await snapshotter.stat(f"{key}-1")
    equal(committed.labels, {**ROOTED, "two": "2"}, "the labels of a commit, which are its own")
    equal(committed.updated_at, committed.created_at, "the update time of a new commit")
    holds(active.created_at <= committed.created_at, "a commit after its Prepare", committed.created_at)
    await case.layer(f"{key}-2", f"{key}-1")
    await snapshotter.view(f"{key}-v", f"{key}-2", ROOTED)
    view = await snapshotter.stat(f"{key}-v")
    equal((view.kind, view.parent), (Kind.VIEW, f"{key}-2"), "kind and parent of a view")
    equal((await snapshotter.stat(view.parent)).parent, f"{key}-1", "the parent's parent")


@rule(source=f"{INTERFACE}: Prepare: a second call with the same key fails; one key space for keys and names")
async def a_key_is_taken_once(case: SnapshotCase) -> None:
    """Neither Prepare, View nor Commit takes a key or name that is in use, of whatever kind."""
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-base", "")
    await snapshotter.prepare(f"{key}-active", base, ROOTED)
    await snapshotter.view(f"{key}-view", base, ROOTED)
    for taken in (base, f"{key}-active", f"{key}-view"):
        for make in (snapshotter.prepare, snapshotter.view):
            with case.refused(errors.AlreadyExists, f"snapshot .*{taken}.*: already exists$"):
                await make(taken, base, ROOTED)
    for taken in (base, f"{key}-view", f"{key}-active"):
        with case.refused(errors.AlreadyExists, ": already exists$"):
            await snapshotter.commit(taken, f"{key}-active", ROOTED)
    equal((await snapshotter.stat(f"{key}-active")).kind, Kind.ACTIVE, "the kind after a commit that failed")


@rule(source=f"{INTERFACE}: Prepare: a second call with the same key fails; parallel unpacking of containerd's client")
async def of_many_at_once_one_gets_the_key(case: SnapshotCase) -> None:
    """Twenty Prepares of one key at once make one snapshot; twenty of different keys make twenty."""
    snapshotter, key = case.snapshotter, case.key
    outcomes = await asyncio.gather(
        *(snapshotter.prepare(f"{key}-same", "", ROOTED) for _ in range(20)), return_exceptions=True
    )
    equal(sum(isinstance(o, list) for o in outcomes), 1, "Prepares that were answered OK")
    equal(sum(isinstance(o, errors.AlreadyExists) for o in outcomes), 19, "Prepares that were ALREADY_EXISTS")
    made = await asyncio.gather(*(snapshotter.prepare(f"{key}-{n}", "", ROOTED) for n in range(20)))
    equal(len({tuple(mounts) for mounts in made}), 20, "different mounts of twenty snapshots")
    await asyncio.gather(*(snapshotter.remove(f"{key}-{n}") for n in range(20)))
    equal(await case.listed(f"name~=^{key}-[0-9]+$"), [], "what is listed after the removals")


def _of_nothing(method: str, why: str) -> None:
    """A rule for one method on a key that is not there: each by itself, since a service may hang in one of them."""

    async def asks(case: SnapshotCase) -> None:
        key, none = f"{case.key}-none", f"{case.key}-nothing"
        calls: dict[str, Callable[[], Any]] = {
            "stat": lambda: case.snapshotter.stat(none),
            "mounts": lambda: case.snapshotter.mounts(none),
            "usage": lambda: case.snapshotter.usage(none),
            "remove": lambda: case.snapshotter.remove(none),
            "update": lambda: case.snapshotter.update(none, {}),
            "commit": lambda: case.snapshotter.commit(key, none),
            "prepare": lambda: case.snapshotter.prepare(key, none),
            "view": lambda: case.snapshotter.view(key, none),
        }
        with case.refused(errors.NotFound, "not found$"):
            await calls[method]()
        equal(await case.listed(f"name~=^{case.key}"), [], "what is listed afterwards")

    asks.__name__ = f"{method}_of_what_is_not_there"
    asks.__doc__ = f"{method.capitalize()} {why} is NotFound, and makes nothing."
    rule(source=f"{INTERFACE}: {method.capitalize()}; {BOLT}: snapshot does not exist, errdefs.ErrNotFound")(asks)


for _method in ("stat", "mounts", "usage", "remove", "update", "commit"):
    _of_nothing(_method, "of an unknown key")
for _method in ("prepare", "view"):
    _of_nothing(_method, "on an unknown parent")


@rule(source=f"{INTERFACE}: Snapshotter, Mounts, View, Commit; {BOLT}: GetSnapshot, CreateSnapshot, CommitActive")
async def operations_that_a_kind_does_not_allow(case: SnapshotCase) -> None:
    """Only committed snapshots can be parents, only active ones can be committed, and committed ones have no mounts."""
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-base", "")
    await snapshotter.prepare(f"{key}-active", base, ROOTED)
    for number, parent in enumerate([None, base]):
        view = f"{key}-view-{number}"
        await snapshotter.view(view, parent or "", ROOTED)
        if not (case.containerd and parent):  # its native one looks for a directory that such a view does not have
            with case.refused(errors.FailedPrecondition, "is not active: failed precondition$"):
                await snapshotter.commit(f"{key}-name", view, ROOTED)
        with case.refused(errors.InvalidArgument, "not committed snapshot: invalid argument$"):
            await snapshotter.prepare(f"{key}-child", view, ROOTED)
    with case.refused(errors.InvalidArgument, "not committed snapshot: invalid argument$"):
        await snapshotter.prepare(f"{key}-child", f"{key}-active", ROOTED)
    with case.refused(errors.FailedPrecondition, "not active or view: failed precondition$"):
        await snapshotter.mounts(base)
    with case.refused(errors.FailedPrecondition, "is not active: failed precondition$"):
        await snapshotter.commit(f"{key}-name", base, ROOTED)


@rule(source=f"{INTERFACE}: Remove: children must be removed before; {TESTS}: checkRemove; {BOLT}: Remove")
async def remove(case: SnapshotCase) -> None:
    """A removed key is free at once; a parent cannot be removed while it has a child, be it active, a view or
    committed.
    """
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-base", "")
    middle = await case.layer(f"{key}-middle", base)
    for make in (snapshotter.prepare, snapshotter.view):
        await make(f"{key}-top", middle, ROOTED)
        for parent in (base, middle):
            with case.refused(errors.FailedPrecondition, "cannot remove snapshot with child: failed precondition$"):
                await snapshotter.remove(parent)
        await snapshotter.remove(f"{key}-top")
    await snapshotter.remove(middle)
    await snapshotter.prepare(middle, "", ROOTED)
    await snapshotter.remove(base)
    await snapshotter.commit(base, middle, ROOTED)
    equal((await snapshotter.stat(base)).parent, "", "the parent of the new snapshot")


@rule(source=f"{INTERFACE}: Update; {TESTS}: checkUpdate; {BOLT}: UpdateInfo")
async def update(case: SnapshotCase) -> None:
    """Labels change as the mask says, for every kind; nothing else changes."""
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-base", "")
    await snapshotter.prepare(f"{key}-active", base, ROOTED)
    await snapshotter.view(f"{key}-view", base, ROOTED)
    three = {**ROOTED, "l1": "v1", "l2": "v2", "l3": "v3"}
    for name in (base, f"{key}-active", f"{key}-view"):
        before = await snapshotter.stat(name)
        replaced = await snapshotter.update(name, three)
        equal(replaced, Info(name, before.kind, before.created_at, replaced.updated_at, before.parent, three))
        holds(replaced.updated_at > before.updated_at, f"an update time after {before.updated_at}", replaced.updated_at)
        some = await snapshotter.update(name, {"l1": "new", "l4": "v4"}, ["labels.l1", "labels.l2"])
        equal(some.labels, {**ROOTED, "l1": "new", "l3": "v3"}, "the labels after an update of labels.l1, labels.l2")
        all_ = await snapshotter.update(
            name, {**ROOTED, "l4": "v4", "with.dots/and-slash": "x", "empty": ""}, ["labels"]
        )
        equal(all_.labels, {**ROOTED, "l4": "v4", "with.dots/and-slash": "x"}, "the labels after an update of labels")
        dotted = await snapshotter.update(name, {"with.dots/and-slash": "y"}, ["labels.with.dots/and-slash"])
        equal(dotted.labels, {**ROOTED, "l4": "v4", "with.dots/and-slash": "y"}, "the labels after the next update")
        words = f'cannot update "parent" field on snapshot "{name}": invalid argument$'
        with case.refused(errors.InvalidArgument, words):
            await snapshotter.update(name, {"l1": "x"}, ["labels.l1", "parent"])
        equal(await snapshotter.stat(name), dotted, "the snapshot after an update that failed")


@rule(source=f"{INTERFACE}: Walk and its filters; {TESTS}: checkWalk; {BOLT}: adaptSnapshot")
async def list_(case: SnapshotCase) -> None:
    """Filters select by kind, name, parent and labels; several are alternatives."""
    snapshotter, key = case.snapshotter, case.key
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
        names, expected = await case.listed(*sources), sorted(f"{key}-{name}" for name in wanted)
        equal(sorted(names), expected, f"the snapshots of {sources}")
        case.optional(ORDER, names == expected, "snapshots in the order of their names", names)
    # containerd does not classify the error, and neither does the library that it has for snapshotters
    unclassified = () if case.promised(LATE) else (errors.Unknown,)
    with case.refused((errors.InvalidArgument, *unclassified), "parse error"):
        await case.listed("name=~x")


@rule(
    source="core/snapshots/storage/metastore.go: TransactionContext: what a call begins, it ends, also if it is refused"
)
async def a_refusal_leaves_nothing_open(case: SnapshotCase) -> None:
    """After calls that were refused the service takes as much as before."""
    snapshotter, none = case.snapshotter, f"{case.key}-nothing"
    for refused in (snapshotter.stat, snapshotter.mounts, snapshotter.usage, snapshotter.remove):
        with case.refused(errors.NotFound):
            await refused(none)
    await snapshotter.prepare(f"{case.key}-a", "", ROOTED)
    many = {**ROOTED, **{f"l{number}": "x" * 4000 for number in range(60)}}
    equal((await snapshotter.update(f"{case.key}-a", many)).labels, many, "the labels")


@rule(source=f"{INTERFACE}: Walk; {SERVICE}: List; core/snapshots/testsuite/issues.go: checkStatInWalk")
async def calls_are_answered_during_a_list(case: SnapshotCase) -> None:
    """A List of more than one message shows every snapshot as Stat does, and other calls are answered meanwhile."""
    snapshotter, key = case.snapshotter, case.key
    await asyncio.gather(*(snapshotter.prepare(f"{key}-{n:03}", "", ROOTED) for n in range(130)))
    seen = []
    async for info in snapshotter.list([f"name~=^{key}-"]):
        equal(info, await snapshotter.stat(info.name), "what List has of a snapshot that Stat has too")
        seen.append(info.name)
    equal(sorted(seen), [f"{key}-{n:03}" for n in range(130)], "the list")
    case.optional(ORDER, seen == sorted(seen), "snapshots in the order of their names", seen)


@rule(source=f"{INTERFACE}: Mounts recovers what View or Prepare answered; {SERVICE}: Mounts")
async def mounts_are_repeated(case: SnapshotCase) -> None:
    """Mounts answers what Prepare or View answered, also after a child was made."""
    snapshotter, key = case.snapshotter, case.key
    base = await case.layer(f"{key}-1", "")
    top = await case.layer(f"{key}-2", base)
    made: dict[str, list[Mount]] = {}
    for number, parent in enumerate(["", base, top]):
        made[f"{key}-p{number}"] = await snapshotter.prepare(f"{key}-p{number}", parent, ROOTED)
        made[f"{key}-v{number}"] = await snapshotter.view(f"{key}-v{number}", parent, ROOTED)
    for name, answered in made.items():
        holds(answered, f"mounts of {name}", "none")
        equal(await snapshotter.mounts(name), answered, f"the mounts of {name}")
