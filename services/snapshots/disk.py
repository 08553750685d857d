"""Operations of snapshotters on directories: measure, copy, remove.

Small trees are walked in a thread. For large trees, and for copies, a program does the work (``find``, ``cp``, ``rm``),
so that calls are still answered meanwhile. Programs are started in the loop's thread and die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import logging
import os
from collections.abc import Callable, Iterable

from services.kit import errors, tracing
from services.kit.thread_times import Times, measured
from services.snapshots import programs
from services.snapshots.store import Usage

log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)

SMALL = 4096
"""Files up to which a tree is measured by walking it here: about 10 ms of a core."""

_PIECE = 1 << 15
"""Bytes of a program's output that are looked at at once."""

FEW = 256
"""Files up to which a tree is removed here: about 2 ms of a core, less than it takes to start a program."""


def disk_error(error: OSError, what: str) -> errors.NodeError:
    """A failed system call as an answer: what could not be done, and why."""
    return errors.of_system(error, what)


def sync_filesystem(fd: int) -> None:
    """Make everything on the filesystem of an open file survive a power cut. For many files this is less work than an
    fsync of each. It blocks.
    """
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


async def usage(directory: str, small: int = SMALL) -> Usage:
    """The blocks and inodes that ``directory`` takes, itself included. A hard-linked file counts once. Files that
    vanish meanwhile may count or not.

    Unknown if it cannot be read. A tree of more than ``small`` files is walked by find.
    """
    try:
        walked, times = await asyncio.to_thread(_measured_walk, directory, small)
    except OSError as error:
        raise disk_error(error, f"failed to measure {directory}") from None
    if walked is not None:
        tracing.current().put(times.attributes())
        return walked
    tally = _Tally()
    code, _, err = await _run("find", "-P", directory, *_Tally.PRINTED, take=tally.take)
    if not tally.inodes:  # find also fails if a file vanished, but the others are counted
        raise errors.Unknown(f"failed to measure {directory}: find ended with {code}: {_text(err)}")
    return Usage(tally.blocks * 512, tally.inodes)


def _measured_walk(directory: str, limit: int) -> tuple[Usage | None, Times]:
    with measured() as times:
        walked = walk_usage(directory, limit)
    return walked, times


def walk_usage(directory: str, limit: int) -> Usage | None:
    """:func:`usage` of a tree of at most ``limit`` files, None for a larger one. It blocks."""
    status = os.lstat(directory)
    blocks, inodes = status.st_blocks, 1
    linked: set[tuple[int, int]] = set()
    pending = [directory]
    while pending:
        at = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(at) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif status.st_nlink > 1:
                    inode = status.st_dev, status.st_ino
                    if inode in linked:
                        continue
                    linked.add(inode)
                blocks += status.st_blocks
                inodes += 1
                if inodes > limit:
                    return None
    return Usage(blocks * 512, inodes)


class _Tally:
    """Adds up what find says of a tree: blocks, and of a file with several names also which one it is."""

    PRINTED = ("(", "-type", "d", "-o", "-links", "1", ")", "-printf", r"%b\n", "-o", "-printf", r"%b:%D:%i\n")

    def __init__(self) -> None:
        self.blocks = self.inodes = 0
        self._rest = b""
        self._linked: set[bytes] = set()

    def take(self, output: bytes) -> None:
        """The next piece of the output."""
        *lines, self._rest = (self._rest + output).split(b"\n")
        plain = [line for line in lines if b":" not in line]
        self.blocks += sum(map(int, plain))
        self.inodes += len(plain)
        for line in lines if len(plain) < len(lines) else ():
            blocks, _, inode = line.partition(b":")
            if inode and inode not in self._linked:
                self._linked.add(inode)
                self.blocks += int(blocks)
                self.inodes += 1


async def copy(source: str, target: str) -> None:
    """Make the directory ``target`` equal to ``source``: contents, modes, owners, times, xattrs, ACLs, hard links,
    devices, holes.

    Blocks are shared if the filesystem can (reflink). Unknown if it fails; the caller then removes what is in
    ``target``.
    """
    code, _, err = await _run(
        "cp", "--archive", "--reflink=auto", "--sparse=auto", "--no-target-directory", "--", f"{source}/.", target
    )
    if code:
        full = any(os.strerror(number).encode() in err for number in errors.FULL)
        raise (errors.ResourceExhausted if full else errors.Unknown)(f"copying of parent failed: {_text(err)}")


def make_directory(path: str, mode: int) -> None:
    """Make a directory with exactly this mode, whatever the process's umask is."""
    os.mkdir(path, mode)
    os.chmod(path, mode)


async def remove(directories: Iterable[str]) -> list[str]:
    """Remove trees. Returns those that could not be removed; the reasons are logged."""
    large = await asyncio.to_thread(lambda: [path for path in directories if not remove_small(path)])
    for at in range(0, len(large), 200):
        some = large[at : at + 200]
        code, _, err = await _run("rm", "--recursive", "--force", "--one-file-system", "--", *some)
        if code:
            log.warning("failed to remove directories of snapshots: %s", _text(err))
    return [path for path in large if os.path.lexists(path)]


def remove_small(path: str, limit: int = FEW) -> bool:
    """Remove a small snapshot's directory, such as that of a container which wrote little or nothing. It blocks.

    False if it has more than ``limit`` files, or something that cannot simply be removed; some of it may then be gone.
    """
    try:
        return _remove_below(os.path.dirname(path), os.path.basename(path), os.lstat(path).st_dev, limit) >= 0
    except FileNotFoundError:
        # the directory, or something in it, was removed by another caller; which one was last is not known here
        return not os.path.lexists(path)
    except OSError:
        return False


def _remove_below(parent: str | int, name: str, device: int, left: int) -> int:
    """Remove the directory ``name`` of ``parent``, a path or an open directory, with everything in it. Returns how many
    more files may be removed, below 0 if there are too many.

    It works on open directories, so that a process that still writes there cannot lead it elsewhere by a link. It does
    not enter mounts.
    """
    above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if isinstance(parent, str) else parent
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            if os.fstat(fd).st_dev != device:
                return -1
            with os.scandir(fd) as entries:
                found = list(itertools.islice(entries, left + 1))
            left -= len(found)
            for entry in found if left >= 0 else ():
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                elif (left := _remove_below(fd, entry.name, device, left)) < 0:
                    break
            if left < 0:
                return left
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=above)
        return left
    finally:
        if isinstance(parent, str):
            os.close(above)


async def _run(*command: str, take: Callable[[bytes], None] | None = None) -> tuple[int, bytes, bytes]:
    """A program's exit code and output, unless ``take`` gets that, in pieces. The program is killed if the caller is
    cancelled or dies; and if it makes no progress, which is Internal.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "KILL",
            *command,
            env={**os.environ, "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise errors.Unknown(f"failed to start {command[0]}: {errors.words(error)}") from None
    try:
        output = process.communicate() if take is None else _taken(process, take)
        out, err = await programs.watched(command[0], process, output)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await programs.gone(process)
        raise
    assert process.returncode is not None
    return process.returncode, out, err


async def _taken(process: asyncio.subprocess.Process, take: Callable[[bytes], None]) -> tuple[bytes, bytes]:
    async def each() -> None:
        assert process.stdout is not None
        while piece := await process.stdout.read(_PIECE):
            take(piece)

    assert process.stderr is not None
    _, err = await asyncio.gather(each(), process.stderr.read())
    await process.wait()
    return b"", err


def _text(err: bytes) -> str:
    lines = err.decode(errors="replace").split("\n")
    return "; ".join(line for line in lines[:3] if line) or "no reason given"
