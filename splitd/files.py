"""Files that survive a power cut. The order is always: the data and fsync, the rename, then fsync of the directory.
Everything here blocks.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Any

from services.kit.files import replace, sync_directory
from services.snapshots.disk import remove_small, sync_filesystem

__all__ = ["Filesystem", "attribute", "remove_tree", "replace", "set_attribute", "sync_directory"]

log = logging.getLogger(__name__)


def remove_tree(directory: Path) -> bool:
    """Remove a directory with everything in it, but for what is mounted there. Returns whether it is gone; what cannot
    be removed is logged.
    """
    if not remove_small(str(directory)):
        command = ["rm", "--recursive", "--force", "--one-file-system", "--", str(directory)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            log.warning("%s cannot be removed: %s", directory, done.stderr.strip())
    return not os.path.lexists(directory)


def attribute(file: FileIO | Path, name: str) -> Any:
    """The value of an extended attribute, which is JSON; None if the file has none of this name, or one that a power
    cut has spoilt.
    """
    try:
        return json.loads(os.getxattr(file.fileno() if isinstance(file, FileIO) else file, name))
    except ValueError:
        return None
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def set_attribute(file: FileIO, name: str, value: object) -> None:
    """Set an extended attribute to ``value``, as JSON, in one step. It is durable with the file's next fsync. OSError
    where a file system has none, or no room for it: ext4 has 4 KB for all attributes of a file.
    """
    os.setxattr(file.fileno(), name, json.dumps(value).encode())


class Filesystem:
    """The file system of ``directory``, as what can be made durable as a whole: for many files this is less work than
    an fsync of each. Any thread may use it.
    """

    def __init__(self, directory: Path) -> None:
        # kept open: the kernel reports a write that failed since the last syncfs on this file, and reports it once
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._failed_at = 0

    def sync(self, since: int = 0) -> None:
        """Return when everything that was written before is on the disk. OSError if some of it could not be written
        since the time ``since`` (nanoseconds since the epoch), whichever call the kernel told.
        """
        with self._lock:
            try:
                sync_filesystem(self._fd)
            except OSError:
                self._failed_at = time.time_ns()
                raise
            if since < self._failed_at:
                raise OSError(errno.EIO, "some writes have failed since then: make it anew")

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
