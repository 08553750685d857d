"""Where calls go, asked for each of them: so whoever answers them can be replaced while this process runs.

A *hop* is one leg of a call's way: from this process to one kind of service. Whoever makes a call, or relays one, keeps
the hop and never what the hop answered: a hop has one target today, and may have several later (another for some
namespaces, a shadow that hears the same). What takes several calls to one target (an open stream, a raw call under an
intent and the question what became of it) asks once, at its beginning.
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
        """Told when answers may differ from those before: whoever keeps answers forgets them."""
        self._target = target

    def to(self, namespace: str, key: str = "") -> T:
        """The target of a call in ``namespace`` about ``key``: a snapshot's key, a digest, a ref, an image's name.

        Each is empty where the call has none, and ``key`` also where the request passes unread.
        """
        return self._target

    def replace(self, target: T) -> T:
        """Send calls to ``target`` from now on, and tell those who keep answers; returns the target before, where
        the calls under way come to their end.
        """
        before, self._target = self._target, target
        self.tell()
        return before

    def tell(self) -> None:
        """Tell those who keep answers to forget them."""
        for told in self.changed:
            told()
