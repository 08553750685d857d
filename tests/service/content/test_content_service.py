"""The content suite over a socket: on our process, and on Debian's containerd, to check the suite itself."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.content.remote import RemoteFiles, RemoteStore
from services.content.store import Files, Store
from services.kit import errors, rpc
from tests.peer import containerd
from tests.suites.content import ContentSuite, FilesSuite, digest_of, leased, opened
from tests.support import ServiceProcess, short_directory

_numbers = itertools.count()


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    """The content process."""
    with (
        short_directory() as directory,
        ServiceProcess("services.content", directory / "r", directory / "s") as running,
    ):
        yield running


@pytest.fixture
async def channel(service: ServiceProcess) -> AsyncIterator[rpc.Channel]:
    async with rpc.Channel(service.sockets[0], "content") as channel:
        yield channel


async def _clear(store: Store) -> None:
    for status in await store.list_statuses():
        await store.abort(status.ref)
    for digest in [info.digest async for info in store.list()]:
        await store.delete(digest)


@pytest.fixture
async def store(channel: rpc.Channel) -> Store:
    store = RemoteStore(channel)
    await _clear(store)
    return store


class TestService(ContentSuite):
    """The suite on a content process."""


class TestServiceFiles(FilesSuite):
    """The suite on its files."""

    @pytest.fixture
    def files(self, channel: rpc.Channel) -> Files:
        return RemoteFiles(channel)


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The socket of Debian's containerd."""
    with short_directory() as directory, containerd(directory) as socket:
        yield socket


def containerd_version() -> tuple[int, ...]:
    """Return the version of the program that the tests start."""
    words = subprocess.run(["containerd", "--version"], capture_output=True, text=True, check=True).stdout.split()
    return tuple(int(part) for part in words[2].lstrip("v").split("~")[0].split("-")[0].split(".")[:2])


@pytest.mark.root
class TestContainerd(ContentSuite):
    """The suite on containerd, in a namespace for each test. Overridden tests are those of deliberate differences."""

    namespaced = True

    @pytest.fixture
    async def store(self, debian: Path) -> AsyncIterator[Store]:
        async with rpc.Channel(debian) as channel, leased(channel, f"suite{next(_numbers)}") as headers:
            store = RemoteStore(channel, headers)
            yield store
            await _clear(store)

    @pytest.mark.parametrize("at_opening", [False, True])
    async def test_sha512(self, store: Store, at_opening: bool) -> None:
        """containerd 1.6 to at least 2.1 cannot resume a sha512 blob; its present source can."""
        if containerd_version() < (2, 4):
            pytest.skip("this containerd writes no sha512")
        await super().test_sha512(store, at_opening)

    async def test_wrong_digest(self, store: Store) -> None:  # type: ignore[override]
        """containerd keeps an ingest whose bytes are wrong, so that the next attempt continues with them; we remove
        it.
        """
        async with opened(store, "w") as writer:
            await writer.write(b"other bytes")
            with pytest.raises(errors.FailedPrecondition, match="unexpected commit digest"):
                await writer.commit(0, digest_of(b"these"))
        assert (await store.status("w")).offset == len(b"other bytes")

    async def test_wrong_size(self, store: Store) -> None:
        """The same for a wrong size."""
        async with opened(store, "w") as writer:
            await writer.write(b"other bytes")
            with pytest.raises(errors.FailedPrecondition):
                await writer.commit(4)
        assert (await store.status("w")).offset == len(b"other bytes")
