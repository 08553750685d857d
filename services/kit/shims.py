"""Abilities of a shim's program that its protocol does not tell, found by the version of containerd that it reports
(``-v``).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping

_SECONDS = 10.0
"""Seconds that the program may take to report its version."""
_VERSION = re.compile(rb"^[ \t]*Version:[ \t]*(v?(\d+)\.[^\s]*)", re.MULTILINE)
_MAPS_IDS = 2
"""From containerd 2.0 on shims make mounts with mapped ids (``uidmap=`` and ``gidmap=``). Older ones give these options
to the kernel, which refuses them.
"""
_KNOWN = 64

_known: dict[str, tuple[tuple[int, int, int], str]] = {}
"""The trouble of programs, by path, while they stay the same files."""


async def id_mapping_trouble(program: str, environment: Mapping[str, str] | None = None) -> str:
    """Why the shim ``program`` cannot make mounts with mapped ids, or an empty string. A program that does not report
    its version is assumed to be able to.

    ``environment`` is the one to start it with; None: this process's.
    """
    try:
        status = os.stat(program)
    except OSError:
        return ""  # other code notices that it is missing, and says so
    same = status.st_ino, status.st_size, status.st_mtime_ns
    if program not in _known or _known[program][0] != same:
        found = _VERSION.search(await _said(program, environment))
        trouble = (
            ""
            if found is None or int(found[2][:9]) >= _MAPS_IDS
            else (
                f"{program} is of containerd {found[1].decode(errors='replace')}, and maps no ids of mounts (from "
                "2.0 on it does)"
            )
        )
        if len(_known) >= _KNOWN:
            _known.clear()
        _known[program] = same, trouble
    return _known[program][1]


async def _said(program: str, environment: Mapping[str, str] | None) -> bytes:
    """The first bytes of what it prints as its version; empty if it cannot be started, or does not end."""
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
