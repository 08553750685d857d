"""What belongs to another containerd: a node takes none of its directories and none of its sockets.

A configuration brought along from containerd names containerd's own root, state and address. A node started with it
would put its folders among containerd's, take containerd's socket and show its tasks; so it is not started.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from deploy import supervision
from deploy.failure import Failure
from deploy.place import Place
from deploy.processes import PROCESSES

METADATA = "io.containerd.metadata.v1.bolt"
"""In the root of every containerd since 1.0: its database."""

BUNDLES = "io.containerd.runtime.v2.task"
"""Bundles, below a directory for each namespace: a node has them under the same name."""

ENDING_SECONDS = 5.0
"""How long a gateway of the node itself may take to end after its supervisord: until then its socket answers."""

TAKEN = ("containerd.sock", "containerd.sock.ttrpc", *(name for process in PROCESSES for name in process.sockets))
"""The sockets in STATE that a node makes, in the place of what is there; and one for each snapshotter."""


def refuse(here: Place, chosen: dict[str, str], *, ending: float = ENDING_SECONDS) -> None:
    """A Failure of one line where ``here`` is another containerd's; nothing is written before.

    ``chosen`` tells for "root" and "state" where the operator chose them, such as ``--root`` or ``root in
    /etc/containerd/config.toml``. A socket that answers while no supervisord of the node runs is waited for, ``ending``
    seconds.
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
    """Something that a containerd keeps in ``state`` where no node was ever started; None if there is nothing."""
    if (state / "node.json").exists():
        return None
    others = (path for path in state.glob("io.containerd.*") if path.name != BUNDLES)
    return min((*state.glob(f"{BUNDLES}/*/*"), *others), default=None)


def _server(state: Path) -> str:
    """A socket that the node would take though somebody serves it, and who; "" if there is none."""
    names = (*TAKEN, *sorted(path.name for path in state.glob("snapshots-*.sock")))
    return next(
        (f"{state / name} is served by {who}, not by this node" for name in names if (who := _answering(state / name))),
        "",
    )


def _answering(path: Path) -> str:
    """Who listens on a unix socket, as "NAME (pid PID)"; "" if nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return "somebody who accepts no connections"
        except OSError:
            return ""
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    except OSError:
        return "a process of another machine or container"  # it shares the directory, and not our process ids
