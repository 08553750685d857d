"""mount(2), umount2(2), statfs(2): what they tell, and their errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from services.kit import mounting

_PROC = 0x9FA0
"""PROC_SUPER_MAGIC of linux/magic.h."""


def test_the_type_of_a_file_system_is_told_by_a_path_and_by_an_open_file() -> None:
    fd = os.open("/proc/self", os.O_RDONLY)
    try:
        assert mounting.type_of(fd) == mounting.type_of("/proc/self") == mounting.type_of(Path("/proc")) == _PROC
    finally:
        os.close(fd)


def test_what_is_not_there_has_no_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mounting.type_of(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")


def test_options_beyond_a_page_are_refused_before_the_kernel_cuts_them_off(tmp_path: Path) -> None:
    """Options are counted in bytes. The kernel would mount with those that fit."""
    with pytest.raises(mounting.OptionsTooLongError, match=f"4096 bytes for {tmp_path}") as caught:
        mounting.mount("none", tmp_path, "tmpfs", 0, "é" * 2048)
    assert caught.value.errno == errno.E2BIG


def test_what_the_kernel_refuses_names_the_source_or_the_target(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        mounting.mount("/missing/image", tmp_path, "no-such-type", mounting.RDONLY, "")
    assert caught.value.filename == "/missing/image"
    assert caught.value.errno in (errno.ENODEV, errno.EPERM)  # EPERM: without root
    with pytest.raises(OSError) as caught:
        mounting.unmount(tmp_path)
    assert caught.value.filename == str(tmp_path)
    assert caught.value.errno in (errno.EINVAL, errno.EPERM)
