"""Pulls that an operator wants on several nodes: the words for them.

Whoever takes an *order* asks nodes whether they could pull the image, chooses among those that could, and lets so many
of them begin at once as the order says. Below the prefix, with the lease of the node that writes them:

- ``wanted/NODE/ID``: what NODE is asked to pull, and whether it is to begin. It goes away with the order, or with the
  node that took it: then nobody cares for the order any more, and a pull that has not begun is forgotten;
- ``answers/ID/NODE``: how far NODE is.

So a node reads only what is meant for it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.fleet.told import NAME, number, text
from services.kit import errors, identifiers
from services.oci.references import Reference

MOST = 1000
"""Nodes of one order."""
AT_ONCE = 100
"""Nodes of one order that pull at once, at most."""
WORDS = 500
"""Characters of an error that are told."""


class State(enum.StrEnum):
    """How far a node is with an order."""

    READY = "ready"
    """It could pull the image."""
    REFUSED = "refused"
    """It could not, or does not answer."""
    PRESENT = "present"
    """It has an image of this name, so it is not asked."""
    WAITING = "waiting"
    """It is to pull the image once it is its turn."""
    PULLING = "pulling"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self not in (State.READY, State.WAITING, State.PULLING)


@dataclass(frozen=True, slots=True)
class NodePull:
    """A node's part of an order."""

    node: str
    state: State
    done: int = 0
    """Bytes that it has, as far as it has told."""
    total: int = 0
    """Bytes of all blobs that are known so far."""
    digest: str = ""
    """Of the image, once it is done."""
    error: str = ""
    """Why it refused or failed."""
    free: int = 0
    """Bytes that were free on its disk when it was ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An image that nodes are to pull: ``nodes`` of them that have no image of this name, 0 being all of these; or
    those of ``on``, whether they have one or not.
    """

    image: str
    namespace: str
    nodes: int = 0
    on: tuple[str, ...] = ()
    at_once: int = 10

    def check(self) -> None:
        """InvalidArgument if it makes no sense."""
        check_image(self.image)
        identifiers.validate(self.namespace)
        for node in self.on:
            identifiers.validate(node)
        if self.on and self.nodes:
            raise errors.InvalidArgument("either a number of nodes, or their names")
        if not 0 <= self.nodes <= MOST or len(self.on) > MOST:
            raise errors.InvalidArgument(f"an order has at most {MOST} nodes")
        if not 0 < self.at_once <= AT_ONCE:
            raise errors.InvalidArgument(f"{self.at_once} nodes at once: say 1 to {AT_ONCE}")


@dataclass(frozen=True, slots=True)
class News:
    """What has changed."""

    pulls: tuple[NodePull, ...]
    trouble: str = ""
    """Why nothing is heard of the nodes; empty if that is not so."""


def check_image(name: str) -> None:
    """InvalidArgument if no registry can be asked for it."""
    if len(name.encode()) > NAME:
        raise errors.InvalidArgument(f"the image's name has more than {NAME} bytes")
    _ = Reference.parse(name).target  # which raises without a tag or digest


def to_value(pull: NodePull) -> Mapping[str, Any]:
    """For etcd."""
    return {
        "state": str(pull.state),
        "done": pull.done,
        "total": pull.total,
        "digest": pull.digest,
        "error": pull.error[:WORDS],
        "free": pull.free,
    }


def of_value(node: str, value: Mapping[str, Any]) -> NodePull | None:
    """What a node told; None if it makes no sense."""
    try:
        state = State(text(value.get("state")))
    except ValueError:
        return None
    done, total, free = (number(value.get(name)) for name in ("done", "total", "free"))
    return NodePull(node, state, done, total, text(value.get("digest"))[:WORDS], text(value.get("error"))[:WORDS], free)
