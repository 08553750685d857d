"""The processes beside a tasks service, for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peer import containerd
from tests.support import ServiceProcess, short_directory


@pytest.fixture(scope="module")
def gateway() -> Iterator[ServiceProcess]:
    """The gateway of a node without tasks, which is below DIRECTORY/r and DIRECTORY/s."""
    with short_directory() as directory:
        root, state = directory / "r", directory / "s"
        with (
            ServiceProcess("services.content", root, state),
            ServiceProcess("services.metadata", root, state),
            ServiceProcess("services.snapshots", root, state, sockets=("snapshots-overlayfs.sock",)),
            ServiceProcess("gateway", root, state, sockets=("containerd.sock", "internal.sock")) as gateway,
        ):
            yield gateway


@pytest.fixture(scope="module")
def others(gateway: ServiceProcess) -> Path:
    """The directory of that node."""
    return gateway.state.parent


@pytest.fixture(scope="module")
def served(others: Path) -> Iterator[Path]:
    """That node with tasks."""
    with ServiceProcess("services.tasks", others / "r", others / "s") as process:
        yield others
    assert "Traceback" not in process.text(), process.text()


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The directory of Debian's containerd."""
    with short_directory() as directory, containerd(directory):
        yield directory
