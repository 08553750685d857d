"""The promises of a content store's files (:class:`services.content.store.Files`), which processes of the same node
read and fill themselves. The interface is splitd's own: a store without it is asked for streams.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from conform.content_case import LOCAL_FILES, ContentCase, digest_of
from conform.rules import NotRun, Rule, collect, equal, holds
from services.content.store import Files
from services.kit import errors

RULES: list[Rule] = []
rule = collect(RULES)

SOURCE = "services/content/store.py of splitd: Files"


@contextlib.asynccontextmanager
async def _offered(case: ContentCase) -> AsyncIterator[Files]:
    """The files of the store, if it offers them and they are on this machine."""
    if case.files is None or not case.same_clock:
        raise NotRun("files are for processes on the same machine")
    try:
        await case.files.locate(case.digest(case.text("nothing")))
    except errors.NotFound:
        pass
    except errors.Unimplemented as error:
        raise case.lacking(LOCAL_FILES, str(error)) from error
    yield case.files


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int]:
    """The file, locked as by its writer."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


@rule(source=f"{SOURCE}.locate", optional=LOCAL_FILES)
async def locate(case: ContentCase) -> None:
    """A blob's file has its bytes and its size; an unknown blob is NotFound."""
    async with _offered(case) as files:
        data, none = case.fresh(5000), case.digest(case.text("none"))
        path, size = await files.locate(await case.put(data))
        equal((Path(path).read_bytes(), size), (data, 5000), "the file's bytes and size")
        with case.refused(errors.NotFound, str(none)):
            await files.locate(none)


@rule(source=f"{SOURCE}.begin, commit", optional=LOCAL_FILES)
async def fill_and_commit(case: ContentCase) -> None:
    """An ingest that was filled as a file becomes a blob with its labels, whether its writer has computed the digest or
    not.
    """
    async with _offered(case) as files:
        for computed in (False, True):
            data = case.fresh(5000)
            begun = await files.begin(case.ref("f"), 5000)
            equal(begun.offset, 0, "the offset of a new ingest")
            with _locked(begun.path) as fd:
                os.write(fd, data)
            came = await files.commit(case.ref("f"), 5000, case.digest(data), {"a": "b"}, computed=computed)
            equal(came, (case.digest(data), 5000), "digest and size of the commit")
            await case.has_blob(case.digest(data), data)
            equal((await case.store.info(case.digest(data))).labels, {"a": "b"}, "the labels")
            with case.refused(errors.NotFound):
                await case.status("f")


@rule(source=f"{SOURCE}.commit", optional=LOCAL_FILES)
async def commit_hashes(case: ContentCase) -> None:
    """Without an expected digest the commit answers the sha256; with one, it uses its algorithm."""
    async with _offered(case) as files:
        for algorithm in ("sha256", "sha512"):
            data = case.fresh(5000)
            with _locked((await files.begin(case.ref("f"))).path) as fd:
                os.write(fd, data)
            digest = case.digest(data, algorithm)
            came = await files.commit(case.ref("f"), 0, digest if algorithm != "sha256" else None)
            equal(came, (digest, 5000), "digest and size of the commit")
            await case.has_blob(digest, data)


@rule(source=f"{SOURCE}: an ingest is the same one as Store.writer's", optional=LOCAL_FILES)
async def both_ways(case: ContentCase) -> None:
    """An ingest may begin as a stream, continue as a file, and end as a stream."""
    async with _offered(case) as files:
        data = case.fresh(3000)
        async with case.opened("b", 3000) as writer:
            await writer.write(data[:1000])
        begun = await files.begin(case.ref("b"), 3000)
        equal(begun.offset, 1000, "the offset of the file")
        with _locked(begun.path) as fd:
            os.pwrite(fd, data[1000:2000], 1000)
        equal((await case.status("b")).offset, 2000, "the offset of the status")
        async with case.opened("b", 3000) as writer:
            equal((writer.offset, writer.digest), (2000, str(digest_of(data[:2000]))), "the stream's offset and digest")
            await writer.write(data[2000:])
            equal(await writer.commit(3000, case.digest(data)), case.digest(data))


@rule(source=f"{SOURCE}: who fills the file holds its flock", optional=LOCAL_FILES)
async def one_writer_of_either_kind(case: ContentCase) -> None:
    """A locked file has a writer, and so has an open stream: a second writer of either kind is Unavailable."""
    words = "ref .*l locked"
    async with _offered(case) as files:
        begun = await files.begin(case.ref("l"))
        with _locked(begun.path):
            with case.refused(errors.Unavailable, words):
                await (await case.writer("l")).close()
            for second in (files.begin, files.commit):
                with case.refused(errors.Unavailable, words):
                    await second(case.ref("l"))
        async with case.opened("l"):
            for second in (files.begin, files.commit):
                with case.refused(errors.Unavailable, words):
                    await second(case.ref("l"))
            try:
                with _locked(begun.path):
                    holds(False, "a file that is locked by the stream", "it can be locked")
            except BlockingIOError:
                pass
        # the stream has ended, and its lock with it
        equal((await files.begin(case.ref("l"))).offset, 0, "the offset after the stream")


@rule(source=f"{SOURCE}.commit", optional=LOCAL_FILES)
async def wrong_files(case: ContentCase) -> None:
    """A file of another size or digest fails its commit and is removed; a computed digest is believed only if the size
    matches.
    """
    data = case.text("four")
    other, size = case.digest(case.text("five")), len(data)
    async with _offered(case) as files:
        for computed in (False, True):
            ref = case.ref(f"w{computed}")
            for total, expected in ((size - 1, case.digest(data)), *(() if computed else ((size, other),))):
                with _locked((await files.begin(ref)).path) as fd:
                    os.write(fd, data)
                with case.refused(errors.FailedPrecondition, "unexpected commit"):
                    await files.commit(ref, total, expected, computed=computed)
                equal((await files.begin(ref)).offset, 0, "the offset after a wrong commit")
            with _locked((await files.begin(ref)).path) as fd:
                os.write(fd, data)
            with case.refused(errors.FailedPrecondition, "unexpected commit digest"):
                await files.commit(ref, 0, other, computed=computed)


@rule(source=f"{SOURCE}.commit", optional=LOCAL_FILES)
async def existing_files(case: ContentCase) -> None:
    """Bytes that the store has are AlreadyExists at the commit, and the ingest is removed."""
    data = case.text("there")
    async with _offered(case) as files:
        digest = await case.put(data)
        with _locked((await files.begin(case.ref("x"))).path) as fd:
            os.write(fd, data)
        with case.refused(errors.AlreadyExists, str(digest)):
            await files.commit(case.ref("x"), len(data), digest, computed=True)
        with case.refused(errors.NotFound):
            await case.status("x")


@rule(source=f"{SOURCE}.begin, commit", optional=LOCAL_FILES)
async def commit_of_nothing(case: ContentCase) -> None:
    """A commit of an ingest that was never begun is NotFound; beginning one needs a ref."""
    async with _offered(case) as files:
        with case.refused(errors.NotFound, "never"):
            await files.commit(case.ref("never"), 0, case.digest(case.text("none")), computed=True)
        with case.refused(errors.InvalidArgument):
            await files.begin("")
