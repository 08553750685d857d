"""Remembers how each node of this machine was last started, over a reboot: a small file for each state directory,
outside of STATE, which is in memory on most machines.

So ``splitd up --state DIR`` starts the same node again, and ``splitd logs --state DIR`` finds its logs, without root
and configuration being named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from deploy.failure import Failure
from services.kit import files

NODES = Path("/var/lib/splitd.nodes")
"""The directory with a note for each node. It is beside the default root, not in it, since nodes with other roots are
noted too. SPLITD_NODES in the environment names another directory; tests use that.
"""


@dataclass(frozen=True, slots=True)
class Remembered:
    """How a node was started."""

    root: Path
    config: Path | None
    """The configuration file that was read; None for all defaults."""
    root_given: bool
    """Whether --root or SPLITD_ROOT named the root. Otherwise it came from the configuration or the defaults."""
    config_given: bool
    """Whether --config or SPLITD_CONFIG named the file. Otherwise it is /etc/splitd/config.toml, if that exists."""


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
            f"{path} cannot be understood; it says how the node at {state} was started: remove it, and give --root and "
            "--config"
        ) from None


def keep(state: Path, node: Remembered) -> None:
    """Remember ``node``; it is on the disk when this returns. If the same is remembered already, nothing is written, so
    that a full disk does not prevent a start after a reboot. Raises OSError.
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
    files.replace(path, json.dumps(values) + "\n")


def forget(state: Path) -> None:
    """Forget a node that existed for a moment only."""
    _path(state).unlink(missing_ok=True)


def state_of(config: Path) -> Path | None:
    """The state directory of the one node that was last started with this file, for when the file itself can no longer
    be read. None if there is none, or several.
    """
    found = []
    for path in sorted(_nodes().glob("*.json")):
        try:
            values = json.loads(path.read_text())
            if values["config"] == str(config):
                found.append(Path(values["state"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a command that names this node's state reports it
    return found[0] if len(found) == 1 else None


def _nodes() -> Path:
    return Path(os.environ.get("SPLITD_NODES") or NODES)


def _path(state: Path) -> Path:
    """A readable name, unique for each state directory."""
    name = "-".join(state.parts[1:])[-100:]
    return _nodes() / f"{name}.{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}.json"
