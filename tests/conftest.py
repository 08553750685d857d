"""Fixtures for every tier; nothing runs until a test asks for it."""

from __future__ import annotations

from tests import steady

steady.install()  # before anything takes time.monotonic for a default

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.images import Registry, busybox_image
from tests.support import Node, short_directory


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory of the test's own (sockets fit below it), unmounted and removed afterwards."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """Debian's docker-registry on loopback, with ``box:1``: busybox."""
    with short_directory() as directory, Registry(directory) as running:
        running.push(busybox_image(), "box:1")
        yield running


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node that is up, shared by a file's tests; its containers are stopped and its directories removed afterwards."""
    with short_directory() as directory:
        running = Node(directory)
        try:
            running.up()
            yield running
        finally:
            running.clear()


@pytest.fixture(scope="module")
def box(node: Node, registry: Registry) -> str:
    """The reference of a busybox image that the node has pulled, into namespace default."""
    reference = f"{registry.host}/box:1"
    node.ctr("images", "pull", "--plain-http", reference)
    return reference
