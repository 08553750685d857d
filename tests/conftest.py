"""Fixtures for every tier; nothing starts until a test asks for it."""

from __future__ import annotations

from tests import steady

steady.install()  # before anything takes time.monotonic as a default

import collections
import contextlib
import os
import re
import signal
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
CHOSEN = frozenset({"transport", "wire"})
"""Fixtures that choose the transport of gRPC for their test."""


def pytest_configure() -> None:
    """Take Ctrl-C, and let the programs that tests start take it: a script's background job is born without."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that choose the transport themselves as ``once``: they do the same in a run on the other one."""
    for item in items:
        if isinstance(item, pytest.Function) and not CHOSEN.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.once)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the files that took longest, including setup and teardown."""
    took: dict[str, float] = collections.defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                took[report.nodeid.partition("::")[0]] += report.duration
    if len(took) > SLOWEST:
        terminalreporter.section(f"slowest {SLOWEST} files")
        for name, seconds in sorted(took.items(), key=lambda each: -each[1])[:SLOWEST]:
            terminalreporter.line(f"{seconds:7.1f}s {name}")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A test has the same name in each run, by which it is run once more: bytes are no name, since what is compressed
    has the time of day in it.
    """
    return argname if isinstance(val, bytes) and not _READABLE.fullmatch(val) else None


_READABLE = re.compile(rb"[ -~]{0,24}")


@pytest.fixture(scope="module", autouse=True)
def in_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put the directories of unit and service tests in memory, if there is room: the results do not depend on the disk,
    and half of the tests' time was waiting for it.

    Whole nodes, including killed ones, are on the disk. So is everything if SPLITD_TEST_DIR names a directory.
    """
    with pytest.MonkeyPatch.context() as environment:
        if (
            request.path.is_relative_to(TOP / "tests")  # and not a stranger's, who runs a suite on something of theirs
            and ON_DISK.isdisjoint(request.path.relative_to(TOP / "tests").parts)
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
    """Keep the records of the tests' nodes out of this machine's."""
    with short_directory() as directory, pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPLITD_NODES", str(directory))
        yield


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory for the test (sockets fit below it), unmounted and removed afterwards."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def disks() -> Iterator[Callable[[str], Path | None]]:
    """A function that returns a directory on a file system of a given kind, on a loop device of its own; None for "",
    which means any kind.
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
    """A registry on loopback that misbehaves on request."""
    from tests.fake_registry import FakeRegistry  # it imports an HTTP server, which most tests do without

    async with FakeRegistry() as running:
        yield running


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A running node, shared by the tests of a file. Afterwards its containers are stopped and its directories
    removed.
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
