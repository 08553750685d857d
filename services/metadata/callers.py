"""The queue of work that waits for a commit."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from services.kit.sqlite import Work


class Queue:
    """The work that waits for a commit. Each caller has a queue of its own, and the queues take turns: a caller of a
    thousand operations does not delay a caller of one.
    """

    def __init__(self) -> None:
        self._callers: OrderedDict[str, deque[Work[Any]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._callers)

    def add(self, caller: str, waiting: Work[Any]) -> None:
        """Add to the queue of ``caller``."""
        self._callers.setdefault(caller, deque()).append(waiting)

    def put_back(self, batch: Sequence[Work[Any]]) -> None:
        """Let these be the next, in their order."""
        self._callers.setdefault("", deque()).extendleft(reversed(batch))
        self._callers.move_to_end("", last=False)

    def first(self) -> Work[Any]:
        """The next work."""
        return next(iter(self._callers.values()))[0]

    def take(self) -> Work[Any]:
        """Take the next work; then it is another caller's turn."""
        caller, queue = next(iter(self._callers.items()))
        waiting = queue.popleft()
        if queue:
            self._callers.move_to_end(caller)
        else:
            del self._callers[caller]
        return waiting

    def take_all(self) -> list[Work[Any]]:
        """Take all work."""
        found = [waiting for queue in self._callers.values() for waiting in queue]
        self._callers.clear()
        return found
