"""The store on the disk: its bounds, its order, and what becomes of a damaged file."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.kit import errors
from services.traces import local
from services.traces.config import LEAST, Config
from services.traces.local import LocalStore
from services.traces.store import Query, Span, Status
from tests.suites.traces import NOW, ROOT, SECOND, TracesSuite, span

HOUR = 3600 * SECOND


class Clocks:
    """Both clocks of a store."""

    def __init__(self) -> None:
        self.now = NOW

    def real(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1e9


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def opened(tmp_path: Path, clocks: Clocks) -> Iterator[Callable[..., LocalStore]]:
    """Open the store again."""
    stores: list[LocalStore] = []

    def reopen(**settings: object) -> LocalStore:
        for each in stores:
            each.close()
        stores[:] = [
            LocalStore(
                tmp_path,
                Config(**settings),  # type: ignore[arg-type]
                clock=clocks.real,
                monotonic=clocks.monotonic,
            )
        ]
        return stores[0]

    yield reopen
    for each in stores:
        each.close()


@pytest.fixture
def store(opened: Callable[..., LocalStore]) -> LocalStore:
    return opened()


class TestLocal(TracesSuite):
    """The suite on it."""


def size(directory: Path) -> int:
    """Return the bytes of all files, as on the disk."""
    return sum(path.stat().st_size for path in directory.iterdir())


HEAVY = 40 << 10


def heavy(outcome: str = "ok", operation: str = "pull", **what: Any) -> Span:
    """Return a span that cannot be compressed."""
    said = {"splitd.outcome": outcome, "splitd.operation": operation}
    return span(attributes={**ROOT, **said, "x": os.urandom(HEAVY)}, **what)


async def test_what_was_written_is_there_after_a_restart(opened: Callable[..., LocalStore]) -> None:
    """Traces that are tidied, and traces that are not."""
    store, spans = opened(), [span(), span()]
    await store.add(spans[:1])
    await store.add([span(spans[0].trace, parent=spans[0].id)])
    await store.add(spans[1:])
    before = [(await store.trace(each.trace)).spans for each in spans]
    store = opened()
    assert [(await store.trace(each.trace)).spans for each in spans] == before


async def test_a_quiet_trace_becomes_one_piece(store: LocalStore, clocks: Clocks) -> None:
    """Then it takes less room; a span that came twice in different pieces is counted once, and kept once."""
    root = span(attributes=ROOT, status=Status.ERROR)
    children = [span(root.trace, parent=root.id, name="registry.fetch", start=NOW + n) for n in range(1, 100)]
    for each in children:
        await store.add([each])
    await store.add([root])
    before = await store.encoded(root.trace)
    await store.tidy()
    assert await store.encoded(root.trace) == before
    clocks.now += int(local.QUIET * SECOND)
    await store.tidy()
    assert await store.encoded(root.trace) == [b"".join(before)]
    assert (await store.trace(root.trace)).spans == [root, *children]
    # by now nobody remembers its ids
    await store.add([root, span(root.trace, parent=root.id, start=NOW + 200)])
    assert len((await store.trace(root.trace)).spans) == 101
    clocks.now += int(local.QUIET * SECOND)
    await store.tidy()
    [summary] = await store.traces(Query())
    assert (summary.spans, summary.errors) == (101, 1)
    [whole] = await store.encoded(root.trace)
    assert len(whole) < 101 * 200


async def test_the_oldest_traces_go_first(opened: Callable[..., LocalStore], clocks: Clocks, tmp_path: Path) -> None:
    """The files never take more than the size, and most of it is used."""
    store = opened(size=LEAST, kept_share=0.0)
    sent = []
    for _ in range(400):
        clocks.now += SECOND
        sent.append(heavy())
        await store.add(sent[-1:])
        assert size(tmp_path) <= LEAST
    there = {each.id for each in await store.traces(Query(limit=1000))}
    assert there == {each.trace for each in sent[-len(there) :]}
    assert len(there) * HEAVY > LEAST // 4
    figures = await store.figures()
    assert (figures.traces, figures.spans, figures.dropped) == (len(there), len(there), 0)
    assert figures.bytes == size(tmp_path)


async def test_slow_and_failed_traces_stay_longer(opened: Callable[..., LocalStore], clocks: Clocks) -> None:
    """Until they have more than their share; then the oldest of all goes."""
    store = opened(size=LEAST, kept_share=0.25, slow=10.0)
    slow, failed = heavy(end=NOW + 11 * SECOND), heavy("failed")
    await store.add([slow, failed])
    for _ in range(400):
        clocks.now += SECOND
        await store.add([heavy()])
    assert {slow.trace, failed.trace} < {each.id for each in await store.traces(Query(limit=1000))}
    for _ in range(400):
        clocks.now += SECOND
        await store.add([heavy(end=NOW + 11 * SECOND), heavy()])
    there = await store.traces(Query(limit=1000))
    assert not {slow.trace, failed.trace} & {each.id for each in there}
    share = sum(each.seconds > 10 for each in there) * HEAVY
    assert LEAST * 0.15 < share < LEAST * 0.35
    assert any(each.seconds < 10 for each in there)


async def test_single_calls_go_before_operations(opened: Callable[..., LocalStore], clocks: Clocks) -> None:
    """A monitor that asks each second takes no pull's room; nor do failures of what it asks."""
    store = opened(size=LEAST)
    pulls, failed = [heavy() for _ in range(60)], heavy("failed")
    await store.add([*pulls, failed])
    for _ in range(400):
        clocks.now += SECOND
        await store.add([heavy(operation="Health.Check"), heavy("failed", operation="Images.Get")])
    there = await store.traces(Query(limit=1000))
    assert {each.id for each in there if each.operation == "pull"} == {each.trace for each in [*pulls, failed]}
    share = sum(each.operation != "pull" for each in there) * HEAVY
    assert LEAST / 10 < share < LEAST / 2
    for _ in range(200):
        clocks.now += SECOND
        await store.add([heavy()])
    there = await store.traces(Query(limit=1000))
    assert sum(each.operation != "pull" for each in there) * HEAVY <= LEAST / 8


async def test_what_lasts_as_long_as_a_container_is_not_slow(opened: Callable[..., LocalStore], clocks: Clocks) -> None:
    """A run is kept longer if it failed."""
    store = opened(age=3600.0, kept_age=7200.0)
    run, failed = (
        span(end=NOW + 99 * SECOND, attributes={"splitd.operation": "run", "splitd.outcome": outcome})
        for outcome in ("ok", "failed")
    )
    await store.add([run, failed])
    clocks.now += HOUR + 1
    await store.tidy()
    assert [each.id for each in await store.traces(Query())] == [failed.trace]


async def test_old_traces_go(opened: Callable[..., LocalStore], clocks: Clocks) -> None:
    """Slow and failed ones later; their age counts from the last span that came, whatever its own times are."""
    store = opened(age=3600.0, kept_age=7200.0)
    plain, failed, late = span(start=5, end=6), span(status=Status.ERROR), span()
    await store.add([plain, failed, late])
    clocks.now += HOUR
    await store.tidy()
    await store.add([span(late.trace, parent=late.id)])
    clocks.now += 1
    await store.tidy()
    assert {each.id for each in await store.traces(Query())} == {failed.trace, late.trace}
    clocks.now += HOUR + 1
    await store.tidy()
    assert await store.traces(Query()) == []


async def test_a_trace_is_bounded_itself(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it spans are dropped and counted; the root is kept, though it comes last."""
    monkeypatch.setattr(local, "SPANS", 100)
    root = span(attributes=ROOT)
    for _ in range(30):
        await store.add([span(root.trace, parent=root.id) for _ in range(10)])
    await store.add([root])
    [summary] = await store.traces(Query())
    assert (summary.spans, summary.operation) == (101, "pull")
    assert (await store.figures()).dropped == 200
    for _ in range(30):
        await store.add([span(root.trace) for _ in range(10)])
    assert (await store.figures()).spans <= 200


async def test_a_trace_is_bounded_in_bytes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they came: what is easily compressed must fit into memory when it is read."""
    monkeypatch.setattr(local, "BYTES", 1 << 20)
    root = span(attributes=ROOT)
    for _ in range(50):
        await store.add([span(root.trace, parent=root.id, attributes={"x": "y" * 50_000})])
    await store.add([root])
    assert sum(map(len, await store.encoded(root.trace))) < (1 << 20) + 1000
    [summary] = await store.traces(Query())
    assert (summary.operation, summary.spans) == ("pull", 21)
    assert (await store.figures()).dropped == 30


async def test_a_smaller_size_holds_from_the_next_start(
    opened: Callable[..., LocalStore], clocks: Clocks, tmp_path: Path
) -> None:
    """The file becomes smaller."""
    store = opened(size=2 * LEAST)
    for _ in range(500):
        clocks.now += SECOND
        await store.add([heavy()])
    assert size(tmp_path) > LEAST
    store = opened(size=LEAST)
    assert size(tmp_path) <= LEAST
    assert len(await store.traces(Query(limit=1000))) > 50


def ruin(path: Path, seed: int) -> None:
    """Overwrite most pages, but the first."""
    rng = random.Random(seed)
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(rng.randbytes(4096))


@pytest.mark.parametrize("kind", ["no database", "empty", "another layout", "ruined"])
async def test_a_file_that_cannot_be_read_is_replaced(
    opened: Callable[..., LocalStore], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a line about it; what comes is stored."""
    store = opened()
    await store.add([heavy() for _ in range(10)])
    store.close()
    file = tmp_path / "traces.db"
    match kind:
        case "no database":
            file.write_bytes(b"what is this?" * 1000)
        case "empty":
            file.write_bytes(b"")
        case "another layout":
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA user_version = 99")
        case "ruined":
            ruin(file, 1)
    with caplog.at_level(logging.ERROR):
        store = opened()
        assert await store.traces(Query()) == []
    assert kind == "empty" or "is replaced by an empty one" in caplog.text
    sent = span()
    await store.add([sent])
    assert (await store.trace(sent.trace)).spans == [sent]


async def test_a_file_that_cannot_be_opened_stops_nobody(
    opened: Callable[..., LocalStore], clocks: Clocks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk: spans are dropped and counted, and the file is tried again now and then."""
    (tmp_path / "traces.db").mkdir()
    store = opened()
    for _ in range(10):
        await store.add([span(), span()])
    await store.tidy()
    with pytest.raises(errors.Unavailable, match="traces.db cannot be used: unable to open database file"):
        await store.traces(Query())
    assert len([record for record in caplog.records if "spans are lost" in record.message]) == 2
    (tmp_path / "traces.db").rmdir()
    clocks.now += 6 * SECOND
    sent = span()
    await store.add([sent])
    assert (await store.trace(sent.trace)).spans == [sent]
    assert (await store.figures()).dropped == 20


async def test_damage_that_is_met_later_does_not_stop_it(
    store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither questions nor spans fail."""
    await store.add([heavy() for _ in range(40)])
    for ending in ("traces.db", "traces.db-wal"):
        if (tmp_path / ending).exists():
            ruin(tmp_path / ending, 2)
    with caplog.at_level(logging.ERROR):
        for each in [*await store.traces(Query())]:
            with contextlib.suppress(errors.NotFound):
                await store.trace(each.id)
    sent = span()
    await store.add([sent])
    assert (await store.trace(sent.trace)).spans == [sent]
    assert "is damaged, and is replaced" in caplog.text


async def test_a_removed_directory_is_made_again(clocks: Clocks, tmp_path: Path) -> None:
    """While the file is open, and while it cannot be opened. What is written then is there after a restart."""
    directory = tmp_path / "traces"
    store = LocalStore(directory, Config(), clock=clocks.real, monotonic=clocks.monotonic)
    await store.add([span()])
    shutil.rmtree(directory)
    sent = span()
    await store.add([sent])
    store.close()
    store = LocalStore(directory, Config(), clock=clocks.real, monotonic=clocks.monotonic)
    assert [each.id for each in await store.traces(Query())] == [sent.trace]
    shutil.rmtree(directory)
    directory.touch()
    await store.add([span()])
    with pytest.raises(errors.Unavailable, match="traces.db cannot be used: "):
        await store.traces(Query())
    directory.unlink()
    clocks.now += 6 * SECOND
    await store.add([sent])
    assert (await store.trace(sent.trace)).spans == [sent]
    store.close()
