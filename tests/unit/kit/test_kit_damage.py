"""A log that ends too early is distinguished from one that a crash cut off."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit import damage, errors
from services.metadata.sqlite import SqliteTransactions

FRAME = 24 + 4096


@pytest.fixture
async def crashed(tmp_path: Path) -> Path:
    """Make a database as kill -9 leaves it, with twenty transactions in its log."""
    running, left = tmp_path / "running.db", tmp_path / "left.db"
    store = SqliteTransactions(running)
    for number in range(20):
        await store.write(lambda tx, number=number: tx.put(("n", str(number)), b"x" * 3000))  # type: ignore[misc]
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{running}{suffix}", f"{left}{suffix}")
    await store.close()
    return left


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def opened(path: Path, *, noted: bool = True) -> tuple[str, int]:
    """Open it; return the reported loss and the number of its records."""
    store = SqliteTransactions(path)
    try:
        if noted:
            store.file.noted()
        return store.file.lost, len(store.view(lambda tx: list(tx.scan(("n",)))))
    finally:
        await store.close()


async def test_a_log_left_by_a_crash_has_lost_nothing(crashed: Path) -> None:
    """All records are there. A log that was cut within its last transaction, which was not acknowledged, has lost
    nothing either.
    """
    again = crashed.with_name("again.db")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{crashed}{suffix}", f"{again}{suffix}")
    assert await opened(crashed) == ("", 20)
    wal, last = Path(f"{again}-wal"), damage.committed(again)
    data = wal.read_bytes()
    cut = 32 + (last - 1) * FRAME + 10
    wal.write_bytes(data[:cut] + bytes(len(data) - cut))
    assert await opened(again) == ("", 19)


@pytest.mark.root
async def test_a_database_left_by_a_crash_opens_on_a_full_disk(
    crashed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log cannot be written back, since the database would have to grow; all its records are there."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(full)], check=True)
    try:
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{crashed}{suffix}", f"{full}/left.db{suffix}")
        (full / "left.db-shm").write_bytes(bytes(32768))
        with (full / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert await opened(full / "left.db") == ("", 20)
        assert "cannot tell whether its log has lost something: database or disk is full" in caplog.text
    finally:
        subprocess.run(["umount", "--lazy", str(full)], check=True)


_IN_USE = """
import fcntl, struct, sys
with open(sys.argv[1], "r+b") as file:
    kind, *_ = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 128, 1, 0)))
print("free" if kind == fcntl.F_UNLCK else "in use")
"""
"""Check the lock on the byte of -shm by which SQLite knows that a database is open (UNIX_SHM_DMS)."""


async def test_after_a_crash_others_see_that_it_is_open(crashed: Path) -> None:
    """Otherwise a program that opens the database beside this process, for a backup, would recover it from the start,
    and end this process by SIGBUS.
    """
    store = SqliteTransactions(crashed)
    looked = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _IN_USE, f"{crashed}-shm", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await looked.communicate()
    assert said.decode() == "in use\n"
    await store.close()


@pytest.mark.parametrize("where", ["a page", "a frame's header", "the log's header"])
async def test_a_flipped_bit_is_said(crashed: Path, where: str) -> None:
    """The records behind it are lost, and the log is kept aside; the next start reports nothing more."""
    wal = Path(f"{crashed}-wal")
    before = wal.read_bytes()
    flip(
        wal, {"a page": 32 + 12 * FRAME + 1000, "a frame's header": 32 + 12 * FRAME + 17, "the log's header": 14}[where]
    )
    damaged = wal.read_bytes()
    lost, count = await opened(crashed)
    assert "has lost its last transactions" in lost
    assert count < 20
    [kept] = crashed.parent.glob("left.db-wal.damaged-*")
    assert kept.read_bytes() == damaged != before
    assert await opened(crashed) == ("", count)


@pytest.mark.parametrize("where", [32 + 12 * FRAME + 1000, 14])
async def test_a_loss_that_was_not_noted_is_said_again(crashed: Path, where: int) -> None:
    """A start that is killed before it has recorded the loss leaves that to the next; the log itself does not show it
    any more.
    """
    flip(Path(f"{crashed}-wal"), where)
    first, count = await opened(crashed, noted=False)
    assert "has lost its last transactions" in first
    again, now = await opened(crashed)
    assert "an earlier start found its log damaged: left.db-wal.lost-" in again
    assert now == count
    assert await opened(crashed) == ("", count)


async def test_a_damaged_log_is_kept_once(crashed: Path) -> None:
    """This holds however often a start is tried: otherwise a database that cannot be opened with such a log would fill
    the disk with copies.
    """
    flip(Path(f"{crashed}-wal"), 14)
    for _ in range(3):
        damage.Log(crashed)
    assert len(list(crashed.parent.glob("left.db-wal.lost-*"))) == 1


@pytest.mark.parametrize("where", [32 + 12 * FRAME + 1000, 14])
async def test_a_damaged_log_that_cannot_be_kept_prevents_no_start(
    crashed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: int
) -> None:
    """On a full disk the process starts nevertheless, or nothing could be deleted to make room; an incomplete copy is
    removed.
    """
    flip(Path(f"{crashed}-wal"), where)

    def full(_: Path, there: Path) -> None:
        there.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    lost, _ = await opened(crashed, noted=False)
    assert "has lost its last transactions" in lost
    assert "cannot be kept: [Errno 28] No space left on device" in caplog.text
    assert [each.stat().st_size for each in crashed.parent.glob("left.db-wal.*-*")] == [0]
    assert "has lost its last transactions" in (await opened(crashed))[0]
    assert not list(crashed.parent.glob("left.db-wal.*-*"))


async def test_a_log_that_the_disk_does_not_give_back_is_named(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails with an error; the process does not die, since the log is not mapped into memory."""

    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(
        errors.DataLoss,
        match=r"left.db cannot be used: its log cannot be read: input/output error: see docs/damaged-database.md",
    ):
        SqliteTransactions(crashed)


def test_unreadable_pages_are_damage() -> None:
    """A page that cannot be read counts as a page with wrong contents; lack of room does not."""
    found = {}
    for name in (
        "SQLITE_IOERR_READ",
        "SQLITE_IOERR_SHORT_READ",
        "SQLITE_CORRUPT",
        "SQLITE_NOTADB",
        "SQLITE_FULL",
        "SQLITE_IOERR_WRITE",
        "SQLITE_BUSY",
    ):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = getattr(sqlite3, name)
        found[name] = damage.is_damage(error)
    assert list(found.values()) == [True] * 4 + [False] * 3


async def test_any_directory_is_checked(crashed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """This includes a directory whose name has a meaning in a URI."""
    odd = crashed.parent / "50%41? #a" / "left.db"
    odd.parent.mkdir()
    odd.write_bytes(b"SQLite format 3\0" + bytes(5000))
    assert "is damaged" in damage.quick_check(odd)
    assert caplog.text == ""


async def test_damaged_pages_are_refused_in_clear_words(crashed: Path) -> None:
    """The errors of reading, writing and a check of all pages name the file and the document to read."""
    store = SqliteTransactions(crashed)
    for number in range(3000):
        store._writer.execute("INSERT INTO records VALUES (?, ?)", (b"x%d" % number, bytes(500)))
    await store.close()
    assert damage.quick_check(crashed) == ""
    data = bytearray(crashed.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    crashed.write_bytes(data)
    store, said = SqliteTransactions(crashed), list[str]()
    store.file.damaged = said.append
    with pytest.raises(
        errors.DataLoss, match=r"metadata store: .*left.db is damaged: .*: see docs/damaged-database.md"
    ):
        store.view(lambda tx: list(tx.scan(())))
    with pytest.raises(errors.DataLoss, match="is damaged"):
        await store.read(lambda tx: list(tx.scan(())))
    with pytest.raises(errors.DataLoss, match="is damaged"):
        await asyncio.wait_for(store.write(lambda tx: tx.put(("n", "1"), b"y")), 5)
    assert len(said) == 3
    assert "left.db is damaged" in damage.quick_check(crashed)
    await store.close()
