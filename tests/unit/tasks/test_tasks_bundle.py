"""Bundles on disk."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from services.kit import errors
from services.tasks.bundle import Address, Bundle
from services.tasks.spec import remapped_gid

DAMAGED = ("", "[1]", '{"version":3}', '{"version":"3","address":"x","protocol":"ttrpc"}', "[" * 5000)
"""Contents of a bootstrap.json that are no address."""


def of(place: Path, name: str = "c") -> Bundle:
    return Bundle.of(place / "root", place / "state", "ns", name)


def test_made_and_deleted(place: Path) -> None:
    """A deleted bundle leaves nothing, not even its work directory; deleting a missing bundle is no error."""
    bundle = of(place)
    bundle.create(b"{}")
    assert sorted(p.name for p in bundle.path.iterdir()) == ["config.json", "rootfs", "work"]
    assert (os.stat(bundle.path).st_mode & 0o7777, os.stat(bundle.path / "rootfs").st_mode & 0o7777) == (0o700, 0o711)
    (bundle.work / "scratch").write_text("x")
    bundle.delete()
    bundle.delete()
    assert list(bundle.path.parent.iterdir()) == []
    assert list(bundle.work.parent.iterdir()) == []


def test_existing_bundle_is_left_alone(place: Path) -> None:
    """A second creation fails and does not touch the first; a work directory alone, left by a reboot, is replaced."""
    bundle = of(place)
    bundle.create(b"1")
    with pytest.raises(FileExistsError):
        bundle.create(b"2")
    assert (bundle.path / "config.json").read_bytes() == b"1"
    bundle.delete()
    bundle.work.mkdir()
    (bundle.work / "old").touch()
    bundle.create(b"3")
    assert list(bundle.work.iterdir()) == []
    bundle.delete()


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 77, "a b"])
def test_names_are_checked(place: Path, name: str) -> None:
    """An invalid identifier makes no directory."""
    with pytest.raises(errors.InvalidArgument, match="^invalid task id "):
        of(place, name).create(None)
    assert not (place / "state").exists()


def test_user_namespaces_may_enter(place: Path) -> None:
    """The group to which group 0 is mapped gets the bundle, with mode 0710."""
    gid = remapped_gid(
        json.dumps(
            {"linux": {"gidMappings": [{"containerID": 5, "hostID": 7}, {"containerID": 0, "hostID": 4242, "size": 9}]}}
        ).encode()
    )
    bundle = of(place)
    bundle.create(None, gid=gid)
    status = os.stat(bundle.path)
    assert (status.st_gid, status.st_mode & 0o7777) == (4242, 0o710)
    assert not (bundle.path / "config.json").exists()
    bundle.delete()


@pytest.mark.root
def test_mounts_are_undone_and_nothing_in_them_deleted(place: Path) -> None:
    """Stacked and nested mounts of the root filesystem, one of them busy, are unmounted; the mounted files stay
    whole.
    """
    source = place / "source"
    (source / "inner").mkdir(parents=True)
    (source / "file").write_text("kept")
    bundle = of(place)
    bundle.create(None)
    rootfs = bundle.path / "rootfs"
    assert not bundle.mounted()
    for target in (rootfs, rootfs, rootfs / "inner"):
        subprocess.run(["mount", "--bind", source, target], check=True)
        assert bundle.mounted()
    with (rootfs / "file").open():
        bundle.delete()
    assert not bundle.path.exists() and not bundle.mounted()
    assert (source / "file").read_text() == "kept"


def test_a_rootfs_with_files_is_never_deleted(place: Path) -> None:
    """Files in the root filesystem's directory itself belong to its user: the bundle stays, with an error."""
    bundle = of(place)
    bundle.create(None)
    (bundle.path / "rootfs/precious").touch()
    with pytest.raises(OSError, match="not empty"):
        bundle.delete()
    assert (bundle.path / "rootfs/precious").exists()


def test_address_is_remembered_as_containerd_writes_it(place: Path) -> None:
    """bootstrap.json has containerd's keys; the bare address of an old shim is read too; without either file the
    address is None.
    """
    bundle = of(place)
    bundle.create(None)
    assert bundle.read_address() is None
    (bundle.path / "address").write_text("unix:///run/x")
    assert bundle.read_address() == Address("ttrpc", "unix:///run/x", 2)
    bundle.write_address(Address("ttrpc", "unix:///run/y", 3))
    assert json.loads((bundle.path / "bootstrap.json").read_text()) == {
        "version": 3,
        "address": "unix:///run/y",
        "protocol": "ttrpc",
    }
    assert bundle.read_address() == Address("ttrpc", "unix:///run/y", 3)
    bundle.write_program("/bin/shim")
    assert bundle.program() == "/bin/shim"
    assert bundle.init_pid() == 0
    (bundle.path / "init.pid").write_text("17")
    assert bundle.init_pid() == 17
    for damaged in DAMAGED:
        (bundle.path / "bootstrap.json").write_text(damaged)
        assert bundle.read_address() == Address("ttrpc", "unix:///run/x", 2)
    bundle.delete()
    assert (bundle.program(), bundle.read_address()) == ("", None)


@pytest.mark.parametrize("name", ["bootstrap.json", "address"])
def test_an_address_that_cannot_be_read_is_no_absent_one(place: Path, name: str) -> None:
    """Nothing about the shim follows from that: it may run."""
    bundle = of(place)
    bundle.create(None)
    for damaged in DAMAGED if name == "bootstrap.json" else ("", "\n"):
        (bundle.path / name).write_text(damaged)
        with pytest.raises(errors.DataLoss, match=f"/{name}: no address of a shim is in it"):
            bundle.read_address()
        assert bundle.readable_address() is None
    bundle.delete()


@pytest.mark.root
def test_a_state_file_is_complete_or_unchanged(place: Path) -> None:
    """The kernel writes only a part of it if there is no more room."""
    bundle = of(place)
    bundle.path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(bundle.path)], check=True)
    try:
        bundle.write_program("/bin/shim")
        with pytest.raises(OSError, match="No space left"):
            bundle.write_program("/bin/" + "x" * 6000)
        assert bundle.program() == "/bin/shim"
    finally:
        subprocess.run(["umount", str(bundle.path)], check=True)
