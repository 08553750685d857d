"""The suite of metadata's store of ordered keys."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.kit import errors
from services.metadata.transactions import Key, Reader, Transaction, Transactions, decode, encode, last_part


class TransactionsSuite:
    """A subclass has a fixture ``store``."""

    async def put(self, store: Transactions, *keys: Key) -> None:
        def work(tx: Transaction) -> None:
            for key in keys:
                tx.put(key, "/".join(key).encode())

        await store.write(work)

    def keys(self, store: Transactions, *prefix: str, **options: object) -> list[Key]:
        return store.view(lambda tx: [key for key, _ in tx.scan(prefix, **options)])  # type: ignore[arg-type]

    async def test_a_value_that_was_put_is_there(self, store: Transactions) -> None:
        """A value is there until it is deleted; the last one counts; it may be any bytes."""
        every = bytes(range(256))
        await store.write(lambda tx: tx.put(("a", "b"), b"1"))
        await store.write(lambda tx: tx.put(("a", "b"), every))
        assert store.view(lambda tx: tx.get(("a", "b"))) == every
        assert await store.read(lambda tx: tx.get(("a", "b"))) == every
        assert store.view(lambda tx: tx.get(("a",))) is None
        await store.write(lambda tx: tx.delete(("a", "b")))
        await store.write(lambda tx: tx.delete(("a", "b")))
        assert store.view(lambda tx: tx.get(("a", "b"))) is None

    async def test_works_that_are_written_at_once_end_each_for_itself(self, store: Transactions) -> None:
        """They run in their order, each sees what those before it wrote, and what fails has written nothing."""

        def counted(tx: Transaction) -> int:
            number = int(tx.get(("number",)) or b"0") + 1
            tx.put(("number",), b"%d" % number)
            return number

        def failed(tx: Transaction) -> int:
            tx.put(("number",), b"100")
            raise errors.Aborted("this one")

        first, second, third = await store.write_all([counted, failed, counted])
        assert (first, third, type(second), str(second)) == (1, 2, errors.Aborted, "this one: aborted")
        assert store.view(lambda tx: tx.get(("number",))) == b"2"
        assert await store.write_all([]) == []

    async def test_keys_are_in_the_order_of_their_parts(self, store: Transactions) -> None:
        """Whatever characters they have: a part ends before any character."""
        keys = [
            ("a",),
            ("a", ""),
            ("a", "\0"),
            ("a", "\0b"),
            ("a", "b"),
            ("a", "b", "c"),
            ("a", "b\0"),
            ("a", "b\0c"),
            ("a", "bc"),
            ("a", "ä"),
            ("a", "\U0001f600"),
            ("a\0",),
            ("a\0", "b"),
            ("ab",),
            ("b",),
        ]
        await self.put(store, *reversed(keys))
        assert self.keys(store) == sorted(keys)
        assert sorted(keys) == keys

    async def test_a_scan_takes_whole_parts(self, store: Transactions) -> None:
        """Keys of which a part only begins like the prefix are not among the results."""
        await self.put(store, ("a",), ("a", "x"), ("a", "y", "z"), ("ab", "x"), ("a\0", "x"), ("b", "x"))
        assert self.keys(store, "a") == [("a",), ("a", "x"), ("a", "y", "z")]
        assert self.keys(store, "a", "y") == [("a", "y", "z")]
        assert self.keys(store, "a\0") == [("a\0", "x")]
        assert self.keys(store, "c") == []

    async def test_a_scan_can_be_continued(self, store: Transactions) -> None:
        """It continues behind a key, some keys at a time."""
        await self.put(store, *(("a", str(n)) for n in range(5)), ("b", "0"))
        assert self.keys(store, "a", limit=2) == [("a", "0"), ("a", "1")]
        assert self.keys(store, "a", after=("a", "1"), limit=2) == [("a", "2"), ("a", "3")]
        assert self.keys(store, "a", after=("a", "4")) == []
        assert self.keys(store, "a", after=("a", "1"))[0] == ("a", "2")

    async def test_all_below_a_prefix_is_deleted(self, store: Transactions) -> None:
        """Whole parts count, and values that were read before are not cached."""
        await self.put(store, ("a",), ("a", "x"), ("a", "y", "z"), ("ab",), ("b", "x"))
        assert store.view(lambda tx: tx.get(("a", "x"))) is not None
        await store.write(lambda tx: tx.delete_all(("a",)))
        assert self.keys(store) == [("ab",), ("b", "x")]
        assert store.view(lambda tx: tx.get(("a", "x"))) is None

    async def test_a_watch_gets_the_keys_that_are_set(self, store: Transactions) -> None:
        """A watch gets everything written after the state that is read in it, and nothing that was there before."""
        await self.put(store, ("before",))
        with store.watch() as written:
            seen = await store.read(lambda tx: [key for key, _ in tx.scan(())])
            await asyncio.gather(*(self.put(store, ("n", str(n))) for n in range(20)))
            await store.write(lambda tx: tx.delete(("n", "3")))
            assert seen == [("before",)]
            assert set(written) == {("n", str(n)) for n in range(20)}
        await self.put(store, ("after",))
        assert ("after",) not in written

    async def test_a_watch_that_begins_while_others_write_misses_nothing(self, store: Transactions) -> None:
        """It gets everything that is in no state read afterwards."""
        for round_ in range(20):
            writing = asyncio.ensure_future(self.put(store, ("k", str(round_))))
            for _ in range(round_ % 5):
                await asyncio.sleep(0)
            with store.watch() as written:
                seen = await store.read(lambda tx: [key for key, _ in tx.scan(("k",))])
                await writing
                assert ("k", str(round_)) in {*seen, *written}

    async def test_work_sees_its_own_changes(self, store: Transactions) -> None:
        """Both get and scan show them."""
        await self.put(store, ("a", "1"), ("a", "2"))

        def work(tx: Transaction) -> tuple[bytes | None, bytes | None, list[Key]]:
            tx.put(("a", "3"), b"new")
            tx.delete(("a", "1"))
            return tx.get(("a", "3")), tx.get(("a", "1")), [key for key, _ in tx.scan(("a",))]

        assert await store.write(work) == (b"new", None, [("a", "2"), ("a", "3")])

    async def test_what_failed_work_has_read_is_not_what_is_there(self, store: Transactions) -> None:
        """It removed a range and looked: the range is there for all others."""
        keys = [("r", "x"), ("r", "y")]

        def fails(tx: Transaction) -> None:
            tx.delete_all(("r",))
            assert [tx.get(each) for each in keys] == [None, None]
            raise errors.NotFound("it")

        def get(tx: Reader) -> list[bytes | None]:
            return [tx.get(each) for each in keys]

        await store.write(lambda tx: tx.put_many([(each, b"1") for each in keys]))
        with pytest.raises(errors.NotFound):
            await store.write(fails)
        assert await store.write(get) == [b"1", b"1"]
        assert store.view(get) == [b"1", b"1"]

    async def test_work_sees_what_works_before_it_have_done(self, store: Transactions) -> None:
        """Also those that are written together with it; of one that failed it sees nothing."""
        key = ("a", "x")

        def fails(tx: Transaction) -> None:
            tx.put(key, b"2")
            tx.put(("a", "y"), b"2")
            tx.delete(("b",))
            raise errors.NotFound("it")

        def get(tx: Reader) -> list[bytes | None]:
            return [tx.get(each) for each in (key, ("a", "y"), ("b",))]

        await store.write(lambda tx: tx.put(("b",), b"b"))
        assert await store.write(get) == [None, None, b"b"]
        found = await asyncio.gather(
            store.write(lambda tx: tx.put(key, b"1")),
            store.write(get),
            store.write(fails),
            store.write(get),
            store.write(lambda tx: tx.put_many([(key, b"3"), (("a", "y"), b"3")])),
            store.write(get),
            store.write(lambda tx: tx.delete_many([("b",)])),
            store.write(get),
            store.write(lambda tx: tx.delete_all(("a",))),
            store.write(get),
            return_exceptions=True,
        )
        assert [each for each in found if isinstance(each, list)] == [
            [b"1", None, b"b"],
            [b"1", None, b"b"],
            [b"3", b"3", b"b"],
            [b"3", b"3", None],
            [None, None, None],
        ]
        assert store.view(get) == [None, None, None]

    async def test_many_are_set_and_removed_as_one_is(self, store: Transactions) -> None:
        """Watches do not get them; cached values are not answered any more."""
        keys: list[Key] = [("a", str(n)) for n in range(5)]
        assert store.view(lambda tx: tx.get(keys[0])) is None
        with store.watch() as written:
            await store.write(lambda tx: tx.put_many([(key, b"v") for key in keys]))
            assert store.view(lambda tx: [tx.get(key) for key in keys]) == [b"v"] * 5
            assert await store.write(lambda tx: (tx.delete_many([*keys[:3], ("none",)]), tx.get(keys[0]))[1]) is None  # type: ignore[func-returns-value]
            assert store.view(lambda tx: [tx.get(key) for key in keys]) == [None] * 3 + [b"v"] * 2
            assert list(written) == []

    async def test_some_of_many_are_removed(self, store: Transactions) -> None:
        """The first keys with a prefix are removed."""
        keys: list[Key] = [("a", str(n)) for n in range(5)]
        await self.put(store, *keys, ("b",))
        assert store.view(lambda tx: tx.get(keys[0])) is not None
        await store.write(lambda tx: tx.delete_all(("a",), limit=2))
        assert store.view(lambda tx: tx.get(keys[0])) is None
        assert self.keys(store) == [*keys[2:], ("b",)]

    async def test_encoded_rows_are_those_of_a_scan(self, store: Transactions) -> None:
        """They come some at a time, and the last part of a key can be read alone, whatever characters it has."""
        parts = ["", "\0", "a\0b", "\0\0", "ä", "\U0001f600", *map(str, range(500))]
        await self.put(store, *(("a", "b", part) for part in parts), ("a", "c"))

        def read(tx: Reader) -> tuple[list[tuple[Key, bytes]], list[str]]:
            rows = [row for some in tx.scan_encoded(("a", "b")) for row in some]
            return [(decode(key), value) for key, value in rows], [last_part(k, encode(("a", "b"))) for k, _ in rows]

        found, last = store.view(read)
        assert found == store.view(lambda tx: list(tx.scan(("a", "b"))))
        assert sorted(last) == sorted(parts)
        with contextlib.closing(store.snapshot()) as snapshot:
            assert read(snapshot) == (found, last)

    async def test_a_failure_leaves_nothing(self, store: Transactions) -> None:
        """Nothing of that work is written; works at the same moment are not affected."""

        def failing(tx: Transaction) -> None:
            tx.put(("bad",), b"")
            raise errors.NotFound("x")

        good = [self.put(store, ("good", str(n))) for n in range(3)]
        results = await asyncio.gather(
            *good, store.write(failing), *[self.put(store, ("good", "9"))], return_exceptions=True
        )
        assert [type(r) for r in results] == [type(None)] * 3 + [errors.NotFound, type(None)]
        assert self.keys(store) == [("good", "0"), ("good", "1"), ("good", "2"), ("good", "9")]

    async def test_work_at_the_same_time_is_done_one_after_the_other(self, store: Transactions) -> None:
        """A hundred increments make a hundred."""

        def add(tx: Transaction) -> int:
            now = int(tx.get(("n",)) or b"0") + 1
            tx.put(("n",), str(now).encode())
            return now

        results = await asyncio.gather(*(store.write(add) for _ in range(100)))
        assert sorted(results) == list(range(1, 101))
        assert store.view(lambda tx: tx.get(("n",))) == b"100"

    async def test_readers_see_one_state(self, store: Transactions) -> None:
        """Two keys are always written together, so readers always see equal values."""
        done = False

        async def writer() -> None:
            nonlocal done
            for n in range(50):
                value = str(n).encode()
                await store.write(lambda tx, v=value: (tx.put(("a",), v), tx.put(("b",), v)))  # type: ignore[misc]
            done = True

        def both(tx: Reader) -> tuple[bytes | None, bytes | None]:
            return tx.get(("a",)), tx.get(("b",))

        writing = asyncio.ensure_future(writer())
        seen = set()
        while not done:
            for a, b in (store.view(both), await store.read(both)):
                assert a == b
                seen.add(a)
        await writing
        assert len(seen) > 1

    async def test_cancelled_work_is_done_completely_or_not_at_all(self, store: Transactions) -> None:
        """The store works on afterwards."""

        def work(tx: Transaction) -> None:
            tx.put(("a",), b"")
            tx.put(("b",), b"")

        task = asyncio.ensure_future(store.write(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.put(store, ("c",))
        assert self.keys(store) in ([("c",)], [("a",), ("b",), ("c",)])
