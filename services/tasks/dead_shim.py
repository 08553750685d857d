"""The processes that a dead shim left, and how they are killed if the shim's own program does not do it.

When a task is created, the data by which it can be ended without its bundle is written to
STATE/tasks/sightings/NAMESPACE:ID: a *sighting*. A task of an older build has none. Then the bundle's init.pid counts,
if the runtime's state says that the process with this pid began when the task's init did. A pid alone proves nothing:
another process may have it by now.

If the init is the first process of its pid namespace, all processes of the task die with it. If the task has no pid
namespace of its own, a process belongs to it if it is in the same mount namespace *and* in the same cgroups or below
them, and began later. The cgroup alone does not tell: containers of another node may share it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.kit import gojson
from services.kit.gojson import BOOLEAN, TEXT, Integer, MapOf, Optional, Struct
from services.tasks.bundle import Address, Bundle

log = logging.getLogger(__name__)

_GONE = (FileNotFoundError, NotADirectoryError, ProcessLookupError, PermissionError)
"""The kernel's errors for a file or a process that does not exist, or that we may not see. Any other error, such as
EMFILE, tells nothing about it.
"""
_LIMIT = 1 << 22
"""The largest state file that is read, in bytes. runc's has the container's whole configuration."""
_FILES = ("options.json", "runtime", "init.pid")
"""The files of the bundle that runc's shim reads when it cleans up."""

_NUMBER = Integer(0, (1 << 64) - 1)
_SHAPE = Struct(
    {
        "program": TEXT,
        "protocol": TEXT,
        "address": TEXT,
        "version": _NUMBER,
        "pid": _NUMBER,
        "began": _NUMBER,
        "alone": BOOLEAN,
        "mounts": _NUMBER,
        "cgroups": TEXT,
        "files": Optional(MapOf(TEXT)),
    }
)
_STATES = {"state.json": ("init_process_pid", "init_process_start"), "status": ("pid", "process-start-time")}
"""Files in which runc and crun keep a container's state, and their fields for its init's pid and start."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A task as it was when it was created. ``began`` is in clock ticks since the machine started, as in
    /proc/PID/stat. Zeros are unknown.
    """

    program: str = ""
    address: Address | None = None
    pid: int = 0
    began: int = 0
    alone: bool = False
    """True if the init is the first process of its pid namespace: then all of the task dies with it."""
    mounts: int = 0
    """The inode of the task's mount namespace; 0 if that is this process's."""
    cgroups: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace ``path`` by a rename."""
        address = self.address or Address("", "", 0)
        fields = {
            "program": self.program,
            "protocol": address.protocol,
            "address": address.address,
            "version": address.version,
            "pid": self.pid,
            "began": self.began,
            "alone": self.alone,
            "mounts": self.mounts,
            "cgroups": self.cgroups,
            "files": self.files,
        }
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(fields))
        temporary.rename(path)


def read(path: Path) -> Sighting | None:
    """Read the file of :meth:`Sighting.write`; None if there is none, or it is malformed."""
    try:
        found = gojson.read(_bytes(path), _SHAPE)
    except FileNotFoundError:
        return None
    except gojson.Malformed as error:
        log.warning("%s: %s", path, error)
        return None
    address = (
        Address(found["protocol"], found["address"], found["version"])
        if found.get("protocol") and found.get("address")
        else None
    )
    return Sighting(
        found.get("program", ""),
        address,
        found.get("pid", 0),
        found.get("began", 0),
        found.get("alone", False),
        found.get("mounts", 0),
        found.get("cgroups", ""),
        found.get("files") or {},
    )


def see(bundle: Bundle, program: str, address: Address | None, pid: int) -> Sighting:
    """The sighting of a task whose init is ``pid``. OSError if the kernel does not tell the data."""
    files = {}
    for name in _FILES:
        with contextlib.suppress(*_GONE):
            files[name] = _bytes(bundle.path / name).decode(errors="replace")
    try:
        began = _began(pid)
        mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        pids = next(
            line.split()[1:]
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("NSpid:")
        )
        cgroups = Path(f"/proc/{pid}/cgroup").read_text()
    except (*_GONE, StopIteration):
        return Sighting(program, address, files=files)  # it has ended
    return Sighting(
        program,
        address,
        pid,
        began,
        len(pids) > 1 and pids[-1] == "1",
        0 if mounts == os.stat("/proc/self/ns/mnt").st_ino else mounts,
        cgroups,
        files,
    )


def in_bundle(bundle: Bundle, program: str, root: Path) -> Sighting:
    """The sighting of a task for which none was written, from its bundle and its runtime's state. The state is below
    ``root``, unless the bundle names another directory. OSError as in :func:`see`.
    """
    pid = bundle.init_pid()
    with contextlib.suppress(*_GONE, gojson.Malformed):
        root = Path(gojson.read(_bytes(bundle.path / "options.json"), Struct({"root": TEXT})).get("root") or root)
    for name, (of_pid, of_start) in _STATES.items():
        with contextlib.suppress(*_GONE, gojson.Malformed):
            state = gojson.read(
                _bytes(root / bundle.namespace / bundle.id / name), Struct({of_pid: _NUMBER, of_start: _NUMBER})
            )
            if pid in (0, state.get(of_pid)) and state.get(of_pid) and _began(state[of_pid]) == state.get(of_start):
                return see(bundle, program, bundle.readable_address(), state[of_pid])
    return Sighting(program, bundle.readable_address())


def restore(bundle: Bundle, seen: Sighting) -> None:
    """Restore what the shim's program needs to clean up, in a bundle that was removed as a whole or in part."""
    bundle.path.mkdir(0o700, parents=True, exist_ok=True)
    (bundle.path / "rootfs").mkdir(0o711, exist_ok=True)
    for name, text in seen.files.items():
        if name in _FILES and not (bundle.path / name).exists():
            (bundle.path / name).write_text(text)


def end(seen: Sighting, seconds: float) -> list[int]:
    """Send SIGKILL to all processes that the task left, thaw them, and wait for their end. Return the pids of those
    that live after ``seconds``. Blocks.

    OSError, such as EMFILE, if it cannot be known which processes live.
    """
    until = time.monotonic() + seconds
    while True:
        with contextlib.ExitStack() as opened:
            ends = {}
            for pid, began in _living(seen):
                if (fd := _pidfd(pid, began)) is not None:
                    opened.callback(os.close, fd)
                    ends[fd] = pid
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                    _thaw(pid)
            if not ends:
                return []
            poll = select.poll()
            for fd in ends:
                poll.register(fd, select.POLLIN)
            while ends and (left := until - time.monotonic()) > 0:
                for fd, _ in poll.poll(left * 1000):
                    poll.unregister(fd)
                    del ends[fd]
            if ends:
                return sorted(ends.values())


def _living(seen: Sighting) -> Iterator[tuple[int, int]]:
    """Pids and starts of the task's processes."""
    with contextlib.suppress(*_GONE):
        if seen.pid and _began(seen.pid) == seen.began:
            yield seen.pid, seen.began
    if seen.alone or not seen.mounts:
        return
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == seen.pid:
            continue
        with contextlib.suppress(*_GONE):
            if os.stat(f"/proc/{entry}/ns/mnt").st_ino == seen.mounts and _within(
                Path(f"/proc/{entry}/cgroup").read_text(), seen.cgroups
            ):
                began = _began(int(entry))
                if began >= seen.began:
                    yield int(entry), began


def _within(cgroups: str, others: str) -> bool:
    """Return whether these are the others, or below them, in each hierarchy."""
    mine, theirs = cgroups.splitlines(), others.splitlines()
    return len(mine) == len(theirs) and all(
        a == b or a.startswith(b.rstrip("/") + "/") for a, b in zip(mine, theirs, strict=True)
    )


def _began(pid: int) -> int:
    """When a process began; ProcessLookupError if it has ended, even if it is a zombie still."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _pidfd(pid: int, began: int) -> int | None:
    with contextlib.ExitStack() as opened, contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        opened.callback(os.close, fd)
        if _began(pid) == began:
            opened.pop_all()
            return fd
    return None


def _thaw(pid: int) -> None:
    """Thaw the cgroup of a process: in a frozen one of version 1 SIGKILL has no effect."""
    with contextlib.suppress(OSError):  # the process has ended, or there is no such hierarchy
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, group = line.split(":", 2)
            state = Path(f"/sys/fs/cgroup/freezer{group}/freezer.state")
            if names == "freezer" and group != "/" and state.exists():
                state.write_text("THAWED")


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise gojson.Malformed(f"more than {_LIMIT} bytes")
    return data
