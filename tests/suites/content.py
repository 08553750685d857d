"""The promises of a content store, as tests: the rules of conform/content_ingests.py and content_blobs.py. They run on the local store, on the
served one, through the gateway, and on containerd itself.

A subclass has a fixture ``store``, fresh for each test. Its attribute ``namespaced`` says whether metadata's records
are involved. If they are, ``store`` writes under a lease, since the collector would otherwise remove what the tests
made.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from conform import content_blobs, content_files, content_ingests
from conform.content_case import ContentCase, bytes_of, digest_of, get, opened, put
from services.content.store import Files, Store
from services.kit import rpc
from tests.suites import rules

__all__ = ["ContentSuite", "FilesSuite", "bytes_of", "digest_of", "get", "leased", "opened", "put"]


@contextlib.asynccontextmanager
async def leased(channel: rpc.Channel, namespace: str) -> AsyncIterator[dict[str, str]]:
    """The headers of a client that works in ``namespace`` under a lease of its own, so that the collector leaves its
    blobs alone.
    """
    leases = channel.client(leases_stubs.LEASES)
    headers = {rpc.NAMESPACE: namespace}
    await leases.Create(leases_pb2.CreateRequest(id="suite"), headers=headers)
    yield {**headers, rpc.LEASE: "suite"}
    await leases.Delete(leases_pb2.DeleteRequest(id="suite"), headers=headers)


@rules.of(content_ingests.RULES, content_blobs.RULES)
class ContentSuite:
    """Every promise of ``store.Store``."""

    namespaced = False
    lacks: frozenset[str] = frozenset()
    """What is optional and not offered."""

    @pytest.fixture
    def case(self, store: Store) -> ContentCase:
        return ContentCase(store=store, strict=True, lacks=self.lacks, namespaced=self.namespaced)


@rules.of(content_files.RULES)
class FilesSuite:
    """Every promise of ``store.Files``; the fixtures ``store`` and ``files`` are two interfaces of one store."""

    @pytest.fixture
    def case(self, store: Store, files: Files) -> ContentCase:
        return ContentCase(store=store, files=files, strict=True)
