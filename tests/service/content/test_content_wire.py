"""The wire interface of the content process beyond that of a Store: the words of statuses and the fields of messages.
The words are those of containerd's source.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.stamp.v1 import stamp_pb2, stamp_stubs
from services.content.local import LocalStore
from services.content.remote import RemoteStore
from services.content.server import ContentServicer
from services.content.store import CHUNK
from services.kit import errors, rpc, tracing
from tests.spans import Recorder
from tests.suites.content import bytes_of, digest_of, put
from tests.support import TOP, ServiceProcess, eventually, listening, short_directory


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with (
        short_directory() as directory,
        ServiceProcess("services.content", directory / "r", directory / "s") as running,
    ):
        yield running


@pytest.fixture
async def channel(service: ServiceProcess) -> AsyncIterator[rpc.Channel]:
    async with rpc.Channel(service.sockets[0], "content") as channel:
        yield channel


@pytest.fixture
def content(channel: rpc.Channel) -> content_stubs.Content:
    return channel.client(content_stubs.CONTENT)


@pytest.fixture
def ref() -> str:
    return str(uuid.uuid4())


async def exchange(content: content_stubs.Content, *requests: pb.WriteContentRequest) -> list[pb.WriteContentResponse]:
    """Make one Write call, in which each request is answered before the next is sent."""
    answers: list[pb.WriteContentResponse] = []
    async with content.Write() as stream:
        for request in requests:
            await stream.send(request)
            answer = await stream.receive()
            assert answer is not None, "the call has ended"
            answers.append(answer)
        await stream.done_sending()
        assert await stream.receive() is None
    return answers


@pytest.mark.parametrize(
    ("method", "request_", "words"),
    [
        ("Info", pb.InfoRequest(digest="abc"), '"abc" failed validation'),
        ("Update", pb.UpdateRequest(info=pb.Info(digest="md5:abc{}")), '"md5:abc{}" failed validation'),
        ("Delete", pb.DeleteContentRequest(digest="abc"), "invalid checksum digest format"),
        ("Delete", pb.DeleteContentRequest(digest="sha256:abc"), "invalid checksum digest length"),
        ("Delete", pb.DeleteContentRequest(digest="sha256:" + "G" * 64), "invalid checksum digest format"),
        ("Delete", pb.DeleteContentRequest(digest="md5:abc"), "unsupported digest algorithm"),
        ("Delete", pb.DeleteContentRequest(digest=":abc"), "invalid checksum digest format"),
        (
            "ListStatuses",
            pb.ListStatusesRequest(filters=["ref="]),
            'filters: parse error: [ref >|=|< ]: unsupported operator "=": invalid argument',
        ),
    ],
)
async def test_invalid_unary(content: content_stubs.Content, method: str, request_: Any, words: str) -> None:
    """A malformed digest or filter is INVALID_ARGUMENT, in containerd's words."""
    with pytest.raises(errors.InvalidArgument) as caught:
        await getattr(content, method)(request_)
    assert str(caught.value) == words


async def test_invalid_read(content: content_stubs.Content) -> None:
    """The error of a Read with a malformed digest names the digest and the reason."""
    with pytest.raises(errors.InvalidArgument) as caught:
        [_ async for _ in content.Read(pb.ReadContentRequest(digest="a{b}:"))]
    assert str(caught.value) == "a{b}:: invalid checksum digest format"


async def test_status_words(content: content_stubs.Content) -> None:
    """The error of Status for a missing ingest names the ref."""
    with pytest.raises(errors.NotFound) as caught:
        await content.Status(pb.StatusRequest(ref="nobody's"))
    assert str(caught.value) == "could not get status for ref \"nobody's\": reference nobody's: not found"


async def test_read_messages(content: content_stubs.Content, channel: rpc.Channel) -> None:
    """Messages carry 1 MiB, offsets count from the first byte read; a negative offset or size counts as none."""
    data = bytes_of(3 * CHUNK)
    digest = await put(RemoteStore(channel), data)
    found = [(m.offset, len(m.data)) async for m in content.Read(pb.ReadContentRequest(digest=str(digest), offset=10))]
    assert found == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, CHUNK - 10)]
    whole = [m.data async for m in content.Read(pb.ReadContentRequest(digest=str(digest), offset=-1, size=-1))]
    assert b"".join(whole) == data
    with pytest.raises(errors.OutOfRange) as caught:
        [_ async for _ in content.Read(pb.ReadContentRequest(digest=str(digest), offset=len(data) + 1))]
    assert str(caught.value) == f"read past object length {len(data)} bytes"


async def test_list_pages(content: content_stubs.Content, channel: rpc.Channel) -> None:
    """List sends up to 100 blobs in a message."""
    for n in range(130):
        await put(RemoteStore(channel), b"%d" % n, labels={"page": "yes"})
    pages = [len(page.info) async for page in content.List(pb.ListContentRequest(filters=["labels.page"]))]
    assert pages == [100, 30]


async def test_write_in_one_message(content: content_stubs.Content, ref: str) -> None:
    """A COMMIT may carry all bytes as the only message; its answer has offset and digest, and ends the call."""
    data = bytes_of(100)
    [answer] = await exchange(
        content, pb.WriteContentRequest(action=pb.COMMIT, ref=ref, data=data, total=100, expected=str(digest_of(data)))
    )
    assert (answer.action, answer.offset, answer.digest) == (pb.COMMIT, 100, str(digest_of(data)))


async def test_write_answers(content: content_stubs.Content, ref: str) -> None:
    """The answer to STAT has times, total, offset and digest; that to WRITE the offset after it and the digest so far.
    Offset 0 starts over.
    """
    stat, one, two, anew, again = await exchange(
        content,
        pb.WriteContentRequest(action=pb.STAT, ref=ref, total=10),
        pb.WriteContentRequest(action=pb.WRITE, data=b"abc"),
        pb.WriteContentRequest(action=pb.WRITE, offset=3, data=b"de"),
        pb.WriteContentRequest(action=pb.WRITE, data=b"xy"),
        pb.WriteContentRequest(action=pb.STAT),
    )
    assert (stat.offset, stat.total, stat.digest) == (0, 10, str(digest_of(b"")))
    assert stat.started_at.seconds
    assert stat.updated_at.seconds
    assert (one.action, one.offset, one.digest) == (pb.WRITE, 3, str(digest_of(b"abc")))
    assert (two.offset, two.digest) == (5, str(digest_of(b"abcde")))
    assert (anew.offset, anew.digest) == (2, str(digest_of(b"xy")))
    assert (again.action, again.offset, again.total) == (pb.STAT, 2, 10)
    assert again.started_at == stat.started_at


@pytest.mark.parametrize("action", [pb.WRITE, pb.COMMIT])
async def test_write_at_another_offset(content: content_stubs.Content, ref: str, action: pb.WriteAction) -> None:
    """A write or commit at another offset than the ingest's is OUT_OF_RANGE with both offsets; no bytes are lost."""
    with pytest.raises(errors.OutOfRange) as caught:
        await exchange(
            content,
            pb.WriteContentRequest(action=pb.WRITE, ref=ref, data=b"abc"),
            pb.WriteContentRequest(action=action, offset=2, data=b"x"),
        )
    assert str(caught.value) == "write @2 must occur at current offset 3"
    [stat] = await exchange(content, pb.WriteContentRequest(action=pb.STAT, ref=ref))
    assert (stat.offset, stat.digest) == (3, str(digest_of(b"abc")))


async def test_write_without_ref(content: content_stubs.Content) -> None:
    """The first message names the ref."""
    with pytest.raises(errors.InvalidArgument) as caught:
        await exchange(content, pb.WriteContentRequest(action=pb.STAT))
    assert str(caught.value) == "first message must have a reference"


async def test_write_with_malformed_expectation(content: content_stubs.Content, ref: str) -> None:
    """A malformed expected digest is INVALID_ARGUMENT at the opening."""
    with pytest.raises(errors.InvalidArgument) as caught:
        await exchange(content, pb.WriteContentRequest(action=pb.STAT, ref=ref, expected="md5:abc"))
    assert str(caught.value) == (
        "calculating expected blob path for writer: cannot calculate blob path from invalid digest: "
        "unsupported digest algorithm: invalid argument"
    )


async def test_blob_that_came_meanwhile(content: content_stubs.Content, channel: rpc.Channel, ref: str) -> None:
    """A message that expects a blob which another writer has made since is ALREADY_EXISTS, and the ingest is
    removed.
    """
    data = bytes_of(100)
    async with content.Write() as stream:
        await stream.send(pb.WriteContentRequest(action=pb.STAT, ref=ref, expected=str(digest_of(data))))
        await stream.receive()
        await put(RemoteStore(channel), data)
        await stream.send(pb.WriteContentRequest(action=pb.STAT, expected=str(digest_of(data))))
        with pytest.raises(errors.AlreadyExists) as caught:
            await stream.receive()
    assert str(caught.value) == f"blob with expected digest {digest_of(data)} exists"
    with pytest.raises(errors.NotFound):
        await content.Status(pb.StatusRequest(ref=ref))


async def test_locked_words(content: content_stubs.Content, ref: str) -> None:
    """A second writer gets containerd's words, with the time since which the ref has had a writer."""
    async with content.Write() as stream:
        await stream.send(pb.WriteContentRequest(action=pb.STAT, ref=ref))
        await stream.receive()
        with pytest.raises(
            errors.Unavailable,
            match=rf"^ref {ref} locked for [0-9.]+(ms|µs|s) \(since 20\d\d-\d\d-\d\d [0-9:.]+ \+0000 UTC\): unavailable$",
        ):
            await exchange(content, pb.WriteContentRequest(action=pb.STAT, ref=ref))


async def test_half_closed(content: content_stubs.Content, ref: str) -> None:
    """A client that stops sending leaves a resumable ingest, which is unlocked when its call ends; a call without
    messages is no error.
    """
    await exchange(content, pb.WriteContentRequest(action=pb.WRITE, ref=ref, data=b"abc"))
    [stat] = await exchange(content, pb.WriteContentRequest(action=pb.STAT, ref=ref))
    assert stat.offset == 3
    assert await exchange(content) == []


async def test_large_messages(content: content_stubs.Content, ref: str) -> None:
    """Clients of containerd 2 write 8 MiB at once."""
    data = bytes_of(8 << 20)
    _, answer = await exchange(
        content,
        pb.WriteContentRequest(action=pb.WRITE, ref=ref, data=data),
        pb.WriteContentRequest(action=pb.COMMIT, offset=len(data)),
    )
    assert answer.digest == str(digest_of(data))


async def test_stamp() -> None:
    """A store is stamped once: with the same id again, or not at all; the id survives the process."""
    with (
        short_directory() as directory,
        ServiceProcess("services.content", directory / "r", directory / "s") as running,
    ):
        async with rpc.Channel(running.sockets[0]) as channel:
            stamp = channel.client(stamp_stubs.STAMP)
            assert (await stamp.Get(stamp_pb2.GetRequest())).store_id == ""
            with pytest.raises(errors.InvalidArgument):
                await stamp.Set(stamp_pb2.SetRequest())
            for _ in range(2):
                await stamp.Set(stamp_pb2.SetRequest(store_id="one"))
            with pytest.raises(errors.FailedPrecondition, match="belongs to metadata store one"):
                await stamp.Set(stamp_pb2.SetRequest(store_id="two"))
        running.kill()
        running.start()
        async with rpc.Channel(running.sockets[0]) as channel:
            stamp = channel.client(stamp_stubs.STAMP)
            assert (await stamp.Get(stamp_pb2.GetRequest())).store_id == "one"
        assert (directory / "r/content/store-id").read_text() == "one\n"


async def test_one_process_a_directory() -> None:
    """A directory has one content process: a second one waits, and serves when the first is gone."""
    with short_directory() as directory, ServiceProcess("services.content", directory / "r", directory / "s") as first:
        socket = directory / "s2/content.sock"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "services.content",
            "--root",
            directory / "r",
            "--state",
            directory / "s2",
        ]
        second = subprocess.Popen(command, cwd=TOP, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: _waits_for_flock(second.pid), "the second process does not come to the directory")
            assert not listening(socket)
            assert first.stop() == 0
            eventually(lambda: listening(socket), "the second process does not listen")
        finally:
            second.terminate()
            second.wait(20)


def _waits_for_flock(pid: int) -> bool:
    """Return whether a process has a directory open to lock it: it opens the directory, then tries to lock it."""
    return any(
        os.readlink(entry).endswith("/content") for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()
    )


async def test_a_write_says_what_its_time_went_for(place: Path) -> None:
    """By measurement: the client's pauses, the disk, the digest."""
    exporter = Recorder()
    tracing.setup(exporter.export, loose=True)
    try:
        with contextlib.closing(LocalStore(place / "root")) as store:
            async with rpc.serving(place / "s", [ContentServicer(store)]), rpc.Channel(place / "s") as channel:
                writer = await RemoteStore(channel).writer("ref", 2 << 20)
                await writer.write(b"a" * (1 << 20))
                await asyncio.sleep(0.05)  # the client's pause
                await writer.write(b"a" * (1 << 20))
                await writer.commit(2 << 20)
    finally:
        tracing.reset()
    (written,) = [
        span.attributes or {}
        for span in exporter.get_finished_spans()
        if span.name.endswith("/Write") and span.kind.name == "SERVER"
    ]
    assert float(str(written["splitd.time.client_ms"])) >= 50
    assert float(str(written["splitd.time.disk_ms"])) > 0
    assert written["splitd.time.cpu_ms"] == written["splitd.time.digest_ms"]
    assert float(str(written["splitd.time.digest_ms"])) > 0
