"""``splitd conform`` finds faults: services with one fault each, on a socket, and the rules that name it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from conform.content_case import LOCAL_FILES
from conform.running import RULES, Outcome, Result, Run
from conform.service_remote import CONTENT, SNAPSHOT, Service, opened
from services.content.local import LocalStore
from services.content.server import ContentServicer
from services.kit import rpc
from services.kit.addresses import address
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.server import SnapshotsServicer
from splitd._adapters import AdaptedSnapshotter, AdaptedStore
from tests.service.conform import faulty_services as faulty
from tests.support import directory_with_attributes

pytestmark = [pytest.mark.root, pytest.mark.once]

SLOW = {"statuses_of_many", "list_many", "many_layers", "calls_are_answered_during_a_list", "read_given_up"}
"""Rules that take a second, and find nothing here that others do not."""


@contextlib.asynccontextmanager
async def served(kind: str, servicer: rpc.Servicer, place: Path, seconds: float = 10) -> AsyncIterator[Service]:
    async with rpc.serving(place / "s", [servicer], grace=0.1):
        async with opened(address(place / "s"), kind, name="n", seconds=seconds) as service:
            yield service


@contextlib.asynccontextmanager
async def content(kind: type[LocalStore], place: Path) -> AsyncIterator[Service]:
    with contextlib.closing(kind(place / "content")) as store:
        async with served(CONTENT, ContentServicer(store), place) as service:
            yield service


@contextlib.asynccontextmanager
async def snapshots(kind: type[OverlaySnapshotter], place: Path, seconds: float = 10) -> AsyncIterator[Service]:
    async with kind(place / "snapshots") as snapshotter:
        async with served(SNAPSHOT, SnapshotsServicer(snapshotter), place, seconds) as service:
            yield service


@contextlib.asynccontextmanager
async def blobs(place: Path, was: str, now: str) -> AsyncIterator[Service]:
    """The example content store, with a fault."""
    async with contextlib.AsyncExitStack() as stack:
        root = stack.enter_context(directory_with_attributes())
        adapted = AdaptedStore(faulty.example("Blobs", was, now)(root))
        stack.push_async_callback(adapted.close)
        yield await stack.enter_async_context(served(CONTENT, ContentServicer(adapted), place))


@contextlib.asynccontextmanager
async def overlay(place: Path, was: str, now: str) -> AsyncIterator[Service]:
    """The example snapshotter, with a fault."""
    async with contextlib.AsyncExitStack() as stack:
        (place / "root").mkdir()
        adapted = AdaptedSnapshotter(faulty.example("Overlay", was, now)(place / "root"))
        stack.push_async_callback(adapted.close)
        yield await stack.enter_async_context(served(SNAPSHOT, SnapshotsServicer(adapted), place))


async def tried(run: Run, *only: str) -> list[Result]:
    """The results of the rules of these names; of all that are quick without names."""
    rules = [rule for rule in RULES[run.service.kind] if (rule.name in only if only else rule.name not in SLOW)]
    return [result async for result in run.results(rules)]


RECORDS = [rule.name for rule in RULES[SNAPSHOT] if not rule.mounts and rule.name not in SLOW]


def broken(results: Sequence[Result]) -> dict[str, Result]:
    return {result.rule.name: result for result in results if result.outcome is Outcome.BROKEN}


def check(found: Result, method: str, expected: str, came: str) -> None:
    """The call that showed it, what was expected, and what came."""
    assert found.asked[-1].method.endswith(f"/{method}"), found
    assert expected in found.expected
    assert came in found.came


BLOBS_FAULTS = [
    ("self.checked(size, expected)", "self.checked(size, None)", "wrong_digest", "Write", "FAILED_PRECONDITION", "OK"),
    ("set_attribute(self.file, LABELS, labels)", "pass", "a_blob_has_the_written_bytes", "Info", "'a': '1'", "labels={}"),
    ("self.ingest(ref).unlink(missing_ok=True)", "pass", "abort", "Status", "NOT_FOUND", "OK"),
    ("            return status", "            return Status(ref, status.offset // 2, status.total, status.started_at, status.updated_at)", "resume", "Status", ", 1, 5000,", ", 0, 5000,"),
    ("self.refs.taking(ref)", "suppress(errors.Unavailable), self.refs.taking(ref):\n            pass\n        if True", "one_writer_at_a_time", "Write", "UNAVAILABLE", "OK"),
    ("in range(offset, end, CHUNK)", "in range(0, end, CHUNK)", "read_ranges", "Read", "all bytes from 1", "bytes beginning with"),
    ("self.path(digest).unlink(missing_ok=True)", "pass", "delete", "Info", "NOT_FOUND", "OK"),
    ("if not new:", "if False:", "commit_of_an_existing_blob", "Write", "ALREADY_EXISTS", "OK"),
]  # fmt: skip
"""What is replaced in the example's source and by what; the rule that fails, and its call, expectation and answer."""


@pytest.mark.parametrize(
    ("was", "now", "rule", "method", "expected", "came"), BLOBS_FAULTS, ids=[row[2] for row in BLOBS_FAULTS]
)
async def test_faults_of_the_example_content_store_are_found(
    place: Path, was: str, now: str, rule: str, method: str, expected: str, came: str
) -> None:
    """Each by the rule of its name, with the call that showed it, what was expected, and what came."""
    async with blobs(place, was, now) as service:
        found = broken(await tried(Run(service, "splitd-conform-test", place)))
    assert rule in found, sorted(found)
    check(found[rule], method, expected, came)


OVERLAY_FAULTS = [
    ('"rw" if active else "ro"', '"rw"', "a_view_is_read_only", "View", "a view of 0 layers: EROFS", "OK"),
    ("adding(kind, key, parent,", 'adding(kind, key, "" if kind is Kind.ACTIVE else parent,', "a_life_of_records", "Stat", "the parent of an active snapshot: splitd-conform-", "''"),
    ("return self.make(Kind.ACTIVE, key, parent, labels)", "return [] if any(i.name == key for i in self.list()) else self.make(Kind.ACTIVE, key, parent, labels)", "a_key_is_taken_once", "Prepare", "ALREADY_EXISTS", "OK"),
    ("remove_tree(self.directory / str(self.records.remove(key)))", "any(i.parent == key for i in self.list()) or remove_tree(self.directory / str(self.records.remove(key)))", "remove", "Remove", "FAILED_PRECONDITION", "OK"),
    ("commit(record, name, labels,", "commit(record, name, {**record.info.labels, **labels},", "stat", "Stat", "the labels of a commit, which are its own", "'one': '1'"),
    ("{':'.join(layers)}", "{':'.join(reversed(layers))}", "layers_show_the_same_as_one_directory", "View", "layer 1: ", ""),
]  # fmt: skip
"""What is replaced in the example's source and by what; the rule that fails, and its call, expectation and answer."""


@pytest.mark.parametrize(
    ("was", "now", "rule", "method", "expected", "came"), OVERLAY_FAULTS, ids=[row[2] for row in OVERLAY_FAULTS]
)
async def test_faults_of_the_example_snapshotter_are_found(
    place: Path, was: str, now: str, rule: str, method: str, expected: str, came: str
) -> None:
    """Likewise."""
    async with overlay(place, was, now) as service:
        found = broken(await tried(Run(service, "splitd-conform-test", place), rule, *RECORDS))
    assert rule in found, sorted(found)
    check(found[rule], method, expected, came)


async def test_filters_that_are_ignored_are_found(place: Path) -> None:
    """The blobs and snapshots of others do not hide it, nor are they shown."""
    async with content(faulty.IgnoresFilters, place) as service:
        found = broken(await tried(Run(service, "splitd-conform-test", place), "list"))
        check(found["list"], "List", "the blobs of ['labels.color==red']: ['sha256:", "', 'sha256:")
    (place / "two").mkdir()
    async with snapshots(faulty.WalksEverything, place / "two") as service:
        await service.snapshots.prepare("theirs")
        found = broken(await tried(Run(service, "splitd-conform-test", place / "two"), "list"))
        check(found["list"], "List", "the snapshots of ['labels.", "-a-np-wl")


async def test_a_call_that_hangs_is_bounded(place: Path) -> None:
    """The rules that ask it fail, and the rest of them are tried, since the service answers other calls."""
    async with snapshots(faulty.HangsInMounts, place, 2) as service:
        results = await tried(Run(service, "splitd-conform-test", place), *RECORDS)
        found = broken(results)
    assert list(found) == ["mounts_of_what_is_not_there", "a_refusal_leaves_nothing_open"]
    check(found["mounts_of_what_is_not_there"], "Mounts", "NOT_FOUND", "no answer within 2 s")
    assert not [result for result in results if "does not answer" in result.reason]


async def test_a_service_that_is_gone_is_asked_once(place: Path) -> None:
    """The rest of the rules are not run, with that reason."""
    async with contextlib.AsyncExitStack() as stack:
        serving = await stack.enter_async_context(contextlib.AsyncExitStack())
        store = stack.enter_context(contextlib.closing(LocalStore(place / "content")))
        await serving.enter_async_context(rpc.serving(place / "s", [ContentServicer(store)], grace=0.1))
        service = await stack.enter_async_context(opened(address(place / "s"), CONTENT, name="n", seconds=0.5))
        run = Run(service, "splitd-conform-test", place)
        results = []
        async with contextlib.aclosing(run.results(RULES[CONTENT])) as each:
            async for result in each:
                results.append(result)
                await serving.aclose()
    assert [result.outcome for result in results[:2]] == [Outcome.KEPT, Outcome.BROKEN]
    assert {(result.outcome, result.reason) for result in results[2:]} == {
        (Outcome.NOT_RUN, "the service does not answer any more")
    }


async def test_a_service_without_a_fault_conforms_and_keeps_nothing(place: Path) -> None:
    """What is optional and not there is not offered. Nothing that a rule made is left."""
    (place / "m").mkdir()
    async with content(LocalStore, place / "m") as service:
        run = Run(service, "splitd-conform-test", place)
        results = await tried(run)
        assert not broken(results)
        assert {r.rule.optional for r in results if r.outcome is Outcome.NOT_OFFERED} == {LOCAL_FILES}
        assert not run.left
        assert await service.store.list_statuses() == []
        assert [info async for info in service.store.list()] == []


async def test_a_service_at_a_port(place: Path) -> None:
    """On this machine it is tried as at a socket."""
    with contextlib.closing(LocalStore(place / "content")) as store:
        async with rpc.serving("127.0.0.1:0", [ContentServicer(store)], grace=0.1) as server:
            where = address(str(server.address))
            async with opened(where, CONTENT, name="n", seconds=5) as service:
                results = await tried(Run(service, "splitd-conform-test", place), "progress", "resume")
    assert [result.outcome for result in results] == [Outcome.KEPT, Outcome.KEPT]


async def test_a_stores_own_things_are_not_touched(place: Path) -> None:
    """Blobs, ingests and the empty blob that were there before are there afterwards, and none of it breaks a rule."""
    with contextlib.closing(LocalStore(place / "content")) as store:
        for ref, data in (("theirs", b"theirs"), ("empty", b"")):
            writer = await store.writer(ref)
            await writer.write(data)
            await writer.commit(0, None, {"color": "red"})
        writer = await store.writer("ingest")
        await writer.write(b"abc")
        await writer.close()
    async with content(LocalStore, place) as service:
        results = await tried(Run(service, "splitd-conform-test", place))
        assert not broken(results)
        assert [r.rule.name for r in results if r.outcome is Outcome.NOT_RUN] == ["empty_blob"]
        assert [s.ref for s in await service.store.list_statuses()] == ["ingest"]
        assert len([info async for info in service.store.list(["labels.color==red"])]) == 2


async def test_without_root_what_mounts_is_not_run(place: Path) -> None:
    """Everything else is."""
    async with snapshots(OverlaySnapshotter, place) as service:
        run = Run(service, "splitd-conform-test", place, root=False)
        results = await tried(run)
        assert {r.reason for r in results if r.rule.mounts} == {"mounting takes root"}
        assert not broken(results)
        assert len([r for r in results if r.outcome is Outcome.KEPT]) > 10
        assert [info async for info in service.snapshots.list()] == []
