"""Records that move between stores and files: what arrives, what is refused, and which store counts."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import errors
from services.metadata import archive, moving, schema
from services.metadata.archive import Archive, Sum
from services.metadata.moving import Side
from services.metadata.store import Image, Move, Namespace
from services.metadata.transactions import Key, Reader, Transaction

COUNT = 1200
"""Images: more than two transactions write."""


def side(path: Path) -> Side:
    return Side(path.name, lambda: moving.sqlite(path))


async def fill(where: Side, names: range = range(COUNT)) -> None:
    def work(tx: Transaction) -> None:
        schema.STORE.put(tx, value="an-id")
        schema.NAMESPACES.put(tx, "default", value=Namespace(labels={"a": "b\0ä"}))
        for number in names:
            image = Image(name=f"i{number:05}", digest=f"sha256:{number:064}", media_type="m", size=number)
            schema.IMAGES.put(tx, "default", image.name, value=image)
        schema.NAMED.put(tx, "content", "blob", "with\0nul", value=None)

    async with where.open() as store:
        await store.write(work)


async def everything(where: Side) -> list[tuple[Key, bytes]]:
    def all_of(reader: Reader) -> list[tuple[Key, bytes]]:
        return list(reader.scan(()))

    async with where.open() as store:
        return store.view(all_of)


async def put(where: Side, *parts: str, value: bytes = b"") -> None:
    async with where.open() as store:
        await store.write(lambda tx: tx.put(parts, value))


async def note(where: Side, move: Move) -> None:
    async with where.open() as store:
        await store.write(lambda tx: schema.MOVING.put(tx, value=move))


@pytest.fixture
def one(tmp_path: Path) -> Side:
    return side(tmp_path / "one.db")


@pytest.fixture
def other(tmp_path: Path) -> Side:
    return side(tmp_path / "other.db")


# ------------------------------------------------------------------------------------------ files


async def test_an_export_that_is_imported_is_the_same_records(one: Side, other: Side, tmp_path: Path) -> None:
    """Byte for byte, also of a node that was started once and has only its own id. The file is the owner's alone."""
    await fill(one)
    await put(other, "store", value=b"another-id")
    file = tmp_path / "file"
    exported = await moving.export(one, file)
    assert exported.records == COUNT + 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("file")] == ["file"]
    assert (await moving.load(file, other)).sum == exported
    assert await everything(one) == await everything(other)
    again = await moving.load(file, other)
    assert again.already
    assert again.sum == exported


async def test_an_import_into_a_store_that_has_records_is_refused(one: Side, other: Side, tmp_path: Path) -> None:
    """And changes nothing in it."""
    await fill(one)
    await moving.export(one, tmp_path / "file")
    await put(other, "namespace", "mine", value=b"{}")
    before = await everything(other)
    with pytest.raises(errors.FailedPrecondition, match=r"other\.db has 1 record .* already"):
        await moving.load(tmp_path / "file", other)
    assert await everything(other) == before


async def test_an_export_replaces_an_export_and_nothing_else(one: Side, tmp_path: Path) -> None:
    """A file of another kind, and a directory, stay as they are."""
    await fill(one, range(1))
    file = tmp_path / "file"
    first = await moving.export(one, file)
    await fill(one, range(2))
    assert await moving.export(one, file) != first
    file.write_bytes(b"a letter")
    for path in (file, tmp_path):
        with pytest.raises(errors.AlreadyExists, match="is no export of metadata"):
            await moving.export(one, path)
    assert file.read_bytes() == b"a letter"


async def test_a_failed_export_leaves_the_last_one(one: Side, tmp_path: Path) -> None:
    """A record that cannot be read fails it, with its name; nothing half is left."""
    await fill(one, range(1))
    file = tmp_path / "file"
    await moving.export(one, file)
    before = file.read_bytes()
    await put(one, "image", "default", "zzz", value=b"{")
    with pytest.raises(errors.DataLoss, match="the record image default zzz cannot be read"):
        await moving.export(one, file)
    assert file.read_bytes() == before
    assert not (tmp_path / "file.part").exists()


async def test_each_cut_and_each_changed_byte_is_noticed(one: Side, other: Side, tmp_path: Path) -> None:
    """Whatever the byte, the error names the file, and the store stays empty."""
    await fill(one, range(2))
    file = tmp_path / "file"
    await moving.export(one, file)
    whole = file.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    damaged.append(whole + b"x")
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises((errors.DataLoss, errors.InvalidArgument), match=f"^{file} "):
            await moving.load(file, other)
    assert await everything(other) == []


def with_digest(body: bytes, count: int) -> bytes:
    body += bytes(4) + count.to_bytes(8, "big")
    return body + hashlib.sha256(body).digest()


HEADER = b'{"splitd": "1", "store": "", "made": 0}'
START = b"splitdmd" + (1).to_bytes(4, "big") + len(HEADER).to_bytes(4, "big") + HEADER


def record(key: bytes, value: bytes = b"{}") -> bytes:
    return len(key).to_bytes(4, "big") + len(value).to_bytes(4, "big") + key + value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_digest(START + record(b"namespace\0b\0") + record(b"namespace\0a\0"), 2), "record 2 is not in order"),
        (with_digest(START + record(b"namespace\0a\0") * 2, 2), "record 2 is not in order"),
        (with_digest(START + record(b"namespace\0a\0"), 2), "it has 1 records and says 2"),
        (with_digest(START + record(b"namespace\0\xff\xfe"), 1), "the key of its record 1 cannot be read"),
        (with_digest(START + record(b"namespace\0a"), 1), "the key of its record 1 cannot be read"),
        (
            with_digest(START + record(b"unheard\0a\0"), 1),
            "whole, but the record unheard a is none that this splitd knows",
        ),
        (START + b"\x7f\xff\xff\xff\x7f\xff\xff\xff", "its record 1 would have 4,294,967,294 bytes"),
        (START[:12] + b"\x7f\xff\xff\xff", "its header would have 2,147,483,647 bytes"),
        (START[:12] + b"\0\0\0\2[]", "its header cannot be read"),
        (b"splitdmd" + (9).to_bytes(4, "big"), "has format 9, and this splitd reads 1"),
        (b"", "is no export of metadata"),
    ],
)
async def test_a_file_that_somebody_made_is_refused_in_words(
    data: bytes, words: str, other: Side, tmp_path: Path
) -> None:
    """Its digest may be right; no length is believed."""
    file = tmp_path / "file"
    file.write_bytes(data)
    with pytest.raises((errors.DataLoss, errors.InvalidArgument), match=words):
        await moving.load(file, other)
    assert await everything(other) == []


def test_a_device_is_no_file(tmp_path: Path) -> None:
    """It may have no end."""
    with pytest.raises(errors.InvalidArgument, match="is not a regular file"):
        Archive(Path("/dev/zero"))


async def test_a_record_above_the_limit_is_refused_by_name(tmp_path: Path) -> None:
    """When it is written, not when it is read."""
    with pytest.raises(errors.ResourceExhausted, match="the record image big"):
        archive.write(tmp_path / "file", "", 0, [(("image", "big"), bytes(archive.LARGEST_RECORD))])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ stores


async def test_records_move_there_and_back(one: Side, other: Side) -> None:
    """The store that they have left refuses to be used, and says where they are. What changed there comes back."""
    await fill(one)
    before = await everything(one)
    moved = await moving.migrate(one, other)
    assert moved.sum.records == len(before)
    assert not moved.already
    assert await everything(other) == before
    async with one.open() as store:
        with pytest.raises(errors.FailedPrecondition, match=r"the node's records are in other\.db, no longer in one"):
            moving.check(store, one.name)
    async with other.open() as store:
        moving.check(store, other.name)
        await store.write(lambda tx: tx.delete(("image", "default", "i00000")))
        await store.write(lambda tx: tx.put(("namespace", "new"), b"{}"))
    assert (await moving.migrate(one, other)).already
    changed = await everything(other)
    await moving.migrate(other, one)
    assert await everything(one) == changed
    assert changed != before


async def test_a_move_to_a_store_with_records_is_refused(one: Side, other: Side) -> None:
    """Neither side changes."""
    await fill(one)
    await put(other, "namespace", "mine", value=b"{}")
    before = await everything(one), await everything(other)
    with pytest.raises(errors.FailedPrecondition, match=r"other\.db has 1 record .* not of an interrupted move"):
        await moving.migrate(one, other)
    assert (await everything(one), await everything(other)) == before


async def test_a_store_without_records_has_nothing_to_move(one: Side, other: Side) -> None:
    """Those of the other side stay: a node with a new disk finds its records in etcd."""
    await put(one, "store", value=b"new")
    await fill(other)
    before = await everything(other)
    moved = await moving.migrate(one, other)
    assert moved.already
    assert moved.sum.records == len(before)
    assert await everything(other) == before


async def test_a_half_moved_store_is_not_used(one: Side, other: Side, tmp_path: Path) -> None:
    """Neither by a metadata process, nor as the source of a move or an export."""
    await fill(one)
    await note(one, Move(state="arriving", other="etcd", since=1))
    for attempt in (moving.migrate(one, other), moving.export(one, tmp_path / "file")):
        with pytest.raises(errors.FailedPrecondition, match=r"being moved to one\.db from etcd .* was interrupted"):
            await attempt
    await fill(other)
    await moving.migrate(other, one)  # the same move again: it replaces what is there
    assert await everything(one) == await everything(side(tmp_path / "one.db"))


async def test_sides_that_differ_in_the_end_are_not_switched(one: Side, other: Side, tmp_path: Path) -> None:
    """Here the target, opened anew, is not what was written."""
    await fill(one)
    places = iter([tmp_path / "other.db", tmp_path / "lost.db"])
    before = await everything(one)
    with pytest.raises(errors.DataLoss, match=r"target has 0 records .* and one\.db has 1,203 records"):
        await moving.migrate(one, Side("target", lambda: moving.sqlite(next(places))))
    assert await everything(one) == before
    await moving.migrate(one, other)
    assert await everything(other) == before


async def test_etcd_is_not_used_while_sqlite_has_the_records(one: Side, other: Side, tmp_path: Path) -> None:
    """The collector would find no record of any blob."""
    await moving.check_beside(tmp_path / "one.db")
    await put(one, "store", value=b"id")
    await moving.check_beside(tmp_path / "one.db")
    await fill(one)
    with pytest.raises(errors.FailedPrecondition, match="move them first"):
        await moving.check_beside(tmp_path / "one.db")
    await moving.migrate(one, other)
    await moving.check_beside(tmp_path / "one.db")


def test_sums_say_how_many() -> None:
    """In words for one and for more."""
    assert str(Sum(1, "ab")) == "1 record (sha256:ab)"
    assert str(Sum(1234, "ab")) == "1,234 records (sha256:ab)"


@pytest.fixture(autouse=True)
def _nothing_is_left_open(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob("*.part"))


async def test_records_behind_many_of_the_nodes_own_are_seen(one: Side, other: Side) -> None:
    """A store is not empty though its first thousand records are those of a node that was only started."""

    def work(tx: Transaction) -> None:
        for number in range(1100):
            schema.CHECKED.put(tx, f"backend{number:04}", value=1)
        schema.NAMESPACES.put(tx, "default", value=Namespace())

    await fill(one, range(1))
    async with other.open() as store:
        await store.write(work)
    before = await everything(other)
    with pytest.raises(errors.FailedPrecondition, match=r"other\.db has 1,101 records"):
        await moving.migrate(one, other)
    assert await everything(other) == before
