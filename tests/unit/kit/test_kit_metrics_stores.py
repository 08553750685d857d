"""The sizes of stores, as metrics."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.content import sizes
from services.kit import metrics
from services.kit.metrics_stores import Size, measured, of_files
from services.snapshots import tree


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Metrics that only this test sees."""
    monkeypatch.setattr(metrics, "_metrics", [])
    monkeypatch.setattr(metrics, "_sources", [])
    yield


async def shown() -> dict[tuple[str, ...], float]:
    return {
        (family.name, *sample.labels.values()): sample.value
        for family in await metrics.collect()
        if family.name.startswith("splitd_store")
        for sample in family.samples
    }


async def test_a_store_is_measured_once_while_its_size_is_fresh() -> None:
    asked: list[int] = []

    def size() -> Size:
        asked.append(1)
        return Size(100 * len(asked), {"blobs": len(asked)})

    measured({"content": size})
    first = await shown()
    assert first == await shown()
    assert first == {("splitd_store_bytes", "content"): 100, ("splitd_store_items", "content", "blobs"): 1}
    assert len(asked) == 1


async def test_a_store_that_cannot_be_read_hides_no_other() -> None:
    def unreadable() -> Size:
        raise OSError("no such directory")

    measured({"lost": unreadable, "there": lambda: Size(1)}, fresh=0.0)
    assert await shown() == {("splitd_store_bytes", "there"): 1}


def test_the_size_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    assert of_files(tmp_path / "a", tmp_path / "missing") == Size(3)


def test_the_size_of_a_content_store(tmp_path: Path) -> None:
    for name, size in (("blobs/sha256/aa", 5000), ("blobs/sha512/bb", 1), ("ingest/x/data", 8192), ("ingest/x/ref", 1)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    found = sizes.of_store(tmp_path)
    assert found.items == {"blobs": 2, "ingests": 1}
    assert 5001 + 8192 <= found.bytes <= 5001 + 8192 + 3 * 65536  # what the filesystem rounds up to


def test_the_size_of_a_snapshotter(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="metadata.db"):
        tree.sizes(tmp_path)
    file = sqlite3.connect(tmp_path / "metadata.db")
    file.execute("CREATE TABLE snapshots (kind INTEGER, size INTEGER)")
    file.executemany("INSERT INTO snapshots VALUES (?, ?)", [(3, 10), (3, 20), (2, 0)])
    file.commit()
    file.close()
    assert tree.sizes(tmp_path) == Size(30, {"committed": 2, "active": 1})
