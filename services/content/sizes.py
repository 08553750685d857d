"""The size of a content store, for metrics."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from services.kit.metrics_stores import Size


def of_store(root: Path) -> Size:
    """The bytes on the disk and the numbers of blobs and ingests below ``root``."""
    blobs, blob_bytes = _files(root / "blobs")
    ingests, ingest_bytes = _files(root / "ingest", "data")
    return Size(blob_bytes + ingest_bytes, {"blobs": blobs, "ingests": ingests})


def _files(top: Path, called: str = "") -> tuple[int, int]:
    """The number of files in the directories of ``top``, or of those with a name, and their bytes on the disk."""
    number = size = 0
    for directory in os.scandir(top):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile
            for file in os.scandir(directory):
                if called in ("", file.name):
                    size += file.stat(follow_symlinks=False).st_blocks * 512
                    number += 1
    return number, size
