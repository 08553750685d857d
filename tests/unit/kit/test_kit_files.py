"""Small files that survive a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from services.kit import files


def test_a_file_is_replaced_by_one_that_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First its bytes are on the disk, then its name, then the directory."""
    path, done = tmp_path / "kept.json", list[str]()
    fsync, rename = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        fsync(fd)

    def renamed(source: str, target: Path) -> None:
        assert Path(source).read_text() == "words"
        done.append(f"{os.path.basename(source)} -> {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    files.replace(path, "words")
    assert path.read_text() == "words"
    assert done == ["kept.json.new", "kept.json.new -> kept.json", "."]


@pytest.mark.parametrize("before", ["before", None], ids=["one was there", "none was"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    """No other file is left that would need room."""
    path = tmp_path / "kept.json"
    if before is not None:
        path.write_text(before)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.replace(path, "words")
    assert [each.read_text() for each in tmp_path.iterdir()] == ([before] if before is not None else [])
