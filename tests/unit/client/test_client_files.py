"""Archives as files: a written archive appears whole or not at all, and an idle pipe blocks no other work."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from client import files


def moved(counts: list[int]) -> files.Moved:
    return counts.append


async def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    """It does not appear under its name before, and has the mode of any new file."""
    target, counts = tmp_path / "x.tar", list[int]()
    target.write_bytes(b"before")
    with files.replaced(str(target)) as fd:
        sink = files.Sink(fd, "x.tar", moved(counts))
        await sink.write(b"one")
        await sink.write(b"two")
        assert target.read_bytes() == b"before"
    assert target.read_bytes() == b"onetwo"
    assert counts == [3, 6]
    other = tmp_path / "other"
    other.touch()
    assert target.stat().st_mode == other.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["other", "x.tar"]


async def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    """Neither a part of the file nor the temporary one is left."""
    with pytest.raises(RuntimeError), files.replaced(str(tmp_path / "x.tar")) as fd:
        os.write(fd, b"half")
        raise RuntimeError
    assert not os.listdir(tmp_path)


def test_a_device_is_written_as_it_is() -> None:
    """A device cannot be replaced by a new file."""
    before = os.stat("/dev/null").st_ino
    with files.replaced("/dev/null") as fd:
        os.write(fd, b"x")
    assert os.stat("/dev/null").st_ino == before


@pytest.mark.parametrize("what", ["absent/x.tar", "."])
def test_errors_name_the_file(what: str, tmp_path: Path) -> None:
    """This holds for reading and for writing."""
    path = str(tmp_path / what)
    with pytest.raises(OSError, match=path), files.opened(path):
        pass
    with pytest.raises(OSError, match=path), files.replaced(path):
        pass


async def test_a_full_disk_names_the_file() -> None:
    """The kernel's error does not."""
    with files.replaced("/dev/full") as fd:
        with pytest.raises(OSError, match="No space left on device.*x.tar"):
            await files.Sink(fd, "x.tar", moved([])).write(b"x")


async def test_a_file_is_read_in_pieces(tmp_path: Path) -> None:
    """It is read to its end; its size is known."""
    data, counts = os.urandom(files.PIECE + 1000), list[int]()
    (tmp_path / "x").write_bytes(data)
    with files.opened(str(tmp_path / "x")) as fd:
        assert files.size(fd) == len(data)
        assert b"".join([piece async for piece in files.pieces(fd, "x", moved(counts))]) == data
    assert counts == [files.PIECE, len(data)]


async def test_a_pipe_that_is_read_can_be_given_up() -> None:
    """No bytes come, and the reader is cancelled at once. No thread is left in a read."""
    reader, writer = os.pipe()
    try:
        assert files.size(reader) == 0
        source = files.pieces(reader, "pipe", moved([]))
        os.write(writer, b"first")
        assert await anext(source) == b"first"
        waiting = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)
        waiting.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await waiting
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_pipe_that_is_written_can_be_given_up() -> None:
    """It is full and has no reader; the bytes taken before are whole."""
    reader, writer = os.pipe()
    try:
        sink = files.Sink(writer, "pipe", moved([]))
        waiting = asyncio.ensure_future(sink.write(bytes(1 << 20)))
        done, _ = await asyncio.wait((waiting,), timeout=0.2)
        assert not done
        waiting.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert len(os.read(reader, 1 << 20)) % 4096 == 0
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_pipe_takes_all_if_somebody_reads() -> None:
    """There are more bytes than the pipe holds."""
    reader, writer = os.pipe()
    data = os.urandom(1 << 20)
    reading = asyncio.ensure_future(_all(reader))
    await files.Sink(writer, "pipe", moved([])).write(data)
    os.close(writer)
    assert await reading == data
    os.close(reader)


async def _all(fd: int) -> bytes:
    return b"".join([piece async for piece in files.pieces(fd, "pipe", moved([]))])
