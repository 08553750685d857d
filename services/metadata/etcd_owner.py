"""Who a node is to the records in etcd, and where it has had some: two files of ROOT/metadata."""

from __future__ import annotations

import contextlib
import socket
import uuid
from pathlib import Path

from services.kit import errors, files
from services.metadata.etcd_rows import Owner


class NotOwnerError(errors.FailedPrecondition):
    """Another node owns the records."""


class Claims:
    """Where a node has had records: the prefixes in ``directory``/claimed."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "claimed"

    def has(self, prefix: str) -> bool:
        """Whether there were records."""
        try:
            return prefix in self._path.read_text().splitlines()
        except FileNotFoundError:
            return False

    def add(self, prefix: str) -> None:
        """There are now. It writes a file."""
        if not self.has(prefix):
            before = self._path.read_text() if self._path.exists() else ""
            files.replace(self._path, f"{before}{prefix}\n")

    def __str__(self) -> str:
        return str(self._path)


def this_node(directory: Path) -> Owner:
    """The node of ROOT/metadata, which is ``directory``. Its id is in the file owner, which is made once."""
    path = directory / "owner"
    try:
        node = path.read_text().strip()
    except FileNotFoundError:
        node = uuid.uuid4().hex
        files.replace(path, f"{node}\n")
    machine = ""
    with contextlib.suppress(OSError):
        machine = Path("/etc/machine-id").read_text().strip()
    return Owner(node=node, host=socket.gethostname(), machine=machine, root=str(directory.parent))
