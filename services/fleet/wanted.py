"""What other nodes ask this one to pull (``orders.py``), and the pulls of it.

An image is pulled once at a time, however many orders want it. A pull that has begun goes on to its end, even if the
order is withdrawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from services.fleet import orders
from services.fleet.following import following
from services.fleet.local import FleetNode
from services.fleet.orders import NodePull, State
from services.fleet.told import text
from services.kit import errors, loops

log = logging.getLogger(__name__)

Pull = Callable[[str, str, Callable[[int, int], None]], Awaitable[str]]
"""Pulls an image to a namespace, tells the bytes that are there and of all known blobs, and returns the digest."""

PULLS = 2
"""Images that are pulled at once for others."""
ORDERS = 64
"""Orders that a node answers."""
SPACE = 1 << 30
"""Bytes that must be free on the disk of the node's blobs: with fewer it pulls nothing for others."""
QUIET = 1.0
"""Seconds from one word on a pull to the next."""
RETRY = 2.0
"""Seconds until etcd is asked again after a failure."""
KEPT = 256
"""Orders that have ended and are remembered, in case they are read again."""


@dataclass(slots=True)
class _Pulling:
    """A pull, and the orders that want it."""

    namespace: str
    image: str
    now: NodePull
    orders: set[str] = field(default_factory=set)
    begun: bool = False
    told: float = 0.0
    task: asyncio.Task[None] | None = None


class Wanted:
    """The orders that a node is asked to fulfil by ``pull``. ``space`` gives the free bytes of its disk."""

    def __init__(
        self,
        node: FleetNode,
        pull: Pull,
        space: Callable[[], int],
        *,
        pulls: int = PULLS,
        least: int = SPACE,
        quiet: float = QUIET,
        retry: float = RETRY,
    ) -> None:
        self._node = node
        self._pull = pull
        self._space = space
        self._least = least
        self._quiet = quiet
        self._retry = retry
        self._turn = asyncio.Semaphore(pulls)
        self._orders: dict[str, tuple[str, str]] = {}
        """The namespace and image of each order that was answered."""
        self._pulling: dict[tuple[str, str], _Pulling] = {}
        self._ended: dict[str, NodePull] = {}
        """How orders ended."""
        self._tasks = loops.Tasks()

    async def keep(self) -> None:
        """Answer, until cancelled. It is a loop of the process."""
        try:
            while True:
                try:
                    found = following(self._node.etcd, self._node.key("wanted", self._node.node, ""))
                    async with contextlib.aclosing(found):
                        async for wanted in found:
                            self._take(wanted)
                except errors.NodeError as error:
                    log.debug("etcd does not say what is wanted: %s", error)
                await asyncio.sleep(self._retry)
        finally:
            await self._tasks.cancel()

    def _take(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        for order in [order for order in self._orders if order not in wanted]:
            self._forget(order)
        for order, value in wanted.items():
            if order not in self._orders:
                if len(self._orders) >= ORDERS or not value:
                    continue
                self._orders[order] = text(value.get("namespace")), text(value.get("image"))
                ended = self._ended.get(order)
                self._tell(order, self._first(*self._orders[order]) if ended is None else ended)
            if value.get("begin") is True and order not in self._ended:
                self._begin(order)

    def _first(self, namespace: str, image: str) -> NodePull:
        """Whether this node could pull an image."""
        name = self._node.node
        try:
            free = self._space()
            if namespace not in self._node.namespaces:
                raise errors.FailedPrecondition.verbatim(f"namespace {namespace} is not shared by this node")
            orders.check_image(image)
            self._check_space(free)
        except errors.NodeError as error:
            return NodePull(name, State.REFUSED, error=str(error))
        return NodePull(name, State.READY, free=free)

    def _check_space(self, free: int) -> None:
        if free < self._least:
            raise errors.ResourceExhausted.verbatim(
                f"{free / (1 << 20):,.0f} MiB are free on its disk, of at least {self._least / (1 << 20):,.0f}"
            )

    def _tell(self, order: str, pull: NodePull) -> None:
        if pull.state.is_over:
            self._ended[order] = pull
            while len(self._ended) > KEPT:
                del self._ended[next(iter(self._ended))]
        if order in self._orders:
            self._node.tell(orders.to_value(pull), "answers", order, self._node.node)

    def _forget(self, order: str) -> None:
        """An order was withdrawn."""
        pulling = self._pulling.get(self._orders.pop(order))
        self._node.tell(None, "answers", order, self._node.node)
        if pulling is not None:
            pulling.orders.discard(order)
            if not pulling.orders and not pulling.begun and pulling.task is not None:
                pulling.task.cancel()

    def _begin(self, order: str) -> None:
        namespace, image = key = self._orders[order]
        pulling = self._pulling.get(key)
        if pulling is not None and order in pulling.orders:
            return
        if pulling is None or (pulling.task is not None and pulling.task.cancelling()):
            pulling = self._pulling[key] = _Pulling(namespace, image, NodePull(self._node.node, State.WAITING))
            pulling.task = self._tasks.start(f"the wanted pull of {image}", self._run(pulling))
        pulling.orders.add(order)
        self._tell(order, pulling.now)

    async def _run(self, pulling: _Pulling) -> None:
        def said(state: State, **more: Any) -> None:
            pulling.now, pulling.told = replace(pulling.now, state=state, **more), time.monotonic()
            for order in pulling.orders:
                self._tell(order, pulling.now)

        def moved(done: int, total: int) -> None:
            if time.monotonic() - pulling.told >= self._quiet:
                said(State.PULLING, done=done, total=total)
            else:
                pulling.now = replace(pulling.now, done=done, total=total)

        try:
            async with self._turn:
                pulling.begun = True
                self._check_space(self._space())
                said(State.PULLING)
                log.info("%s is pulled to namespace %s, as the fleet wants", pulling.image, pulling.namespace)
                digest = await self._pull(pulling.namespace, pulling.image, moved)
            said(State.DONE, digest=digest)
        except errors.NodeError as error:
            log.warning("%s, which the fleet wants, is not pulled: %s", pulling.image, error)
            said(State.FAILED, error=str(error))
        except Exception as error:  # a bug, which the log has
            said(State.FAILED, error=f"internal error: {type(error).__name__}")
            raise
        finally:
            if self._pulling.get((pulling.namespace, pulling.image)) is pulling:
                del self._pulling[pulling.namespace, pulling.image]
