"""Refuses to start a node that would take directories or sockets of another containerd.

A configuration that was brought along from containerd names containerd's own root, state and address. A node started
with it would put its folders among containerd's, take containerd's socket and show its tasks. So it is not started.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from deploy import supervision
from deploy.failure import Failure
from deploy.place import Place
from deploy.processes import ALL

METADATA = "io.containerd.metadata.v1.bolt"
"""The database in the root of every containerd since 1.0."""

BUNDLES = "io.containerd.runtime.v2.task"
"""Bundles, below a directory for each namespace. A node of splitd has them under the same name."""

ENDING_SECONDS = 5.0
"""Seconds that a gateway of this node may take to end after its supervisord. Until then its socket answers."""

TAKEN = ("containerd.sock", "containerd.sock.ttrpc", *(name for process in ALL for name in process.sockets))
"""The sockets in STATE that a node makes, replacing those that exist. Besides these there is one for each snapshotter.
"""


def refuse(here: Place, chosen: dict[str, str], *, ending: float = ENDING_SECONDS) -> None:
    """Raise a Failure of one line if ``here`` belongs to another containerd. Nothing is written before.

    ``chosen`` says where the operator chose "root" and "state", such as ``--root`` or ``root in
    /etc/containerd/config.toml``. If a socket answers though no supervisord of this node runs, this waits ``ending``
    seconds for it to go away.
    """
    found: dict[str, str] = {}
    if (here.root / METADATA).exists():
        found["root"] = f"the root {here.root} is a containerd's ({METADATA} is in it)"
    if (kept := _kept(here.state)) is not None:
        found["state"] = f"the state directory {here.state} is a containerd's ({kept.relative_to(here.state)} is in it)"
    server = _server(here.state)
    if not (found or server) or supervision.is_up(here):
        return
    end = time.monotonic() + ending
    while server and not found and time.monotonic() < end:
        time.sleep(0.05)
        server = _server(here.state)
    if server:
        found["state"] = server
    if found:
        raise Failure(
            f"{'; '.join(found.values())}: choose {' and '.join(f'another {what} ({chosen[what]})' for what in found)}"
        )


def _kept(state: Path) -> Path | None:
    """A file or directory of containerd's in ``state``, if no node was ever started there; None if there is none."""
    if (state / "node.json").exists():
        return None
    others = (path for path in state.glob("io.containerd.*") if path.name != BUNDLES)
    return min((*state.glob(f"{BUNDLES}/*/*"), *others), default=None)


def _server(state: Path) -> str:
    """A message about a socket that the node would take although another process serves it; "" if there is none."""
    names = (*TAKEN, *sorted(path.name for path in state.glob("snapshots-*.sock")))
    return next(
        (f"{state / name} is served by {who}, not by this node" for name in names if (who := _answering(state / name))),
        "",
    )


def _answering(path: Path) -> str:
    """The process that listens on a unix socket, as "NAME (pid PID)"; "" if none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return "a process that accepts no connections"
        except OSError:
            return ""
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    except OSError:
        return "a process of another machine or container"  # it shares the directory with us, but not the process ids
