"""Keeps the code of worker programs in memory, as it was when their service started. So an upgrade of the files below a
running service gives it no workers that speak another protocol.

Python imports from a zip archive as from a directory. This archive has no name; a worker finds it as one of its own
file descriptors.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import os
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path

import services

_TOP = Path(services.__path__[0]).parent

_HEADER = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
"""The header of a .pyc file that is not compared with a source (PEP 552): there is none beside it."""


@functools.cache
def archive(files: tuple[str, ...]) -> int:
    """The file descriptor of an archive of ``files`` (patterns, below the directory that has ``services``). A service
    gives it to the workers that it starts.

    The archive is made at the first call, which a service makes before it serves.
    """
    fd = os.memfd_create("splitd-workers", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file, zipfile.ZipFile(file, "w") as archived:
        for path in sorted({path for pattern in files for path in _TOP.glob(pattern)}):
            name = path.relative_to(_TOP)
            module = ".".join(name.with_suffix("").parts)
            code = SourceFileLoader(module, str(path)).get_code(module)
            archived.writestr(str(name.with_suffix(".pyc")), _HEADER + marshal.dumps(code))
    return fd


def search_path(fd: int, otherwise: list[str]) -> str:
    """PYTHONPATH of a worker: our code from the archive, everything else from where this process has it."""
    return os.pathsep.join([f"/proc/self/fd/{fd}", *(each for each in otherwise if each)])
