"""Where calls go. It is asked for each call, so the service that answers can be replaced while this process runs.

A *hop* is one leg of a call's way: from this process to one kind of service. Code that makes or relays calls keeps the
hop, and never the hop's answer: a hop has one target today, and may have several later (another for some namespaces, a
shadow that gets the same calls). Work that makes several calls to one target (an open stream; a raw call under an
intent, and the question what became of it) asks once, at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Hop(Generic[T]):
    """The way to the service ``name``, whose calls go to ``target``. Used on one loop."""

    def __init__(self, name: str, target: T) -> None:
        self.name = name
        self.changed: list[Callable[[], None]] = []
        """Called when answers may differ from earlier ones, so that their caches are cleared."""
        self._target = target

    def to(self, namespace: str, key: str = "") -> T:
        """The target of a call in ``namespace`` about ``key``: a snapshot's key, a digest, a ref, an image's name.

        Each is empty if the call has none. ``key`` is also empty if the request passes unread.
        """
        return self._target

    def replace(self, target: T) -> T:
        """Send calls to ``target`` from now on, and call ``changed``. Returns the former target, on which the calls
        under way finish.
        """
        before, self._target = self._target, target
        self.tell()
        return before

    def tell(self) -> None:
        """Call all of ``changed``."""
        for told in self.changed:
            told()
