"""Lets go of what supervisord has mapped of programs and libraries, and used to start only.

The kernel maps a page of a file when it is used, with some around it, and then counts it as this process's for as long
as the process lives. A fork does not take such pages along: its processes have those alone that they use themselves.
supervisord is never forked, and had 5 MB that nobody used any more. What it uses again is mapped again, from the page
cache.
"""

from __future__ import annotations

import ctypes
import re

_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-(?:x|-)p [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ [1-9]\d*\s")
"""A file's that nobody can write to: its first line in smaps, in proc_pid_smaps(5)."""


def let_go() -> None:
    """Do so for the mappings that are as the files: a page that was written to, as by the linker, would be lost. Raises
    OSError, and nothing is wrong then.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as smaps:
        found = unwritten(smaps.read())
    madvise = ctypes.CDLL(None).madvise
    for start, end in found:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def unwritten(smaps: str) -> list[tuple[int, int]]:
    """Where such mappings begin and end."""
    found: list[tuple[int, int]] = []
    mapping = None
    for line in smaps.splitlines():
        if line.startswith("Anonymous:"):
            if mapping is not None and line.split()[1] == "0":
                found.append((int(mapping[1], 16), int(mapping[2], 16)))
        elif line.startswith("Swap:"):
            if mapping is not None and line.split()[1] != "0" and found and found[-1][0] == int(mapping[1], 16):
                found.pop()
        elif re.match(r"[0-9a-f]+-", line):
            mapping = _MAPPING.match(line)
    return found
