"""Files of services of one's own: what a power cut, a failed write and a full disk leave."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path

import pytest

from services.kit import errors
from splitd import files
from splitd.content import Digest, FileWriter, ingest_status
from splitd.files import Filesystem, attribute, remove_tree, set_attribute
from tests.suites.content import digest_of


class Appending(FileWriter):
    def commit(self, size: int, expected: Digest | None, labels: Mapping[str, str]) -> Digest:
        return self.checked(size, expected)


@pytest.fixture
def path(place: Path) -> Iterator[Path]:
    try:
        os.setxattr(place, "user.test", b"")
    except OSError as error:
        pytest.skip(f"{place}: {error.strerror}")
    yield place / "ingest"


def test_an_ingest_goes_on(path: Path) -> None:
    """It has the bytes, the beginning and the total of the first writer, also if the second names none."""
    first = Appending(path, "r", 6, None)
    first.write(b"abc")
    begun = first.status()
    first.close()
    second = Appending(path, "r", 0, None)
    assert (second.offset, second.digest) == (3, str(digest_of(b"abc")))
    assert (second.status().started_at, second.status().total) == (begun.started_at, 6)
    second.write(b"def")
    assert second.commit(6, None, {}) == digest_of(b"abcdef")
    second.close()


@pytest.mark.parametrize("left", [None, b"", b'{"ref": "r'])
def test_what_a_crash_has_left_begins_anew(path: Path, left: bytes | None) -> None:
    """A file without a note, or with a spoilt one, is no ingest; its writer begins at offset 0."""
    path.write_bytes(b"anything")
    if left is not None:
        os.setxattr(path, "user.ingest", left)
    assert ingest_status(path) is None
    writer = Appending(path, "r", 3, None)
    assert writer.offset == 0
    assert ingest_status(path) == writer.status()
    writer.close()
    assert ingest_status(path.with_name("none")) is None


def test_a_write_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of it was written when the disk was full: the ingest is as before, and can go on."""

    class Full(FileIO):
        room = 5

        def write(self, data: memoryview) -> int:  # type: ignore[override]
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            some, self.room = data[: self.room], max(0, self.room - len(data))
            return super().write(some)

    writer = Appending(path, "r", 0, None)
    writer.write(b"abc")
    writer.file = Full(path, "a+")
    with pytest.raises(OSError, match="space"):
        writer.write(b"0123456789")
    assert (writer.offset, path.read_bytes(), writer.digest) == (3, b"abc", str(digest_of(b"abc")))
    writer.file.room = 100
    writer.write(b"d")
    assert writer.commit(4, None, {}) == digest_of(b"abcd")
    writer.close()


@pytest.mark.parametrize("promised", [False, True])
def test_bytes_that_are_not_what_was_named(path: Path, promised: bool) -> None:
    """They are removed if the opening named something, and stay if only the commit did."""
    writer = Appending(path, "r", 9 if promised else 0, None)
    writer.write(b"abc")
    with pytest.raises(errors.FailedPrecondition, match="unexpected commit size 3, expected 4"):
        writer.commit(4, None, {})
    with pytest.raises(errors.FailedPrecondition, match="unexpected commit digest .*, expected"):
        writer.commit(0, digest_of(b"other"), {})
    writer.close()
    assert path.exists() is not promised


def test_attributes(path: Path) -> None:
    """They hold JSON, and are absent until they are set."""
    with FileIO(path, "a+") as file:
        assert attribute(file, "user.x") is None
        set_attribute(file, "user.x", {"a": ["ü"]})
        assert attribute(file, "user.x") == attribute(path, "user.x") == {"a": ["ü"]}


def test_a_failed_write_fails_every_snapshot_of_its_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports it to one sync only: later ones fail too, for what was begun before."""
    filesystem, before = Filesystem(place), time.time_ns()
    filesystem.sync(since=before)

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(files, "sync_filesystem", fails)
        filesystem.sync(since=before)
    with pytest.raises(OSError, match="some writes have failed since then"):
        filesystem.sync(since=before)
    filesystem.sync(since=time.time_ns())
    filesystem.close()


def test_a_tree_is_removed(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With everything in it; one that is gone already is no matter for the log."""
    (place / "d/e").mkdir(parents=True)
    (place / "d/e/f").symlink_to("/")
    assert remove_tree(place / "d")
    assert remove_tree(place / "d")
    for number in range(300):  # more than are removed in this process
        (place / f"d/{number}").mkdir(parents=True)
    assert remove_tree(place / "d")
    assert not caplog.records
