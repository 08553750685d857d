"""What each node of this machine was last started with, kept where it survives a reboot: a small file for each state
directory, since STATE itself is memory on most machines.

So ``splitd up --state DIR`` starts the same node again, and ``splitd logs --state DIR`` finds its logs, without being
told root and configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from deploy.failure import Failure

NODES = Path("/var/lib/splitd.nodes")
"""Beside the default root, not in it: it speaks of nodes with other roots too. The environment's SPLITD_NODES is
stronger; tests have a directory of their own.
"""


@dataclass(frozen=True, slots=True)
class Remembered:
    """How a node was started."""

    root: Path
    config: Path | None
    """The configuration file that was read; None for all defaults."""
    root_given: bool
    """Whether --root or SPLITD_ROOT said which; else the configuration, or nobody."""
    config_given: bool
    """Whether --config or SPLITD_CONFIG said which; else it is /etc/splitd/config.toml where that exists."""


def of(state: Path) -> Remembered | None:
    """How the node at ``state`` was last started; None if none ever was. A Failure names a file that cannot be
    understood.
    """
    path = _path(state)
    try:
        values = json.loads(path.read_text())
        return Remembered(
            Path(values["root"]),
            Path(values["config"]) if values["config"] else None,
            bool(values["root_given"]),
            bool(values["config_given"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise Failure(
            f"{path}, which says how the node at {state} was started, cannot be understood: remove it, and say --root "
            "and --config"
        ) from None


def keep(state: Path, node: Remembered) -> None:
    """Remember; it is on the disk when this returns. Nothing is written where that is remembered already, so that a
    full disk stops no start after a reboot. OSError.
    """
    with contextlib.suppress(Failure):
        if of(state) == node:
            return
    path = _path(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "state": str(state),
        "root": str(node.root),
        "config": str(node.config) if node.config else None,
        "root_given": node.root_given,
        "config_given": node.config_given,
    }
    temporary = path.with_suffix(".new")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def forget(state: Path) -> None:
    """A node that was for a moment only."""
    _path(state).unlink(missing_ok=True)


def state_of(config: Path) -> Path | None:
    """The state directory of the one node that was last started with this file, where the file itself can no longer
    say it; None if there is none, or several.
    """
    found = []
    for path in sorted(_nodes().glob("*.json")):
        try:
            values = json.loads(path.read_text())
            if values["config"] == str(config):
                found.append(Path(values["state"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever asks for that node by its state is told
    return found[0] if len(found) == 1 else None


def _nodes() -> Path:
    return Path(os.environ.get("SPLITD_NODES") or NODES)


def _path(state: Path) -> Path:
    """Readable, and one for each state."""
    name = "-".join(state.parts[1:])[-100:]
    return _nodes() / f"{name}.{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}.json"
