"""The promises of a content store, as tests. They run on the local store, on the served one, through the gateway, and
on containerd itself.

A subclass has a fixture ``store``, fresh for each test. Its attribute ``namespaced`` says whether metadata's records
are involved. If they are, ``store`` writes under a lease, since the collector would otherwise remove what the tests
made.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from services.content.store import CHUNK, Files, Info, Status, Store, Writer
from services.kit import errors, rpc
from services.oci.digests import Digest
from tests.support import eventually_async


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def bytes_of(size: int) -> bytes:
    """Bytes that no other call returns: no other namespace has them."""
    return os.urandom(size)


async def put(store: Store, data: bytes, *, ref: str = "", labels: Mapping[str, str] | None = None) -> Digest:
    """Make ``data`` a blob."""
    digest = digest_of(data)
    writer = await store.writer(ref or f"put {digest}", len(data), digest)
    await writer.write(data[writer.offset :])  # another namespace may have all of it already
    assert await writer.commit(len(data), digest, labels) == digest
    return digest


async def get(store: Store, digest: Digest, offset: int = 0, size: int = 0) -> bytes:
    return b"".join([piece async for piece in store.read(digest, offset, size)])


async def listed(store: Store, *sources: str) -> set[Digest]:
    return {info.digest async for info in store.list(sources)}


@contextlib.asynccontextmanager
async def opened(store: Store, ref: str, total: int = 0, expected: Digest | None = None) -> AsyncIterator[Writer]:
    writer = await store.writer(ref, total, expected)
    try:
        yield writer
    finally:
        await writer.close()


@contextlib.asynccontextmanager
async def leased(channel: rpc.Channel, namespace: str) -> AsyncIterator[dict[str, str]]:
    """The headers of a client that works in ``namespace`` under a lease of its own, so that the collector leaves its
    blobs alone.
    """
    leases = channel.client(leases_stubs.LEASES)
    headers = {rpc.NAMESPACE: namespace}
    await leases.Create(leases_pb2.CreateRequest(id="suite"), headers=headers)
    yield {**headers, rpc.LEASE: "suite"}
    await leases.Delete(leases_pb2.DeleteRequest(id="suite"), headers=headers)


class ContentSuite:
    """Every promise of ``store.Store``. The tests' docstrings are the promises."""

    namespaced = False

    # ---------------------------------------------------------------- writing

    async def test_a_blob_has_the_written_bytes(self, store: Store) -> None:
        """After a commit the blob has the bytes, their size and digest, the labels, and the time of the commit."""
        data = bytes_of(3000)
        async with opened(store, "a", len(data)) as writer:
            await writer.write(data[:1000])
            await writer.write(data[1000:])
            before = time.time_ns()
            digest = await writer.commit(len(data), digest_of(data), {"a": "1", "b.c/d": "two"})
            after = time.time_ns()
        assert digest == digest_of(data)
        info = await store.info(digest)
        assert info == Info(digest, 3000, info.created_at, info.updated_at, {"a": "1", "b.c/d": "two"})
        assert _about(before) <= info.created_at <= after
        assert _about(before) <= info.updated_at <= after
        assert await get(store, digest) == data

    async def test_openings(self, store: Store) -> None:
        """Writers of different refs can be open at once, with and without a total and an expected digest, and may
        commit without naming either.
        """
        sizes = (1, 256, 3 << 20, 100, 5000)
        blobs = [bytes_of(size) for size in sizes]
        writers = [
            await store.writer("one"),
            await store.writer("two", sizes[1]),
            await store.writer("three", 0, digest_of(blobs[2])),
            await store.writer("four", sizes[3], digest_of(blobs[3])),
            await store.writer("five", sizes[4], digest_of(blobs[4])),
        ]
        for writer, blob in zip(writers, blobs, strict=True):
            await writer.write(blob)
        for writer, blob in zip(writers, blobs, strict=True):
            assert await writer.commit() == digest_of(blob)
            await writer.close()
            assert await get(store, digest_of(blob)) == blob

    async def test_progress(self, store: Store) -> None:
        """A writer's status has ref, offset, total and times; its digest is that of the bytes so far."""
        data = bytes_of(256)
        before = time.time_ns()
        async with opened(store, "p", 256) as writer:
            after = time.time_ns()
            assert writer.digest == str(digest_of(b""))
            for done in (0, 64, 192, 256):
                if done:
                    before_write = time.time_ns()
                    await writer.write(data[writer.offset : done])
                status = await writer.status()
                assert status == Status("p", done, 256, status.started_at, status.updated_at)
                assert _about(before) <= status.started_at <= after
                if done:
                    assert _about(before_write) <= status.updated_at <= time.time_ns()
                assert writer.digest == str(digest_of(data[:done]))
                assert (await store.status("p")).offset == done

    @pytest.mark.parametrize("part", [0, 1, 2500, 4999, 5000])
    async def test_resume(self, store: Store, part: int) -> None:
        """A closed writer leaves its bytes; the next one continues at their offset, with the digest and the start time
        of the first.
        """
        data = bytes_of(5000)
        async with opened(store, "r", 5000) as writer:
            if part:
                await writer.write(data[:part])
            first = await writer.status()
        left = await store.status("r")
        assert (left.ref, left.offset, left.total, left.started_at) == ("r", part, 5000, first.started_at)
        async with opened(store, "r", 5000, digest_of(data)) as writer:
            assert (writer.offset, writer.digest) == (part, str(digest_of(data[:part])))
            assert (await writer.status()).started_at == first.started_at
            if part < 5000:
                await writer.write(data[part:])
            assert await writer.commit(5000, digest_of(data)) == digest_of(data)
        assert await get(store, digest_of(data)) == data

    async def test_truncate(self, store: Store) -> None:
        """A writer can begin anew at offset 0, also a resumed one."""
        data = bytes_of(100)
        async with opened(store, "t") as writer:
            await writer.write(b"x" * 200)
            await writer.truncate()
            await writer.write(data[:50])
            assert (writer.offset, writer.digest) == (50, str(digest_of(data[:50])))
        async with opened(store, "t") as writer:
            assert writer.offset == 50
            await writer.truncate()
            await writer.write(data)
            assert await writer.commit(100, digest_of(data)) == digest_of(data)
        assert await get(store, digest_of(data)) == data

    async def test_another_total_begins_anew(self, store: Store) -> None:
        """An ingest that is opened again with another total begins anew: the existing bytes belong to something
        else.
        """
        if self.namespaced:
            pytest.skip("containerd's records keep the first total")
        async with opened(store, "n", 10) as writer:
            await writer.write(b"1234567")
        async with opened(store, "n", 3) as writer:
            assert writer.offset == 0
            await writer.write(b"abc")
            assert await writer.commit(3) == digest_of(b"abc")

    async def test_one_writer_at_a_time(self, store: Store) -> None:
        """A second writer of a ref is Unavailable, and the error names the ref; it can open once the first has
        closed.
        """
        async with opened(store, "the ref") as writer:
            await writer.write(b"abc")
            with pytest.raises(errors.Unavailable, match="the ref locked"):
                await store.writer("the ref")
            async with opened(store, "another ref"):
                pass
        async with opened(store, "the ref") as writer:
            assert writer.offset == 3

    async def test_a_cancelled_writer_unlocks(self, store: Store) -> None:
        """A writer that is cancelled in the middle of a write leaves an ingest that can be resumed at once."""

        async def write_for_ever() -> None:
            async with opened(store, "c") as writer:
                while True:
                    await writer.write(bytes_of(1 << 16))

        task = asyncio.create_task(write_for_ever())

        async def started() -> bool:
            with contextlib.suppress(errors.NotFound):
                return (await store.status("c")).offset > 0
            return False

        await eventually_async(started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        async def reopened() -> bool:
            try:
                async with opened(store, "c") as writer:
                    assert writer.offset > 0
                    return True
            except errors.Unavailable:
                return False

        await eventually_async(reopened)

    async def test_ref_required(self, store: Store) -> None:
        """A writer needs a ref."""
        with pytest.raises(errors.InvalidArgument):
            await store.writer("")

    async def test_empty_blob(self, store: Store) -> None:
        """A blob may have no bytes."""
        async with opened(store, "e") as writer:
            assert await writer.commit(0, digest_of(b"")) == digest_of(b"")
        assert (await store.info(digest_of(b""))).size == 0
        assert await get(store, digest_of(b"")) == b""

    async def test_odd_refs(self, store: Store) -> None:
        """A ref is any text: slashes, line ends, other scripts, and long ones."""
        for ref in ("../../x", "a\r\nb", "слой/层", "n" * 1000):
            async with opened(store, ref) as writer:
                await writer.write(b"x")
            assert (await store.status(ref)).ref == ref
            await store.abort(ref)

    @pytest.mark.parametrize("at_opening", [False, True])
    async def test_sha512(self, store: Store, at_opening: bool) -> None:
        """A blob is named by the algorithm that its writer expects, at the opening or only at the commit, resumed or
        not.
        """
        data = bytes_of(3000)
        digest = digest_of(data, "sha512")
        async with opened(store, "s", 3000, digest if at_opening else None) as writer:
            await writer.write(data[:1000])
        async with opened(store, "s", 3000, digest if at_opening else None) as writer:
            await writer.write(data[1000:])
            assert await writer.commit(3000, digest) == digest
        assert (await store.info(digest)).size == 3000
        assert await get(store, digest) == data
        assert digest in await listed(store)
        with pytest.raises(errors.NotFound):
            await store.info(digest_of(data))

    # ---------------------------------------------------------------- wrong, or there already

    @pytest.mark.parametrize("named", ["digest", "total"])
    async def test_wrong_digest(self, store: Store, named: str) -> None:
        """A commit of other bytes than the opening named fails and makes no blob; the next attempt starts clean."""
        data = bytes_of(300)
        promise: tuple[int, Digest | None] = (0, digest_of(data)) if named == "digest" else (11, None)
        async with opened(store, "w", *promise) as writer:
            await writer.write(b"other bytes")
            with pytest.raises(
                errors.FailedPrecondition,
                match=f"unexpected commit digest {digest_of(b'other bytes')}, expected {digest_of(data)}",
            ):
                await writer.commit(0, digest_of(data))
        for digest in (digest_of(data), digest_of(b"other bytes")):
            with pytest.raises(errors.NotFound):
                await store.info(digest)
        async with opened(store, "w", *promise) as writer:
            assert writer.offset == 0
            await writer.write(data)
            await writer.commit(300, digest_of(data))

    async def test_wrong_size(self, store: Store) -> None:
        """A commit of another size than expected fails likewise."""
        data = bytes_of(300)
        async with opened(store, "w", 400) as writer:
            await writer.write(data)
            with pytest.raises(errors.FailedPrecondition, match=r"300.*400|400.*300"):
                await writer.commit(400)
        with pytest.raises(errors.NotFound):
            await store.info(digest_of(data))
        async with opened(store, "w", 400) as writer:
            assert writer.offset == 0

    async def test_wrong_commits_of_an_ingest_that_promised_nothing(self, store: Store) -> None:
        """If the opening named nothing, a wrong commit is only a wrong commit: the bytes are kept, and the right commit
        makes the blob.
        """
        data = bytes_of(300)
        async with opened(store, "w") as writer:
            await writer.write(data)
            with pytest.raises(errors.FailedPrecondition, match="unexpected commit digest"):
                await writer.commit(300, digest_of(b"other bytes"))
        async with opened(store, "w") as writer:
            assert writer.offset == 300
            with pytest.raises(errors.FailedPrecondition, match=r"300.*299"):
                await writer.commit(299)
        async with opened(store, "w") as writer:
            assert writer.offset == 300
            assert await writer.commit(300) == digest_of(data)
        assert await get(store, digest_of(data)) == data

    @pytest.mark.parametrize("expected", [False, True])
    async def test_commit_of_an_existing_blob(self, store: Store, expected: bool) -> None:
        """A commit of bytes that the store has is AlreadyExists and names the digest; the ingest is removed."""
        data = bytes_of(300)
        digest = await put(store, data)
        async with opened(store, "again") as writer:
            await writer.write(data)
            with pytest.raises(errors.AlreadyExists, match=str(digest)):
                await writer.commit(300, digest if expected else None)
        with pytest.raises(errors.NotFound):
            await store.status("again")
        assert await get(store, digest) == data

    async def test_opening_for_an_existing_blob(self, store: Store) -> None:
        """A writer that expects an existing blob gets AlreadyExists at once."""
        digest = await put(store, b"there")
        with pytest.raises(errors.AlreadyExists, match=str(digest)):
            await store.writer("x", 5, digest)

    async def test_same_blob_at_once(self, store: Store) -> None:
        """If many writers commit the same bytes at once, one makes the blob, and the others get AlreadyExists."""
        data = bytes_of(10000)

        async def one(ref: str) -> bool:
            async with opened(store, ref) as writer:
                await writer.write(data)
                try:
                    await writer.commit(10000, digest_of(data))
                except errors.AlreadyExists:
                    return False
                return True

        assert sum(await asyncio.gather(*(one(f"same {n}") for n in range(12)))) == 1
        assert await get(store, digest_of(data)) == data
        assert not [s for s in await store.list_statuses() if s.ref.startswith("same ")]

    # ---------------------------------------------------------------- ingests

    async def test_statuses(self, store: Store) -> None:
        """Ingests are listed during and after writing, all or by ref; a committed one is no longer listed."""
        async with opened(store, "one", 10) as writer:
            await writer.write(b"abc")
        async with opened(store, "two") as writer:
            assert {(s.ref, s.offset, s.total) for s in await store.list_statuses()} == {("one", 3, 10), ("two", 0, 0)}
            assert [s.ref for s in await store.list_statuses(["ref==two"])] == ["two"]
            assert {s.ref for s in await store.list_statuses(["ref==two", "ref~=^o"])} == {"one", "two"}
            with pytest.raises(errors.InvalidArgument):
                await store.list_statuses(["ref="])
            await writer.write(b"xyz")
            await writer.commit()
        assert [s.ref for s in await store.list_statuses()] == ["one"]

    async def test_statuses_of_many(self, store: Store) -> None:
        """Many ingests are listed correctly, though this takes several calls inside: each once, under its ref, with its
        offset; a filter selects.
        """
        for number in range(150):
            async with opened(store, f"many-{number}", 100) as writer:
                await writer.write(b"x" * number)
        assert {(s.ref, s.offset, s.total) for s in await store.list_statuses()} == {
            (f"many-{n}", n, 100) for n in range(150)
        }
        assert {s.ref for s in await store.list_statuses(["ref~=^many-1"])} == {
            "many-1",
            *(f"many-{n}" for n in (*range(10, 20), *range(100, 150))),
        }

    async def test_status_of_no_ingest(self, store: Store) -> None:
        """The status of an unknown ref is NotFound, and names it."""
        with pytest.raises(errors.NotFound, match="nobody's"):
            await store.status("nobody's")

    async def test_abort(self, store: Store) -> None:
        """An aborted ingest is gone, and its ref can be used anew. Aborting an unknown ref is NotFound."""
        async with opened(store, "a") as writer:
            await writer.write(b"abc")
        await store.abort("a")
        with pytest.raises(errors.NotFound):
            await store.status("a")
        with pytest.raises(errors.NotFound):
            await store.abort("a")
        async with opened(store, "a") as writer:
            assert writer.offset == 0

    async def test_abort_of_an_open_ingest(self, store: Store) -> None:
        """An ingest that is aborted under its writer never becomes a blob; its ref is free once the writer has
        closed.
        """
        data = bytes_of(300)
        async with opened(store, "a") as writer:
            await writer.write(data)
            await store.abort("a")
            with pytest.raises(errors.NodeError):
                await writer.commit(300, digest_of(data))
        with pytest.raises(errors.NotFound):
            await store.info(digest_of(data))
        async with opened(store, "a") as writer:
            assert writer.offset == 0

    async def test_a_committed_writer_is_closed(self, store: Store) -> None:
        """After its commit a writer refuses further calls."""
        async with opened(store, "z") as writer:
            await writer.write(b"z")
            await writer.commit()
            with pytest.raises(errors.FailedPrecondition):
                await writer.commit()

    # ---------------------------------------------------------------- reading

    async def test_read_ranges(self, store: Store) -> None:
        """A read begins at its offset, and ends after its size; at the blob's end if that comes first or the size is
        0.
        """
        data = bytes_of(2 * CHUNK + 1000)
        digest = await put(store, data)
        for offset, size in (
            (0, 0),
            (0, 1),
            (1, 0),
            (CHUNK - 1, 2),
            (CHUNK, CHUNK),
            (100, CHUNK + 5),
            (len(data) - 3, 3),
            (len(data) - 3, 100),
            (len(data), 0),
        ):
            assert await get(store, digest, offset, size) == data[offset : offset + size if size else None]

    async def test_read_pieces(self, store: Store) -> None:
        """A blob is read in pieces of 1 MiB."""
        digest = await put(store, bytes_of(2 * CHUNK + 5))
        assert [len(piece) async for piece in store.read(digest)] == [CHUNK, CHUNK, 5]

    async def test_read_outside(self, store: Store) -> None:
        """An offset past the end is OutOfRange; an unknown blob is NotFound, and named."""
        digest = await put(store, b"12345")
        with pytest.raises(errors.OutOfRange, match="read past object length 5 bytes"):
            await get(store, digest, 6)
        with pytest.raises(errors.NotFound, match=str(digest_of(b"none"))):
            await get(store, digest_of(b"none"))

    async def test_read_given_up(self, store: Store) -> None:
        """A reader may stop in the middle, many times."""
        digest = await put(store, bytes_of(4 * CHUNK))
        for _ in range(30):
            async with contextlib.aclosing(store.read(digest)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    assert len(piece) == CHUNK
                    break
        assert len(await get(store, digest)) == 4 * CHUNK

    # ---------------------------------------------------------------- blobs

    async def test_info_of_no_blob(self, store: Store) -> None:
        """Info, Update and Delete of an unknown blob are NotFound and name it, in containerd's words."""
        digest = digest_of(b"none")
        words = rf"^content (digest )?{digest}: not found$"
        with pytest.raises(errors.NotFound, match=words):
            await store.info(digest)
        with pytest.raises(errors.NotFound, match=words):
            await store.update(digest, {"a": "b"})
        with pytest.raises(errors.NotFound, match=words):
            await store.delete(digest)

    async def test_delete(self, store: Store) -> None:
        """A deleted blob is gone with its labels; the same bytes may come again, without the labels."""
        data = bytes_of(100)
        digest = await put(store, data, labels={"a": "b"})
        await store.delete(digest)
        with pytest.raises(errors.NotFound):
            await store.info(digest)
        assert digest not in await listed(store)
        await put(store, data)
        assert (await store.info(digest)).labels == {}

    async def test_labels(self, store: Store) -> None:
        """Update replaces all labels, or only those that its field paths name; the update time changes, the creation
        time stays.
        """
        digest = await put(store, bytes_of(100), labels={"k1": "v1", "k2": "v2"})
        created = await store.info(digest)
        steps: list[tuple[dict[str, str], list[str], dict[str, str]]] = [
            ({"k1": "new", "k3": "v3"}, [], {"k1": "new", "k3": "v3"}),
            ({"k1": "v1", "k9": "not named"}, ["labels.k1"], {"k1": "v1", "k3": "v3"}),
            ({"a.b/c": "dotted"}, ["labels.a.b/c"], {"k1": "v1", "k3": "v3", "a.b/c": "dotted"}),
            ({}, ["labels.k3"], {"k1": "v1", "a.b/c": "dotted"}),
            ({"only": "this"}, ["labels"], {"only": "this"}),
            ({}, ["labels"], {}),
        ]
        last = created.updated_at
        for labels, paths, expected in steps:
            info = await store.update(digest, labels, paths)
            assert (info.labels, info.size, info.created_at) == (expected, 100, created.created_at)
            assert info.updated_at >= _about(last)
            found = await store.info(digest)
            assert (found.labels, found.created_at) == (expected, created.created_at)
            last = found.updated_at

    async def test_update_of_immutable_fields(self, store: Store) -> None:
        """Only labels can be updated; other field paths are InvalidArgument, and nothing changes."""
        digest = await put(store, bytes_of(100), labels={"a": "b"})
        with pytest.raises(errors.InvalidArgument, match='cannot update "size" field on content info'):
            await store.update(digest, {"a": "c"}, ["labels.a", "size"])
        assert (await store.info(digest)).labels == {"a": "b"}

    async def test_list(self, store: Store) -> None:
        """Blobs are listed once each, all or by digest and labels; a malformed filter is InvalidArgument."""
        red = await put(store, b"red", labels={"color": "red", "x.y/z": "1"})
        blue = await put(store, b"blue", labels={"color": "blue"})
        plain = await put(store, b"plain")
        assert {red, blue, plain} <= await listed(store)
        assert await listed(store, "labels.color==red") == {red}
        assert await listed(store, "labels.color") == {red, blue}
        assert await listed(store, 'labels."x.y/z"==1,labels.color') == {red}
        assert await listed(store, f"digest=={plain}") == {plain}
        assert await listed(store, f"digest=={plain}", "labels.color~=^b") == {plain, blue}
        with pytest.raises(errors.InvalidArgument, match="parse error"):
            await listed(store, "labels.color=red")

    async def test_list_many(self, store: Store) -> None:
        """More blobs than one message holds are all listed, each once."""
        digests = {await put(store, b"%d" % n) for n in range(120)}
        found = [info.digest async for info in store.list()]
        assert len(found) == len(set(found))
        assert digests <= set(found)


class FilesSuite:
    """Every promise of ``store.Files``; the fixtures ``store`` and ``files`` are two interfaces of one store."""

    async def test_locate(self, store: Store, files: Files) -> None:
        """A blob's file has its bytes and its size."""
        data = bytes_of(5000)
        path, size = await files.locate(await put(store, data))
        assert (Path(path).read_bytes(), size) == (data, 5000)
        with pytest.raises(errors.NotFound, match=str(digest_of(b"none"))):
            await files.locate(digest_of(b"none"))

    @pytest.mark.parametrize("computed", [False, True])
    async def test_fill_and_commit(self, store: Store, files: Files, computed: bool) -> None:
        """An ingest that was filled as a file becomes a blob with its labels, whether its writer has computed the
        digest or not.
        """
        data = bytes_of(5000)
        begun = await files.begin("f", 5000)
        assert begun.offset == 0
        with _locked(begun.path) as fd:
            os.write(fd, data)
        assert await files.commit("f", 5000, digest_of(data), {"a": "b"}, computed=computed) == (digest_of(data), 5000)
        assert await get(store, digest_of(data)) == data
        assert (await store.info(digest_of(data))).labels == {"a": "b"}
        with pytest.raises(errors.NotFound):
            await store.status("f")

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    async def test_commit_hashes(self, files: Files, store: Store, algorithm: str) -> None:
        """Without an expected digest the commit answers the sha256; with one, it uses its algorithm."""
        data = bytes_of(5000)
        with _locked((await files.begin("f")).path) as fd:
            os.write(fd, data)
        digest = digest_of(data, algorithm)
        assert await files.commit("f", 0, digest if algorithm != "sha256" else None) == (digest, 5000)
        assert await get(store, digest) == data

    async def test_both_ways(self, files: Files, store: Store) -> None:
        """An ingest may begin as a stream, continue as a file, and end as a stream."""
        data = bytes_of(3000)
        async with opened(store, "b", 3000) as writer:
            await writer.write(data[:1000])
        begun = await files.begin("b", 3000)
        assert begun.offset == 1000
        with _locked(begun.path) as fd:
            os.pwrite(fd, data[1000:2000], 1000)
        assert (await store.status("b")).offset == 2000
        async with opened(store, "b", 3000) as writer:
            assert (writer.offset, writer.digest) == (2000, str(digest_of(data[:2000])))
            await writer.write(data[2000:])
            assert await writer.commit(3000, digest_of(data)) == digest_of(data)

    async def test_one_writer_of_either_kind(self, files: Files, store: Store) -> None:
        """A locked file has a writer, and so has an open stream: a second writer of either kind is Unavailable."""
        begun = await files.begin("l")
        with _locked(begun.path):
            for second in (store.writer("l"), files.begin("l"), files.commit("l")):
                with pytest.raises(errors.Unavailable, match="ref .*l locked"):
                    await second
        async with opened(store, "l"):
            for second in (files.begin("l"), files.commit("l")):
                with pytest.raises(errors.Unavailable, match="ref .*l locked"):
                    await second
            with pytest.raises(BlockingIOError), _locked(begun.path):
                pass

        assert (await files.begin("l")).offset == 0  # the stream has ended, and its lock with it

    @pytest.mark.parametrize("computed", [False, True])
    async def test_wrong(self, files: Files, store: Store, computed: bool) -> None:
        """A file of another size or digest fails its commit and is removed; a computed digest is believed only if the
        size matches.
        """
        for size, expected in ((3, digest_of(b"four")), *(() if computed else ((4, digest_of(b"five")),))):
            with _locked((await files.begin("w")).path) as fd:
                os.write(fd, b"four")
            with pytest.raises(errors.FailedPrecondition, match="unexpected commit"):
                await files.commit("w", size, expected, computed=computed)
            assert (await files.begin("w")).offset == 0
        with _locked((await files.begin("w")).path) as fd:
            os.write(fd, b"four")
        with pytest.raises(errors.FailedPrecondition, match="unexpected commit digest"):
            await files.commit("w", 0, digest_of(b"five"), computed=computed)

    async def test_existing(self, files: Files, store: Store) -> None:
        """Bytes that the store has are AlreadyExists at the commit, and the ingest is removed."""
        await put(store, b"there")
        with _locked((await files.begin("x")).path) as fd:
            os.write(fd, b"there")
        with pytest.raises(errors.AlreadyExists, match=str(digest_of(b"there"))):
            await files.commit("x", 5, digest_of(b"there"), computed=True)
        with pytest.raises(errors.NotFound):
            await store.status("x")

    async def test_commit_of_nothing(self, files: Files) -> None:
        """A commit of an ingest that was never begun is NotFound; beginning one needs a ref."""
        with pytest.raises(errors.NotFound, match="never"):
            await files.commit("never", 0, digest_of(b""), computed=True)
        with pytest.raises(errors.InvalidArgument):
            await files.begin("")


@contextlib.contextmanager
def _locked(path: str):
    """The file, locked as by its writer."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


def _about(moment: int) -> int:
    """File times come from a clock that ticks every few milliseconds, and have the time of its last tick."""
    return moment - 20_000_000
