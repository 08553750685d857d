"""Debian's own containerd, started beside the tests: a suite that passes on it states what containerd does, not what we
think it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from services.oci import platforms
from tests.support import ServiceProcess, eventually, listening, remove

PROGRAMS = os.environ.get("SPLITD_TEST_CONTAINERD2", "")
"""The directory with ``ctr`` and ``containerd`` of containerd 2, if they are not the machine's own (Debian 12 has
1.6).
"""


_CRI, _CONTENT = "io.containerd.grpc.v1.cri", "io.containerd.content.v1.content"
SNAPSHOTTERS = ("overlayfs", "native")


def program2(name: str) -> str:
    """The program of containerd 2; "" if there is none."""
    found = shutil.which(f"{PROGRAMS}/{name}" if PROGRAMS else name)
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else ""
    return found if found and (" 2." in version or " v2." in version) else ""


def program(name: str) -> str:
    """As :func:`program2`; the test is skipped if there is none."""
    found = program2(name)
    if not found:
        pytest.skip(f"no {name} of containerd 2: name its directory in SPLITD_TEST_CONTAINERD2")
    return found


def _beside(program: str) -> dict[str, str]:
    """An environment in which the shim beside ``program`` is found, if there is one."""
    return (
        {**os.environ, "PATH": f"{os.path.dirname(program)}:{os.environ['PATH']}"}
        if "/" in program
        else dict(os.environ)
    )


@contextlib.contextmanager
def containerd(
    directory: Path,
    program: str = "containerd",
    *,
    more: str = "",
    without: Sequence[str] = (),
    socket: Path | None = None,
) -> Iterator[Path]:
    """The socket of a containerd that keeps everything below ``directory``. The test is skipped if the program is not
    installed.

    ``more`` is added to its configuration. ``without`` are plugins that it does not start, besides CRI. ``socket`` is
    its address, if that is not DIRECTORY/c.sock.
    """
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    socket = socket or directory / "c.sock"
    config = directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/r"\nstate = "{directory}/s"\n'
        f"disabled_plugins = {json.dumps([_CRI, *without])}\n"
        f'[grpc]\naddress = "{socket}"\n[ttrpc]\naddress = "{socket}.ttrpc"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory}/opt"\n{more}'
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log, env=_beside(program))
    try:
        eventually(lambda: listening(socket), (directory / "log").read_text()[-2000:])
        yield socket
    finally:
        process.terminate()
        process.wait(20)
        remove(directory / "s")


class Below(NamedTuple):
    """A containerd above our services."""

    socket: Path
    root: Path
    """The root of ours: ``content`` and ``snapshots`` are there."""


@contextlib.contextmanager
def below(directory: Path, program: str = "containerd") -> Iterator[Below]:
    """A containerd whose only content store is our content process, and which has our snapshotters beside its own, as
    splitd-overlayfs and splitd-native.
    """
    root, state = directory / "ours", directory / "o"
    content = ServiceProcess("services.content", root, state)
    snapshots = ServiceProcess(
        "services.snapshots", root, state, sockets=tuple(f"snapshots-{name}.sock" for name in SNAPSHOTTERS)
    )
    with content, snapshots:
        plugins = [("content", "splitd", content.sockets[0])] + [
            ("snapshot", f"splitd-{name}", at) for name, at in zip(SNAPSHOTTERS, snapshots.sockets, strict=True)
        ]
        more = "".join(f'[proxy_plugins.{name}]\ntype = "{kind}"\naddress = "{at}"\n' for kind, name, at in plugins)
        more += "".join(  # containerd 2 unpacks its own pulls onto these only
            f'[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
            f'platform = "linux/{platforms.default().architecture}"\nsnapshotter = "splitd-{name}"\ndiffer = "walking"\n'
            for name in SNAPSHOTTERS
        )
        with containerd(directory, program, more=more, without=[_CONTENT]) as socket:
            yield Below(socket, root)
