"""Parts of pulls and pushes: the budget, what is done together, where bytes land, where blobs are from."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.images.concurrency.budget import Budget, Gate
from services.images.concurrency.gather import together
from services.images.concurrency.keyed_locks import Turns
from services.images.distribution.sources import mountable, source_key, with_source
from services.images.documents import blobs
from services.images.node.ingest import BATCH, FileLanding
from services.kit import errors
from services.oci.digests import Digest
from services.oci.references import Reference
from tests.support import turns

# ---------------------------------------------------------------------------------------------- budget


async def test_the_lowest_layer_goes_first_whoever_came_before() -> None:
    """And of equals the one that came first."""
    gate, order = Gate(1), list[str]()

    async def enter(name: str, rank: int) -> None:
        async with gate.entered(rank):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(enter("first", 9), enter("high", 5), enter("low", 0), enter("low too", 0), enter("middle", 3))
    assert order == ["first", "low", "low too", "middle", "high"]


async def test_a_place_is_not_lost_by_who_does_not_want_it_any_more() -> None:
    """Cancelled while it waits, and cancelled in the moment in which it is given the place."""
    gate = Gate(1)
    entered = asyncio.Event()

    async def wait() -> None:
        async with gate.entered(0):
            entered.set()

    async with gate.entered(0):
        early, given, last = (asyncio.ensure_future(wait()) for _ in range(3))
        await turns()
        early.cancel()
        await turns()
    given.cancel()  # the place is its, and it has not run yet
    await last
    assert entered.is_set()
    assert given.cancelled()
    async with asyncio.timeout(10), gate.entered(0):
        pass


async def test_documents_pass_beside_layers() -> None:
    """As long as there are connections."""
    budget = Budget(connections=2, layers=1)
    async with budget.layer(0), budget.connection(0), asyncio.timeout(10), budget.document():
        pass


# ---------------------------------------------------------------------------------------------- together


async def test_the_first_failure_ends_the_others() -> None:
    """None of them runs any more when it is told."""
    ended = list[str]()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("waiting")

    async def fail() -> None:
        raise errors.NotFound("x")

    with pytest.raises(errors.NotFound):
        await together([wait(), fail(), wait()])
    assert ended == ["waiting", "waiting"]
    await together([])


async def test_one_turn_at_a_time_for_each_key() -> None:
    """Others' keys do not wait, and nothing is remembered."""
    all_turns, order = Turns(), list[str]()

    async def take(key: str) -> None:
        async with all_turns.alone(key):
            order.append(f"{key}+")
            await asyncio.sleep(0)
            order.append(f"{key}-")

    await asyncio.gather(take("a"), take("a"), take("b"))
    assert [each for each in order if each[0] == "a"] == ["a+", "a-", "a+", "a-"]
    assert order.index("b+") < order.index("a-")
    assert not all_turns._turns


# ---------------------------------------------------------------------------------------------- landing

DATA = os.urandom(3 * BATCH + 12345)


def landing_of(path: Path, data: bytes = DATA, committed: list[bytes] | None = None) -> FileLanding:
    async def commit(_: Mapping[str, str]) -> None:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if committed is not None:
            committed.append(path.read_bytes())

    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return FileLanding(fd, Digest("sha256", hashlib.sha256(data).hexdigest()), len(data), commit)


async def write(landing: FileLanding, data: bytes, piece: int = 70_000, at: int | None = None) -> None:
    async with landing.lane(landing.offset if at is None else at) as lane:
        for start in range(0, len(data), piece):
            await lane.write(data[start:start + piece])


async def test_bytes_land_in_order_and_are_committed_unlocked(tmp_path: Path) -> None:
    """In pieces of any size."""
    committed = list[bytes]()
    landing = landing_of(tmp_path / "data", committed=committed)
    await write(landing, DATA)
    assert landing.offset == landing.received == len(DATA)
    await landing.commit({})
    assert committed == [DATA]
    await landing.close()


async def test_bytes_land_in_any_order(tmp_path: Path) -> None:
    """Several lanes at once, and those that come first are the last; what is there without a gap is the offset."""
    committed = list[bytes]()
    landing = landing_of(tmp_path / "data", committed=committed)
    third, middle = 2 * BATCH, BATCH // 2
    await write(landing, DATA[third:], at=third)
    assert (landing.offset, landing.received) == (0, len(DATA) - third)
    await asyncio.gather(write(landing, DATA[:middle], at=0), write(landing, DATA[middle:BATCH], 1000, at=middle))
    assert landing.offset == BATCH
    await write(landing, DATA[BATCH:third])
    assert landing.offset == len(DATA)
    await landing.commit({})
    assert committed == [DATA]
    await landing.close()


async def test_what_landed_before_is_kept_and_hashed(tmp_path: Path) -> None:
    """All bytes that were taken are in the file, also those of a batch that was not full; what lies beyond a gap is not."""
    first = landing_of(tmp_path / "data")
    await write(first, DATA[:1_500_000])
    await write(first, DATA[2_000_000:], at=2_000_000)
    await first.close()
    committed = list[bytes]()
    second = landing_of(tmp_path / "data", committed=committed)
    await second.resumed()
    assert second.offset == 1_500_000
    await write(second, DATA[1_500_000:])
    await second.commit({})
    assert committed == [DATA]
    await second.close()


async def test_what_landed_before_is_kept_by_whoever_leaves_while_it_is_hashed(tmp_path: Path) -> None:
    """Cancelled before the offset is known, for the second time perhaps."""
    (tmp_path / "data").write_bytes(DATA[:1_500_000])
    landing = landing_of(tmp_path / "data")
    resuming = asyncio.ensure_future(landing.resumed())
    await asyncio.sleep(0)
    resuming.cancel()
    await asyncio.wait((resuming,))
    assert resuming.cancelled()
    assert (landing.offset, landing.resumable) == (0, 1_500_000)
    await landing.close()
    assert (tmp_path / "data").read_bytes() == DATA[:1_500_000]


async def test_whoever_is_killed_leaves_gaps_that_are_found(tmp_path: Path) -> None:
    """A file with a hole is gone on with before it; the block in which the hole begins may be half empty."""
    with (tmp_path / "data").open("wb") as file:
        file.write(DATA[:1_500_000])
        file.seek(2 * BATCH)
        file.write(DATA[2 * BATCH:])
    committed = list[bytes]()
    landing = landing_of(tmp_path / "data", committed=committed)
    await landing.resumed()
    assert 1_500_000 - 2 * 65536 <= landing.offset <= 1_500_000
    await write(landing, DATA[landing.offset:])
    await landing.commit({})
    assert committed == [DATA]
    await landing.close()


async def test_other_bytes_are_not_committed_and_can_be_dropped(tmp_path: Path) -> None:
    """A wrong digest, too few bytes; and more than there can be are dropped at once."""
    (tmp_path / "data").write_bytes(bytes(len(DATA) + 1))
    committed = list[bytes]()
    landing = landing_of(tmp_path / "data", committed=committed)
    await landing.resumed()
    assert landing.offset == 0
    await write(landing, bytes(len(DATA)))
    with pytest.raises(errors.FailedPrecondition, match="its bytes have the digest"):
        await landing.commit({})
    await landing.restart()
    await write(landing, DATA[:-1])
    with pytest.raises(errors.FailedPrecondition, match="bytes instead of"):
        await landing.commit({})
    await write(landing, DATA[-1:])
    await landing.commit({})
    assert committed == [DATA]
    await landing.close()


async def test_a_landing_can_be_followed(tmp_path: Path) -> None:
    """News of what is there without a gap, and a file to read that from, also when it is a blob already."""
    landing = landing_of(tmp_path / "data")
    await write(landing, DATA[:BATCH])
    with landing.followed() as early:
        await write(landing, DATA[2 * BATCH:], at=2 * BATCH)
        await write(landing, DATA[BATCH:2 * BATCH])
        news = os.read(early.news, 1000)
        told = [int.from_bytes(news[at:at + 8], "little") for at in range(0, len(news), 8)]
        assert told[0] == BATCH
        assert told == sorted(told)
        assert told[-1] == early.size == len(DATA)
        await landing.commit({})
        with landing.followed() as late:
            assert int.from_bytes(os.read(late.news, 8), "little") == len(DATA)
            assert os.pread(late.blob, len(DATA), 0) == os.pread(early.blob, len(DATA), 0) == DATA
    await landing.close()
    assert landing.closed
    assert not early.broken


async def test_a_landing_is_kept_for_who_will_follow_it(tmp_path: Path) -> None:
    """Once it is a blob, until it is let go of; one that was given up is not."""
    landing, lost = (landing_of(tmp_path / name) for name in ("data", "lost"))
    for each in (landing, lost):
        each.keep()
    await write(landing, DATA)
    await landing.commit({})
    for each in (landing, lost):
        await each.close()
    assert (landing.closed, lost.closed) == (False, True)
    with landing.followed() as late:
        assert os.pread(late.blob, len(DATA), 0) == DATA
    landing.let_go()
    lost.let_go()
    assert landing.closed


@pytest.mark.parametrize("restarted", [True, False])
async def test_followers_are_told_that_a_landing_begins_anew_or_ends(restarted: bool, tmp_path: Path) -> None:
    """Their news end, and they know that what they read may be wrong."""
    landing = landing_of(tmp_path / "data")
    with landing.followed() as following:
        await write(landing, DATA[:BATCH])
        await (landing.restart() if restarted else landing.close())
        assert following.broken
        while os.read(following.news, 8):
            pass
    await landing.close()


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """As ResourceExhausted, and nothing hangs at the close."""
    landing = FileLanding(os.open("/dev/full", os.O_RDWR), Digest("sha256", "0" * 64), len(DATA), lambda _: asyncio.sleep(0))
    with pytest.raises(errors.ResourceExhausted, match="no space left on device"):
        await write(landing, DATA)
    await landing.close()


async def test_a_disk_that_fails_is_not_told_to_be_full(tmp_path: Path) -> None:
    """Unknown, as containerd: who sees RESOURCE_EXHAUSTED makes room, which does not help here."""
    refusing = os.memfd_create("refusing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(refusing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    with pytest.raises(errors.Unknown, match="operation not permitted"):
        blobs.write(refusing, DATA)
    landing = FileLanding(refusing, Digest("sha256", "0" * 64), len(DATA), lambda _: asyncio.sleep(0))
    with pytest.raises(errors.Unknown, match=f"writing sha256:{'0' * 64}: operation not permitted"):
        await write(landing, DATA)
    await landing.close()


# ---------------------------------------------------------------------------------------------- where a blob is from


def test_a_source_is_noted_once_for_its_host() -> None:
    """Sorted, without the port; not at all where the label would be too long."""
    reference = Reference.parse("127.0.0.1:5000/team/box:1")
    key = source_key(reference)
    assert key == "containerd.io/distribution.source.127.0.0.1"
    assert source_key(Reference.parse("[::1]:5000/box:1")) == "containerd.io/distribution.source.::1"
    assert with_source({}, reference) == {key: "team/box"}
    assert with_source({key: "z,a"}, reference) == {key: "a,team/box,z"}
    assert with_source({key: "a,team/box"}, reference) == {}
    assert with_source({key: "x" * 4090}, reference) == {}


def test_what_is_mounted_comes_from_the_repository_most_alike() -> None:
    """Never from the target itself, nor from another host."""
    reference = Reference.parse("example.com/team/app/box:1")
    key = source_key(reference)
    labels = [{key: "library/box,team/app/box"}, {key: "team/app/other,team/x"}, {"containerd.io/distribution.source.elsewhere": "team/app/box2"}]
    assert mountable(labels, reference, 3) == ["team/app/other", "team/x", "library/box"]
    assert mountable(labels, reference, 1) == ["team/app/other"]
