"""The blobs of an image's layers, as those who unpack them wait for them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.images.transfer import Ingest


class Blobs(Protocol):
    """The blobs of an image's layers, by number; 0 is the lowest."""

    def wanted(self, number: int) -> None:
        """Announce that this blob and all above it will be asked for. Called at least once before any is asked for."""
        ...

    async def begun(self, number: int) -> None:
        """Return when the blob has begun to arrive, or exists."""
        ...

    def ingest(self, number: int) -> AbstractAsyncContextManager[Ingest | None]:
        """The ingest of a blob that is arriving or has just arrived; for one block only. None if the blob exists and
        can be read from the store.
        """
        ...

    async def there(self, number: int) -> None:
        """Return when the blob exists."""
        ...

    async def config_there(self) -> None:
        """Return when the blob of the image's config exists."""
        ...


class CompleteBlobs:
    """The ``Blobs`` of an image whose blobs all exist."""

    def wanted(self, number: int) -> None:
        return

    async def begun(self, number: int) -> None:
        return

    @contextlib.asynccontextmanager
    async def ingest(self, number: int) -> AsyncIterator[None]:
        yield

    async def there(self, number: int) -> None:
        return

    async def config_there(self) -> None:
        return
