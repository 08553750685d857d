"""The nodes that gave wrong bytes. They are not asked for blobs for a while: an hour, and twice as long each time, up
to a day. A file keeps them over a restart of the process; without it they are forgotten then.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FIRST, LONGEST = 3600.0, 86400.0
"""Seconds for which a node is not asked, after its first blob with wrong bytes, and at most."""
NODES = 1000
"""Nodes that are remembered, the latest."""
SIZE = 4 << 20
"""Bytes of a file that is read."""
WORDS = 500


class Blamed:
    """The nodes by name. ``in`` and iteration tell of those that are not to be asked now."""

    def __init__(self, file: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """``file``: where they are kept. ``clock`` gives seconds since the epoch."""
        self._file = file
        self._clock = clock
        self._nodes: dict[str, tuple[float, float, str]] = {}
        """Until when, for how many seconds, and why."""
        if file is not None:
            self._read(file)

    def __contains__(self, node: str) -> bool:
        # a clock that was set back must not make an end that never comes
        return node in self._nodes and 0 < self._nodes[node][0] - self._clock() <= LONGEST

    def __iter__(self) -> Iterator[str]:
        return (node for node in self._nodes if node in self)

    def add(self, node: str, why: str) -> float:
        """The node gave wrong bytes. The seconds for which it is not asked."""
        _, before, _ = self._nodes.pop(node, (0.0, 0.0, ""))
        seconds = min(max(2 * before, FIRST), LONGEST)
        if len(self._nodes) >= NODES:
            del self._nodes[next(iter(self._nodes))]
        self._nodes[node] = (self._clock() + seconds, seconds, why[:WORDS])
        self._write()
        return seconds

    def _read(self, file: Path) -> None:
        try:
            with file.open("rb") as opened:
                found = json.loads(opened.read(SIZE))
            nodes = {name: _entry(value) for name, value in found["nodes"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s cannot be used, so peers that gave wrong bytes are asked again: %r", file, error)
            return
        self._nodes = dict(list(nodes.items())[-NODES:])
        for node in self:
            log.warning("peer %s is not asked for blobs: %s", node, self._nodes[node][2])

    def _write(self) -> None:
        if self._file is None:
            return
        beside = self._file.with_name(f"{self._file.name}.new")
        try:
            beside.write_text(json.dumps({"nodes": self._nodes}))
            os.replace(beside, self._file)
        except OSError as error:
            log.warning("%s: a restart forgets the peers that gave wrong bytes: %s", self._file, error.strerror)


def _entry(value: Any) -> tuple[float, float, str]:
    until, seconds, why = value
    return float(until), min(max(float(seconds), 0.0), LONGEST), str(why)[:WORDS]
