"""The content store on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.content.local import LocalStore
from services.content.store import Files
from services.kit import errors
from tests.suites.content import ContentSuite, FilesSuite, put


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "content")
    yield store
    store.close()


@pytest.fixture
def files(store: LocalStore) -> Files:
    return store.files


class TestLocal(ContentSuite):
    """The suite on the local store."""


class TestLocalFiles(FilesSuite):
    """The suite on its files."""


async def test_many_are_removed_in_one_call(store: LocalStore) -> None:
    """Blobs and ingests; what is not there, or names nothing that can be, stops none of the others."""
    kept, gone = await put(store, b"kept"), await put(store, b"gone", labels={"label": "x"})
    open_ = await store.writer("open")
    await open_.close()
    done = await store.remove_all([("blob", str(gone)), ("blob", str(gone)), ("blob", "sha256:x"), ("snapshot", "s"), ("ingest", "none"), ("ingest", "open")])
    assert [type(outcome) for outcome in done] == [type(None), errors.NotFound, errors.InvalidArgument, errors.InvalidArgument, errors.NotFound, type(None)]
    assert [info.digest async for info in store.list()] == [kept]
    assert await store.list_statuses() == []
