"""The suite of ``services.etcd.store.Etcd``. It runs on the fake and on real servers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from services.etcd.store import (
    LIMIT,
    MOST,
    Change,
    Changes,
    Committed,
    Conflict,
    Delete,
    Etcd,
    KeyValue,
    Mod,
    Operation,
    Put,
    TooLarge,
    end_of,
)
from services.kit import errors
from tests.support import eventually_async

_numbers = itertools.count()
PATIENCE = 20.0


async def listed(
    etcd: Etcd, prefix: bytes, *, revision: int = 0, after: bytes = b"", count: int = 1000
) -> list[KeyValue]:
    """The keys below ``prefix``."""
    return [
        pair async for page in etcd.pages(prefix, revision=revision, after=after, count=count) for pair in page.pairs
    ]


async def committed(etcd: Etcd, *operations: Operation, compares: tuple[Mod, ...] = ()) -> int:
    """The revision of a transaction that is written."""
    done = await etcd.commit(operations, compares)
    assert isinstance(done, Committed)
    return done.revision


async def gathered(changes: AsyncIterator[Changes], up_to: int) -> list[Change]:
    """What a watch brings until it stands at a revision."""
    found: list[Change] = []
    async with asyncio.timeout(PATIENCE):
        async for each in changes:
            found += each.changes
            if each.revision >= up_to:
                break
    return found


class EtcdSuite:
    """A subclass has a fixture ``etcd``."""

    @pytest.fixture
    def prefix(self) -> bytes:
        return b"/suite/%d/" % next(_numbers)

    async def test_a_key(self, etcd: Etcd, prefix: bytes) -> None:
        key = prefix + b"\0\xffkey"
        assert await etcd.get(key) is None
        first = await committed(etcd, Put(key, b"one\0"))
        assert await etcd.get(key) == KeyValue(key, b"one\0", first, first, 1)
        second = await committed(etcd, Put(key, b""))
        assert second > first
        assert await etcd.get(key) == KeyValue(key, b"", second, first, 2)
        await committed(etcd, Delete(key))
        assert await etcd.get(key) is None

    async def test_pages_show_one_state(self, etcd: Etcd, prefix: bytes) -> None:
        """Writes between two pages are not seen; a later list at the same revision sees the same."""
        keys = [prefix + b"%03d" % n for n in range(25)]
        revision = await committed(etcd, *(Put(key, key) for key in keys))
        seen, revisions = [], set()
        async for page in etcd.pages(prefix, count=10):
            seen += [pair.key for pair in page.pairs]
            revisions.add(page.revision)
            await committed(etcd, Put(prefix + b"%03d-" % len(seen), b""), Delete(keys[-1]))
        assert seen == keys
        assert revisions == {revision}
        assert [pair.key for pair in await listed(etcd, prefix, revision=revision)] == keys
        assert [pair.key for pair in await listed(etcd, prefix, revision=revision, after=keys[20])] == keys[21:]

    async def test_a_list_of_nothing_has_a_revision(self, etcd: Etcd, prefix: bytes) -> None:
        revision = await committed(etcd, Put(prefix, b""))
        pages = [page async for page in etcd.pages(prefix + b"none")]
        assert [(page.revision, page.pairs) for page in pages] == [(revision, ())]

    async def test_a_large_list_comes_whole(self, etcd: Etcd, prefix: bytes) -> None:
        """It has more bytes than one message may have."""
        value = bytes(200_000)
        for start in range(0, 100, 5):
            await committed(etcd, *(Put(prefix + b"%03d" % n, value) for n in range(start, start + 5)))
        found = await listed(etcd, prefix)
        assert [pair.key for pair in found] == [prefix + b"%03d" % n for n in range(100)]
        assert {pair.value for pair in found} == {value}
        await committed(etcd, Delete(prefix, end_of(prefix)))

    async def test_compares(self, etcd: Etcd, prefix: bytes) -> None:
        """Of a key that does not exist the revision is 0. If one compare is false, nothing is written."""
        one, two = prefix + b"1", prefix + b"2"
        revision = await committed(etcd, Put(one, b"a"), compares=(Mod(one, 0),))
        for compares in ((Mod(one, 0),), (Mod(one, revision), Mod(two, revision)), (Mod(two, 1),)):
            done = await etcd.commit([Put(one, b"b"), Put(two, b"b")], compares)
            assert isinstance(done, Conflict)
            assert done.revision >= revision
        assert [pair.value for pair in await listed(etcd, prefix)] == [b"a"]
        await committed(etcd, Put(one, b"c"), compares=(Mod(one, revision), Mod(two, 0)))
        assert isinstance(await etcd.commit([Delete(two)], [Mod(two, 0)]), Committed)
        assert isinstance(await etcd.commit([Delete(two)], [Mod(two, 5)]), Conflict)

    async def test_many_operations_are_one_transaction(self, etcd: Etcd, prefix: bytes) -> None:
        """They have one revision, and a false compare leaves out all of them."""
        keys = [prefix + b"%05d" % n for n in range(1234)]
        assert isinstance(await etcd.commit([Put(key, b"") for key in keys], [Mod(keys[0], 7)]), Conflict)
        assert not await listed(etcd, prefix)
        revision = await committed(etcd, *(Put(key, b"") for key in keys))
        assert {pair.mod for pair in await listed(etcd, prefix)} == {revision}
        await committed(etcd, *(Delete(key) for key in keys[1:]))
        assert [pair.key for pair in await listed(etcd, prefix)] == keys[:1]

    async def test_a_range_is_deleted(self, etcd: Etcd, prefix: bytes) -> None:
        await committed(etcd, *(Put(prefix + key, b"") for key in (b"a", b"b", b"b\0", b"c", b"d")))
        await committed(etcd, Delete(prefix + b"b", prefix + b"d"), Put(prefix + b"e", b""))
        assert [pair.key for pair in await listed(etcd, prefix)] == [prefix + key for key in (b"a", b"d", b"e")]
        await committed(etcd, Delete(prefix, end_of(prefix)), Delete(prefix + b"none"))
        assert not await listed(etcd, prefix)

    async def test_what_is_too_large_is_refused(self, etcd: Etcd, prefix: bytes) -> None:
        with pytest.raises(TooLarge, match="of at most 1048576"):
            await etcd.commit([Put(prefix + b"%d" % n, bytes(LIMIT // 10)) for n in range(11)])
        with pytest.raises(TooLarge, match="operations"):
            await etcd.commit([Delete(prefix)] * (MOST + 1))
        assert not await listed(etcd, prefix)
        await committed(etcd, Put(prefix, bytes(LIMIT - len(prefix))))
        await committed(etcd, Delete(prefix))

    async def test_one_key_twice_is_refused(self, etcd: Etcd, prefix: bytes) -> None:
        for other in (Put(prefix, b"2"), Delete(prefix), Delete(prefix[:-1], end_of(prefix))):
            with pytest.raises(errors.InvalidArgument, match="suite"):
                await etcd.commit([Put(prefix, b"1"), other])
        for operations in ([Put(b"", b"1")], []):
            with pytest.raises(errors.InvalidArgument):
                await etcd.commit(operations)

    async def test_a_watch_brings_each_change_once(self, etcd: Etcd, prefix: bytes) -> None:
        """Those from before it began, too, in whole revisions; other keys' never."""
        one, two = prefix + b"1", prefix + b"2"
        begin = await committed(etcd, Put(one, b"before"))
        first = await committed(etcd, Put(one, b"a"), Put(two, b"a"))
        async with etcd.watch(prefix, after=begin) as changes:
            assert {(each.key, each.pair and each.pair.value) for each in await gathered(changes, first)} == {
                (one, b"a"),
                (two, b"a"),
            }
            await committed(etcd, Put(prefix[:-1] + b"-other", b""))
            second = await committed(etcd, Put(one, b"b"))
            third = await committed(etcd, Delete(prefix, end_of(prefix)))
            found = await gathered(changes, third)
        assert found[0] == Change(one, KeyValue(one, b"b", second, begin, 3), second)
        assert sorted((each.key, each.pair, each.revision) for each in found[1:]) == [
            (one, None, third),
            (two, None, third),
        ]

    async def test_a_watch_brings_large_revisions_whole(self, etcd: Etcd, prefix: bytes) -> None:
        begin = await committed(etcd, Put(prefix, b""))
        for _ in range(4):
            last = await committed(etcd, *(Put(prefix + b"%d" % n, bytes(9000)) for n in range(100)))
        async with etcd.watch(prefix, after=begin) as changes:
            found = await gathered(changes, last)
        assert len(found) == 400
        assert {each.pair.mod for each in found[300:] if each.pair} == {last}
        await committed(etcd, Delete(prefix, end_of(prefix)))

    async def test_two_watches_are_apart(self, etcd: Etcd, prefix: bytes) -> None:
        begin = await committed(etcd, Put(prefix, b""))
        async with etcd.watch(prefix + b"a", after=begin) as a, etcd.watch(prefix + b"b", after=begin) as b:
            last = await committed(etcd, Put(prefix + b"a", b"1"), Put(prefix + b"b", b"2"))
            assert [each.key for each in await gathered(a, last)] == [prefix + b"a"]
            assert [each.key for each in await gathered(b, last)] == [prefix + b"b"]

    async def test_a_key_goes_with_its_lease(self, etcd: Etcd, prefix: bytes) -> None:
        """One that is put again without the lease stays."""
        one, two = prefix + b"1", prefix + b"2"
        async with etcd.lease(5.0) as lease:
            assert lease.id
            await committed(etcd, Put(one, b"", lease.id), Put(two, b"", lease.id))
            await committed(etcd, Put(two, b"stays"))
            found = {pair.key: pair.lease for pair in await listed(etcd, prefix)}
            assert found == {one: lease.id, two: 0}
            assert not lease.lost.is_set()

        async def gone() -> bool:
            return [pair.key for pair in await listed(etcd, prefix)] == [two]

        await eventually_async(gone, "the key stays without its lease")

    async def test_a_lease_that_is_gone_is_not_found(self, etcd: Etcd, prefix: bytes) -> None:
        async with etcd.lease(5.0) as lease:
            pass
        with pytest.raises(errors.NotFound, match="lease"):
            await etcd.commit([Put(prefix, b"", lease.id)])

    async def test_a_status(self, etcd: Etcd, prefix: bytes) -> None:
        status = await etcd.status()
        assert status.available
        assert all(each.endpoint for each in status.members)
        assert any(each.leader and each.version and each.reachable for each in status.members)
