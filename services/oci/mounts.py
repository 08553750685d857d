"""Mounts as values: a snapshotter answers them, a shim gets them, and a worker performs them. This module is small and
quick to import, since each worker imports it.
"""

from __future__ import annotations

from collections import namedtuple


class Mount(namedtuple("Mount", ("type source options target"), defaults=((), ""))):  # noqa: PYI024 typing's would bring re into each worker
    """Arguments for mount(2): containerd.types.Mount."""

    __slots__ = ()
    type: str
    source: str
    options: tuple[str, ...]
    target: str
    """Below the mount point; empty for the mount point itself."""

    def option(self, name: str) -> str:
        """The value of the last option ``name=value``, or an empty string."""
        return next((o[len(name) + 1 :] for o in reversed(self.options) if o.startswith(f"{name}=")), "")
