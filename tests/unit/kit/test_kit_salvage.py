"""Salvage: a new database of the readable rows of a damaged one, for both kinds of databases of a node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.kit import damage, errors
from services.kit.salvage import salvage
from services.metadata.sqlite import SqliteTransactions
from services.snapshots.store import Info, Kind, Usage
from services.snapshots.tree import Row, Tree, readable

PAGE = 4096


def whatever(row: Sequence[object]) -> bool:
    return bool(row)


def spoil(path: Path, pages: range) -> None:
    data = bytearray(path.read_bytes())
    assert len(data) // PAGE > pages.stop
    for page in pages:
        data[page * PAGE : page * PAGE + 200] = b"\xff" * 200
    path.write_bytes(data)


async def records(path: Path, count: int) -> list[bytes]:
    """Return a closed metadata database and the numbers of its records in their order."""
    store = SqliteTransactions(path)
    for start in range(0, count, 100):
        await store.write(
            lambda tx, start=start: [  # type: ignore[misc]
                tx.put(("n", f"{number:05}"), b"%d" % number + bytes(300)) for number in range(start, start + 100)
            ]
        )
    await store.close()
    return [b"%d" % number for number in range(count)]


@pytest.mark.parametrize("pages", [range(0), range(60, 61), range(60, 75), range(4, 7), range(2, 150)], ids=str)
async def test_all_rows_except_those_on_damaged_pages_are_saved(tmp_path: Path, pages: range) -> None:
    """Rows are saved unchanged; the new database is whole, is opened like any other, and can be written."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    all_of_them = await records(old, 3000)
    spoil(old, pages)
    before = old.read_bytes()
    saved = salvage(old, new, whatever)["records"]
    assert old.read_bytes() == before
    assert damage.quick_check(new) == ""
    assert (saved.gaps > 0) == bool(pages)
    store = SqliteTransactions(new)
    try:
        found = [value.rstrip(b"\0") for _, value in store.view(lambda tx: list(tx.scan(("n",))))]
        assert len(found) == saved.rows >= 3000 - 26 * len(pages), "more is lost than was there"
        assert set(found) <= set(all_of_them)
        await store.write(lambda tx: tx.put(("n", "new"), b""))
    finally:
        await store.close()


async def test_the_contents_of_the_log_are_saved_too(tmp_path: Path) -> None:
    """The log is as kill -9 leaves it."""
    running, old = tmp_path / "running.db", tmp_path / "old.db"
    store = SqliteTransactions(running)
    await store.write(lambda tx: tx.put(("n", "1"), b"in the log"))
    for suffix in ("", "-wal"):
        Path(f"{old}{suffix}").write_bytes(Path(f"{running}{suffix}").read_bytes())
    await store.close()
    assert salvage(old, tmp_path / "new.db", whatever)["records"].rows == 1


async def test_snapshots_whose_parents_are_lost_are_left_out(tmp_path: Path) -> None:
    """They could not be mounted; no number is given out twice."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    tree = Tree(old)
    for number in range(1, 1001):
        parent = number - 1 if number % 10 != 1 else None
        row = Row(number, parent, Info(f"k{number}", Kind.COMMITTED, 1, 2, labels={"filler": "x" * 200}), Usage())
        await tree.write(lambda rows, row=row: rows.insert(row))  # type: ignore[misc]
    await tree.write(lambda rows: [rows.delete(found) for number in (1000,) if (found := rows.get(f"k{number}"))])  # type: ignore[func-returns-value]
    await tree.close()
    spoil(old, range(30, 33))
    saved = salvage(old, new, readable)["snapshots"]
    assert saved.gaps
    assert damage.quick_check(new) == ""
    tree = Tree(new)
    try:
        there = tree.view(lambda rows: rows.things())
        assert 900 < len(there) == saved.rows - saved.orphans < 999
        assert all(number - 1 in there for number in there if number % 10 != 1)
        assert tree.last_id() == 1000
    finally:
        await tree.close()


def test_a_database_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    """The error names the database."""
    (tmp_path / "old.db").write_bytes(b"\xff" * 8192)
    with pytest.raises(errors.DataLoss, match="nothing can be read of .*old.db: file is not a database"):
        salvage(tmp_path / "old.db", tmp_path / "new.db", whatever)
