"""The code of worker programs as their service was started with, in memory: an upgrade that replaces the files below a
service that runs gives it no workers that speak otherwise.

Python imports from a zip archive as from a directory; this one has no name, and is found as a file of the process that
runs from it.
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
"""Of a .pyc file that is compared with no source (PEP 552): there is none beside it."""


@functools.cache
def archive(files: tuple[str, ...]) -> int:
    """The file descriptor of the archive of ``files`` (patterns, below the directory that has ``services``), which
    whoever starts a worker gives it.

    It is made at the first call, which a service makes before it serves.
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
    """PYTHONPATH of a worker: ours from the archive, all else from where this process has it."""
    return os.pathsep.join([f"/proc/self/fd/{fd}", *(each for each in otherwise if each)])
