"""The record of a task's processes beside its bundle, and which of them may be killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.tasks import dead_shim
from services.tasks.bundle import Address, Bundle
from services.tasks.dead_shim import Sighting


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_sighting_is_kept(place: Path) -> None:
    """It is read as it was written; a damaged one counts as none."""
    path = place / "ns:id"
    assert dead_shim.read(path) is None
    seen = Sighting(
        "/bin/shim", Address("ttrpc", "unix:///x", 3), 7, 1 << 60, True, 4026531840, "0::/a\n", {"runtime": "runc"}
    )
    seen.write(path)
    assert dead_shim.read(path) == seen
    for damaged in (b"", b"[]", b'{"pid": -1}', b'{"pid": "7"}', b"[" * 5000):
        path.write_bytes(damaged)
        assert dead_shim.read(path) is None


def test_only_the_process_that_was_seen_is_killed(place: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """Another process with the same pid, but another start time, is not killed; nor is one in the mount namespace and
    cgroups of this process.
    """
    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(None)
    seen = dead_shim.see(bundle, "/bin/shim", None, sleeper.pid)
    assert (seen.pid, seen.alone, seen.mounts, seen.began > 0) == (sleeper.pid, False, 0, True)
    assert dead_shim.end(replace(seen, began=seen.began - 1), 1.0) == []
    assert sleeper.poll() is None
    assert dead_shim.end(seen, 10.0) == []
    assert sleeper.wait(10) == -signal.SIGKILL
    assert dead_shim.end(seen, 1.0) == []
    bundle.delete()


@pytest.mark.parametrize("of", ["pidfd_open", "stat"])
def test_a_process_that_cannot_be_checked_is_not_dead(
    place: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """A process that runs out of open files cannot check a task's processes, and raises an error; otherwise it would
    forget a running container.
    """
    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(None)
    seen = dead_shim.see(bundle, "/bin/shim", None, sleeper.pid)

    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if of == "stat":
        monkeypatch.setattr(Path, "read_text", refused)
    else:
        monkeypatch.setattr(os, "pidfd_open", refused)
    with pytest.raises(OSError, match="Too many open files"):
        dead_shim.end(seen, 1.0)
    if of == "stat":
        with pytest.raises(OSError, match="Too many open files"):
            dead_shim.see(bundle, "/bin/shim", None, sleeper.pid)
    monkeypatch.undo()
    assert sleeper.poll() is None
    bundle.delete()


def test_without_a_sighting_the_runtimes_state_counts(place: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """The bundle's pid is taken for the init's if the state of runc or crun has the start time of this process."""
    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(None)
    (bundle.path / "init.pid").write_text(str(sleeper.pid))
    began = dead_shim.see(bundle, "", None, sleeper.pid).began
    root = place / "runc"
    state = root / "ns/c"
    state.mkdir(parents=True)
    assert dead_shim.in_bundle(bundle, "shim", root).pid == 0
    for name, pid, start in (
        ("state.json", "init_process_pid", "init_process_start"),
        ("status", "pid", "process-start-time"),
    ):
        (state / name).write_text(json.dumps({pid: sleeper.pid, start: began - 1}))
        assert dead_shim.in_bundle(bundle, "shim", root).pid == 0
        (state / name).write_text(json.dumps({pid: sleeper.pid, start: began, "more": [1]}))
        assert dead_shim.in_bundle(bundle, "shim", root).pid == sleeper.pid
        (state / name).unlink()
    bundle.delete()


@pytest.mark.root
def test_without_a_pid_namespace_processes_with_its_mounts_and_cgroups_are_killed(
    place: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """The init is dead and its child lives: the child is killed. A process with the same cgroups but other mounts is
    not.
    """
    bundle = Bundle.of(place / "root", place / "state", "ns", "c")
    bundle.create(None)
    init = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"], stdout=subprocess.PIPE
    )
    try:
        assert init.stdout is not None
        child = int(init.stdout.readline())
        seen = dead_shim.see(bundle, "", None, init.pid)
        assert seen.mounts
        init.kill()
        init.wait()
        assert dead_shim.end(replace(seen, mounts=0), 1.0) == []
        assert os.path.exists(f"/proc/{child}/ns/mnt")
        assert dead_shim.end(seen, 10.0) == []
        assert (
            not os.path.exists(f"/proc/{child}")
            or Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )
        assert sleeper.poll() is None
    finally:
        init.kill()
        init.wait()
        dead_shim.end(seen, 10.0)
    bundle.delete()
