"""What the program of a shim can do that its protocol does not tell, by the version of containerd that it says it
is of (``-v``).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping

_SECONDS = 10.0
"""What it may take to say its version."""
_VERSION = re.compile(rb"^[ \t]*Version:[ \t]*(v?(\d+)\.[^\s]*)", re.MULTILINE)
_MAPS_IDS = 2
"""From containerd 2.0 on shims make mounts whose ids are mapped (``uidmap=`` and ``gidmap=``). Those before give
these options to the kernel, which refuses them.
"""
_KNOWN = 64

_known: dict[str, tuple[tuple[int, int, int], str]] = {}
"""What is wrong with programs, by path, as long as they stay the same files."""


async def id_mapping_trouble(program: str, environment: Mapping[str, str] | None = None) -> str:
    """Why the shim ``program`` cannot make mounts with mapped ids, or an empty string. Of one that does not say what
    containerd it is of, it is believed that it can.

    ``environment`` is the one to start it with; None: this process's.
    """
    try:
        status = os.stat(program)
    except OSError:
        return ""  # it is missed elsewhere, and said there
    same = status.st_ino, status.st_size, status.st_mtime_ns
    if program not in _known or _known[program][0] != same:
        found = _VERSION.search(await _said(program, environment))
        trouble = (
            ""
            if found is None or int(found[2][:9]) >= _MAPS_IDS
            else (
                f"{program} is of containerd {found[1].decode(errors='replace')}, and maps no ids of mounts (from "
                "2.0 "
                "on it does)"
            )
        )
        if len(_known) >= _KNOWN:
            _known.clear()
        _known[program] = same, trouble
    return _known[program][1]


async def _said(program: str, environment: Mapping[str, str] | None) -> bytes:
    """The first words of what it prints of its version; none of a program that cannot be started, or does not end."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "-v",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return b""
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_SECONDS):
            return await process.stdout.read(1 << 12)
    except TimeoutError:
        return b""
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
