"""The modules of the node are compiled before its processes load them: a process that compiles them itself keeps some
megabytes of what that took, and supervisord gives them to its copies.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

CODE = ("api", "client", "deploy", "gateway", "services")
_SECONDS = 60.0
"""For compiling, at most: it takes some seconds."""


def ready(top: Path) -> None:
    """Compile what is not compiled, in a process of its own, for a while. Nothing happens where that cannot be written.
    Without it the node works as well, and takes more memory.
    """
    if not os.access(top, os.W_OK) or all(_compiled(f"{top}/{name}") for name in CODE):
        return
    directories = [str(top / name) for name in CODE]
    command = [sys.executable, "-m", "compileall", "-qq", *directories]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL, timeout=_SECONDS)


def _compiled(directory: str) -> bool:
    for where, directories, files in os.walk(directory):
        directories[:] = [each for each in directories if each != "__pycache__"]
        for file in files:
            if file.endswith(".py"):
                path = f"{where}/{file}"
                try:
                    if os.stat(cache_from_source(path)).st_mtime < os.stat(path).st_mtime:
                        return False
                except OSError:
                    return False
    return True
