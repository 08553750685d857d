"""The control group of a node's processes ([cgroup] path), and the way out of it for shims, which stay in the group
where the node was started.

This follows the kernel's documents (admin-guide/cgroup-v1, cgroup-v2). As in containerd, the path is below each
hierarchy of v1, and made if it is missing. On a machine with v2 alone it must exist, since its administrator says which
controllers it has. Writing into ``cgroup.procs`` moves a process; 0 is the writer itself.

A process that joins gets the files by which one goes back, a line each in :data:`BACK`, and so do its children. This
module is also a program: ``python -m services.kit.cgroups PATH COMMAND...``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from services.kit import errors

BACK = "SPLITD_SHIM_CGROUPS"
"""Environment variable: the ``cgroup.procs`` files of the groups in which this node was started."""

_LEAVE = f"""IFS='
'
for procs in ${BACK}; do echo 0 > "$procs"; done 2>/dev/null
unset {BACK} IFS
exec "$@" """
"""If the group is gone, or takes no processes any more, the kernel refuses the write, and the shim stays with the
services, as containerd's do.
"""


def checked(path: str) -> str:
    """``path`` if it is a valid path of a cgroup; else ValueError."""
    if path and (not path.startswith("/") or ".." in path.split("/") or "\n" in path):
        raise ValueError(f"path: {path!r} is not an absolute path, without ..")
    return path


def leaving(environment: Mapping[str, str]) -> list[str]:
    """The words to put before a command so that it runs where the node was started; empty if that is the current
    group.
    """
    return ["/bin/sh", "-c", _LEAVE, "sh"] if environment.get(BACK) else []


def join(path: str, *, mounts: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")) -> list[str]:
    """Put this process into the cgroup ``path`` of each hierarchy. The result is the files by which one goes back.
    FailedPrecondition if that is not possible.
    """
    found_at = hierarchies(mounts)
    back = []
    for line in own.read_text().splitlines():
        _, controllers, where = line.split(":", 2)
        found = found_at.get(controllers)
        if found is None:  # not mounted here; or v2's beside those of v1, which is systemd's
            continue
        top, root = found
        directory = top / path.strip("/")
        try:
            if controllers:
                _make(directory, top)
            elif not directory.is_dir():
                raise errors.FailedPrecondition(
                    f"[cgroup] path: {directory} does not exist, and with cgroup v2 it must"
                )
            (directory / "cgroup.procs").write_text("0")
        except OSError as error:
            raise errors.FailedPrecondition(f"[cgroup] path: {directory}: {error.strerror}") from None
        back.append(str(top / os.path.relpath(where, root) / "cgroup.procs"))
    return back


def hierarchies(mounts: Path = Path("/proc/self/mountinfo")) -> dict[str, tuple[Path, str]]:
    """By its controllers as /proc/PID/cgroup names them (for v1; "" for v2, if there is no v1): where each hierarchy is
    mounted, and which of its cgroups is mounted there.
    """
    found: dict[str, tuple[Path, str]] = {}
    for line in mounts.read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        root, where = (part.encode().decode("unicode_escape") for part in mount.split()[3:5])
        kind, _, options = filesystem.split(" ", 2)
        if kind == "cgroup":
            known = [
                o
                for o in options.split(",")
                if o not in ("rw", "ro", "xattr", "noprefix", "clone_children") and not o.startswith("release_agent=")
            ]
            found[",".join(known)] = Path(where), root
        elif kind == "cgroup2" and where == "/sys/fs/cgroup":
            found[""] = Path(where), root
    return found


def _make(directory: Path, top: Path) -> None:
    """Make a cgroup of v1, and those above it. A cpuset without processors and memory accepts no process, so it gets
    those of its parent.
    """
    if directory != top:
        _make(directory.parent, top)
    directory.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (directory / name).exists() and not (directory / name).read_text().strip():
            (directory / name).write_text((directory.parent / name).read_text())


def main(path: str, *command: str) -> None:
    """Become ``command`` in the cgroup."""
    try:
        back = join(path)
    except errors.NodeError as error:
        sys.exit(str(error).removesuffix(f": {error.suffix}"))
    os.execvpe(command[0], command, {**os.environ, BACK: "\n".join(back)})


if __name__ == "__main__":
    main(*sys.argv[1:])
