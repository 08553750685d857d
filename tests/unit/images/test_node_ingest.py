"""The bytes of a fetched blob in their file: in order or not, followed, resumed, refused."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.content.store import Status
from services.images.documents import blobs
from services.images.node.ingest import BATCH, FileIngest
from services.images.node.remote import unlocked
from services.kit import errors, tracing
from services.oci.digests import Digest
from tests.spans import attribute, milliseconds, recorded

DATA = os.urandom(3 * BATCH + 12345)


def ingest_of(path: Path, data: bytes = DATA, committed: list[bytes] | None = None) -> FileIngest:
    async def commit(_: Mapping[str, str]) -> None:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if committed is not None:
            committed.append(path.read_bytes())

    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return FileIngest(fd, Digest("sha256", hashlib.sha256(data).hexdigest()), len(data), commit)


async def write(ingest: FileIngest, data: bytes, piece: int = 70_000, at: int | None = None) -> None:
    async with ingest.lane(ingest.offset if at is None else at) as lane:
        for start in range(0, len(data), piece):
            await lane.write(data[start : start + piece])


async def test_bytes_land_in_order_and_are_committed_unlocked(tmp_path: Path) -> None:
    """Pieces may have any size."""
    committed = list[bytes]()
    ingest = ingest_of(tmp_path / "data", committed=committed)
    await write(ingest, DATA)
    assert ingest.offset == ingest.received == len(DATA)
    await ingest.commit({})
    assert committed == [DATA]
    await ingest.close()


async def test_who_reads_a_document_gets_it_before_it_is_committed(tmp_path: Path) -> None:
    """Once, and only the right bytes."""
    told, committed = list[bytes](), list[bytes]()
    ingest = ingest_of(tmp_path / "data", DATA[:1000], committed)
    ingest.when_right(lambda data: told.append(data) if not committed else None)
    await write(ingest, b"x" * 1000)
    with pytest.raises(errors.FailedPrecondition):
        await ingest.commit({})
    assert not told
    await ingest.restart()
    await write(ingest, DATA[:1000])
    await ingest.commit({})
    assert told == committed == [DATA[:1000]]
    await ingest.close()


async def test_bytes_are_on_their_way_to_the_disk_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their writing is started each 8 MiB, wherever they lie."""
    begun: list[int] = []
    monkeypatch.setattr("services.images.node.ingest.start_writeback", begun.append)
    ingest = ingest_of(tmp_path / "data", data=bytes(17 * BATCH))
    await write(ingest, bytes(9 * BATCH), BATCH, at=8 * BATCH)
    assert len(begun) == 1
    await write(ingest, bytes(8 * BATCH), BATCH, at=0)
    assert len(begun) == 2
    await ingest.commit({})
    await ingest.close()


async def test_a_fetch_says_what_its_bytes_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: bytes that are there wait until those before them are written."""
    ingest, write_out = ingest_of(tmp_path / "data"), os.pwritev

    def slow(fd: int, pieces: Any, at: int) -> int:
        time.sleep(0.03)
        return write_out(fd, pieces, at)

    monkeypatch.setattr(os, "pwritev", slow)
    with recorded() as spans:
        with tracing.span("registry.fetch"):
            await write(ingest, DATA)
        fetch = spans.one("registry.fetch")
    assert milliseconds(fetch) > 90
    assert 60 < float(str(attribute(fetch, "splitd.taking.disk_ms"))) <= milliseconds(fetch)
    assert float(str(attribute(fetch, "splitd.taking.cpu_ms"))) > 0
    await ingest.close()


async def test_each_piece_counts_as_it_comes(tmp_path: Path) -> None:
    """Long before a batch of them is written: a slow layer's bar moves."""
    ingest = ingest_of(tmp_path / "data", committed=[])
    async with ingest.lane(0) as lane:
        for number in range(3):
            await lane.write(DATA[number * 1000 : (number + 1) * 1000])
            assert (ingest.offset, ingest.received) == (0, (number + 1) * 1000)
    assert ingest.offset == ingest.received == 3000
    await ingest.close()


async def test_bytes_land_in_any_order(tmp_path: Path) -> None:
    """Several lanes write at once, and the bytes that come first may be the last. The offset is the length without a
    gap.
    """
    committed = list[bytes]()
    ingest = ingest_of(tmp_path / "data", committed=committed)
    third, middle = 2 * BATCH, BATCH // 2
    await write(ingest, DATA[third:], at=third)
    assert (ingest.offset, ingest.received) == (0, len(DATA) - third)
    await asyncio.gather(write(ingest, DATA[:middle], at=0), write(ingest, DATA[middle:BATCH], 1000, at=middle))
    assert ingest.offset == BATCH
    await write(ingest, DATA[BATCH:third])
    assert ingest.offset == len(DATA)
    await ingest.commit({})
    assert committed == [DATA]
    await ingest.close()


async def test_bytes_of_an_earlier_attempt_are_kept_and_hashed(tmp_path: Path) -> None:
    """All received bytes are in the file, also those of an incomplete batch; bytes beyond a gap are dropped."""
    first = ingest_of(tmp_path / "data")
    await write(first, DATA[:1_500_000])
    await write(first, DATA[2_000_000:], at=2_000_000)
    await first.close()
    committed = list[bytes]()
    second = ingest_of(tmp_path / "data", committed=committed)
    await second.resumed()
    assert second.offset == 1_500_000
    await write(second, DATA[1_500_000:])
    await second.commit({})
    assert committed == [DATA]
    await second.close()


async def test_bytes_of_an_earlier_attempt_are_kept_on_a_close_while_they_are_hashed(tmp_path: Path) -> None:
    """The writer is cancelled before the offset is known, perhaps for the second time."""
    (tmp_path / "data").write_bytes(DATA[:1_500_000])
    ingest = ingest_of(tmp_path / "data")
    resuming = asyncio.ensure_future(ingest.resumed())
    await asyncio.sleep(0)
    resuming.cancel()
    await asyncio.wait((resuming,))
    assert resuming.cancelled()
    assert (ingest.offset, ingest.resumable) == (0, 1_500_000)
    await ingest.close()
    assert (tmp_path / "data").read_bytes() == DATA[:1_500_000]


async def test_gaps_left_by_a_killed_process_are_found(tmp_path: Path) -> None:
    """A file with a hole is continued before it; the block in which the hole begins may be half empty."""
    with (tmp_path / "data").open("wb") as file:
        file.write(DATA[:1_500_000])
        file.seek(2 * BATCH)
        file.write(DATA[2 * BATCH :])
    committed = list[bytes]()
    ingest = ingest_of(tmp_path / "data", committed=committed)
    await ingest.resumed()
    assert 1_500_000 - 2 * 65536 <= ingest.offset <= 1_500_000
    await write(ingest, DATA[ingest.offset :])
    await ingest.commit({})
    assert committed == [DATA]
    await ingest.close()


async def test_other_bytes_are_not_committed_and_can_be_dropped(tmp_path: Path) -> None:
    """A wrong digest and too few bytes are errors; bytes beyond the size are dropped at once."""
    (tmp_path / "data").write_bytes(bytes(len(DATA) + 1))
    committed = list[bytes]()
    ingest = ingest_of(tmp_path / "data", committed=committed)
    await ingest.resumed()
    assert ingest.offset == 0
    await write(ingest, bytes(len(DATA)))
    with pytest.raises(errors.FailedPrecondition, match="its bytes have the digest"):
        await ingest.commit({})
    await ingest.restart()
    await write(ingest, DATA[:-1])
    with pytest.raises(errors.FailedPrecondition, match="bytes instead of"):
        await ingest.commit({})
    await write(ingest, DATA[-1:])
    await ingest.commit({})
    assert committed == [DATA]
    await ingest.close()


async def test_an_ingest_can_be_followed(tmp_path: Path) -> None:
    """A follower gets news of the length without a gap, and a file to read, also when the ingest is a blob already."""
    ingest = ingest_of(tmp_path / "data")
    await write(ingest, DATA[:BATCH])
    with ingest.followed() as early:
        await write(ingest, DATA[2 * BATCH :], at=2 * BATCH)
        await write(ingest, DATA[BATCH : 2 * BATCH])
        news = os.read(early.news, 1000)
        told = [int.from_bytes(news[at : at + 8], "little") for at in range(0, len(news), 8)]
        assert told[0] == BATCH
        assert told == sorted(told)
        assert told[-1] == early.size == len(DATA)
        assert not early.judged.is_set()
        await ingest.commit({})
        with ingest.followed() as late:
            assert early.judged.is_set()
            assert late.judged.is_set()
            assert int.from_bytes(os.read(late.news, 8), "little") == len(DATA)
            assert os.pread(late.blob, len(DATA), 0) == os.pread(early.blob, len(DATA), 0) == DATA
    await ingest.close()
    assert ingest.closed
    assert not early.broken


async def test_an_ingest_is_kept_open_for_followers(tmp_path: Path) -> None:
    """It is kept until it is released, also when it has become a blob. One that was given up is not kept."""
    ingest, lost = (ingest_of(tmp_path / name) for name in ("data", "lost"))
    for each in (ingest, lost):
        each.keep_open()
    await write(ingest, DATA)
    await ingest.commit({})
    for each in (ingest, lost):
        await each.close()
    assert (ingest.closed, lost.closed) == (False, True)
    with ingest.followed() as late:
        assert os.pread(late.blob, len(DATA), 0) == DATA
    ingest.release()
    lost.release()
    assert ingest.closed


@pytest.mark.parametrize("restarted", [True, False])
async def test_followers_are_told_that_an_ingest_begins_anew_or_ends(restarted: bool, tmp_path: Path) -> None:
    """Their news end, and they know that the bytes that they read may be wrong."""
    ingest = ingest_of(tmp_path / "data")
    with ingest.followed() as following:
        await write(ingest, DATA[:BATCH])
        await (ingest.restart() if restarted else ingest.close())
        assert following.broken
        assert following.judged.is_set()
        while os.read(following.news, 8):
            pass
    await ingest.close()


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """The error is ResourceExhausted, and the close does not hang."""
    ingest = FileIngest(
        os.open("/dev/full", os.O_RDWR), Digest("sha256", "0" * 64), len(DATA), lambda _: asyncio.sleep(0)
    )
    with pytest.raises(errors.ResourceExhausted, match="no space left on device"):
        await write(ingest, DATA)
    await ingest.close()


async def test_a_disk_that_fails_is_not_told_to_be_full(tmp_path: Path) -> None:
    """The error is Unknown, as in containerd: RESOURCE_EXHAUSTED would make a client free room, which does not help
    here.
    """
    refusing = os.memfd_create("refusing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(refusing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    with pytest.raises(errors.Unknown, match="operation not permitted"):
        blobs.write(refusing, DATA)
    ingest = FileIngest(refusing, Digest("sha256", "0" * 64), len(DATA), lambda _: asyncio.sleep(0))
    with pytest.raises(errors.Unknown, match=f"writing sha256:{'0' * 64}: operation not permitted"):
        await write(ingest, DATA)
    await ingest.close()


@pytest.mark.parametrize(
    ("there", "disks", "ends"),
    [
        pytest.param(10, "move", False, id="it is written to a disk"),
        pytest.param(10, "stand", True, id="its disk does not move"),
        pytest.param(9, "move", True, id="no bytes come"),
    ],
)
async def test_a_locked_ingest_is_waited_for_while_it_makes_progress(there: int, disks: str, ends: bool) -> None:
    """Once all bytes are there, its commit may take as long as the disk does."""
    moved = itertools.count()
    begun = asyncio.get_running_loop().time()
    standstill = 0.3

    async def status() -> Status:
        return Status("r", there, 10, 0, 0)

    async def begin() -> str:
        if asyncio.get_running_loop().time() < begun + 4 * standstill:
            raise errors.Unavailable("ref r locked by another writer")
        return "begun"

    async def unlock() -> str:
        return await unlocked(begin, status, standstill, lambda: b"%d" % (next(moved) if disks == "move" else 0))

    if ends:
        with pytest.raises(errors.Unavailable, match="locked by another writer"):
            await unlock()
    else:
        assert await unlock() == "begun"
