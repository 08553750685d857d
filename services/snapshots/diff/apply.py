"""The worker program that unpacks one layer: inflates, digests, and makes the tree, with its target as its root directory.

    python -S -c 'from services.snapshots.diff.apply import main; main()' PARENT detect|plain sync|nosync DIRECTORY MOUNT... < BLOB

PARENT is the pid that it must not outlive. DIRECTORY is an empty directory to mount on, if it comes to that: in a mount namespace of its own, so that workers share it.
The last line it prints is ``ok DIGEST SIZE`` (of the uncompressed layer), or ``error TEXT``.

It is a program of its own (design, rule 8) because chroot, namespaces and umask are a process's, because several run side by side, and because one that
crashes fails one layer. Its imports are few: it starts for each layer.
"""

from __future__ import annotations

import os
import sys

from services.snapshots.diff import mounts, stream, tar
from services.snapshots.diff.extract import EntryError, Unpacker
from services.snapshots.diff.mounts import Mount, MountError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    """Run as a program."""
    parent, detect, sync, directory = sys.argv[1:5]
    mounts.die_with_parent(int(parent))
    sys.setrecursionlimit(20_000)  # a name may have two thousand components
    os.umask(0)
    if traced := any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ):
        from services.kit import tracing

        tracing.setup("apply")
    try:
        if traced:
            with tracing.span("diff.unpack") as span:
                digest, size = unpack(mounts.from_arguments(sys.argv[5:]), directory, detect=detect == "detect", sync=sync == "sync")
                span.set(digest=digest, size=size)
        else:
            digest, size = unpack(mounts.from_arguments(sys.argv[5:]), directory, detect=detect == "detect", sync=sync == "sync")
        answer = f"ok {digest} {size}"
    except (EntryError, MountError, tar.TarError, stream.CompressionError) as error:
        answer = f"error {error}".replace("\n", "\\n")
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        answer = f"error {name}{mounts.words(error.errno) if error.errno else error}".replace("\n", "\\n")
    if traced:
        tracing.shutdown()
    sys.stdout.buffer.write(answer.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()
    os._exit(0)  # a thread that still inflates is not waited for


def unpack(target: Sequence[Mount], directory: str, *, detect: bool, sync: bool) -> tuple[str, int]:
    """Apply the layer on standard input to ``target``; its diff id and uncompressed size. The process's root is another afterwards."""
    faults = os.open(asked, os.O_PATH | os.O_DIRECTORY) if (asked := os.environ.get("SPLITD_FAULTS")) else None
    chunks = stream.Digested(0, detect=detect)
    unpacker = _enter(target, directory)
    source = tar.Stream(chunks)
    unpacker.unpack(tar.Reader(source))
    source.drain()
    if faults is not None:
        _fault("diff.unpacked", faults)
    if sync:
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        mounts.syncfs(fd)
        os.close(fd)
    return chunks.digest, chunks.size


def _enter(target: Sequence[Mount], directory: str) -> Unpacker:
    """Make the target the root directory. An overlay is written to directly, in its upper directory; anything else is mounted."""
    if len(target) == 1 and target[0].type == "overlay" and (upper := target[0].option("upperdir")):
        lowers = []
        for lower in target[0].option("lowerdir").split(":"):
            try:
                lowers.append(os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            except FileNotFoundError:
                continue
        mounts.own_root()
        os.chroot(upper)
        os.chdir("/")
        return Unpacker(overlay="user.overlay." if "userxattr" in target[0].options else "trusted.overlay.", lowers=lowers)
    mounts.own_namespace()
    # No mounts at all: containerd unpacks into a directory that nobody sees, and so does this.
    mounts.mount_all(target or [Mount("tmpfs", "none")], directory)
    os.chroot(directory)
    os.chdir("/")
    return Unpacker()


def _fault(point: str, directory: int) -> None:
    """As kit.faults, whose directory cannot be found by name from here."""
    try:
        os.unlink(point, dir_fd=directory)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), 9)
