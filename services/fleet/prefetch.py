"""Orders that this node has taken (``orders.py``): which nodes pull an image, and when each of them begins."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from services.fleet.following import following
from services.fleet.local import FleetNode
from services.fleet.orders import MOST, News, NodePull, Order, State, of_value
from services.kit import errors, loops

log = logging.getLogger(__name__)

ORDERS = 16
"""Orders that a node has taken at once, at most."""
ASKING = 10.0
"""Seconds that a node has to answer."""
AWAY = 30.0
"""Seconds after which a node that has left the fleet is not waited for: longer than the end of its lease and the
restart of its process.
"""
TICK = 1.0
"""Seconds after which the nodes are looked at, even if none says anything."""
PAUSE = 0.2
"""Seconds from one look to the next, at least."""
RETRY = 2.0
"""Seconds until etcd is asked again after a failure."""


class Prefetches:
    """The orders of a node."""

    def __init__(self, node: FleetNode, *, asking: float = ASKING, away: float = AWAY) -> None:
        self._node = node
        self._asking = asking
        self._away = away
        self._open = 0

    async def run(self, order: Order) -> AsyncGenerator[News]:
        """Fulfil an order, and tell of each change. It ends when all nodes are done; if it is closed before, what has
        not begun is withdrawn. InvalidArgument, NotFound for a node that is not in the fleet, FailedPrecondition for a
        namespace that is not shared, Unavailable if etcd is away at the beginning.
        """
        order.check()
        if order.namespace not in self._node.namespaces:
            raise errors.FailedPrecondition.verbatim(
                f"namespace {order.namespace} is not shared ([fleet] namespaces: {', '.join(self._node.namespaces)})"
            )
        if self._node.trouble:
            raise errors.Unavailable.verbatim(f"this node is not in the fleet: {self._node.trouble}")
        if self._open >= ORDERS:
            raise errors.ResourceExhausted.verbatim(f"this node has taken {ORDERS} orders already")
        self._open += 1
        prefetch = _Prefetch(self._node, order, self._asking, self._away)
        try:
            async with contextlib.aclosing(prefetch.run()) as news:
                async for each in news:
                    yield each
        finally:
            self._open -= 1


class _Prefetch:
    """One order."""

    def __init__(self, node: FleetNode, order: Order, asking: float, away: float) -> None:
        self._node = node
        self._order = order
        self._asking = asking
        self._away = away
        self._id = secrets.token_hex(8)
        self._left: list[str] = []
        """Nodes that could be asked."""
        self._asked: dict[str, float] = {}
        """Nodes that were asked, and when they were last heard of."""
        self._queue: list[str] = []
        """Nodes that were chosen and have not begun."""
        self._pulls: dict[str, NodePull] = {}
        """What is told of each node: those that were chosen, and those that cannot be."""
        self._chosen = 0
        self._exhausted = False
        """Whether no further node can be asked."""
        self._answers: Mapping[str, Mapping[str, Any]] = {}
        self._trouble = ""
        self._wake = asyncio.Event()

    async def run(self) -> AsyncGenerator[News]:
        await self._plan()
        listening = loops.aside("the answers to an order", self._listen())
        told: dict[str, NodePull] = {}
        trouble = ""
        try:
            while True:
                self._wake.clear()
                self._step(time.monotonic())
                changed = tuple(pull for name, pull in self._pulls.items() if told.get(name) != pull)
                if changed or trouble != self._trouble:
                    trouble = self._trouble
                    yield News(changed, trouble)
                told = dict(self._pulls)
                if self._is_over:
                    return
                await asyncio.sleep(PAUSE)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._wake.wait()
        finally:
            for name in self._asked:
                self._want(name, None)
            listening.cancel()
            await asyncio.wait((listening,))

    async def _plan(self) -> None:
        """Find out which nodes could be asked."""
        nodes = {name async for name, _ in self._node.nodes()}
        if self._order.on:
            if missing := [name for name in self._order.on if name not in nodes]:
                raise errors.NotFound(f"node {missing[0]} of the fleet")
            self._left = list(dict.fromkeys(self._order.on))
            return
        having = {each.node: each for each in await self._node.having(self._order.namespace, self._order.image)}
        for name, image in sorted(having.items()):
            if name in nodes:
                self._pulls[name] = NodePull(name, State.PRESENT, digest=image.target.digest)
        self._left = sorted(nodes - having.keys())[:MOST]
        random.shuffle(self._left)  # so that not each order asks the same

    async def _listen(self) -> None:
        while True:
            try:
                found = following(self._node.etcd, self._node.key("answers", self._id, ""))
                async with contextlib.aclosing(found):
                    async for self._answers in found:
                        self._trouble = ""
                        self._wake.set()
            except errors.NodeError as error:
                self._trouble = str(error)
                self._wake.set()
            await asyncio.sleep(RETRY)

    def _want(self, name: str, begin: bool | None) -> None:
        order = self._order
        value = {"image": order.image, "namespace": order.namespace, "begin": begin, "by": self._node.node}
        self._node.tell(None if begin is None else value, "wanted", name, self._id)

    @property
    def _few(self) -> bool:
        """Whether only some nodes are to pull it."""
        return bool(self._order.nodes)

    @property
    def _missing(self) -> int:
        """Nodes that are still to be chosen."""
        if self._few:
            return 0 if self._exhausted else self._order.nodes - self._chosen
        return len(self._left) + len(self._unchosen())

    def _unchosen(self) -> list[str]:
        """The nodes that were asked, and of which nothing is told yet."""
        return [name for name in self._asked if name not in self._pulls]

    @property
    def _is_over(self) -> bool:
        return self._missing <= 0 and not self._queue and all(pull.state.is_over for pull in self._pulls.values())

    def _step(self, now: float) -> None:
        """See what the nodes have answered, and go on."""
        for name, heard in self._asked.items():
            self._hear(name, heard, now)
        self._choose()
        if self._few and self._missing > 0 and not self._unchosen():
            count = 2 * self._missing + 8  # some will refuse, and the emptiest disks are the best
            self._ask(now, count)
            self._exhausted = not self._unchosen()
        elif not self._few:
            self._ask(now, len(self._left))
        running = sum(
            pull.state in (State.WAITING, State.PULLING)
            for name, pull in self._pulls.items()
            if name not in self._queue
        )
        for name in self._queue[: max(0, self._order.at_once - running)]:
            self._queue.remove(name)
            self._asked[name] = now
            self._want(name, True)

    def _ask(self, now: float, count: int) -> None:
        asked, self._left = self._left[:count], self._left[count:]
        for name in asked:
            self._asked[name] = now
            self._want(name, False)

    def _hear(self, name: str, heard: float, now: float) -> None:
        known = self._pulls.get(name)
        if known is not None and known.state.is_over:
            return
        said = of_value(name, self._answers.get(name, {}))
        if said is None or (said.state is State.READY and known is not None and name not in self._queue):
            # READY again after it was to begin: as if it had said nothing
            if self._trouble:
                self._asked[name] = now
            elif known is None and now - heard > self._asking:
                self._pulls[name] = NodePull(name, State.REFUSED, error=f"no answer within {self._asking:g} s")
                self._want(name, None)
            elif known is not None and now - heard > self._away:
                error = "it has left the fleet" if said is None else "it does not begin"
                self._pulls[name] = replace(known, state=State.FAILED, error=error)
                with contextlib.suppress(ValueError):
                    self._queue.remove(name)
            return
        self._asked[name] = now
        if known is not None and name not in self._queue:
            self._pulls[name] = said
        elif said.state is State.REFUSED:
            self._pulls[name] = said
            with contextlib.suppress(ValueError):
                self._queue.remove(name)

    def _choose(self) -> None:
        """Choose among the nodes that are ready: all, or those with the most space once all have answered."""
        found = {name: of_value(name, self._answers.get(name, {})) for name in self._unchosen()}
        ready = [pull for pull in found.values() if pull is not None and pull.state is State.READY]
        if self._few and (len(ready) < len(found) or self._missing <= 0):
            return
        ready.sort(key=lambda pull: -pull.free)
        for pull in itertools.islice(ready, self._missing if self._few else None):
            self._pulls[pull.node] = replace(pull, state=State.WAITING)
            self._queue.append(pull.node)
            self._chosen += 1
        if self._few and self._missing <= 0:
            for name in self._unchosen():  # they are not needed
                self._want(name, None)
                del self._asked[name]
