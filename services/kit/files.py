"""Small files that survive a power cut: whole, as they were or as they are to be."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Put a file with ``text`` in the place of ``path``, durably: after a power cut in between, the one that was there
    is there. OSError, as on a full disk; then that one is there, too, and nothing else is left.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: str | Path) -> None:
    """Make the entries of ``directory`` survive a power cut: what was made, renamed or removed in it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
