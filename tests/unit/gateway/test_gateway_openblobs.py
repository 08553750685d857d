"""Files of blobs that the gateway keeps open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.openblobs import OpenBlobs
from services.kit import errors
from tests.support import eventually_async

DATA = bytes(range(256)) * 40
IN_MEMORY = 0
"""No flags, since the directories of tests may be on a tmpfs, which has no RWF_NOWAIT."""


class Located:
    """A content service that knows the path of each blob and counts the requests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []
        self.error: errors.NodeError | None = None

    async def __call__(self, digest: str) -> str:
        self.asked.append(digest)
        if self.error is not None:
            raise self.error
        return str(self.directory / digest)


@pytest.fixture
def located(tmp_path: Path) -> Located:
    for name in "abc":
        (tmp_path / name).write_bytes(DATA)
    return Located(tmp_path)


@pytest.fixture
async def blobs() -> AsyncIterator[OpenBlobs]:
    blobs = OpenBlobs(limit=2, idle=60, flags=IN_MEMORY)
    yield blobs
    blobs.clear()


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def opened(blobs: OpenBlobs, located: Located, digest: str = "a", size: int = len(DATA)) -> bool:
    """Return whether the blob's file is open once all work that was begun has ended."""
    blobs.open(digest, size, located)
    await ended(blobs)
    return blobs.read(digest, 0, 1) is not None


async def ended(blobs: OpenBlobs) -> None:
    async def none() -> bool:
        return not blobs._opening

    await eventually_async(none)


async def test_pieces_are_read_once_the_file_is_open(blobs: OpenBlobs, located: Located) -> None:
    """Any part can be read, and the available bytes of a part that ends beyond the blob; the content service is asked
    once.
    """
    assert (blobs.read("a", 0, 10), blobs.size("a")) == (None, 0)
    blobs.open("a", len(DATA), located)
    blobs.open("a", len(DATA), located)
    await ended(blobs)
    for offset, size in ((0, 10), (1000, 2000), (len(DATA) - 5, 100), (len(DATA), 10)):
        assert blobs.read("a", offset, size) == bytearray(DATA[offset : offset + size])
        assert blobs.read("a", offset, size, b"head") == bytearray(b"head" + DATA[offset : offset + size])
    blobs.open("a", len(DATA), located)
    assert located.asked == ["a"]
    assert (blobs.size("a"), blobs.read("b", 0, 10), blobs.size("b")) == (len(DATA), None, 0)


async def test_a_deleted_blob_is_not_read_and_not_kept(blobs: OpenBlobs, located: Located) -> None:
    """This holds also if the blob is there again: that is another file."""
    before = files()
    assert await opened(blobs, located)
    (located.directory / "a").unlink()
    (located.directory / "a").write_bytes(DATA[::-1])
    assert blobs.read("a", 0, 10) is None
    assert files() == before
    assert await opened(blobs, located)
    assert blobs.read("a", 0, 10) == bytearray(DATA[::-1][:10])


async def test_a_file_that_is_not_the_blobs_is_not_opened(blobs: OpenBlobs, located: Located) -> None:
    """A missing file, a file of another size, a link, a FIFO, a directory."""
    before = files()
    (located.directory / "link").symlink_to("a")
    (located.directory / "directory").mkdir()
    os.mkfifo(located.directory / "fifo")
    for name, size in (("none", 10), ("a", len(DATA) - 1), ("link", len(DATA)), ("directory", 10), ("fifo", 0)):
        assert not await opened(blobs, located, name, size), name
    assert files() == before


async def test_of_many_those_that_were_read_last_stay_open(blobs: OpenBlobs, located: Located) -> None:
    """Their number is limited; all are closed together in the end."""
    before = files()
    for name in "ab":
        assert await opened(blobs, located, name)
    assert blobs.read("a", 0, 1)
    assert await opened(blobs, located, "c")
    assert [blobs.read(name, 0, 1) is not None for name in "abc"] == [True, False, True]
    assert files() == before + 2
    blobs.clear()
    assert files() == before


async def test_an_unread_blob_is_closed(located: Located) -> None:
    """So a deleted blob gives its space back."""
    blobs = OpenBlobs(idle=0.01, flags=IN_MEMORY)
    before = files()
    blobs.open("a", len(DATA), located)
    await ended(blobs)

    async def closed() -> bool:
        return files() == before

    await eventually_async(closed)
    assert blobs.read("a", 0, 1) is None


async def test_a_content_service_without_files_is_not_asked_again(blobs: OpenBlobs, located: Located) -> None:
    """It is not asked until it is replaced. If it is only absent, it is asked at the next Read."""
    located.error = errors.Unavailable("away")
    assert not await opened(blobs, located)
    located.error = errors.Unimplemented("LocalFiles")
    for _ in range(3):
        assert not await opened(blobs, located)
    assert located.asked == ["a", "a"]
    blobs.clear()
    located.error = None
    assert await opened(blobs, located)


async def test_nor_is_one_whose_file_system_cannot_say_what_is_in_memory(located: Located) -> None:
    """A flag that no kernel knows stands for that."""
    blobs = OpenBlobs(flags=1 << 30)
    for _ in range(3):
        assert not await opened(blobs, located)
    assert located.asked == ["a"]


async def test_a_file_opened_during_the_closing_of_all_is_closed_too(located: Located) -> None:
    """The content service came back at that moment."""
    blobs = OpenBlobs(flags=IN_MEMORY)
    before = files()
    blobs.open("a", len(DATA), located)
    await asyncio.sleep(0)  # it has been asked; its file is being opened in a thread
    await asyncio.sleep(0)
    blobs.clear()

    async def closed() -> bool:
        return files() == before

    await eventually_async(closed)
    assert blobs.read("a", 0, 1) is None
