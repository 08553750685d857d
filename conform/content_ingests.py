"""The promises of a content store (:class:`services.content.store.Store`) about what is being written."""

from __future__ import annotations

import asyncio
import contextlib
import time

from conform.content_case import (
    CLEAN,
    LOCAL,
    OURS,
    SERVER,
    SHA512,
    STORE,
    TESTS,
    ContentCase,
    about,
    bytes_of,
    digest_of,
)
from conform.rules import NotRun, Rule, collect, equal, eventually, holds
from services.content.remote import RemoteWriter
from services.content.store import Info, Status, Writer
from services.kit import errors, loops

RULES: list[Rule] = []
rule = collect(RULES)

# ------------------------------------------------------------------------------------------ writing


@rule(source=f"{STORE}: Writer.Commit, Info; {TESTS}: checkContent")
async def a_blob_has_the_written_bytes(case: ContentCase) -> None:
    """After a commit the blob has the bytes, their size and digest, the labels, and the time of the commit."""
    data = case.fresh(3000)
    async with case.opened("a", len(data)) as writer:
        await writer.write(data[:1000])
        await writer.write(data[1000:])
        before = time.time_ns()
        digest = await writer.commit(len(data), case.digest(data), {"a": "1", "b.c/d": "two"})
        after = time.time_ns()
    equal(digest, case.digest(data), "the digest of the commit")
    info = await case.store.info(digest)
    equal(info, Info(digest, 3000, info.created_at, info.updated_at, {"a": "1", "b.c/d": "two"}))
    case.within(info.created_at, about(before), after, "the time of the creation")
    case.within(info.updated_at, about(before), after, "the time of the update")
    await case.has_blob(digest, data)


@rule(source=f"{STORE}: Ingester, WithDescriptor; Writer.Commit: size and expected may be unknown")
async def openings(case: ContentCase) -> None:
    """Writers of different refs can be open at once, with and without a total and an expected digest, and may commit
    without naming either.
    """
    sizes = (1, 256, 3 << 20, 100, 5000)
    blobs = [case.fresh(size) if size > 1 else case.text("one") for size in sizes]
    writers: list[Writer] = []
    try:
        writers.append(await case.writer("one"))
        writers.append(await case.writer("two", sizes[1]))
        writers.append(await case.writer("three", 0, case.digest(blobs[2])))
        writers.append(await case.writer("four", sizes[3], case.digest(blobs[3])))
        writers.append(await case.writer("five", sizes[4], case.digest(blobs[4])))
        for writer, blob in zip(writers, blobs, strict=True):
            await writer.write(blob)
        for writer, blob in zip(writers, blobs, strict=True):
            equal(await writer.commit(), case.digest(blob), "the digest of the commit")
            await writer.close()
            await case.has_blob(case.digest(blob), blob)
    finally:
        for writer in writers:
            await writer.close()


@rule(source=f"{STORE}: Writer.Status, Writer.Digest; {SERVER}: Write; {TESTS}: checkUpdateStatus")
async def progress(case: ContentCase) -> None:
    """A writer's status has ref, offset, total and times; its digest is that of the bytes so far."""
    data = case.fresh(256)
    before = time.time_ns()
    async with case.opened("p", 256) as writer:
        after = time.time_ns()
        equal(writer.digest, str(digest_of(b"")), "the digest of no bytes")
        for done in (0, 64, 192, 256):
            before_write = time.time_ns()
            if done:
                await writer.write(data[writer.offset : done])
            status = await writer.status()
            equal(status, Status(case.ref("p"), done, 256, status.started_at, status.updated_at))
            case.within(status.started_at, about(before), after, "the time of the start")
            if done:
                case.within(status.updated_at, about(before_write), time.time_ns(), "the time of the last write")
            equal(writer.digest, str(digest_of(data[:done])), f"the digest of the first {done} bytes")
            equal((await case.status("p")).offset, done, "the offset of the status")


@rule(source=f"{STORE}: Writer.Close, Ingester; {TESTS}: checkResume")
async def resume(case: ContentCase) -> None:
    """A closed writer leaves its bytes; the next one continues at their offset, with the digest and the start time of
    the first.
    """
    for part in (0, 1, 2500, 4999, 5000):
        data, name = case.fresh(5000), f"r{part}"
        async with case.opened(name, 5000) as writer:
            if part:
                await writer.write(data[:part])
            first = await writer.status()
        left = await case.status(name)
        equal(
            (left.ref, left.offset, left.total, left.started_at),
            (name, part, 5000, first.started_at),
            "ref, offset, total and start of a closed writer's ingest",
        )
        async with case.opened(name, 5000, case.digest(data)) as writer:
            equal(writer.offset, part, "the offset at which the next writer continues")
            equal(writer.digest, str(digest_of(data[:part])), f"the digest of the first {part} bytes")
            equal((await writer.status()).started_at, first.started_at, "the start of the ingest")
            if part < 5000:
                await writer.write(data[part:])
            equal(await writer.commit(5000, case.digest(data)), case.digest(data))
        await case.has_blob(case.digest(data), data)


@rule(source=f"{STORE}: Writer.Truncate; {SERVER}: a write at offset 0 truncates; {TESTS}: resumeTruncate")
async def truncate(case: ContentCase) -> None:
    """A writer can begin anew at offset 0, also a resumed one."""
    data = case.fresh(100)
    async with case.opened("t") as writer:
        await writer.write(b"x" * 200)
        await writer.truncate()
        await writer.write(data[:50])
        equal((writer.offset, writer.digest), (50, str(digest_of(data[:50]))), "offset and digest after truncation")
    async with case.opened("t") as writer:
        equal(writer.offset, 50, "the offset at which the next writer continues")
        await writer.truncate()
        await writer.write(data)
        equal(await writer.commit(100, case.digest(data)), case.digest(data))
    await case.has_blob(case.digest(data), data)


@rule(source=f"{LOCAL}/store.go: resumeStatus refuses another total, and writer begins anew")
async def another_total_begins_anew(case: ContentCase) -> None:
    """An ingest that is opened again with another total begins anew: the existing bytes belong to something else."""
    if case.namespaced:
        raise NotRun("containerd's records keep the first total")
    data = case.text("abc")
    async with case.opened("n", len(data) + 7) as writer:
        await writer.write(b"1234567")
    async with case.opened("n", len(data)) as writer:
        equal(writer.offset, 0, "the offset under another total")
        await writer.write(data)
        equal(await writer.commit(len(data)), case.digest(data))


@rule(source=f"{LOCAL}/store.go: Writer locks the ref, locks.go: ref ... locked; {TESTS}: checkRefNotAvailable")
async def one_writer_at_a_time(case: ContentCase) -> None:
    """A second writer of a ref is Unavailable, and the error names the ref; it can open once the first has closed."""
    async with case.opened("the ref") as writer:
        await writer.write(b"abc")
        with case.refused(errors.Unavailable, "the ref locked"):
            await (await case.writer("the ref")).close()
        async with case.opened("another ref"):
            pass
    async with case.opened("the ref") as writer:
        equal(writer.offset, 3, "the offset of the next writer")


@rule(source=f"{SERVER}: Write closes the writer when its call ends; {STORE}: Writer.Close")
async def a_cancelled_writer_unlocks(case: ContentCase) -> None:
    """A writer that is cancelled in the middle of a write leaves an ingest that can be resumed at once."""

    async def write_for_ever() -> None:
        async with case.opened("c") as writer:
            while True:
                await writer.write(bytes_of(1 << 16))

    async def started() -> bool:
        with contextlib.suppress(errors.NotFound):
            return (await case.status("c")).offset > 0
        return False

    async def reopened() -> bool:
        try:
            async with case.opened("c") as writer:
                holds(writer.offset > 0, "an offset above 0", writer.offset)
                return True
        except errors.Unavailable:
            return False

    task = loops.task("a writer to be cancelled", write_for_ever())
    try:
        await eventually(started, "an ingest with bytes")
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # it has failed before
    await eventually(reopened, "a writer on the ref of a cancelled call")


@rule(source=f"{SERVER}: Write: write @... must occur at current offset")
async def a_write_is_at_the_end(case: ContentCase) -> None:
    """A Write that names another offset than the ingest's is OutOfRange, and changes nothing: its client has missed
    something.
    """
    async with case.opened("o", 100) as writer:
        if not isinstance(writer, RemoteWriter):
            raise NotRun("only a call names its offset")
        await writer.write(b"abc")
        writer.offset = 7
        with case.refused(errors.OutOfRange, "write @7 must occur at current offset 3"):
            await writer.write(b"def")
    async with case.opened("o", 100) as writer:
        equal(writer.offset, 3, "the offset of the next writer")


@rule(source=f"{SERVER}: Write: the first message must have a reference")
async def ref_required(case: ContentCase) -> None:
    """A writer needs a ref."""
    with case.refused(errors.InvalidArgument):
        await (await case.store.writer("")).close()


@rule(source=f"{STORE}: Writer; an empty layer or config is a blob too")
async def empty_blob(case: ContentCase) -> None:
    """A blob may have no bytes."""
    with contextlib.suppress(errors.NotFound):
        if (await case.store.info(digest_of(b""))).size == 0:
            raise NotRun("the store has the empty blob, which may be somebody else's")
    async with case.opened("e") as writer:
        equal(await writer.commit(0, digest_of(b"")), digest_of(b""))
    case.digest(b"")  # it is of this case now
    equal((await case.store.info(digest_of(b""))).size, 0, "the size of the empty blob")
    await case.has_blob(digest_of(b""), b"")


@rule(source=f"{STORE}: IngestManager: a ref is a string; clients make refs of names and digests")
async def odd_refs(case: ContentCase) -> None:
    """A ref is any text: slashes, line ends, other scripts, and long ones."""
    for ref in ("../../x", "a\r\nb", "слой/層", "n" * 1000):
        async with case.opened(ref) as writer:
            await writer.write(b"x")
        equal((await case.status(ref)).ref, ref)
        await case.abort(ref)


@rule(source="opencontainers/image-spec: descriptor.md, sha512; containerd since 2.4 in all cases", optional=SHA512)
async def sha512(case: ContentCase) -> None:
    """A blob is named by the algorithm that its writer expects, at the opening or only at the commit, resumed or
    not.
    """
    for at_opening in (False, True):
        data, name = case.fresh(3000), f"s{at_opening}"
        digest = case.digest(data, "sha512")
        with case.offered(SHA512):
            try:
                async with case.opened(name, 3000, digest if at_opening else None) as writer:
                    await writer.write(data[:1000])
                async with case.opened(name, 3000, digest if at_opening else None) as writer:
                    await writer.write(data[1000:])
                    equal(await writer.commit(3000, digest), digest)
            except errors.NodeError as error:
                raise case.lacking(SHA512, str(error)) from error
            equal((await case.store.info(digest)).size, 3000, "the size")
            await case.has_blob(digest, data)
            holds(digest in await case.listed(), f"{digest} in the list", "it is not listed")
            await case.no_blob(digest_of(data))


# ------------------------------------------------------------------------------------------ wrong, or there already


@rule(source=f"{STORE}: Writer.Commit; {LOCAL}/writer.go: unexpected commit digest; {TESTS}: checkCommitErrorState")
async def wrong_digest(case: ContentCase) -> None:
    """A commit of other bytes than expected is FailedPrecondition and makes no blob, neither of the digest that was
    expected nor of the bytes.
    """
    for named in ("digest", "total"):
        data, other = case.fresh(300), case.text(f"other bytes {named}")
        total, expected = (0, case.digest(data)) if named == "digest" else (len(other), None)
        async with case.opened(named, total, expected) as writer:
            await writer.write(other)
            words = f"unexpected commit digest {case.digest(other)}, expected {case.digest(data)}"
            with case.refused(errors.FailedPrecondition, words):
                await writer.commit(0, case.digest(data))
        await case.no_blob(case.digest(data), case.digest(other))


@rule(source=f"{STORE}: Writer.Commit; {LOCAL}/writer.go: unexpected commit size; {TESTS}: checkCommitErrorState")
async def wrong_size(case: ContentCase) -> None:
    """A commit of another size than expected is FailedPrecondition and makes no blob."""
    data = case.fresh(300)
    async with case.opened("w", 400) as writer:
        await writer.write(data)
        with case.refused(errors.FailedPrecondition, r"300.*400|400.*300"):
            await writer.commit(400)
    await case.no_blob(case.digest(data))


@rule(
    source=f"{OURS}: Writer.commit; containerd keeps such bytes, and the next attempt continues with them",
    optional=CLEAN,
)
async def a_wrong_commit_is_begun_anew(case: ContentCase) -> None:
    """If the opening named a total or a digest, an ingest whose size or digest turns out wrong is removed, so that the
    next attempt does not continue with the same wrong bytes.
    """
    with case.offered(CLEAN):
        for named in ("digest", "total", "size"):
            data, other = case.fresh(300), case.text(f"other bytes {named}")
            total, expected = (0, case.digest(data)) if named == "digest" else (len(other), None)
            async with case.opened(named, total, expected) as writer:
                await writer.write(other[:-1] if named == "size" else other)
                with case.refused(errors.FailedPrecondition):
                    await writer.commit(total, None if named == "size" else case.digest(data))
            async with case.opened(named, total, expected) as writer:
                equal(writer.offset, 0, "the offset of the next writer")
                if named == "digest":
                    await writer.write(data)
                    await writer.commit(300, case.digest(data))


@rule(source=f"{STORE}: Writer.Close, Writer.Commit; {LOCAL}/writer.go")
async def wrong_commits_of_an_ingest_that_promised_nothing(case: ContentCase) -> None:
    """If the opening named nothing, a wrong commit is only a wrong commit: the bytes are kept, and the right commit
    makes the blob.
    """
    data, other = case.fresh(300), case.text("other bytes")
    async with case.opened("w") as writer:
        await writer.write(data)
        with case.refused(errors.FailedPrecondition, "unexpected commit digest"):
            await writer.commit(300, case.digest(other))
    async with case.opened("w") as writer:
        equal(writer.offset, 300, "the offset after a wrong digest")
        with case.refused(errors.FailedPrecondition, r"300.*299"):
            await writer.commit(299)
    async with case.opened("w") as writer:
        equal(writer.offset, 300, "the offset after a wrong size")
        equal(await writer.commit(300), case.digest(data))
    await case.has_blob(case.digest(data), data)


@rule(source=f"{STORE}: Writer.Commit: ErrAlreadyExists aborts the writer; {TESTS}: checkCommitExists")
async def commit_of_an_existing_blob(case: ContentCase) -> None:
    """A commit of bytes that the store has is AlreadyExists and names the digest; the ingest is removed."""
    data = case.fresh(300)
    digest = await case.put(data)
    for expected in (None, digest):
        async with case.opened("again") as writer:
            await writer.write(data)
            with case.refused(errors.AlreadyExists, str(digest)):
                await writer.commit(300, expected)
        with case.refused(errors.NotFound):
            await case.status("again")
        await case.has_blob(digest, data)


@rule(source=f"{LOCAL}/store.go: writer: content already exists; {SERVER}: blob with expected digest exists")
async def opening_for_an_existing_blob(case: ContentCase) -> None:
    """A writer that expects an existing blob gets AlreadyExists at once."""
    data = case.text("there")
    digest = await case.put(data)
    with case.refused(errors.AlreadyExists, str(digest)):
        await (await case.writer("x", len(data), digest)).close()


@rule(source=f"{STORE}: Writer.Commit: ErrAlreadyExists aborts the writer; {TESTS}: checkCommitExists")
async def same_blob_at_once(case: ContentCase) -> None:
    """If many writers commit the same bytes at once, one makes the blob, and the others get AlreadyExists."""
    data = case.fresh(10000)

    async def one(name: str) -> bool:
        async with case.opened(name) as writer:
            await writer.write(data)
            try:
                await writer.commit(10000, case.digest(data))
            except errors.AlreadyExists:
                return False
            return True

    equal(sum(await asyncio.gather(*(one(f"same {n}") for n in range(12)))), 1, "commits that were answered OK")
    await case.has_blob(case.digest(data), data)
    equal([status.ref for status in await case.statuses()], [], "ingests that are left")


# ------------------------------------------------------------------------------------------ ingests


@rule(source=f"{STORE}: IngestManager.ListStatuses, Store: a committed ingestion is no longer exposed")
async def statuses(case: ContentCase) -> None:
    """Ingests are listed during and after writing, all or by ref; a committed one is no longer listed."""
    async with case.opened("one", 10) as writer:
        await writer.write(b"abc")
    async with case.opened("two") as writer:
        equal({(s.ref, s.offset, s.total) for s in await case.statuses()}, {("one", 3, 10), ("two", 0, 0)})
        two = f"ref=={case.ref('two')}"
        equal([s.ref for s in await case.statuses([two])], ["two"], f"the ingests of {two}")
        both = [two, f"ref~=^{case.ref('o')}"]
        case.refs.discard(case.ref("o"))
        equal({s.ref for s in await case.statuses(both)}, {"one", "two"}, f"the ingests of {both}")
        with case.refused(errors.InvalidArgument):
            await case.store.list_statuses(["ref="])
        data = case.text("xyz")
        await writer.write(data)
        await writer.commit()
    equal([s.ref for s in await case.statuses()], ["one"], "the ingests after a commit")


@rule(source=f"{STORE}: IngestManager.ListStatuses")
async def statuses_of_many(case: ContentCase) -> None:
    """Many ingests are listed correctly, though this may take several calls inside: each once, under its ref, with its
    offset; a filter selects.
    """
    for number in range(150):
        async with case.opened(f"many-{number}", 200) as writer:
            if number:
                await writer.write(b"x" * number)
    equal(
        sorted((s.ref, s.offset, s.total) for s in await case.statuses()),
        sorted((f"many-{n}", n, 200) for n in range(150)),
        "all ingests",
    )
    some = f"ref~=^{case.prefix}-many-1"
    wanted = ("many-1", *(f"many-{n}" for n in (*range(10, 20), *range(100, 150))))
    equal(sorted(s.ref for s in await case.statuses([some])), sorted(wanted), f"the ingests of {some}")


@rule(source=f"{STORE}: IngestManager.Status; {LOCAL}/store.go: status")
async def status_of_no_ingest(case: ContentCase) -> None:
    """The status of an unknown ref is NotFound, and names it."""
    with case.refused(errors.NotFound, "nobody's"):
        await case.status("nobody's")


@rule(source=f"{STORE}: IngestManager.Abort; {LOCAL}/store.go: Abort")
async def abort(case: ContentCase) -> None:
    """An aborted ingest is gone, and its ref can be used anew. Aborting an unknown ref is NotFound."""
    async with case.opened("a") as writer:
        await writer.write(b"abc")
    await case.abort("a")
    with case.refused(errors.NotFound):
        await case.status("a")
    with case.refused(errors.NotFound):
        await case.abort("a")
    async with case.opened("a") as writer:
        equal(writer.offset, 0, "the offset of a writer after the abort")


@rule(source=f"{STORE}: IngestManager.Abort cancels the ingest completely")
async def abort_of_an_open_ingest(case: ContentCase) -> None:
    """An ingest that is aborted under its writer never becomes a blob; its ref is free once the writer has closed."""
    data = case.fresh(300)
    async with case.opened("a") as writer:
        await writer.write(data)
        await case.abort("a")
        with case.refused(errors.NodeError):
            await writer.commit(300, case.digest(data))
    await case.no_blob(case.digest(data))
    async with case.opened("a") as writer:
        equal(writer.offset, 0, "the offset of a writer after the abort")


@rule(source=f"{STORE}: Writer.Commit always closes the writer")
async def a_committed_writer_is_closed(case: ContentCase) -> None:
    """After its commit a writer refuses further calls."""
    async with case.opened("z") as writer:
        await writer.write(case.text("z"))
        await writer.commit()
        with case.refused(errors.FailedPrecondition):
            await writer.commit()
