"""The content store on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.content.local import LocalStore
from services.content.store import Files
from tests.suites.content import ContentSuite, FilesSuite


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
