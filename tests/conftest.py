"""Fixtures for every tier; nothing runs until a test asks for it."""

from __future__ import annotations

from tests import steady

steady.install()  # before anything takes time.monotonic for a default

import collections
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.samples import Registry, busybox_image
from tests.support import TOP, Node, loop_disk, short_directory

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from tests.fake_registry import FakeRegistry

MEMORY, ROOM = "/dev/shm", 2 << 30
ON_DISK = {"node", "crash"}
SLOWEST = 20


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Which files took longest, set up and torn down: where there is time to be had."""
    took: dict[str, float] = collections.defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                took[report.nodeid.partition("::")[0]] += report.duration
    if len(took) > SLOWEST:
        terminalreporter.section(f"slowest {SLOWEST} files")
        for name, seconds in sorted(took.items(), key=lambda each: -each[1])[:SLOWEST]:
            terminalreporter.line(f"{seconds:7.1f}s {name}")


@pytest.fixture(scope="module", autouse=True)
def in_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where there is room, the directories of unit and service tests are in memory: what they ask does not depend on
    the disk, for which they waited half of their time.

    Whole nodes, killed ones too, are on the disk; and so is all of it if SPLITD_TEST_DIR says where.
    """
    with pytest.MonkeyPatch.context() as environment:
        if (
            ON_DISK.isdisjoint(request.path.relative_to(TOP / "tests").parts)
            and "SPLITD_TEST_DIR" not in os.environ
            and _room(MEMORY) > ROOM
        ):
            environment.setenv("SPLITD_TEST_DIR", MEMORY)
        yield


def _room(directory: str) -> int:
    """Bytes that can be written there."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


@pytest.fixture(scope="session", autouse=True)
def nodes() -> Iterator[None]:
    """What is remembered of the tests' nodes is no business of this machine's."""
    with short_directory() as directory, pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPLITD_NODES", str(directory))
        yield


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory of the test's own (sockets fit below it), unmounted and removed afterwards."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def disks() -> Iterator[Callable[[str], Path | None]]:
    """Answers a directory on a file system of the kind that is asked for, on a loop device of its own, and None for
    "", any kind.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Path | None] = {"": None}

        def disk(kind: str) -> Path | None:
            if kind not in found:
                found[kind] = stack.enter_context(loop_disk(kind))
            return found[kind]

        yield disk


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """Debian's docker-registry on loopback, with ``box:1``: busybox."""
    with short_directory() as directory, Registry(directory) as running:
        running.push(busybox_image(), "box:1")
        yield running


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    """A registry on loopback that misbehaves as it is told."""
    from tests.fake_registry import FakeRegistry  # it brings an HTTP server along, which most tests do without

    async with FakeRegistry() as running:
        yield running


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node that is up, shared by a file's tests; its containers are stopped and its directories removed
    afterwards.
    """
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
