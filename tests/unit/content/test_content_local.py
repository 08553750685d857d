"""The content store on disk."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.content import local
from services.content.disk import Deletions, Ingest
from services.content.local import LocalFiles, LocalStore
from services.content.store import Begun, Commit, Files
from services.kit import errors, tracing
from services.oci.digests import Digest
from tests.spans import attribute, milliseconds, recorded
from tests.suites.content import ContentSuite, FilesSuite, put


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "content")
    yield store
    store.close()


@pytest.fixture
def files(store: LocalStore) -> Files:
    return store.files


class TestLocal(ContentSuite):
    """The suite on the local store."""


class TestLocalFiles(FilesSuite):
    """The suite on its files."""


class Together:
    """Files of which each begin and each commit is one of several."""

    def __init__(self, files: LocalFiles) -> None:
        self._files = files
        self._numbers = itertools.count()

    async def locate(self, digest: Digest) -> tuple[str, int]:
        return await self._files.locate(digest)

    async def begin(self, ref: str, total: int = 0, expected: Digest | None = None) -> Begun:
        other = f"other-{next(self._numbers)}"
        one, found, another = await self._files.begin_all([("", 0, None), (ref, total, expected), (other, 1, None)])
        assert isinstance(one, errors.InvalidArgument)
        assert isinstance(another, Begun)
        await self._files._store.abort(other)
        if isinstance(found, errors.NodeError):
            raise found
        return found

    async def commit(
        self,
        ref: str,
        size: int = 0,
        expected: Digest | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        computed: bool = False,
    ) -> tuple[Digest, int]:
        other = f"other-{next(self._numbers)}"
        data = other.encode()
        digest = Digest("sha256", hashlib.sha256(data).hexdigest())
        Path((await self._files.begin(other)).path).write_bytes(data)
        absent, found, done = await self._files.commit_all(
            [
                Commit("absent", 1, None, {}, False),
                Commit(ref, size, expected, labels or {}, computed),
                Commit(other, len(data), digest, {}, True),
            ]
        )
        assert isinstance(absent, errors.NotFound)
        assert done == (digest, len(data))
        await self._files._store.delete(digest)
        if isinstance(found, errors.NodeError):
            raise found
        return found


class TestLocalFilesTogether(FilesSuite):
    """The suite on its files, with several begun and committed at once."""

    @pytest.fixture
    def files(self, store: LocalStore) -> Together:
        return Together(store.files)


async def test_who_waits_for_a_thread_says_so(tmp_path: Path) -> None:
    """The only thread is busy for a while. A call that finds a free thread makes no wait."""
    store = LocalStore(tmp_path / "small", threads=1)
    go = threading.Event()
    with recorded() as spans:
        with tracing.span("at once"):
            await store.list_statuses()
        busy = store._submit(go.wait, 10)
        with tracing.span("late"):
            listing = asyncio.ensure_future(store.list_statuses())
            await asyncio.sleep(0.02)
            go.set()
            await listing
        await busy
        wait = next(each for each in spans.named("wait.budget") if each.parent and spans.parent(each).name == "late")
        assert attribute(wait, "splitd.wait.for") == "threads of the content store"
        assert milliseconds(wait) > 10
        assert not [each for each in spans.named("wait.budget") if milliseconds(each) < 1]
    store.close()


async def test_many_are_removed_in_one_call(store: LocalStore) -> None:
    """Blobs and ingests are removed; one that does not exist, or has an impossible name, stops none of the others."""
    kept, gone = await put(store, b"kept"), await put(store, b"gone", labels={"label": "x"})
    open_ = await store.writer("open")
    await open_.close()
    done = await store.remove_all(
        [
            ("blob", str(gone)),
            ("blob", str(gone)),
            ("blob", "sha256:x"),
            ("snapshot", "s"),
            ("ingest", "none"),
            ("ingest", "open"),
        ]
    )
    assert [type(outcome) for outcome in done] == [
        type(None),
        errors.NotFound,
        errors.InvalidArgument,
        errors.InvalidArgument,
        errors.NotFound,
        type(None),
    ]
    assert [info.digest async for info in store.list()] == [kept]
    assert await store.list_statuses() == []
    assert dict((await store.info(await put(store, b"gone"))).labels) == {}  # the labels went too


async def test_blobs_are_removed_by_their_digests_as_they_are_written(store: LocalStore) -> None:
    """The place of an error in the answer shows which blob failed; the others are gone, with their labels, whatever
    their algorithm.
    """
    gone = [str(await put(store, b"%d" % number)) for number in range(3)]
    text = f"sha512:{hashlib.sha512(b'long').hexdigest()}"
    path = Path(store._disk.blob_path(Digest.parse(text)))
    path.parent.mkdir()
    path.write_bytes(b"long")
    failed = await store.remove_blobs([gone[0], gone[0], "sha256:x", gone[1], text, "sha256:../../store-id", gone[2]])
    assert {number: type(error) for number, error in failed.items()} == {
        1: errors.NotFound,
        2: errors.InvalidArgument,
        5: errors.InvalidArgument,
    }
    assert str(failed[1]) == f"content {gone[0]}: not found"
    assert [info async for info in store.list()] == []
    labelled = [str(await put(store, b"%d" % number, labels={"label": "x"})) for number in range(3)]
    assert not await store.remove_blobs(labelled)
    assert dict((await store.info(await put(store, b"2"))).labels) == {}


async def test_a_removal_of_many_lets_other_threads_run(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lets go of the GIL for each unlink, and takes it again before another thread has woken up. So it pauses while
    a thread has other work, and now and then without that: the loop may have some.
    """
    gone = [f"sha256:{number:064x}" for number in range(300)]
    pauses: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr(local, "sleep", pauses.append)
        assert len(await store.remove_blobs(gone)) == 300
    alone = len(pauses)
    assert alone == 2
    go = threading.Event()
    working = store._submit(go.wait, 60)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(local, "sleep", pauses.append)
            assert len(await store.remove_blobs(gone)) == 300
    finally:
        go.set()
    assert await working
    assert len(pauses) - alone == 9


async def test_a_removal_that_its_caller_gave_up_is_over_before_the_next(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector asks again if the connection was lost, and takes the second answer as final: nothing of the first
    call may remove a blob that is committed after that.
    """
    one, two = await put(store, b"one"), await put(store, b"two")
    things = [("blob", str(one)), ("blob", str(two))]
    begun, go = threading.Event(), threading.Event()
    delete = Deletions.delete

    def slow(deletions: Deletions, digest: Digest) -> None:
        delete(deletions, digest)
        if digest == one and not begun.is_set():
            begun.set()
            assert go.wait(60)

    monkeypatch.setattr(Deletions, "delete", slow)
    first = asyncio.create_task(store.remove_all(things))
    await asyncio.to_thread(begun.wait)
    first.cancel()
    again = asyncio.create_task(store.remove_all(things))
    done, _ = await asyncio.wait([again], timeout=0.2)
    go.set()
    await again
    assert await put(store, b"two") == two
    store.close()  # waits for what its threads do
    assert not done
    assert store._disk.info(two).size == 3


async def test_a_hundred_begun_ingests_delay_no_write(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull's files by path, and the ingests that it gives up, have a few threads of their own: a Write beside them is
    opened, written and committed while they all wait.
    """
    go, ingest = threading.Event(), Ingest

    def slow(*args: Any, **named: Any) -> Ingest:
        if not named.get("hashed", True):
            go.wait(60)
        return ingest(*args, **named)

    monkeypatch.setattr(local, "Ingest", slow)
    beginning = [asyncio.ensure_future(store.files.begin(f"pull-{number}")) for number in range(100)]
    removing = [asyncio.ensure_future(store.abort(f"none-{number}")) for number in range(100)]
    try:
        async with asyncio.timeout(30):
            assert await put(store, b"honest")
        assert not any(each.done() for each in (*beginning, *removing))
    finally:
        go.set()
    await asyncio.gather(*beginning)
    assert {type(each) for each in await asyncio.gather(*removing, return_exceptions=True)} == {errors.NotFound}
