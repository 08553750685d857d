"""The promises of a content store (:class:`services.content.store.Store`) about its blobs."""

from __future__ import annotations

import contextlib

from conform.content_case import LOCAL, PIECES, SERVER, STORE, TESTS, ContentCase, about
from conform.rules import ORDER, Rule, collect, equal, holds
from services.content.store import CHUNK
from services.kit import errors

RULES: list[Rule] = []
rule = collect(RULES)

# ------------------------------------------------------------------------------------------ reading


@rule(source=f"{SERVER}: Read: a size of 0, or past the end, reads to the end")
async def read_ranges(case: ContentCase) -> None:
    """A read begins at its offset, and ends after its size; at the blob's end if that comes first or the size is 0."""
    data = case.fresh(2 * CHUNK + 1000)
    digest = await case.put(data)
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
        expected = data[offset : offset + size if size else None]
        equal(await case.get(digest, offset, size), expected, f"{size or 'all'} bytes from {offset}")


@rule(source=f"{SERVER}: bufPool: Read sends 1 MiB at once", optional=PIECES)
async def read_pieces(case: ContentCase) -> None:
    """A blob is read in pieces of 1 MiB."""
    digest = await case.put(case.fresh(2 * CHUNK + 5))
    with case.offered(PIECES):
        equal([len(piece) async for piece in case.store.read(digest)], [CHUNK, CHUNK, 5], "the pieces")


@rule(source=f"{SERVER}: Read: read past object length; {STORE}: Provider")
async def read_outside(case: ContentCase) -> None:
    """An offset past the end is OutOfRange; an unknown blob is NotFound, and named."""
    digest, none = await case.put(case.text("12345")), case.digest(case.text("none"))
    size = (await case.store.info(digest)).size
    with case.refused(errors.OutOfRange, f"read past object length {size} bytes"):
        await case.get(digest, size + 1)
    with case.refused(errors.NotFound, str(none)):
        await case.get(none)


@rule(source=f"{STORE}: ReaderAt.Close; gRPC: a client may cancel a stream")
async def read_given_up(case: ContentCase) -> None:
    """A reader may stop in the middle, many times."""
    digest = await case.put(case.fresh(4 * CHUNK))
    for _ in range(30):
        async with contextlib.aclosing(case.store.read(digest)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                case.optional(PIECES, len(piece) == CHUNK, f"a piece of {CHUNK} bytes", len(piece))
                break
    equal(len(await case.get(digest)), 4 * CHUNK, "bytes that are read")


# ------------------------------------------------------------------------------------------ blobs


@rule(source=f"{STORE}: InfoProvider.Info, Manager; {LOCAL}/store.go: content ...: not found")
async def info_of_no_blob(case: ContentCase) -> None:
    """Info, Update and Delete of an unknown blob are NotFound and name it, in containerd's words."""
    digest = case.digest(case.text("none"))
    words = rf"^content (digest )?{digest}: not found$"
    with case.refused(errors.NotFound, words):
        await case.store.info(digest)
    with case.refused(errors.NotFound, words):
        await case.store.update(digest, {"a": "b"})
    with case.refused(errors.NotFound, words):
        await case.store.delete(digest)


@rule(source=f"{STORE}: Manager.Delete; {LOCAL}/store.go: Delete")
async def delete(case: ContentCase) -> None:
    """A deleted blob is gone with its labels; the same bytes may come again, without the labels."""
    data = case.fresh(100)
    digest = await case.put(data, {"a": "b"})
    await case.store.delete(digest)
    await case.no_blob(digest)
    equal(await case.listed(), [], "the list")
    await case.put(data)
    equal((await case.store.info(digest)).labels, {}, "the labels of the new blob")


@rule(source=f"{STORE}: Manager.Update: field paths, mutable are labels.*; {TESTS}: checkLabels")
async def labels(case: ContentCase) -> None:
    """Update replaces all labels, or only those that its field paths name; the update time changes, the creation time
    stays.
    """
    digest = await case.put(case.fresh(100), {"k1": "v1", "k2": "v2"})
    created = await case.store.info(digest)
    steps: list[tuple[dict[str, str], list[str], dict[str, str]]] = [
        ({"k1": "new", "k3": "v3"}, [], {"k1": "new", "k3": "v3"}),
        ({"k1": "v1", "k9": "not named"}, ["labels.k1"], {"k1": "v1", "k3": "v3"}),
        ({"a.b/c": "dotted"}, ["labels.a.b/c"], {"k1": "v1", "k3": "v3", "a.b/c": "dotted"}),
        ({}, ["labels.k3"], {"k1": "v1", "a.b/c": "dotted"}),
        ({"only": "this"}, ["labels"], {"only": "this"}),
        ({}, ["labels"], {}),
    ]
    last = created.updated_at
    for new, paths, expected in steps:
        info = await case.store.update(digest, new, paths)
        equal((info.labels, info.size, info.created_at), (expected, 100, created.created_at), f"after {paths or 'all'}")
        holds(info.updated_at >= about(last), f"an update time from {about(last)} on", info.updated_at)
        found = await case.store.info(digest)
        equal((found.labels, found.created_at), (expected, created.created_at), f"what Info has after {paths or 'all'}")
        last = found.updated_at


@rule(source=f"{STORE}: Manager.Update; {LOCAL}/store.go: cannot update ... field on content info")
async def update_of_immutable_fields(case: ContentCase) -> None:
    """Only labels can be updated; other field paths are InvalidArgument, and nothing changes."""
    digest = await case.put(case.fresh(100), {"a": "b"})
    with case.refused(errors.InvalidArgument, 'cannot update "size" field on content info'):
        await case.store.update(digest, {"a": "c"}, ["labels.a", "size"])
    equal((await case.store.info(digest)).labels, {"a": "b"}, "the labels")


@rule(source=f"{STORE}: Manager.Walk and its filters; core/content/adaptor.go")
async def list_(case: ContentCase) -> None:
    """Blobs are listed once each, all or by digest and labels; a malformed filter is InvalidArgument."""
    red = await case.put(case.text("red"), {"color": "red", "x.y/z": "1"})
    blue = await case.put(case.text("blue"), {"color": "blue"})
    plain = await case.put(case.text("plain"))
    for filters, wanted in (
        ([], [red, blue, plain]),
        (["labels.color==red"], [red]),
        (["labels.color"], [red, blue]),
        (['labels."x.y/z"==1,labels.color'], [red]),
        ([f"digest=={plain}"], [plain]),
        ([f"digest=={plain}", "labels.color~=^b"], [plain, blue]),
    ):
        found = await case.listed(*filters)
        equal(sorted(map(str, found)), sorted(map(str, wanted)), f"the blobs of {filters or 'no filter'}")
        case.optional(ORDER, found == sorted(wanted, key=str), "blobs in the order of their digests", found)
    with case.refused(errors.InvalidArgument, "parse error"):
        await case.listed("labels.color=red")


@rule(source=f"{STORE}: Manager.Walk; {SERVER}: List sends at most 100 at once")
async def list_many(case: ContentCase) -> None:
    """More blobs than one message holds are all listed, each once."""
    digests = [await case.put(case.text(f"blob {n}")) for n in range(120)]
    equal(sorted(map(str, await case.listed())), sorted(map(str, digests)), "the list")
