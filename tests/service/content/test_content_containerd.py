"""Our store and containerd's are the same on disk: each continues with the other's blobs and half-written ingests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.content.local import LocalStore
from services.content.remote import RemoteStore
from services.kit import rpc
from tests.peer import containerd
from tests.suites.content import bytes_of, digest_of, get, leased, opened, put
from tests.support import short_directory

pytestmark = pytest.mark.root
PLUGIN = "r/io.containerd.content.v1.content"


async def test_we_take_over_containerds_store() -> None:
    """A directory that containerd wrote has its blobs, and its ingest goes on at its offset."""
    data = bytes_of(3000)
    with short_directory() as directory:
        with containerd(directory) as socket:
            async with rpc.Channel(socket) as channel, leased(channel, "ns") as headers:
                store = RemoteStore(channel, headers)
                blob = await put(store, data)
                async with opened(store, "half", 2000) as writer:
                    await writer.write(data[:1000])
                    theirs = await writer.status()
                shutil.copytree(directory / PLUGIN, directory / "copy")
        ours = LocalStore(directory / "copy")
        assert await get(ours, blob) == data
        [status] = await ours.list_statuses()
        assert status.ref.endswith("/half")
        assert (status.offset, status.total, status.started_at) == (1000, 2000, theirs.started_at)
        async with opened(ours, status.ref, 2000) as writer:
            await writer.write(data[1000:2000])
            assert await writer.commit(2000) == digest_of(data[:2000])
        ours.close()


async def test_containerd_takes_over_ours() -> None:
    """containerd goes on with the ingest that we left in its directory."""
    data = bytes_of(3000)
    with short_directory() as directory:
        with containerd(directory) as socket:
            async with rpc.Channel(socket) as channel:
                store = RemoteStore(channel, {rpc.NAMESPACE: "ns"})
                async with opened(store, "half", 3000) as writer:
                    await writer.write(data[:1000])
        ours = LocalStore(directory / PLUGIN)
        [status] = await ours.list_statuses()
        async with opened(ours, status.ref, 3000) as writer:
            await writer.write(data[1000:2000])
        ours.close()
        for name in ("labels", "scratch"):
            shutil.rmtree(directory / PLUGIN / name)
        with containerd(directory) as socket:
            async with rpc.Channel(socket) as channel:
                store = RemoteStore(channel, {rpc.NAMESPACE: "ns"})
                async with opened(store, "half", 3000) as writer:
                    assert (writer.offset, writer.digest) == (2000, str(digest_of(data[:2000])))
                    assert (await writer.status()).started_at == status.started_at
                    await writer.write(data[2000:])
                    assert await writer.commit(3000, digest_of(data)) == digest_of(data)


def test_a_new_store(tmp_path: Path) -> None:
    """Opening a store for the first time creates it completely."""
    LocalStore(tmp_path / "a/b/content").close()
    assert sorted(path.name for path in (tmp_path / "a/b/content").iterdir()) == [
        "blobs",
        "ingest",
        "labels",
        "scratch",
    ]
