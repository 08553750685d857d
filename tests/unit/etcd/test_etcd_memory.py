"""The fake of etcd: the suite, and what tests let happen to it."""

from __future__ import annotations

import asyncio

import pytest

from services.etcd.memory import MemoryEtcd
from services.etcd.store import Committed, Compacted, Conflict, Mod, Put, Uncertain, end_of
from services.kit import errors
from tests.suites.etcd import EtcdSuite, committed, listed


class TestMemory(EtcdSuite):
    @pytest.fixture
    def etcd(self) -> MemoryEtcd:
        return MemoryEtcd()


async def test_what_is_compacted_is_gone() -> None:
    """For lists and for watches; what came later is not."""
    etcd = MemoryEtcd()
    first = await committed(etcd, Put(b"a", b"1"))
    second = await committed(etcd, Put(b"a", b"2"))
    etcd.compact(second)
    with pytest.raises(Compacted):
        await listed(etcd, b"", revision=first)
    assert [pair.value for pair in await listed(etcd, b"", revision=second)] == [b"2"]
    with pytest.raises(Compacted):
        async with etcd.watch(b"", after=first - 1) as changes:
            await anext(changes)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_answer_is_lost(when: str) -> None:
    etcd = MemoryEtcd()
    etcd.uncertain = "before" if when == "before" else "after"
    with pytest.raises(Uncertain):
        await etcd.commit([Put(b"a", b"1")])
    assert (await etcd.get(b"a") is not None) is (when == "after")
    assert isinstance(await etcd.commit([Put(b"b", b"1")]), Committed)


async def test_nothing_answers_while_it_is_away() -> None:
    """Open watches end. Later everything is as it was."""
    etcd = MemoryEtcd()
    revision = await committed(etcd, Put(b"a", b"1"))
    async with etcd.watch(b"", after=revision) as changes:
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        etcd.cut()
        with pytest.raises(errors.Unavailable):
            await waiting
    for call in (etcd.get(b"a"), etcd.commit([Put(b"a", b"2")]), listed(etcd, b"")):
        with pytest.raises(errors.Unavailable):
            await call
    assert not (await etcd.status()).available
    etcd.cut(away=False)
    assert [pair.value for pair in await listed(etcd, b"")] == [b"1"]


async def test_a_revoked_lease_takes_its_keys() -> None:
    etcd = MemoryEtcd()
    async with etcd.lease(5) as lease:
        await committed(etcd, Put(b"a", b"", lease.id))
        etcd.revoke(lease.id)
        assert lease.lost.is_set()
        assert await etcd.get(b"a") is None


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")]
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert end_of(prefix) == end


async def test_a_conflict_says_where_the_store_stands() -> None:
    etcd = MemoryEtcd()
    revision = await committed(etcd, Put(b"a", b""))
    assert await etcd.commit([Put(b"a", b"1")], [Mod(b"a", 1)]) == Conflict(revision)
