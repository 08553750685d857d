"""ROOT/opt: ``ctr install`` puts programs and libraries (runtimes, shims) there. They are found before those of the
system, as in containerd.

The gateway tells clients the path (plugin ``opt``). Such programs are started in :func:`environment`.
"""

from __future__ import annotations

import os
from pathlib import Path


def directory(root: Path) -> Path:
    """The directory of a node with this root."""
    return root / "opt"


def make(root: Path) -> None:
    """Make it, with containerd's modes."""
    for name in ("bin", "lib"):
        (directory(root) / name).mkdir(parents=True, exist_ok=True, mode=0o711)


def environment(root: Path) -> dict[str, str]:
    """PATH and LD_LIBRARY_PATH with it in front."""
    first = {"PATH": directory(root) / "bin", "LD_LIBRARY_PATH": directory(root) / "lib"}
    # No empty element at the end: the loader would take it for the working directory.
    rest = {"PATH": os.environ.get("PATH", os.defpath), "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    return {name: f"{path}:{rest[name]}" if rest[name] else str(path) for name, path in first.items()}
