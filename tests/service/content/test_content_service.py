"""The content suite over a socket: on our process, and on Debian's containerd, to check the suite itself."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conform.content_case import CLEAN, SHA512
from services.content.remote import RemoteFiles, RemoteStore
from services.content.store import Files, Store
from services.kit import rpc
from tests.peer import containerd
from tests.suites.content import ContentSuite, FilesSuite, leased
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
    """The suite on containerd, in a namespace for each test. It keeps an ingest whose bytes are wrong, so that the next
    attempt continues with them; we remove it.
    """

    namespaced = True

    @property
    def lacks(self) -> frozenset[str]:  # type: ignore[override]
        """containerd 1.6 to at least 2.1 cannot resume a sha512 blob; its present source can."""
        return frozenset({CLEAN} if containerd_version() >= (2, 4) else {CLEAN, SHA512})

    @pytest.fixture
    async def store(self, debian: Path) -> AsyncIterator[Store]:
        async with rpc.Channel(debian) as channel, leased(channel, f"suite{next(_numbers)}") as headers:
            store = RemoteStore(channel, headers)
            yield store
            await _clear(store)
