"""Records of a snapshotter of one's own: what happens when a change fails, when many come at once, and when records were
lost.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.kit import errors
from services.snapshots.records import Records
from services.snapshots.store import Kind, Usage


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path / "records.db")
    yield made
    made.close()


def add(records: Records, key: str, parent: str = "", kind: Kind = Kind.ACTIVE) -> int:
    with records.adding(kind, key, parent) as record:
        return record.id


def layer(records: Records, name: str, parent: str = "") -> int:
    number = add(records, f"{name}-making", parent)
    records.commit(records.get(f"{name}-making"), name, {}, Usage(1, 2))
    return number


def test_a_record_knows_what_it_stands_on(records: Records) -> None:
    """Parents come nearest first, while a snapshot is made and afterwards."""
    one, two = layer(records, "1"), layer(records, "2")
    three = layer(records, "3", "2")
    with records.adding(Kind.ACTIVE, "a", "3") as record:
        assert (record.info.parent, [*record.parents]) == ("3", [three, two])
    assert [*records.get("a").parents] == [three, two]
    assert records.get("3").usage == Usage(1, 2)
    assert one not in records.get("a").parents


def test_what_cannot_be_made_has_no_record(records: Records) -> None:
    """If the block fails, the key is free again, the parent can go, and the id is used up."""
    layer(records, "base")
    with pytest.raises(OSError, match="full"), records.adding(Kind.ACTIVE, "a", "base") as record:
        raise OSError("full")
    with pytest.raises(errors.NotFound):
        records.get("a")
    assert add(records, "a") > record.id
    records.remove("base")


def test_while_a_snapshot_is_made_its_key_and_its_parent_are_taken(records: Records) -> None:
    """Nobody else can take the key, also as a name, or remove the parent; nobody sees the snapshot."""
    layer(records, "base")
    add(records, "other")
    with records.adding(Kind.ACTIVE, "a", "base") as record:
        with pytest.raises(errors.AlreadyExists), records.adding(Kind.VIEW, "a"):
            pass
        with pytest.raises(errors.AlreadyExists):
            records.commit(records.get("other"), "a", {}, Usage())
        with pytest.raises(errors.FailedPrecondition, match="cannot remove snapshot with child"):
            records.remove("base")
        with pytest.raises(errors.NotFound):
            records.get("a")
        assert records.leftovers([str(record.id), f"new-{record.id}", "new-99"]) == ["new-99"]
    assert records.get("a").id == record.id


def test_a_commit_is_of_the_snapshot_that_was_read(records: Records) -> None:
    """If the key was removed meanwhile, and belongs to another snapshot now, that one is not committed."""
    add(records, "a")
    read = records.get("a")
    records.remove("a")
    add(records, "a")
    with pytest.raises(errors.NotFound):
        records.commit(read, "name", {}, Usage())
    assert records.get("a").info.kind is Kind.ACTIVE


def test_an_empty_name_is_refused(records: Records) -> None:
    """Neither a key nor a name may be empty."""
    with pytest.raises(errors.InvalidArgument), records.adding(Kind.ACTIVE, ""):
        pass
    add(records, "a")
    with pytest.raises(errors.InvalidArgument):
        records.commit(records.get("a"), "", {}, Usage())


def test_threads_take_turns(records: Records) -> None:
    """Many threads add, commit and remove at once: no id is used twice, and all that is left is what should be."""
    seen: list[int] = []
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait()
        for number in range(20):
            key = f"{worker}-{number}"
            seen.append(add(records, key))
            records.commit(records.get(key), f"{key}-c", {}, Usage())
            if number % 2:
                records.remove(f"{key}-c")

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(work, range(8))]
    assert len(seen) == len(set(seen)) == 160
    assert [info.name for info in records.list()] == sorted(f"{w}-{n}-c" for w in range(8) for n in range(0, 20, 2))


def test_leftovers(records: Records) -> None:
    """What has no record may go; what is no id at all, too."""
    assert records.leftovers([]) == []
    kept = add(records, "a")
    assert records.leftovers([str(kept), "77", "new-3", "x"]) == ["77", "new-3", "x"]
    assert add(records, "b") > 77, "a name that is still in use is not given out"


def test_lost_records_hold_everything(tmp_path: Path) -> None:
    """If the file is new although there are snapshots, nothing may go until an operator says so, also after a start."""
    path = tmp_path / "records.db"
    for _ in range(2):
        records = Records(path)
        assert records.leftovers(["3", "new-4"]) == ()
        assert add(records, f"key-{os.urandom(4).hex()}") > 3
        records.close()
    (tmp_path / "records.db.held").unlink()
    records = Records(path)
    assert records.leftovers(["3", "new-4"]) == ["3", "new-4"]
    records.close()


def test_damaged_records_hold_everything(tmp_path: Path) -> None:
    """A page that has changed may have had the record of what seems to have none."""
    path = tmp_path / "records.db"
    records = Records(path)
    for number in range(200):
        add(records, f"{number}-{'x' * 100}")
    records.close()
    with path.open("r+b") as file:
        file.seek(os.path.getsize(path) - 4096)
        file.write(b"\xff" * 4096)
    records = Records(path)
    assert records.leftovers(["1", "new-4"]) == ()
    assert "docs/damaged-database.md" not in (tmp_path / "records.db.held").read_text()
    records.close()


def test_records_survive(tmp_path: Path) -> None:
    """What was answered is there after the process was killed: a copy of the files as they are is opened."""
    first = Records(tmp_path / "records.db")
    layer(first, "base")
    number = add(first, "a", "base")
    copied = shutil.copytree(tmp_path, tmp_path / "copy")
    first.close()
    second = Records(copied / "records.db")
    assert second.get("a").id == number
    assert add(second, "b") > number
    second.close()
